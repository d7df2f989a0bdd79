"""Who opens TensorFlow's models, and what is said where TensorFlow is not installed."""

import sys

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert")

import octavo
from octavo.adapters.litert import octavo_adapters
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
