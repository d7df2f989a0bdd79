# mypy: ignore-errors
# ruff: noqa
# fmt: off
"""Runs a model that octavo exported. Needs NumPy and nothing else; Apache-2.0.

    python run.py inputs.npz outputs.npz        arrays by input name in, arrays by output name out
    logits = Model("model.npz")(images)[0]      after: from run import Model

The model is a graph of ONNX operators and of octavo's own integer ones. Integer products are exact: codes are whole numbers held
in float32, and wherever a sum could leave +-2**24, beyond which float32 rounds, the product is made in float64.
"""

import json
import math
import sys

import numpy as np

EXACT = 1 << 24


class Model:
    """A graph: call it with arrays in the order of ``inputs``, or by name; it returns the outputs as a list."""

    def __init__(self, path):
        with np.load(path, allow_pickle=False) as archive:
            table, data = json.loads(archive["graph.json"]), archive["data"]
        arrays = []
        for dtype, shape, offset in table["arrays"]:
            dtype = np.dtype(dtype)
            arrays.append(data[offset : offset + dtype.itemsize * math.prod(shape)].view(dtype).reshape(shape))
        self.inputs = [name for name, _, _ in table["inputs"]]
        self.dtypes = [np.dtype(dtype) for _, _, dtype in table["inputs"]]
        self.outputs = table["outputs"]
        self.constants = {name: arrays[i] for name, i in table["initializers"].items()}
        self.opset = table["opset"]
        self.steps, last = [], {}
        for number, (op, name, reads, writes, raw) in enumerate(table["nodes"]):
            if op not in OPS:
                raise ValueError(f"node {name!r}: this runner has no operator {op}")
            attributes = {k: arrays[v["array"]] if isinstance(v, dict) else v for k, v in raw.items()}
            if op in ("Softmax", "LogSoftmax") and self.opset < 13:
                raise ValueError(f"node {name!r}: softmax of operator set {self.opset}; convert the model to 13 or later")
            if op == "Split":
                attributes.setdefault("num_outputs", len(writes))
            self.steps.append((OPS[op], reads, writes, attributes, []))
            last.update(dict.fromkeys(reads, number))
        for name, number in last.items():
            if name not in self.constants and name not in self.outputs:
                self.steps[number][4].append(name)

    def __call__(self, *arrays, **named):
        given = [named[name] for name in self.inputs] if named else arrays
        if len(given) != len(self.inputs):
            raise ValueError(f"the model takes {', '.join(self.inputs)}; {len(given)} arrays were given")
        values = {"": None, **self.constants}
        values.update({n: np.asarray(a).astype(d, copy=False) for n, a, d in zip(self.inputs, given, self.dtypes)})
        for function, reads, writes, attributes, dead in self.steps:
            result = function(*(values[name] for name in reads), **attributes)
            values.update(zip(writes, result if isinstance(result, tuple) else (result,)))
            for name in dead:
                values.pop(name, None)
        return [np.asarray(values[name]) for name in self.outputs]


def chain(function):
    def run(*inputs):
        result = inputs[0]
        for x in inputs[1:]:
            result = function(result, x)
        return result
    return run


def sigmoid(x):
    return 0.5 * np.tanh(0.5 * x) + x.dtype.type(0.5)


# erf(x) = tanh(x p(x^2)), p fitted to atanh(erf(x)) / x on |x| <= 4: 1.8e-7 at most from erf over all float32.
ERF = (1.1283792742348693, 0.10276905638943719, -0.00019183204872319807, -0.0006197836678610367, 8.763698303280526e-05,
       -5.668423519424555e-06, 1.4184945434697698e-07)


def erf(x):
    square = np.minimum(np.square(x), np.float32(16))
    y = np.full_like(x, ERF[-1])
    for c in ERF[-2::-1]:
        y = y * square + x.dtype.type(c)
    return np.tanh(x * y)


def gelu(x, approximate="none"):
    kind = x.dtype.type
    if approximate == "tanh":
        return kind(0.5) * x * (1 + np.tanh(kind(math.sqrt(2 / math.pi)) * (x + kind(0.044715) * x**3)))
    return kind(0.5) * x * (1 + erf(x * kind(math.sqrt(0.5))))


