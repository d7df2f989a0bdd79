"""What the door from ONNX makes computes what ONNX Runtime computes, and says what it cannot."""

from pathlib import Path

import numpy as np
import pytest

litert = pytest.importorskip("ai_edge_litert.interpreter")
onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
torch = pytest.importorskip("torch")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

from octavo.adapters.litert.onnx_door import converted  # noqa: E402
from octavo.plugin import ModelError  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # the exporter's, of every trace

IMAGES = (2, 3, 12, 12)


class Of(nn.Module):
    """A function with the modules that it calls."""

    def __init__(self, function, *modules):
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(modules)

    def forward(self, x):
        return self.function(x, *self.parts)


def norm(channels):
    made = nn.BatchNorm2d(channels)
    made.running_mean.normal_()
    made.running_var.uniform_(0.5, 2)
    nn.init.uniform_(made.weight, 0.5, 2)
    nn.init.normal_(made.bias)
    return made


def squeezed(x, conv, down, up):
    y = functional.hardswish(conv(x))
    gate = down(functional.adaptive_avg_pool2d(y, 1)).relu()
    return y * functional.hardsigmoid(up(gate))


def shuffled(x, conv):
    x = conv(x)
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def pyramid(x, near, smooth):
    low = functional.interpolate(near(x), scale_factor=2, mode="nearest")
    high = functional.interpolate(smooth(x), scale_factor=2, mode="bilinear")
    return torch.cat([low, high], 1)


def last_norm(x, conv, layer, wide):
    y = wide(layer(conv(x).permute(0, 2, 3, 1)))
    return functional.gelu(y).permute(0, 3, 1, 2).mean((2, 3))


