# mypy: ignore-errors
# ruff: noqa: B905 - zip(strict=...) would ask for Python 3.10
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
    """A graph whose arrays, constants and steps are read from a file."""

    def __init__(self, path):
        with np.load(path, allow_pickle=False) as archive:
            table = json.loads(archive["graph.json"])
            data = archive["data"]
        if table["format"] not in (1, 2):
            raise ValueError(
                f"{path}: format {table['format']} is newer than this runner"
            )
        arrays = [stored(data, *row) for row in table["arrays"]]
        self.inputs = [name for name, _, _ in table["inputs"]]
        self.dtypes = [np.dtype(dtype) for _, _, dtype in table["inputs"]]
        self.outputs = table["outputs"]
        self.constants = {}
        for name, number in table["initializers"].items():
            self.constants[name] = arrays[number]
        self.steps = [step_of(node, arrays, table["opset"]) for node in table["nodes"]]
        self.plan_frees()

    def plan_frees(self):
        """Let each step free the values that no later step reads."""
        last = {}
        for step in self.steps:
            last.update(dict.fromkeys(step.reads, step))
        kept = {"", *self.constants, *self.outputs}
        for name, step in last.items():
            if name not in kept:
                step.frees.append(name)

    def __call__(self, *arrays, **named):
        """Take arrays in the order of ``inputs``, or by name; a list of outputs comes out."""
        given = [named[name] for name in self.inputs] if named else arrays
        if len(given) != len(self.inputs):
            takes = ", ".join(self.inputs)
            raise ValueError(f"the model takes {takes}; {len(given)} arrays were given")
        values = {"": None, **self.constants}  # '' names an input that is left out
        for name, array, dtype in zip(self.inputs, given, self.dtypes):
            values[name] = np.asarray(array).astype(dtype, copy=False)
        for step in self.steps:
            step.run(values)
        return [np.asarray(values[name]) for name in self.outputs]


class Step:
    """A node, ready to run."""

    def __init__(self, function, reads, writes, attributes):
        self.function = function
        self.reads = reads
        self.writes = writes
        self.attributes = attributes
        self.frees = []

    def run(self, values):
        """Read from ``values``, write to it, and free what nothing reads afterwards."""
        given = [values[name] for name in self.reads]
        result = self.function(*given, **self.attributes)
        results = result if isinstance(result, tuple) else (result,)
        for name, array in zip(self.writes, results):
            # A result that is left out is '' too, which must stay None for later inputs.
            if name:
                values[name] = array
        for name in self.frees:
            values.pop(name, None)


def step_of(node, arrays, opset):
    """Look up a node's operator and its attributes, of which arrays are stored by number."""
    op, name, reads, writes, raw = node
    if op not in OPS:
        raise ValueError(f"node {name!r}: this runner has no operator {op}")
    if op in ("Softmax", "LogSoftmax") and opset < 13:
        raise ValueError(
            f"node {name!r}: softmax of operator set {opset}; "
            "convert the model to 13 or later"
        )
    attributes = dict(raw)
    for key, value in raw.items():
        if isinstance(value, dict):
            attributes[key] = arrays[value["array"]]
    if op == "Split":
        attributes.setdefault("num_outputs", len(writes))
    return Step(OPS[op], reads, writes, attributes)


def stored(data, dtype, shape, offset):
    """Return an array as a view of the archive's bytes."""
    dtype = np.dtype(dtype)
    end = offset + dtype.itemsize * math.prod(shape)
    return data[offset:end].view(dtype).reshape(shape)


# The table of operators: those that are NumPy's functions, then those that follow.

OPS = {
    "Abs": np.abs,
    "Add": np.add,
    "And": np.logical_and,
    "Ceil": np.ceil,
    "Cos": np.cos,
    "Equal": np.equal,
    "Exp": np.exp,
    "Floor": np.floor,
    "Greater": np.greater,
    "GreaterOrEqual": np.greater_equal,
    "IsNaN": np.isnan,
    "Less": np.less,
    "LessOrEqual": np.less_equal,
    "Log": np.log,
    "MatMul": np.matmul,
    "Mul": np.multiply,
    "Neg": np.negative,
    "Not": np.logical_not,
    "Or": np.logical_or,
    "Reciprocal": np.reciprocal,
    "Round": np.rint,
    "Sign": np.sign,
    "Sin": np.sin,
    "Sqrt": np.sqrt,
    "Sub": np.subtract,
    "Tanh": np.tanh,
    "Where": np.where,
}


