# mypy: ignore-errors
# ruff: noqa
# fmt: off
"""Runs a model that octavo exported. Needs NumPy and nothing else; Apache-2.0.

    python run.py inputs.npz outputs.npz        arrays by input name in, arrays by output name out
    logits = Model("model.npz")(images)[0]      after: from run import Model

The model is a graph of ONNX operators and of octavo's own integer ones. Integer products are exact:
codes are whole numbers held in float32, and wherever a sum could leave +-2**24, beyond which
float32 rounds, the product is made in float64.
"""

import json
import math
import sys

import numpy as np

EXACT = 1 << 24
F32 = np.float32

class Model:
    """A graph: call it with arrays in the order of ``inputs``, or by name; a list comes out."""
    def __init__(self, path):
        with np.load(path, allow_pickle=False) as archive:
            table, data = json.loads(archive["graph.json"]), archive["data"]
        arrays = [stored(data, *row) for row in table["arrays"]]
        self.inputs = [name for name, _, _ in table["inputs"]]
        self.dtypes = [np.dtype(dtype) for _, _, dtype in table["inputs"]]
        self.outputs = table["outputs"]
        self.constants = {name: arrays[i] for name, i in table["initializers"].items()}
        self.opset = table["opset"]
        self.steps, last = [], {}
        for number, (op, name, reads, writes, raw) in enumerate(table["nodes"]):
            self.check(op, name)
            held = {k: arrays[v["array"]] for k, v in raw.items() if isinstance(v, dict)}
            attributes = {**raw, **held}
            if op == "Split":
                attributes.setdefault("num_outputs", len(writes))
            self.steps.append((OPS[op], reads, writes, attributes, []))
            last.update(dict.fromkeys(reads, number))
        for name, number in last.items():
            if name not in self.constants and name not in self.outputs:
                self.steps[number][4].append(name)
    def check(self, op, name):
        if op not in OPS:
            raise ValueError(f"node {name!r}: this runner has no operator {op}")
        if op in ("Softmax", "LogSoftmax") and self.opset < 13:
            raise ValueError(f"node {name!r}: softmax of operator set {self.opset}; "
                             "convert the model to 13 or later")
    def __call__(self, *arrays, **named):
        given = [named[name] for name in self.inputs] if named else arrays
        if len(given) != len(self.inputs):
            raise ValueError(f"the model takes {', '.join(self.inputs)}; "
                             f"{len(given)} arrays were given")
        values = {"": None, **self.constants}
        for name, array, dtype in zip(self.inputs, given, self.dtypes):
            values[name] = np.asarray(array).astype(dtype, copy=False)
        for function, reads, writes, attributes, dead in self.steps:
            result = function(*(values[name] for name in reads), **attributes)
            values.update(zip(writes, result if isinstance(result, tuple) else (result,)))
            for name in dead:
                values.pop(name, None)
        return [np.asarray(values[name]) for name in self.outputs]
def stored(data, dtype, shape, offset):
    dtype = np.dtype(dtype)
    return data[offset : offset + dtype.itemsize * math.prod(shape)].view(dtype).reshape(shape)

# Activations.
def sigmoid(x):
    return 0.5 * np.tanh(0.5 * x) + x.dtype.type(0.5)

# erf(x) = tanh(x p(x^2)), p fitted to atanh(erf(x)) / x; within 1.8e-7 of erf over all float32.
ERF = (1.1283792742348693, 0.10276905638943719, -0.00019183204872319807, -0.0006197836678610367,
       8.763698303280526e-05, -5.668423519424555e-06, 1.4184945434697698e-07)

def erf(x):
    square = np.minimum(np.square(x), F32(16))
    y = np.full_like(x, ERF[-1])
    for c in ERF[-2::-1]:
        y = y * square + x.dtype.type(c)
    return np.tanh(x * y)
def gelu(x, approximate="none"):
    kind = x.dtype.type
    if approximate == "tanh":
        inner = kind(math.sqrt(2 / math.pi)) * (x + kind(0.044715) * x**3)
        return kind(0.5) * x * (1 + np.tanh(inner))
    return kind(0.5) * x * (1 + erf(x * kind(math.sqrt(0.5))))