def attention(x, conv, qkv, out):
    x = conv(x).flatten(2).transpose(1, 2)
    n, t, d = x.shape
    q, k, v = qkv(x).reshape(n, t, 3, 2, d // 2).permute(2, 0, 3, 1, 4)
    weights = (q @ k.transpose(-2, -1) / 2).softmax(-1)
    return out((weights @ v).transpose(1, 2).reshape(n, t, d))[:, 0]


def conv(inputs, outputs, kernel=1, **options):
    return nn.Conv2d(inputs, outputs, kernel, **options)


def stacked(*modules):
    return nn.Sequential(*modules)


CASES = {
    "residual": Of(
        lambda x, a, n, b: functional.relu(n(a(x)) + b(n(a(x)))),
        conv(3, 8, 3, padding=1, bias=False),
        norm(8),
        conv(8, 8, 3, padding=1, groups=8),
    ),
    "padded pooling": stacked(
        conv(3, 8, 7, stride=2, padding=3), nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(3, 1, 1)
    ),
    "pooling of positives": stacked(conv(3, 4, 3), nn.ReLU(), nn.MaxPool2d(3, 2, 1)),
    "rounded up": stacked(
        nn.MaxPool2d(3, 2, ceil_mode=True),
        nn.AvgPool2d(3, 2, 1, ceil_mode=True),
        nn.AvgPool2d(2, 1, 1, count_include_pad=False),
    ),
    "grouped, dilated": stacked(
        conv(3, 8, 3, padding=2, dilation=2), conv(8, 12, 3, groups=4), nn.ReLU6()
    ),
    "two a channel": stacked(conv(3, 6, 3, stride=2, padding=1, groups=3), nn.SiLU()),
    "norm first": stacked(norm(3), nn.LeakyReLU(0.1), conv(3, 4), norm(4), nn.ELU()),
    "activations": stacked(
        conv(3, 4), nn.PReLU(4), conv(4, 4), nn.Hardtanh(-2, 2), conv(4, 4), nn.Tanh()
    ),
    "squeeze and excite": Of(squeezed, conv(3, 8, 3), conv(8, 2), conv(2, 8)),
    "flattened": stacked(conv(3, 4, 3), nn.Flatten(), nn.Linear(400, 5)),
    "shuffled": Of(shuffled, conv(3, 8)),
    "resized": Of(pyramid, conv(3, 4), conv(3, 4)),
    "transposed": stacked(
        conv(3, 6, 3, stride=2, padding=1),
        nn.ConvTranspose2d(6, 4, 4, 2, 1),
        norm(4),
        nn.ConvTranspose2d(4, 3, 2, 2),
    ),
    "pixel shuffle": stacked(conv(3, 8), nn.PixelShuffle(2)),
    "mirrored": stacked(nn.ReflectionPad2d(2), conv(3, 4, 5), nn.ConstantPad2d(1, 2.0)),
    "channels last norm": Of(last_norm, conv(3, 8), nn.LayerNorm(8), nn.Linear(8, 16)),
    "attention": Of(
        attention, conv(3, 8, 4, stride=4), nn.Linear(8, 24), nn.Linear(8, 8)
    ),
    "group norm": stacked(conv(3, 8), nn.GroupNorm(2, 8), nn.InstanceNorm2d(8)),
    "halves": Of(lambda x, c: c(x)[:, :2] * c(x).chunk(2, 1)[1], conv(3, 4)),
    "softmax of channels": Of(lambda x, c: 1 - c(x).softmax(1), conv(3, 4)),
}


def exported(model, shape, path, opset=17):
    torch.manual_seed(0)
    example = torch.zeros(shape)
    torch.onnx.export(
        model.eval(),
        (example,),
        str(path),
        dynamo=False,
        opset_version=opset,
        input_names=["image"],
        output_names=["answer"],
        dynamic_axes={"image": {0: "batch"}, "answer": {0: "batch"}},
    )
    return path


def answers(path, x):
    """Return what ONNX Runtime computes, what LiteRT computes, and its operators."""
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    expected = session.run(None, {name: x})
    interpreter = litert.Interpreter(model_content=converted(path))
    index = interpreter.get_input_details()[0]["index"]
    interpreter.resize_tensor_input(index, x.shape)
    interpreter.allocate_tensors()
    got = interpreter.get_signature_runner()(**{name: x})
    found = [got[output.name] for output in session.get_outputs()]
    operators = [one["op_name"] for one in interpreter._get_ops_details()]
    return expected, found, operators


def assert_same(path, shape):
    # Another batch size than that of the example.
    x = np.random.default_rng(0).normal(size=(3, *shape[1:])).astype(np.float32)
    expected, found, operators = answers(path, x)
    for want, got in zip(expected, found, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    return operators


@pytest.mark.parametrize("name", CASES)
def test_it_computes_what_onnx_runtime_does(name, tmp_path):
    assert_same(exported(CASES[name], IMAGES, tmp_path / "m.onnx"), IMAGES)


def test_sequences_are_images_of_one_row(tmp_path):
    model = stacked(nn.Conv1d(3, 8, 3, 2, 1), nn.ReLU(), nn.MaxPool1d(2))
    assert_same(exported(model, (2, 3, 16), tmp_path / "m.onnx"), (2, 3, 16))


def test_batch_norm_and_activations_fold_and_one_transpose_is_enough(tmp_path):
    model = stacked(
        conv(3, 8, 3, padding=1, bias=False),
        norm(8),
        nn.ReLU(),
        conv(8, 8, 3, padding=1, groups=8),
        norm(8),
        nn.ReLU6(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )
    operators = assert_same(exported(model, IMAGES, tmp_path / "m.onnx"), IMAGES)
    wanted = ["TRANSPOSE", "CONV_2D", "DEPTHWISE_CONV_2D", "MEAN", "RESHAPE"]
    assert [o for o in operators if o != "DELEGATE"] == [*wanted, "FULLY_CONNECTED"]


def test_a_gelu_written_by_erf_is_one_operator(tmp_path):
    model = stacked(nn.Linear(4, 8), nn.GELU())
    path = exported(model, (2, 4), tmp_path / "m.onnx", opset=14)
    assert "Erf" in {node.op_type for node in onnx.load(str(path)).graph.node}
    operators = assert_same(path, (2, 4))
    assert operators[:2] == ["FULLY_CONNECTED", "GELU"]


def test_a_value_that_two_read_is_not_folded_into(tmp_path):
    """A batch norm of a convolution whose plain result is used too."""
    model = Of(lambda x, c, n: (lambda y: n(y) - y)(c(x)), conv(3, 4), norm(4))
    assert_same(exported(model, IMAGES, tmp_path / "m.onnx"), IMAGES)


def test_tensors_have_the_names_of_nodes(tmp_path):
    path = exported(stacked(conv(3, 4), nn.Tanh()), IMAGES, tmp_path / "m.onnx")
    interpreter = litert.Interpreter(model_content=converted(path))
    names = {tensor["name"] for tensor in interpreter.get_tensor_details()}
    assert {node.name for node in onnx.load(str(path)).graph.node} <= names
    assert interpreter.get_input_details()[0]["name"] == "image"


def graph_of(nodes, shape, path, arrays=(), opset=17):
    stored = [numpy_helper.from_array(array, name) for name, array in arrays]
    given = [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)]
    returned = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "g", given, returned, stored)
    opsets = [helper.make_opsetid("", opset)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8), str(path))
    return path