def hard_sigmoid(x, alpha=0.2, beta=0.5):
    return np.clip(x * x.dtype.type(alpha) + x.dtype.type(beta), 0, 1).astype(x.dtype)


def clip(x, low=None, high=None, **old):
    low, high = old.get("min", low), old.get("max", high)
    x = x if low is None else np.maximum(x, np.asarray(low, x.dtype))
    return x if high is None else np.minimum(x, np.asarray(high, x.dtype))


ACTIVATIONS = {"": lambda y: y, "Relu": lambda y: np.maximum(y, 0), "Tanh": np.tanh, "Sigmoid": sigmoid, "Gelu": gelu,
               "GeluTanh": lambda y: gelu(y, "tanh")}


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
    return centred, mean, 1 / np.sqrt(np.square(centred).mean(axis=axes, keepdims=True) + x.dtype.type(epsilon))


def layer_norm(x, scale, bias=None, axis=-1, epsilon=1e-5, **_):
    centred, mean, inverse = moments(x, tuple(range(axis % x.ndim, x.ndim)), epsilon)
    y = centred * inverse * scale
    return (y if bias is None else y + bias), mean, inverse


def rms_norm(x, scale, axis=-1, epsilon=1e-5, **_):
    return x / np.sqrt(np.square(x).mean(axis=tuple(range(axis % x.ndim, x.ndim)), keepdims=True) + x.dtype.type(epsilon)) * scale


def instance_norm(x, scale, bias, epsilon=1e-5):
    centred, _, inverse = moments(x, tuple(range(2, x.ndim)), epsilon)
    return centred * inverse * channel(scale, x) + channel(bias, x)


def integer_product(x, w):
    bound = float(np.abs(x).max(initial=0)) * float(np.abs(w).sum(axis=-2).max(initial=0))
    return x @ w if bound <= EXACT else (x.astype(np.float64) @ w.astype(np.float64)).astype(np.float32)


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


