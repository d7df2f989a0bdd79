"""Who opens TensorFlow's models, and what is said where TensorFlow is not installed."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert")

from ai_edge_litert import schema_py_generated as schema

import octavo
from octavo.adapters.litert import octavo_adapters
from octavo.adapters.litert.conversion import _ordered
from octavo.adapters.litert.layer_names import named_by_layers
from octavo.core.calibration.sources import raw_batches
from octavo.plugin import Call, MissingFramework

CARD = next(iter(octavo_adapters()))


@pytest.mark.parametrize("name", ["a.tflite", "a.keras", "a.h5"])
def test_files_are_claimed_by_their_suffix(name, tmp_path):
    assert CARD.claims(tmp_path / name)


def test_a_folder_is_claimed_by_the_file_in_it(tmp_path):
    assert not CARD.claims(tmp_path)
    (tmp_path / "saved_model.pb").touch()
    assert CARD.claims(tmp_path)
    assert CARD.claims(str(tmp_path))


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("keras.src.models.model", "Model"),
        (
            "tensorflow.python.eager.polymorphic_function.polymorphic_function",
            "Function",
        ),
        (
            "tensorflow.python.eager.polymorphic_function.concrete_function",
            "ConcreteFunction",
        ),
    ],
)
def test_objects_are_claimed_by_the_class_that_defines_them(module, name):
    defined = type(name, (), {"__module__": module})
    of_the_user = type("Mine", (defined,), {"__module__": "mine"})
    assert CARD.claims(of_the_user())


@pytest.mark.parametrize("name", ["model.keras", "model.h5", "saved"])
def test_without_tensorflow_the_error_names_the_extra(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    path = tmp_path / name
    if name == "saved":
        path.mkdir()
        (path / "saved_model.pb").touch()
    else:
        path.write_bytes(b"any")
    data = [np.zeros((1, 4), np.float32)]
    with pytest.raises(MissingFramework, match=r'pip install "octavo\[tensorflow\]"'):
        octavo.quantize_model(path, "int8-static", data)


class Foreign:
    """An array of a library that knows nothing of the Array API standard."""

    def __init__(self, array):
        self.array = array
        self.shape, self.dtype = array.shape, "its own float32"

    def __array__(self, dtype=None, copy=None):
        return self.array


def test_arrays_of_other_libraries_become_numpys():
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    batches = [{"x": Foreign(array), "n": 3}, (Foreign(array), [Foreign(array)])]
    named, (first, (second,)) = raw_batches(batches)
    for found in (named["x"], first, second):
        assert isinstance(found, np.ndarray)
        np.testing.assert_array_equal(found, array)
    assert named["n"] == 3


def test_a_call_stays_a_call():
    array = np.zeros((2, 3), np.float32)
    (found,) = raw_batches([Call([Foreign(array), array], scale=Foreign(array))])
    assert isinstance(found, Call)
    assert isinstance(found.args[0][0], np.ndarray)
    assert isinstance(found.kwargs["scale"], np.ndarray)


def traced(*operators):
    """Return a flatbuffer's objects: one operator for each (kind, name of what it returns)."""
    model, main = schema.ModelT(), schema.SubGraphT()
    model.operatorCodes, main.tensors, main.operators = [], [], []
    for kind, name in operators:
        code, tensor, node = (
            schema.OperatorCodeT(),
            schema.TensorT(),
            schema.OperatorT(),
        )
        code.builtinCode = getattr(schema.BuiltinOperator, kind)
        tensor.name = name.encode()
        node.opcodeIndex, node.outputs = len(main.operators), [len(main.tensors)]
        model.operatorCodes.append(code)
        main.tensors.append(tensor)
        main.operators.append(node)
    main.outputs = [len(main.tensors) - 1]
    model.subgraphs = [main]
    return model


def layer(name, *shapes):
    weights = [SimpleNamespace(shape=shape) for shape in shapes]
    return SimpleNamespace(name=name, weights=weights)


def test_operators_get_the_names_of_their_layers():
    """The names are those that TensorFlow 2.21 gave to such a model."""
    model = traced(
        ("CONV_2D", "net_1/relu_1/Relu;net_1/stem_1/conv;net_1/norm_1/batchnorm/sub1"),
        ("DEPTHWISE_CONV_2D", "net_1/apart_1/separable_conv2d/depthwise1"),
        ("CONV_2D", "net_1/norm_1_1/batchnorm/add_1;net_1/apart_1/separable_conv2d"),
        ("ADD", "net_1/relu_1_1/Relu;net_1/residual_1/Add"),
        ("MUL", "net_1/Mul_2"),
        ("FULLY_CONNECTED", "net_1/block_1/dense_1_1/MatMul2"),
        ("SOFTMAX", "StatefulPartitionedCall_1:0"),
    )
    history = SimpleNamespace(operation=SimpleNamespace(name="head"))
    made = [
        layer("stem", (3, 3, 1, 8)),
        layer("apart", (3, 3, 8, 1), (1, 1, 8, 8)),
        layer("dense", (2, 2)),
        layer("dense_1", (2, 2)),
        *(layer(name) for name in ("relu", "relu_1", "residual", "block", "head")),
        *(layer(name, (8,)) for name in ("norm", "norm_1")),
    ]
    output = SimpleNamespace(_keras_history=history)
    keras = SimpleNamespace(name="net", outputs=[output], _flatten_layers=lambda: made)
    named_by_layers(model, keras)
    assert [tensor.name.decode() for tensor in model.subgraphs[0].tensors] == [
        "stem",
        "apart/depthwise_conv_2d",
        "apart/conv_2d",
        "residual",
        "/Mul_2",
        "block/dense_1",
        "head",
    ]


def test_ends_are_ordered_as_the_user_named_them():
    def entries(*names):
        found = []
        for index, name in enumerate(names):
            entry = schema.TensorMapT()
            entry.name, entry.tensorIndex = name.encode(), 10 + index
            found.append(entry)
        return found

    given = entries("b", "a", "c")
    assert _ordered([10, 11, 12], given, ["c", "b", "a"]) == [12, 10, 11]
    many = entries(*(f"output_{n}" for n in (10, 9, 1)))
    assert _ordered([10, 11, 12], many, []) == [12, 11, 10]
    # A signature of other tensors than the graph's ends says nothing of them.
    assert _ordered([7, 8], given, ["c", "b", "a"]) == [7, 8]