def hard_sigmoid(x, alpha=0.2, beta=0.5):
    return np.clip(x * x.dtype.type(alpha) + x.dtype.type(beta), 0, 1).astype(x.dtype)
def clip(x, low=None, high=None, **old):
    low, high = old.get("min", low), old.get("max", high)
    x = x if low is None else np.maximum(x, np.asarray(low, x.dtype))
    return x if high is None else np.minimum(x, np.asarray(high, x.dtype))

ACTIVATIONS = {"": lambda y: y, "Relu": lambda y: np.maximum(y, 0), "Tanh": np.tanh,
               "Sigmoid": sigmoid, "Gelu": gelu, "GeluTanh": lambda y: gelu(y, "tanh")}

# Normalisations and softmax.
def softmax(x, axis=-1):
    y = np.exp(x - x.max(axis=axis, keepdims=True))
    return y / y.sum(axis=axis, keepdims=True)
def log_softmax(x, axis=-1):
    y = x - x.max(axis=axis, keepdims=True)
    return y - np.log(np.exp(y).sum(axis=axis, keepdims=True))

def channel(v, x):
    return v.reshape(-1, *(1,) * (x.ndim - 2))
def batch_norm(x, scale, bias, mean, variance, epsilon=1e-5, **_):
    factor = scale / np.sqrt(variance + variance.dtype.type(epsilon))
    return x * channel(factor, x) + channel(bias - mean * factor, x)

def moments(x, axes, epsilon):
    mean = x.mean(axis=axes, keepdims=True)
    centred = x - mean
    variance = np.square(centred).mean(axis=axes, keepdims=True)
    return centred, mean, 1 / np.sqrt(variance + x.dtype.type(epsilon))
def layer_norm(x, scale, bias=None, axis=-1, epsilon=1e-5, **_):
    centred, mean, inverse = moments(x, tuple(range(axis % x.ndim, x.ndim)), epsilon)
    y = centred * inverse * scale
    return (y if bias is None else y + bias), mean, inverse
def rms_norm(x, scale, axis=-1, epsilon=1e-5, **_):
    axes = tuple(range(axis % x.ndim, x.ndim))
    mean_square = np.square(x).mean(axis=axes, keepdims=True)
    return x / np.sqrt(mean_square + x.dtype.type(epsilon)) * scale
def instance_norm(x, scale, bias, epsilon=1e-5):
    centred, _, inverse = moments(x, tuple(range(2, x.ndim)), epsilon)
    return centred * inverse * channel(scale, x) + channel(bias, x)

# Products.
def integer_product(x, w):
    bound = float(np.abs(x).max(initial=0)) * float(np.abs(w).sum(axis=-2).max(initial=0))
    return x @ w if bound <= EXACT else (x.astype(np.float64) @ w.astype(np.float64)).astype(F32)
def gemm(a, b, c=None, alpha=1.0, beta=1.0, transA=0, transB=0, activation=""):
    y = (a.T if transA else a) @ (b.T if transB else b)
    y = y if alpha == 1.0 else y * y.dtype.type(alpha)
    return ACTIVATIONS[activation](y if c is None else y + c * c.dtype.type(beta))
def attention(q, k, v, mask=None, scale=1.0):
    scores = (q * q.dtype.type(scale)) @ k
    scores = scores if mask is None else scores + mask
    top = scores.max(axis=-1, keepdims=True)
    y = np.exp(scores - np.where(np.isneginf(top), 0, top))
    total = y.sum(axis=-1, keepdims=True)
    return y @ v / np.where(total == 0, 1, total)

# Windows, convolution and pooling.
def padding_of(spatial, kernel, strides, dilations, pads, auto_pad):
    n = len(kernel)
    if auto_pad in ("", "NOTSET"):
        return list(zip(pads[:n], pads[n:]))
    if auto_pad == "VALID":
        return [(0, 0)] * n
    pairs = []
    for size, k, s, d in zip(spatial, kernel, strides, dilations):
        total = max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
        less, more = total // 2, total - total // 2
        pairs.append((less, more) if auto_pad == "SAME_UPPER" else (more, less))
    return pairs