def operator(name):
    """Enter a function into the table: inputs in order, attributes by name."""

    def enter(function):
        OPS[name] = function
        return function

    return enter


def ints(given, attribute=None):
    """Return whole numbers of an input or, as older operator sets have it, of an attribute."""
    if given is not None:
        return tuple(int(i) for i in np.asarray(given).reshape(-1))
    return None if attribute is None else tuple(attribute)


def ceil_div(a, b):
    """Return a / b, rounded up."""
    return -(-a // b)


# Arithmetic.


@operator("Div")
def divide(a, b):
    """ONNX Div; integers round towards zero, where NumPy's // rounds down."""
    if a.dtype.kind == "f":
        return a / b
    size = np.abs(a) // np.abs(b)
    return (size * np.sign(a) * np.sign(b)).astype(a.dtype)


@operator("Pow")
def power(a, b):
    """ONNX Pow; the base's type stays."""
    return np.power(a, b).astype(a.dtype)


def chain(function):
    """Return a function of two arrays as one of any number."""

    def run(*inputs):
        result = inputs[0]
        for x in inputs[1:]:
            result = function(result, x)
        return result

    return run


OPS["Max"] = chain(np.maximum)
OPS["Min"] = chain(np.minimum)
OPS["Sum"] = chain(np.add)


@operator("Clip")
def clip(x, low=None, high=None, **old):
    """ONNX Clip; before operator set 11 the bounds are attributes."""
    low = old.get("min", low)
    high = old.get("max", high)
    if low is not None:
        x = np.maximum(x, np.asarray(low, x.dtype))
    if high is not None:
        x = np.minimum(x, np.asarray(high, x.dtype))
    return x


@operator("Cast")
def cast(x, to, **_):
    """ONNX Cast."""
    return x.astype(np.dtype(to))


@operator("Identity")
def identity(x):
    """ONNX Identity."""
    return x


@operator("Dropout")
def dropout(x, *_, **__):
    """ONNX Dropout, outside training."""
    return x, np.ones(x.shape, bool)


# Activations. Constants take the input's type, so that half precision stays what it is.


@operator("Relu")
def relu(x):
    """ONNX Relu."""
    return np.maximum(x, x.dtype.type(0))


@operator("LeakyRelu")
def leaky_relu(x, alpha=0.01):
    """ONNX LeakyRelu."""
    return np.where(x < 0, x * x.dtype.type(alpha), x)


@operator("PRelu")
def p_relu(x, slope):
    """ONNX PRelu."""
    return np.where(x < 0, x * slope, x)


@operator("Elu")
def elu(x, alpha=1.0):
    """ONNX Elu."""
    below = np.expm1(np.minimum(x, 0))
    return np.where(x < 0, x.dtype.type(alpha) * below, x)


@operator("Sigmoid")
def sigmoid(x):
    """ONNX Sigmoid, by tanh, which overflows nowhere."""
    return 0.5 * np.tanh(0.5 * x) + x.dtype.type(0.5)


@operator("Swish")
def swish(x, alpha=1.0):
    """ONNX Swish."""
    return x * sigmoid(x * x.dtype.type(alpha))


@operator("HardSigmoid")
def hard_sigmoid(x, alpha=0.2, beta=0.5):
    """ONNX HardSigmoid."""
    line = x * x.dtype.type(alpha) + x.dtype.type(beta)
    return np.clip(line, 0, 1).astype(x.dtype)


@operator("HardSwish")
def hard_swish(x):
    """ONNX HardSwish."""
    return x * hard_sigmoid(x, 1 / 6, 0.5)


@operator("Softplus")
def softplus(x):
    """ONNX Softplus: log(exp(x) + 1)."""
    return np.logaddexp(x, x.dtype.type(0))


# erf(x) = tanh(x p(x^2)), p fitted to atanh(erf(x)) / x; within 1.8e-7 of erf over all float32.
ERF = (
    1.1283792742348693,
    0.10276905638943719,
    -0.00019183204872319807,
    -0.0006197836678610367,
    8.763698303280526e-05,
    -5.668423519424555e-06,
    1.4184945434697698e-07,
)


@operator("Erf")
def erf(x):
    """ONNX Erf."""
    square = np.minimum(np.square(x), F32(16))  # p is fitted up to |x| = 4
    y = np.full_like(x, ERF[-1])
    for c in ERF[-2::-1]:
        y = y * square + x.dtype.type(c)
    return np.tanh(x * y)


@operator("Gelu")
def gelu(x, approximate="none"):
    """ONNX Gelu."""
    kind = x.dtype.type
    if approximate == "tanh":
        inner = kind(math.sqrt(2 / math.pi)) * (x + kind(0.044715) * x**3)
        return kind(0.5) * x * (1 + np.tanh(inner))
    return kind(0.5) * x * (1 + erf(x * kind(math.sqrt(0.5))))


def gelu_tanh(x):
    """Gelu by its approximation with tanh."""
    return gelu(x, "tanh")


# Activations that octavo fuses into the product before them.
ACTIVATIONS = {
    "": identity,
    "Gelu": gelu,
    "GeluTanh": gelu_tanh,
    "Relu": relu,
    "Sigmoid": sigmoid,
    "Tanh": np.tanh,
}


# Softmax and normalisations.


@operator("Softmax")
def softmax(x, axis=-1):
    """ONNX Softmax."""
    y = np.exp(x - x.max(axis=axis, keepdims=True))
    return y / y.sum(axis=axis, keepdims=True)


@operator("LogSoftmax")
def log_softmax(x, axis=-1):
    """ONNX LogSoftmax."""
    y = x - x.max(axis=axis, keepdims=True)
    return y - np.log(np.exp(y).sum(axis=axis, keepdims=True))


def axes_from(axis, x):
    """Return the axes from ``axis`` to the last."""
    return tuple(range(axis % x.ndim, x.ndim))


def by_channel(v, x):
    """Shape one value a channel so that it broadcasts over (N, C, spatial...)."""
    spatial = (1,) * (x.ndim - 2)
    return v.reshape(-1, *spatial)


def standardised(x, axes, epsilon):
    """Return x less its mean, the mean, and 1 / its standard deviation."""
    mean = x.mean(axis=axes, keepdims=True)
    centred = x - mean
    variance = np.square(centred).mean(axis=axes, keepdims=True)
    inverse = 1 / np.sqrt(variance + x.dtype.type(epsilon))
    return centred, mean, inverse


@operator("BatchNormalization")
def batch_norm(x, scale, bias, mean, variance, epsilon=1e-5, **_):
    """ONNX BatchNormalization, outside training."""
    factor = scale / np.sqrt(variance + variance.dtype.type(epsilon))
    shift = bias - mean * factor
    return x * by_channel(factor, x) + by_channel(shift, x)


@operator("LayerNormalization")
def layer_norm(x, scale, bias=None, axis=-1, epsilon=1e-5, **_):
    """ONNX LayerNormalization, with its mean and inverse deviation."""
    centred, mean, inverse = standardised(x, axes_from(axis, x), epsilon)
    y = centred * inverse * scale
    if bias is not None:
        y = y + bias
    return y, mean, inverse


@operator("RMSNormalization")
def rms_norm(x, scale, axis=-1, epsilon=1e-5, **_):
    """ONNX RMSNormalization."""
    mean_square = np.square(x).mean(axis=axes_from(axis, x), keepdims=True)
    return x / np.sqrt(mean_square + x.dtype.type(epsilon)) * scale


@operator("InstanceNormalization")
def instance_norm(x, scale, bias, epsilon=1e-5):
    """ONNX InstanceNormalization."""
    centred, _, inverse = standardised(x, axes_from(2, x), epsilon)
    return centred * inverse * by_channel(scale, x) + by_channel(bias, x)


# Products.


@operator("Gemm")
def gemm(a, b, c=None, alpha=1.0, beta=1.0, transA=0, transB=0, activation=""):
    """ONNX Gemm, with the activation that octavo fuses into it."""
    left = a.T if transA else a
    right = b.T if transB else b
    y = left @ right
    if alpha != 1.0:
        y = y * y.dtype.type(alpha)
    if c is not None:
        y = y + c * c.dtype.type(beta)
    return ACTIVATIONS[activation](y)


@operator("Einsum")
def einsum(*inputs, equation):
    """ONNX Einsum."""
    return np.einsum(equation, *inputs)


@operator("octavo.Attention")
def attention(q, k, v, mask=None, scale=1.0):
    """Attention in one node; k is transposed already."""
    scores = (q * q.dtype.type(scale)) @ k
    if mask is not None:
        scores = scores + mask
    top = scores.max(axis=-1, keepdims=True)
    # Where a whole row is masked, -inf less -inf would be NaN, and its total is 0.
    y = np.exp(scores - np.where(np.isneginf(top), 0, top))
    total = y.sum(axis=-1, keepdims=True)
    return y @ v / np.where(total == 0, 1, total)


def integer_product(x, w):
    """Return the exact product of codes: in float64 where a sum could leave +-2**24."""
    largest_code = float(np.abs(x).max(initial=0))
    largest_column = float(np.abs(w).sum(axis=-2).max(initial=0))
    if largest_code * largest_column <= EXACT:
        return x @ w
    product = x.astype(np.float64) @ w.astype(np.float64)
    return product.astype(F32)


# Windows, convolution and pooling.


def windows(
    x,
    kernel,
    strides=None,
    dilations=None,
    pads=None,
    auto_pad="",
    fill=0,
    ceil_mode=0,
):
    """(N, C, spatial...) -> (N, outputs..., kernel..., C), a view of the padded input."""
    n = len(kernel)
    spatial = x.shape[2:]
    strides = strides or (1,) * n
    dilations = dilations or (1,) * n
    reaches = [(k - 1) * d + 1 for k, d in zip(kernel, dilations)]
    pairs = paddings(spatial, reaches, strides, pads or (0,) * 2 * n, auto_pad)
    if ceil_mode:
        axes = zip(spatial, strides, reaches, pairs)
        pairs = [with_last_window(*axis) for axis in axes]
    channels_last = np.moveaxis(x, 1, -1)
    padded = np.pad(channels_last, [(0, 0), *pairs, (0, 0)], constant_values=fill)
    view = np.lib.stride_tricks.sliding_window_view(
        padded, reaches, axis=tuple(range(1, n + 1))
    )
    # view: (N, starts..., C, taps...)
    starts = [slice(None, None, s) for s in strides]
    taps = [slice(None, None, d) for d in dilations]
    view = view[(slice(None), *starts, slice(None), *taps)]
    return np.moveaxis(view, n + 1, -1)


def paddings(spatial, reaches, strides, pads, auto_pad):
    """Return the padding before and after, one pair an axis."""
    n = len(spatial)
    if auto_pad in ("", "NOTSET"):
        return list(zip(pads[:n], pads[n:]))
    if auto_pad == "VALID":
        return [(0, 0)] * n
    pairs = []
    for size, reach, stride in zip(spatial, reaches, strides):
        covered = (ceil_div(size, stride) - 1) * stride + reach
        total = max(covered - size, 0)
        less = total // 2
        more = total - less
        pairs.append((less, more) if auto_pad == "SAME_UPPER" else (more, less))
    return pairs


def with_last_window(size, stride, reach, pair):
    """Pad behind for the last window, which must begin inside the input or its front padding."""
    before, after = pair
    count = ceil_div(size + before + after - reach, stride) + 1
    if (count - 1) * stride >= size + before:
        count -= 1
    wanted = (count - 1) * stride + reach
    return before, max(after, wanted - size - before)


def convolve(x, panel, kernel, groups, product, **geometry):
    """panel: (groups, kernel * C / g, O / g); one image at a time, so that columns stay small."""
    view = windows(x, kernel, **geometry)
    outputs = view.shape[1 : len(kernel) + 1]
    taps = math.prod(kernel)
    width = x.shape[1] // groups
    results = []
    for image in view:
        columns = image.reshape(-1, taps, groups, width).transpose(2, 0, 1, 3)
        y = product(columns.reshape(groups, -1, panel.shape[1]), panel)
        results.append(y.transpose(1, 0, 2).reshape(*outputs, -1))
    if not results:
        channels = panel.shape[0] * panel.shape[2]
        return np.zeros((0, channels, *outputs), x.dtype)
    return np.moveaxis(np.stack(results), -1, 1)


def panel_of(w, groups):
    """(kernel..., C / g, O) -> (groups, kernel * C / g, O / g)."""
    split = w.reshape(-1, groups, w.shape[-1] // groups)
    return split.transpose(1, 0, 2)


@operator("Conv")
def conv(x, w, b=None, group=1, kernel_shape=None, activation="", **geometry):
    """ONNX Conv, with the activation that octavo fuses into it."""
    panel = panel_of(np.moveaxis(w, (0, 1), (-1, -2)), group)
    y = convolve(x, panel, w.shape[2:], group, np.matmul, **geometry)
    if b is not None:
        y = y + by_channel(b, x)
    return ACTIVATIONS[activation](y)


@operator("MaxPool")
def max_pool(x, kernel_shape, storage_order=0, **geometry):
    """ONNX MaxPool, without indices."""
    view = windows(x, kernel_shape, fill=-np.inf, **geometry)
    taps = tuple(range(x.ndim - 1, view.ndim - 1))
    return np.moveaxis(view.max(axis=taps), -1, 1)


@operator("AveragePool")
def average_pool(x, kernel_shape, count_include_pad=0, **geometry):
    """ONNX AveragePool."""
    if count_include_pad and geometry.get("ceil_mode"):
        raise ValueError("average pooling with both ceil_mode and count_include_pad")
    taps = tuple(range(x.ndim - 1, 2 * x.ndim - 3))
    sums = windows(x, kernel_shape, **geometry).sum(axis=taps)
    if count_include_pad:
        counts = math.prod(kernel_shape)
    else:
        counts = windows(np.ones_like(x), kernel_shape, **geometry).sum(axis=taps)
    return np.moveaxis(sums / counts, -1, 1)


@operator("GlobalAveragePool")
def global_average_pool(x):
    """ONNX GlobalAveragePool."""
    return x.mean(axis=axes_from(2, x), keepdims=True)


@operator("GlobalMaxPool")
def global_max_pool(x):
    """ONNX GlobalMaxPool."""
    return x.max(axis=axes_from(2, x), keepdims=True)


# octavo's own quantized operators. Codes are centred: their zero point is subtracted already.


@operator("octavo.Quantize")
def quantize(x, scale, zero, low=0, high=255):
    """Quantize with a scale and zero point of calibration."""
    codes = np.rint(x.astype(F32) / scale)
    return np.clip(codes, F32(low - int(zero)), F32(high - int(zero)))


@operator("octavo.DynamicQuantize")
def dynamic_quantize(x, low=0, high=255, symmetric=0, granularity="tensor"):
    """Quantize with a scale of the array's, or each row's, own range; return codes and scale."""
    is_by_row = granularity == "token"
    axis = -1 if is_by_row else None
    x = x.astype(F32)
    # 0 is in the range, so that it is a code.
    least = np.minimum(x.min(axis=axis, keepdims=is_by_row), F32(0))
    most = np.maximum(x.max(axis=axis, keepdims=is_by_row), F32(0))
    middle = 0 if low < 0 else (low + high + 1) // 2
    if symmetric:
        scale = np.maximum(-least, most) / F32(high - middle)
    else:
        scale = (most - least) / F32(high - low)
    # All zeros, or nearly: any scale serves, and one of 0 would divide by it.
    scale = np.where(scale < np.finfo(F32).tiny, F32(1), scale)
    if symmetric:
        zero = np.full_like(scale, middle)
    else:
        zero = np.clip(np.rint(F32(low) - least / scale), low, high)
    codes = np.clip(np.rint(x / scale), F32(low) - zero, F32(high) - zero)
    return codes, scale


def finish(y, scale, bias, y_scale, activation, low, high):
    """Rescale an exact sum; with ``y_scale``, go on to codes."""
    to_codes = y_scale is not None
    is_scaled_early = to_codes and activation in ("", "Relu")
    if is_scaled_early:
        # These two take y / y_scale as well as y, which saves a division of the whole array.
        scale = scale / y_scale
        bias = None if bias is None else bias / y_scale
    y = y * scale
    if bias is not None:
        y = y + bias
    if not to_codes:
        return ACTIVATIONS[activation](y)
    if not is_scaled_early:
        y = ACTIVATIONS[activation](y) / y_scale
    # Of centred codes, 0 is the code of 0: the bound is the Relu.
    least = max(low, 0) if activation == "Relu" else low
    return np.clip(np.rint(y), F32(least), F32(high))


@operator("octavo.QuantizedGemm")
def quantized_gemm(
    x,
    x_scale,
    w,
    w_scale,
    w_zero=None,
    bias=None,
    y_scale=None,
    transB=0,
    activation="",
    low=0,
    high=0,
    largest=255,
):
    """Gemm of codes; a scale of x that has axes is one a row."""
    w = w.astype(F32)
    if w_zero is not None:
        by_output = (-1, 1) if transB and w_zero.ndim else -1
        w = w - w_zero.astype(F32).reshape(by_output)
    y = integer_product(x, w.T if transB else w)
    if x_scale.ndim:
        y = y * x_scale
        x_scale = F32(1)
    return finish(y, x_scale * w_scale, bias, y_scale, activation, low, high)


@operator("octavo.QuantizedConv")
def quantized_conv(
    x,
    x_scale,
    w,
    w_scale,
    w_zero=None,
    bias=None,
    y_scale=None,
    group=1,
    activation="",
    low=0,
    high=0,
    largest=255,
    **geometry,
):
    """Conv of codes; w: (kernel..., C / g, O)."""
    w = w.astype(F32)
    if w_zero is not None:
        w = w - w_zero.astype(F32)
    panel = panel_of(w, group)
    y = convolve(x, panel, w.shape[:-2], group, integer_product, **geometry)
    scale = x_scale * w_scale
    if np.ndim(scale):
        scale = by_channel(scale, x)
    if np.ndim(bias):
        bias = by_channel(bias, x)
    return finish(y, scale, bias, y_scale, activation, low, high)


NF4 = (
    "-1 -.6961928 -.52507305 -.3949175 -.28444138 -.18477343 -.091050036 0 .0795803 "
    ".1609302 .2461123 .33791524 .44070983 .562617 .72295684 1"
)


def code_table(dtype, bits):
    """Return the number of each bit pattern of a code."""
    codes = np.arange(1 << bits)
    if dtype == "nf4":
        return np.array(NF4.split(), F32)
    if dtype == "fp8_e4m3fn":
        power = codes >> 3 & 15
        y = np.ldexp((codes & 7) + 8.0 * (power > 0), np.maximum(power, 1) - 10)
        y[127::128] = np.nan
        return np.where(codes < 128, y, -y).astype(F32)
    if dtype.startswith("int"):
        codes -= codes >> bits - 1 << bits
    return codes.astype(F32)


def codes_of(packed, bits, count):
    """Packed rows -> uint8 (rows, count)."""
    stream = np.unpackbits(packed, axis=-1, bitorder="little")[..., : count * bits]
    by_code = stream.reshape(*packed.shape[:-1], count, bits)
    return np.packbits(by_code, axis=-1, bitorder="little")[..., 0]


def unpacked(where, features, stored, bits, columns, dtype="", scale_dtype="", rows=0):
    """Packed rows -> float32 (rows, features), those that ``where`` names."""
    packed, scale, zero, table, *levels = stored
    if scale_dtype == "bfloat16":
        scale = (scale.astype(np.uint32) << 16).view(F32)
    elif scale_dtype == "uint8":  # over a second level, for each 256 of them
        block = np.arange(scale.size).reshape(scale.shape) >> 8
        steps, offsets = levels
        scale = scale * steps[block] + offsets[block]
    scale = scale.astype(F32)
    if table is None:  # files of format 1 have it, and zero points that are not packed
        table = code_table(dtype, bits)
        if zero is not None:
            zero = table[codes_of(zero, bits, scale.size)].reshape(scale.shape)

    def spread(v):
        """One value for all, one a row, or one for ``columns`` neighbours of a row."""
        chosen = v[where] if v.ndim else v
        if columns:
            groups = chosen.reshape(len(chosen), -1)
            return np.repeat(groups, columns, axis=1)[:, :features]
        return chosen.reshape(-1, 1) if v.ndim else v

    chosen = packed if rows else packed[where]  # ``rows`` of one stream of bits
    codes = codes_of(chosen, bits, features * max(rows, 1)).reshape(-1, features)
    y = table[codes[where] if rows else codes]
    if zero is not None:
        y = y - spread(zero.astype(F32))
    return y * spread(scale)


@operator("octavo.Dequantize")
def dequantize(*stored, shape, axis=0, **how):
    """Unpack an array whose rows run along ``axis``."""
    others = [size for i, size in enumerate(shape) if i != axis]
    rows = unpacked(slice(None), math.prod(others), stored, **how)
    return np.moveaxis(rows.reshape(shape[axis], *others), 0, axis)


@operator("octavo.DequantizeRows")
def dequantize_rows(packed, scale, zero, table, ids, *levels, features, **how):
    """Gather packed rows and unpack only these."""
    stored = (packed, scale, zero, table, *levels)
    rows = unpacked(ids.reshape(-1), features, stored, **how)
    return rows.reshape(*ids.shape, features)


# Reductions.


def reducer(function):
    """Return a reduction of NumPy as ONNX's."""

    def run(x, given=None, axes=None, keepdims=1, noop_with_empty_axes=0):
        axes = ints(given, axes)
        if not axes and noop_with_empty_axes:
            return x
        result = function(x, axis=axes or None, keepdims=bool(keepdims))
        return np.asarray(result).astype(x.dtype, copy=False)

    return run


def l2_norm(x, **how):
    """Return the root of the sum of squares."""
    return np.sqrt(np.square(x).sum(**how))


OPS["ReduceL2"] = reducer(l2_norm)
OPS["ReduceMax"] = reducer(np.max)
OPS["ReduceMean"] = reducer(np.mean)
OPS["ReduceMin"] = reducer(np.min)
OPS["ReduceProd"] = reducer(np.prod)
OPS["ReduceSum"] = reducer(np.sum)


def arg(function):
    """Return NumPy's argmax or argmin as ONNX's."""

    def run(x, axis=0, keepdims=1, select_last_index=0):
        if select_last_index:
            # NumPy's finds the first.
            found = x.shape[axis] - 1 - function(np.flip(x, axis), axis=axis)
        else:
            found = function(x, axis=axis)
        if keepdims:
            found = np.expand_dims(found, axis)
        return found.astype(np.int64)

    return run


OPS["ArgMax"] = arg(np.argmax)
OPS["ArgMin"] = arg(np.argmin)


@operator("CumSum")
def cum_sum(x, axis):
    """ONNX CumSum, inclusive and forwards."""
    return np.cumsum(x, axis=int(axis), dtype=x.dtype)


# Shapes.


@operator("Shape")
def shape_of(x, start=0, end=None):
    """ONNX Shape."""
    return np.array(x.shape[start:end], np.int64)


@operator("Size")
def size_of(x):
    """ONNX Size."""
    return np.array(x.size, np.int64)


@operator("Reshape")
def reshape(x, given=None, shape=None, allowzero=0):
    """ONNX Reshape; a length of 0 is the input's own."""
    lengths = list(ints(given, shape))
    if not allowzero:
        for i, length in enumerate(lengths):
            if length == 0:
                lengths[i] = x.shape[i]
    return x.reshape(lengths)


@operator("Flatten")
def flatten(x, axis=1):
    """ONNX Flatten."""
    return x.reshape(math.prod(x.shape[:axis]), -1)


@operator("Transpose")
def transpose(x, perm=None):
    """ONNX Transpose."""
    return x.transpose(perm)


@operator("Squeeze")
def squeeze(x, given=None, axes=None):
    """ONNX Squeeze."""
    return np.squeeze(x, ints(given, axes))


@operator("Unsqueeze")
def unsqueeze(x, given=None, axes=None):
    """ONNX Unsqueeze."""
    return np.expand_dims(x, ints(given, axes))


@operator("Expand")
def expand(x, shape):
    """ONNX Expand."""
    return np.broadcast_to(x, np.broadcast_shapes(x.shape, ints(shape)))


@operator("Tile")
def tile(x, repeats):
    """ONNX Tile."""
    return np.tile(x, ints(repeats))


@operator("Concat")
def concat(*inputs, axis):
    """ONNX Concat."""
    return np.concatenate(inputs, axis=axis)


@operator("Split")
def split(x, given=None, axis=0, split=None, num_outputs=1):
    """ONNX Split; without lengths, into equal parts of which the last may be shorter."""
    lengths = ints(given, split)
    if lengths:
        ends = np.cumsum(lengths)[:-1]
    else:
        step = ceil_div(x.shape[axis], num_outputs)
        ends = range(step, step * num_outputs, step)
    return tuple(np.split(x, ends, axis=axis))


@operator("Pad")
def pad(x, pads, value=None, axes=None, mode="constant"):
    """ONNX Pad."""
    amounts = ints(pads)
    padded_axes = ints(axes) or tuple(range(x.ndim))
    widths = [(0, 0)] * x.ndim
    for i, axis in enumerate(padded_axes):
        widths[axis] = (amounts[i], amounts[i + len(padded_axes)])
    if mode != "constant":
        return np.pad(x, widths, mode=mode)
    fill = 0 if value is None else value.reshape(())
    return np.pad(x, widths, constant_values=fill)


# Indices and constants.


@operator("Slice")
def slices(x, starts, ends, axes=None, steps=None):
    """ONNX Slice."""
    starts = ints(starts)
    ends = ints(ends)
    axes = ints(axes) or range(len(starts))
    steps = ints(steps) or (1,) * len(starts)
    index = [slice(None)] * x.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps):
        if step < 0:
            index[axis] = backwards(start, end, step, x.shape[axis])
        else:
            index[axis] = slice(start, end, step)
    return x[tuple(index)]


def backwards(start, end, step, length):
    """Return a slice of negative step."""
    # Python reads an end of -1 as "the last one"; before the first is None here.
    stop = end + length if end < 0 else end
    first = min(start, length - 1) if start >= 0 else start
    return slice(first, None if stop < 0 else stop, step)


@operator("Gather")
def gather(x, indices, axis=0):
    """ONNX Gather."""
    return np.take(x, indices, axis=axis)


@operator("GatherElements")
def gather_elements(x, indices, axis=0):
    """ONNX GatherElements; an index outside the axis is an error."""
    from_front = np.where(indices < 0, indices + x.shape[axis], indices)
    return np.take_along_axis(x, from_front, axis=axis)


@operator("Trilu")
def trilu(x, k=0, upper=1):
    """ONNX Trilu."""
    return np.triu(x, int(k)) if upper else np.tril(x, int(k))


@operator("Constant")
def constant(value):
    """ONNX Constant."""
    return value


@operator("ConstantOfShape")
def constant_of_shape(shape, value=None):
    """ONNX ConstantOfShape."""
    fill = F32(0) if value is None else value.reshape(-1)[0]
    return np.full(ints(shape), fill)


@operator("Range")
def range_(start, limit, delta):
    """ONNX Range."""
    return np.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype)


def main():
    """Run the model beside this file on an archive of inputs."""
    if len(sys.argv) != 3:
        sys.exit("usage: python run.py inputs.npz outputs.npz")
    folder = __file__.rpartition("run.py")[0]
    model = Model(folder + "model.npz")
    with np.load(sys.argv[1], allow_pickle=False) as inputs:
        results = model(*(inputs[name] for name in model.inputs))
    np.savez(sys.argv[2], **dict(zip(model.outputs, results)))


if __name__ == "__main__":
    main()