def padding_of(spatial, kernel, strides, dilations, pads, auto_pad):
    n = len(kernel)
    if auto_pad in ("", "NOTSET"):
        return list(zip(pads[:n], pads[n:]))
    if auto_pad == "VALID":
        return [(0, 0)] * n
    pairs = []
    for size, k, s, d in zip(spatial, kernel, strides, dilations):
        total = max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
        pairs.append((total // 2, total - total // 2) if auto_pad == "SAME_UPPER" else (total - total // 2, total // 2))
    return pairs


def windows(x, kernel, strides=None, dilations=None, pads=None, auto_pad="NOTSET", fill=0, ceil_mode=0):
    """(N, C, spatial...) -> (N, outputs..., kernel..., C), a view of the padded channels-last input."""
    n = len(kernel)
    strides, dilations, pads = strides or (1,) * n, dilations or (1,) * n, pads or (0,) * 2 * n
    pairs = padding_of(x.shape[2:], kernel, strides, dilations, pads, auto_pad)
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations)]
    if ceil_mode:  # room behind for the last window, which must begin inside the input or its front padding
        for i, (size, s, r, (a, b)) in enumerate(zip(x.shape[2:], strides, reach, pairs)):
            count = -(-(size + a + b - r) // s) + 1
            count -= (count - 1) * s >= size + a
            pairs[i] = (a, max(b, (count - 1) * s + r - size - a))
    x = np.pad(np.moveaxis(x, 1, -1), [(0, 0), *pairs, (0, 0)], constant_values=fill)
    view = np.lib.stride_tricks.sliding_window_view(x, reach, axis=tuple(range(1, n + 1)))
    view = view[(slice(None), *(slice(None, None, s) for s in strides), slice(None), *(slice(None, None, d) for d in dilations))]
    return np.moveaxis(view, n + 1, -1)


def convolve(x, panel, kernel, groups, product, **geometry):
    """panel: (groups, kernel * C / g, O / g); one image at a time, so that the columns stay small."""
    view = windows(x, kernel, **geometry)
    n, taps = len(kernel), math.prod(kernel)
    results = []
    for image in view:
        rows = image.reshape(-1, taps, groups, x.shape[1] // groups).transpose(2, 0, 1, 3).reshape(groups, -1, panel.shape[1])
        y = product(rows, panel)
        results.append(y.transpose(1, 0, 2).reshape(*view.shape[1 : n + 1], -1))
    return np.moveaxis(np.stack(results), -1, 1) if results else np.zeros((0, panel.shape[0] * panel.shape[2], *view.shape[1 : n + 1]), x.dtype)


def panel_of(w, groups):
    """(kernel..., C / g, O) -> (groups, kernel * C / g, O / g)."""
    return w.reshape(-1, groups, w.shape[-1] // groups).transpose(1, 0, 2)


def conv(x, w, b=None, group=1, kernel_shape=None, activation="", **geometry):
    panel = panel_of(np.moveaxis(w, (0, 1), (-1, -2)), group)
    y = convolve(x, panel, w.shape[2:], group, np.matmul, **geometry)
    return ACTIVATIONS[activation](y if b is None else y + channel(b, x))


def quantize(x, scale, zero, low=0, high=255):
    return np.clip(np.rint(x.astype(np.float32) / scale), np.float32(low - int(zero)), np.float32(high - int(zero)))


def dynamic_quantize(x, low=0, high=255, symmetric=0, granularity="tensor"):
    axis, keep = (-1, True) if granularity == "token" else (None, False)
    x = x.astype(np.float32)
    least, most = np.minimum(x.min(axis=axis, keepdims=keep), np.float32(0)), np.maximum(x.max(axis=axis, keepdims=keep), np.float32(0))
    middle = 0 if low < 0 else (low + high + 1) // 2
    scale = np.maximum(-least, most) / np.float32(high - middle) if symmetric else (most - least) / np.float32(high - low)
    scale = np.where(scale < np.finfo(np.float32).tiny, np.float32(1), scale)
    zero = np.full_like(scale, middle) if symmetric else np.clip(np.rint(np.float32(low) - least / scale), low, high)
    return np.clip(np.rint(x / scale), np.float32(low) - zero, np.float32(high) - zero), scale


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
    return np.clip(y, np.float32(max(low, 0) if activation == "Relu" else low), np.float32(high))


def quantized_gemm(x, x_scale, w, w_scale, w_zero=None, bias=None, y_scale=None, transB=0, activation="", low=0, high=0, largest=255):
    w = w.astype(np.float32) if w_zero is None else w.astype(np.float32) - w_zero.astype(np.float32).reshape((-1, 1) if transB and w_zero.ndim else -1)
    y = integer_product(x, w.T if transB else w)
    if x_scale.ndim:
        y, x_scale = y * x_scale, np.float32(1)
    return finish(y, x_scale, w_scale, bias, y_scale, activation, low, high, lambda v: v)


def quantized_conv(x, x_scale, w, w_scale, w_zero=None, bias=None, y_scale=None, group=1, activation="", low=0, high=0, largest=255, **geometry):
    w = w.astype(np.float32) if w_zero is None else w.astype(np.float32) - w_zero.astype(np.float32)
    y = convolve(x, panel_of(w, group), w.shape[:-2], group, integer_product, **geometry)
    return finish(y, x_scale, w_scale, bias, y_scale, activation, low, high, lambda v: channel(v, x) if np.ndim(v) else v)


def unpacked(packed, scale, zero, table, bits, columns, features):
    """Packed rows -> float32 (rows, features)."""
    stream = np.unpackbits(packed, axis=1, bitorder="little")[:, : features * bits].reshape(packed.shape[0], features, bits)
    y = table[np.packbits(stream, axis=2, bitorder="little")[..., 0]]

    def spread(v):
        return np.repeat(v.reshape(len(y), -1), columns, axis=1)[:, :features] if columns else v.reshape(-1, 1) if v.ndim else v

    return (y if zero is None else y - spread(zero.astype(np.float32))) * spread(scale)


def dequantize(packed, scale, zero, table, bits=8, columns=0, shape=(), axis=0):
    moved = [shape[axis], *(s for i, s in enumerate(shape) if i != axis)]
    return np.moveaxis(unpacked(packed, scale, zero, table, bits, columns, math.prod(moved[1:])).reshape(moved), 0, axis)


def dequantize_rows(packed, scale, zero, table, indices, bits=8, columns=0, features=0):
    flat = indices.reshape(-1)
    zero = zero if zero is None or not zero.ndim else zero[flat]
    return unpacked(packed[flat], scale[flat] if scale.ndim else scale, zero, table, bits, columns, features).reshape(*indices.shape, features)


def max_pool(x, kernel_shape, storage_order=0, **geometry):
    view = windows(x, kernel_shape, fill=-np.inf, **geometry)
    return np.moveaxis(view.max(axis=tuple(range(x.ndim - 1, view.ndim - 1))), -1, 1)


def average_pool(x, kernel_shape, count_include_pad=0, **geometry):
    axes = tuple(range(x.ndim - 1, 2 * x.ndim - 3))
    counts = windows(np.ones_like(x), kernel_shape, **geometry).sum(axis=axes)
    if count_include_pad:
        if geometry.get("ceil_mode"):
            raise ValueError("average pooling with both ceil_mode and count_include_pad")
        counts = math.prod(kernel_shape)
    return np.moveaxis(windows(x, kernel_shape, **geometry).sum(axis=axes) / counts, -1, 1)


def reducer(function):
    def run(x, given=None, axes=None, keepdims=1, noop_with_empty_axes=0):
        axes = tuple(int(a) for a in given) if given is not None else axes and tuple(axes)
        if not axes and noop_with_empty_axes:
            return x
        return np.asarray(function(x, axis=axes or None, keepdims=bool(keepdims))).astype(x.dtype, copy=False)
    return run


def arg(function):
    def run(x, axis=0, keepdims=1, select_last_index=0):
        found = x.shape[axis] - 1 - function(np.flip(x, axis), axis=axis) if select_last_index else function(x, axis=axis)
        return (np.expand_dims(found, axis) if keepdims else found).astype(np.int64)
    return run


def ints(given, attribute=None):
    return tuple(int(i) for i in np.asarray(given).reshape(-1)) if given is not None else None if attribute is None else tuple(attribute)


def reshape(x, given=None, shape=None, allowzero=0):
    return x.reshape([x.shape[i] if s == 0 and not allowzero else s for i, s in enumerate(ints(given, shape))])


def slices(x, starts, ends, axes=None, steps=None):
    index = [slice(None)] * x.ndim
    first = ints(starts)
    for a, b, axis, s in zip(first, ints(ends), ints(axes) or range(len(first)), ints(steps) or (1,) * len(first)):
        n = x.shape[axis]
        low = b + n if b < 0 else b
        index[axis] = slice(a, b, s) if s > 0 else slice(min(a, n - 1) if a >= 0 else a, None if low < 0 else low, s)
    return x[tuple(index)]


def split(x, given=None, axis=0, split=None, num_outputs=1):
    lengths = ints(given, split)
    step = -(-x.shape[axis] // num_outputs)
    return tuple(np.split(x, np.cumsum(lengths)[:-1] if lengths else range(step, step * num_outputs, step), axis=axis))


def pad(x, pads, value=None, axes=None, mode="constant"):
    amounts, widths = ints(pads), [(0, 0)] * x.ndim
    along = ints(axes) or tuple(range(x.ndim))
    for i, axis in enumerate(along):
        widths[axis] = (amounts[i], amounts[i + len(along)])
    return np.pad(x, widths, mode=mode, **({"constant_values": 0 if value is None else value.reshape(())} if mode == "constant" else {}))


OPS = {
    "Abs": np.abs, "Ceil": np.ceil, "Cos": np.cos, "Exp": np.exp, "Floor": np.floor, "Log": np.log, "Neg": np.negative,
    "Not": np.logical_not, "Reciprocal": np.reciprocal, "Round": np.rint, "Sign": np.sign, "Sin": np.sin, "Sqrt": np.sqrt,
    "Tanh": np.tanh, "Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Equal": np.equal, "Greater": np.greater,
    "Less": np.less, "GreaterOrEqual": np.greater_equal, "LessOrEqual": np.less_equal, "And": np.logical_and, "Or": np.logical_or,
    "Where": np.where, "MatMul": np.matmul, "IsNaN": np.isnan, "Sigmoid": sigmoid, "Erf": erf,
    "Div": lambda a, b: a / b if a.dtype.kind == "f" else (np.abs(a) // np.abs(b) * np.sign(a) * np.sign(b)).astype(a.dtype),
    **{n: reducer(f) for n, f in {"ReduceSum": np.sum, "ReduceMean": np.mean, "ReduceMax": np.max, "ReduceMin": np.min, "ReduceProd": np.prod}.items()},
    "Max": chain(np.maximum), "Min": chain(np.minimum), "Sum": chain(np.add), "ArgMax": arg(np.argmax), "ArgMin": arg(np.argmin),
    "ReduceL2": reducer(lambda x, axis, keepdims: np.sqrt(np.square(x).sum(axis=axis, keepdims=keepdims))),
    "Pow": lambda a, b: np.power(a, b).astype(a.dtype), "Identity": lambda x: x, "Dropout": lambda x, *_, **__: (x, np.ones(x.shape, bool)),
    "Relu": lambda x: np.maximum(x, x.dtype.type(0)), "LeakyRelu": lambda x, alpha=0.01: np.where(x < 0, x * x.dtype.type(alpha), x),
    "PRelu": lambda x, slope: np.where(x < 0, x * slope, x), "Elu": lambda x, alpha=1.0: np.where(x < 0, x.dtype.type(alpha) * np.expm1(np.minimum(x, 0)), x),
    "HardSigmoid": hard_sigmoid, "Gelu": gelu, "Clip": clip,
    "HardSwish": lambda x: x * hard_sigmoid(x, 1 / 6, 0.5), "Softplus": lambda x: np.logaddexp(x, x.dtype.type(0)),
    "Swish": lambda x, alpha=1.0: x * sigmoid(x * x.dtype.type(alpha)), "Cast": lambda x, to, **_: x.astype(np.dtype(to)),
    "Softmax": softmax, "LogSoftmax": log_softmax, "BatchNormalization": batch_norm, "LayerNormalization": layer_norm,
    "RMSNormalization": rms_norm, "InstanceNormalization": instance_norm, "Gemm": gemm, "Conv": conv,
    "Einsum": lambda *xs, equation: np.einsum(equation, *xs), "MaxPool": max_pool, "AveragePool": average_pool,
    "GlobalAveragePool": lambda x: x.mean(axis=tuple(range(2, x.ndim)), keepdims=True),
    "GlobalMaxPool": lambda x: x.max(axis=tuple(range(2, x.ndim)), keepdims=True),
    "Reshape": reshape, "Flatten": lambda x, axis=1: x.reshape(math.prod(x.shape[:axis]), -1), "Transpose": lambda x, perm=None: x.transpose(perm),
    "Squeeze": lambda x, given=None, axes=None: np.squeeze(x, ints(given, axes)),
    "Unsqueeze": lambda x, given=None, axes=None: np.expand_dims(x, ints(given, axes)),
    "Expand": lambda x, shape: np.broadcast_to(x, np.broadcast_shapes(x.shape, ints(shape))),
    "Concat": lambda *xs, axis: np.concatenate(xs, axis=axis), "Split": split, "Slice": slices, "Pad": pad,
    "Gather": lambda x, i, axis=0: np.take(x, i, axis=axis),
    "GatherElements": lambda x, i, axis=0: np.take_along_axis(x, np.where(i < 0, i + x.shape[axis], i), axis=axis),
    "Shape": lambda x, start=0, end=None: np.array(x.shape[start:end], np.int64), "Size": lambda x: np.array(x.size, np.int64),
    "ConstantOfShape": lambda s, value=np.zeros(1, np.float32): np.full(ints(s), value.reshape(-1)[0], value.dtype),
    "Constant": lambda value: value, "Range": lambda a, b, d: np.arange(a.item(), b.item(), d.item(), dtype=a.dtype),
    "Tile": lambda x, repeats: np.tile(x, ints(repeats)), "Trilu": lambda x, k=0, upper=1: (np.triu if upper else np.tril)(x, int(k)),
    "CumSum": lambda x, axis: np.cumsum(x, axis=int(axis), dtype=x.dtype),
    "octavo.Quantize": quantize, "octavo.DynamicQuantize": dynamic_quantize, "octavo.QuantizedGemm": quantized_gemm,
    "octavo.QuantizedConv": quantized_conv, "octavo.Attention": attention, "octavo.Dequantize": dequantize,
    "octavo.DequantizeRows": dequantize_rows,
}


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: python run.py inputs.npz outputs.npz")
    model = Model(__file__.replace("run.py", "model.npz"))
    with np.load(sys.argv[1], allow_pickle=False) as inputs:
        results = model(*(inputs[name] for name in model.inputs))
    np.savez(sys.argv[2], **dict(zip(model.outputs, results)))