def windows(x, kernel, strides=None, dilations=None, pads=None, auto_pad="", fill=0, ceil_mode=0):
    """(N, C, spatial...) -> (N, outputs..., kernel..., C), a view of the padded input."""
    n, spatial = len(kernel), x.shape[2:]
    strides, dilations, pads = strides or (1,) * n, dilations or (1,) * n, pads or (0,) * 2 * n
    pairs = padding_of(spatial, kernel, strides, dilations, pads, auto_pad)
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations)]
    if ceil_mode:
        pairs = [with_last_window(*axis) for axis in zip(spatial, strides, reach, pairs)]
    x = np.pad(np.moveaxis(x, 1, -1), [(0, 0), *pairs, (0, 0)], constant_values=fill)
    view = np.lib.stride_tricks.sliding_window_view(x, reach, axis=tuple(range(1, n + 1)))
    steps = [slice(None, None, s) for s in strides]
    taps = [slice(None, None, d) for d in dilations]
    return np.moveaxis(view[(slice(None), *steps, slice(None), *taps)], n + 1, -1)
def with_last_window(size, stride, reach, pair):
    """Room behind for the last window, which must begin inside the input or its front padding."""
    before, after = pair
    count = -(-(size + before + after - reach) // stride) + 1
    count -= (count - 1) * stride >= size + before
    return before, max(after, (count - 1) * stride + reach - size - before)
def convolve(x, panel, kernel, groups, product, **geometry):
    """panel: (groups, kernel * C / g, O / g); one image at a time, so that columns stay small."""
    view = windows(x, kernel, **geometry)
    n, taps, width = len(kernel), math.prod(kernel), x.shape[1] // groups
    outputs = view.shape[1 : n + 1]
    results = []
    for image in view:
        rows = image.reshape(-1, taps, groups, width).transpose(2, 0, 1, 3)
        y = product(rows.reshape(groups, -1, panel.shape[1]), panel)
        results.append(y.transpose(1, 0, 2).reshape(*outputs, -1))
    if not results:
        return np.zeros((0, panel.shape[0] * panel.shape[2], *outputs), x.dtype)
    return np.moveaxis(np.stack(results), -1, 1)
def panel_of(w, groups):
    """(kernel..., C / g, O) -> (groups, kernel * C / g, O / g)."""
    return w.reshape(-1, groups, w.shape[-1] // groups).transpose(1, 0, 2)
def conv(x, w, b=None, group=1, kernel_shape=None, activation="", **geometry):
    panel = panel_of(np.moveaxis(w, (0, 1), (-1, -2)), group)
    y = convolve(x, panel, w.shape[2:], group, np.matmul, **geometry)
    return ACTIVATIONS[activation](y if b is None else y + channel(b, x))
def max_pool(x, kernel_shape, storage_order=0, **geometry):
    view = windows(x, kernel_shape, fill=-np.inf, **geometry)
    return np.moveaxis(view.max(axis=tuple(range(x.ndim - 1, view.ndim - 1))), -1, 1)
def average_pool(x, kernel_shape, count_include_pad=0, **geometry):
    axes = tuple(range(x.ndim - 1, 2 * x.ndim - 3))
    if count_include_pad and geometry.get("ceil_mode"):
        raise ValueError("average pooling with both ceil_mode and count_include_pad")
    sums = windows(x, kernel_shape, **geometry).sum(axis=axes)
    counts = math.prod(kernel_shape)
    if not count_include_pad:
        counts = windows(np.ones_like(x), kernel_shape, **geometry).sum(axis=axes)
    return np.moveaxis(sums / counts, -1, 1)

# octavo's own quantized operators.

def quantize(x, scale, zero, low=0, high=255):
    return np.clip(np.rint(x.astype(F32) / scale), F32(low - int(zero)), F32(high - int(zero)))
def dynamic_quantize(x, low=0, high=255, symmetric=0, granularity="tensor"):
    axis, keep = (-1, True) if granularity == "token" else (None, False)
    x = x.astype(F32)
    least = np.minimum(x.min(axis=axis, keepdims=keep), F32(0))
    most = np.maximum(x.max(axis=axis, keepdims=keep), F32(0))
    middle = 0 if low < 0 else (low + high + 1) // 2
    scale = (most - least) / F32(high - low)
    if symmetric:
        scale = np.maximum(-least, most) / F32(high - middle)
    scale = np.where(scale < np.finfo(F32).tiny, F32(1), scale)
    zero = np.clip(np.rint(F32(low) - least / scale), low, high)
    zero = np.full_like(scale, middle) if symmetric else zero
    return np.clip(np.rint(x / scale), F32(low) - zero, F32(high) - zero), scale

def finish(y, x_scale, w_scale, bias, y_scale, activation, low, high, last):
    """Rescale an exact sum; with ``y_scale``, go on to codes."""
    early = activation in ("", "Relu")
    divisor = y_scale if y_scale is not None and early else None
    scale = x_scale * w_scale if divisor is None else x_scale * w_scale / divisor
    bias = bias if divisor is None or bias is None else bias / divisor
    y = y * last(scale)
    y = y if bias is None else y + last(bias)
    if y_scale is None:
        return ACTIVATIONS[activation](y)
    y = np.rint(y if early else ACTIVATIONS[activation](y) / y_scale)
    return np.clip(y, F32(max(low, 0) if activation == "Relu" else low), F32(high))
def quantized_gemm(x, x_scale, w, w_scale, w_zero=None, bias=None, y_scale=None, transB=0,
                   activation="", low=0, high=0, largest=255):
    w = w.astype(F32)
    if w_zero is not None:
        w = w - w_zero.astype(F32).reshape((-1, 1) if transB and w_zero.ndim else -1)
    y = integer_product(x, w.T if transB else w)
    if x_scale.ndim:
        y, x_scale = y * x_scale, F32(1)
    return finish(y, x_scale, w_scale, bias, y_scale, activation, low, high, lambda v: v)
def quantized_conv(x, x_scale, w, w_scale, w_zero=None, bias=None, y_scale=None, group=1,
                   activation="", low=0, high=0, largest=255, **geometry):
    w = w.astype(F32) if w_zero is None else w.astype(F32) - w_zero.astype(F32)
    y = convolve(x, panel_of(w, group), w.shape[:-2], group, integer_product, **geometry)
    last = lambda v: channel(v, x) if np.ndim(v) else v
    return finish(y, x_scale, w_scale, bias, y_scale, activation, low, high, last)

def unpacked(packed, scale, zero, table, bits, columns, features):
    """Packed rows -> float32 (rows, features)."""
    rows = len(packed)
    stream = np.unpackbits(packed, axis=1, bitorder="little")[:, : features * bits]
    codes = np.packbits(stream.reshape(rows, features, bits), axis=2, bitorder="little")[..., 0]
    def spread(v):
        if columns:
            return np.repeat(v.reshape(rows, -1), columns, axis=1)[:, :features]
        return v.reshape(-1, 1) if v.ndim else v
    y = table[codes]
    return (y if zero is None else y - spread(zero.astype(F32))) * spread(scale)
def dequantize(packed, scale, zero, table, bits=8, columns=0, shape=(), axis=0):
    moved = [shape[axis], *(s for i, s in enumerate(shape) if i != axis)]
    rows = unpacked(packed, scale, zero, table, bits, columns, math.prod(moved[1:]))
    return np.moveaxis(rows.reshape(moved), 0, axis)
def dequantize_rows(packed, scale, zero, table, indices, bits=8, columns=0, features=0):
    flat = indices.reshape(-1)
    zero = zero if zero is None or not zero.ndim else zero[flat]
    scale = scale[flat] if scale.ndim else scale
    rows = unpacked(packed[flat], scale, zero, table, bits, columns, features)
    return rows.reshape(*indices.shape, features)

# Reductions, shapes and indices.
def chain(function):
    def run(*inputs):
        result = inputs[0]
        for x in inputs[1:]:
            result = function(result, x)
        return result
    return run
def reducer(function):
    def run(x, given=None, axes=None, keepdims=1, noop_with_empty_axes=0):
        axes = ints(given, axes)
        if not axes and noop_with_empty_axes:
            return x
        result = function(x, axis=axes or None, keepdims=bool(keepdims))
        return np.asarray(result).astype(x.dtype, copy=False)
    return run
def arg(function):
    def run(x, axis=0, keepdims=1, select_last_index=0):
        found = function(np.flip(x, axis) if select_last_index else x, axis=axis)
        found = x.shape[axis] - 1 - found if select_last_index else found
        return (np.expand_dims(found, axis) if keepdims else found).astype(np.int64)
    return run

def ints(given, attribute=None):
    if given is not None:
        return tuple(int(i) for i in np.asarray(given).reshape(-1))
    return None if attribute is None else tuple(attribute)
def reshape(x, given=None, shape=None, allowzero=0):
    wanted = enumerate(ints(given, shape))
    return x.reshape([x.shape[i] if s == 0 and not allowzero else s for i, s in wanted])
def slices(x, starts, ends, axes=None, steps=None):
    index, first, last = [slice(None)] * x.ndim, ints(starts), ints(ends)
    axes, steps = ints(axes) or range(len(first)), ints(steps) or (1,) * len(first)
    for a, b, axis, s in zip(first, last, axes, steps):
        if s < 0:  # Python reads an end of -1 as "the last one"; before the first is None here
            n = x.shape[axis]
            stop = b + n if b < 0 else b
            a, b = min(a, n - 1) if a >= 0 else a, None if stop < 0 else stop
        index[axis] = slice(a, b, s)
    return x[tuple(index)]
def split(x, given=None, axis=0, split=None, num_outputs=1):
    lengths = ints(given, split)
    step = -(-x.shape[axis] // num_outputs)
    ends = np.cumsum(lengths)[:-1] if lengths else range(step, step * num_outputs, step)
    return tuple(np.split(x, ends, axis=axis))
def pad(x, pads, value=None, axes=None, mode="constant"):
    amounts, widths, along = ints(pads), [(0, 0)] * x.ndim, ints(axes) or tuple(range(x.ndim))
    for i, axis in enumerate(along):
        widths[axis] = (amounts[i], amounts[i + len(along)])
    if mode != "constant":
        return np.pad(x, widths, mode=mode)
    return np.pad(x, widths, constant_values=0 if value is None else value.reshape(()))
def divide(a, b):
    if a.dtype.kind == "f":
        return a / b
    return (np.abs(a) // np.abs(b) * np.sign(a) * np.sign(b)).astype(a.dtype)

PLAIN = {  # ONNX's names of NumPy's functions
    "Abs": "abs", "Add": "add", "And": "logical_and", "Ceil": "ceil", "Cos": "cos",
    "Equal": "equal", "Exp": "exp", "Floor": "floor", "Greater": "greater", "IsNaN": "isnan",
    "GreaterOrEqual": "greater_equal", "Less": "less", "LessOrEqual": "less_equal", "Log": "log",
    "MatMul": "matmul", "Mul": "multiply", "Neg": "negative", "Not": "logical_not",
    "Or": "logical_or", "Reciprocal": "reciprocal", "Round": "rint", "Sign": "sign", "Sin": "sin",
    "Sqrt": "sqrt", "Sub": "subtract", "Tanh": "tanh", "Where": "where",
}
OPS = {
    **{op: getattr(np, name) for op, name in PLAIN.items()},
    "ReduceMax": reducer(np.max), "ReduceMean": reducer(np.mean), "ReduceMin": reducer(np.min),
    "ReduceProd": reducer(np.prod), "ReduceSum": reducer(np.sum),
    "ReduceL2": reducer(lambda x, **how: np.sqrt(np.square(x).sum(**how))),
    "Max": chain(np.maximum), "Min": chain(np.minimum), "Sum": chain(np.add), "Div": divide,
    "Pow": lambda a, b: np.power(a, b).astype(a.dtype),
    "Identity": lambda x: x, "Dropout": lambda x, *_, **__: (x, np.ones(x.shape, bool)),
    "Cast": lambda x, to, **_: x.astype(np.dtype(to)), "Clip": clip,
    "Relu": lambda x: np.maximum(x, x.dtype.type(0)), "Gelu": gelu, "Erf": erf,
    "Elu": lambda x, alpha=1.0: np.where(
        x < 0, x.dtype.type(alpha) * np.expm1(np.minimum(x, 0)), x),
    "LeakyRelu": lambda x, alpha=0.01: np.where(x < 0, x * x.dtype.type(alpha), x),
    "PRelu": lambda x, slope: np.where(x < 0, x * slope, x), "Sigmoid": sigmoid,
    "HardSigmoid": hard_sigmoid, "HardSwish": lambda x: x * hard_sigmoid(x, 1 / 6, 0.5),
    "Softplus": lambda x: np.logaddexp(x, x.dtype.type(0)),
    "Swish": lambda x, alpha=1.0: x * sigmoid(x * x.dtype.type(alpha)),
    "Softmax": softmax, "LogSoftmax": log_softmax, "BatchNormalization": batch_norm,
    "LayerNormalization": layer_norm, "RMSNormalization": rms_norm,
    "InstanceNormalization": instance_norm, "Gemm": gemm, "Conv": conv,
    "Einsum": lambda *xs, equation: np.einsum(equation, *xs),
    "MaxPool": max_pool, "AveragePool": average_pool,
    "GlobalAveragePool": lambda x: x.mean(axis=tuple(range(2, x.ndim)), keepdims=True),
    "GlobalMaxPool": lambda x: x.max(axis=tuple(range(2, x.ndim)), keepdims=True),
    "ArgMax": arg(np.argmax), "ArgMin": arg(np.argmin),
    "CumSum": lambda x, axis: np.cumsum(x, axis=int(axis), dtype=x.dtype),
    "Reshape": reshape, "Transpose": lambda x, perm=None: x.transpose(perm),
    "Flatten": lambda x, axis=1: x.reshape(math.prod(x.shape[:axis]), -1),
    "Squeeze": lambda x, given=None, axes=None: np.squeeze(x, ints(given, axes)),
    "Unsqueeze": lambda x, given=None, axes=None: np.expand_dims(x, ints(given, axes)),
    "Expand": lambda x, shape: np.broadcast_to(x, np.broadcast_shapes(x.shape, ints(shape))),
    "Concat": lambda *xs, axis: np.concatenate(xs, axis=axis), "Split": split, "Slice": slices,
    "Pad": pad, "Tile": lambda x, repeats: np.tile(x, ints(repeats)),
    "Trilu": lambda x, k=0, upper=1: (np.triu if upper else np.tril)(x, int(k)),
    "Gather": lambda x, i, axis=0: np.take(x, i, axis=axis),
    "GatherElements": lambda x, i, axis=0: np.take_along_axis(
        x, np.where(i < 0, i + x.shape[axis], i), axis=axis),
    "Shape": lambda x, start=0, end=None: np.array(x.shape[start:end], np.int64),
    "Size": lambda x: np.array(x.size, np.int64), "Constant": lambda value: value,
    "ConstantOfShape": lambda s, value=np.zeros(1, F32): np.full(ints(s), value.reshape(-1)[0]),
    "Range": lambda a, b, d: np.arange(a.item(), b.item(), d.item(), dtype=a.dtype),
    "octavo.Quantize": quantize, "octavo.DynamicQuantize": dynamic_quantize,
    "octavo.QuantizedGemm": quantized_gemm, "octavo.QuantizedConv": quantized_conv,
    "octavo.Attention": attention, "octavo.Dequantize": dequantize,
    "octavo.DequantizeRows": dequantize_rows,
}

if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python run.py inputs.npz outputs.npz")
    model = Model(__file__.replace("run.py", "model.npz"))
    with np.load(sys.argv[1], allow_pickle=False) as inputs:
        results = model(*(inputs[name] for name in model.inputs))
    np.savez(sys.argv[2], **dict(zip(model.outputs, results)))