def test_sums_of_several_and_neighbouring_channels(tmp_path):
    nodes = [
        helper.make_node("LRN", ["x"], ["h"], size=3, alpha=0.1, beta=0.7, bias=2.0),
        helper.make_node("Sum", ["h", "x", "h"], ["s"]),
        helper.make_node("Max", ["s", "x", "b"], ["y"]),
    ]
    arrays = [("b", np.linspace(-1, 1, 4, dtype="f4").reshape(4, 1, 1))]
    path = graph_of(nodes, ["n", 4, 5, 5], tmp_path / "m.onnx", arrays)
    assert_same(path, (1, 4, 5, 5))


def test_a_network_of_onnxs_zoo_needs_one_transpose(tmp_path):
    stored = Path(onnx.__file__).parent / "backend/test/data/light"
    interpreter = litert.Interpreter(
        model_content=converted(stored / "light_squeezenet.onnx")
    )
    interpreter.allocate_tensors()
    operators = [one["op_name"] for one in interpreter._get_ops_details()]
    assert operators.count("CONV_2D") == 26 and operators.count("TRANSPOSE") == 1


def test_what_has_no_form_is_named(tmp_path):
    node = helper.make_node("Det", ["x"], ["y"], name="block/det")
    path = graph_of([node], [2, 3, 3], tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=r"'block/det' \(Det\)"):
        converted(path)


def test_a_computed_weight_is_named(tmp_path):
    node = helper.make_node("Conv", ["x", "x"], ["y"], name="odd")
    path = graph_of([node], [1, 1, 3, 3], tmp_path / "m.onnx")
    with pytest.raises(ModelError, match=r"'odd' \(Conv\).*weight"):
        converted(path)


def test_no_onnx_file_is_said(tmp_path):
    path = Path(tmp_path / "m.onnx")
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(ModelError, match=r"m\.onnx cannot be read"):
        converted(path)


@pytest.mark.parametrize(("lower", "upper"), [("SAME_UPPER", "SAME_LOWER")])
def test_automatic_padding(lower, upper, tmp_path):
    rng = np.random.default_rng(0)
    arrays = [(name, rng.normal(size=(3, 3, 4, 4)).astype("f4")) for name in "ab"]
    nodes = [
        helper.make_node("Conv", ["x", "a"], ["h"], auto_pad=lower, strides=[2, 2]),
        helper.make_node("Conv", ["h", "b"], ["y"], auto_pad=upper),
    ]
    path = graph_of(nodes, ["n", 3, 9, 9], tmp_path / "m.onnx", arrays)
    assert_same(path, (1, 3, 9, 9))
