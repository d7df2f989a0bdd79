"""Calibration data of any form."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from octavo.core.calibration.data import calibration_data, rows
from octavo.core.errors import DataError, UnsafeFile
from octavo.core.values.graph import InputInfo

X = InputInfo("x", (None, 3))
ARRAY = np.arange(210, dtype=np.float32).reshape(70, 3)


class Reader:
    """ONNX Runtime's CalibrationDataReader."""

    def __init__(self) -> None:
        self.left = [{"x": ARRAY[:2]}, {"x": ARRAY[2:4]}]

    def get_next(self) -> dict | None:
        return self.left.pop(0) if self.left else None


@pytest.mark.parametrize(
    "source",
    [
        ARRAY,
        {"x": ARRAY},
        [ARRAY[:35], ARRAY[35:]],
        [(ARRAY[:35],), [ARRAY[35:]]],
        [{"x": ARRAY}],
        (b for b in [ARRAY]),
        lambda: iter([ARRAY]),
        lambda: (b for b in [{"x": ARRAY[:70]}]),
    ],
)
def test_every_form_gives_all_rows_twice(source: object) -> None:
    data = calibration_data(source, (X,))
    for _ in range(2):
        assert sum(rows(b) for b in data) == 70


def test_reader_and_npz(tmp_path: Path) -> None:
    assert sum(rows(b) for b in calibration_data(Reader(), (X,))) == 4
    np.savez(tmp_path / "ä b.npz", x=ARRAY, labels=np.zeros(70))
    data = calibration_data(tmp_path / "ä b.npz", (X,))
    assert sum(rows(b) for b in data) == 70
    assert "labels" in data.notes[0]
    assert data.digest() == calibration_data(str(tmp_path / "ä b.npz"), (X,)).digest()


def test_labels_in_tuples_are_left_out_and_noted() -> None:
    data = calibration_data([(ARRAY, np.zeros(70))], (X,))
    assert len(data.first()) == 1
    assert "labels?" in data.notes[0]


def test_a_torch_loader() -> None:
    torch = pytest.importorskip("torch")
    loader = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.from_numpy(ARRAY), torch.zeros(70)),
        batch_size=32,
    )
    data = calibration_data(loader, (X,))
    assert [rows(b) for b in data] == [32, 32, 6]
    assert data.digest() == data.numpy().digest()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, "missing"),
        ([], "empty"),
        (iter(()), "empty"),
        (lambda: iter(()), "no batch"),
        (3, "cannot be read"),
        ([{"y": ARRAY}], r"keys \['y'\]"),
        (
            [ARRAY[:, :2]],
            r"expected shape \(any, 3\), got \(70, "
            r"2\)",
        ),
        ([ARRAY, np.full((1, 3), np.nan)], "batch 1, input 'x' holds NaN"),
        ([np.full((1, 3), np.inf)], "NaN or Inf"),
        ([["text"]], "is no array"),
        ({"x": ARRAY, "z": ARRAY[:3]}, "number of samples"),
    ],
)
def test_bad_data_is_refused(source: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        calibration_data(source, (X,))


def test_bad_files(tmp_path: Path) -> None:
    np.savez(tmp_path / "pickled.npz", x=np.array([{"a": 1}], dtype=object))
    with pytest.raises(UnsafeFile):
        calibration_data(tmp_path / "pickled.npz", (X,))
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 no zip")
    with pytest.raises(DataError):
        calibration_data(tmp_path / "broken.npz", (X,))
    with pytest.raises(DataError):
        calibration_data(tmp_path / "missing.npz", (X,))


def test_a_one_shot_source_is_kept_within_a_limit() -> None:
    with pytest.raises(DataError, match="factory"):
        calibration_data((ARRAY for _ in range(10)), (X,), limit=ARRAY.nbytes * 3)


def test_a_factory_is_streamed() -> None:
    made = SimpleNamespace(count=0)

    def factory():
        made.count += 1
        for _ in range(3):
            yield ARRAY

    data = calibration_data(factory, (X,))
    assert data.batches is None
    before = made.count
    assert sum(rows(b) for b in data) == 210
    assert made.count == before + 1


def test_integer_inputs_and_fortran_order() -> None:
    ids = np.asfortranarray(np.arange(12).reshape(4, 3))
    data = calibration_data([ids], (InputInfo("ids", (None, None), "int64"),))
    assert (
        data.digest()
        == calibration_data(
            [np.ascontiguousarray(ids)], (InputInfo("ids", (None, None), "int64"),)
        ).digest()
    )


def test_bfloat16_batches_are_checked_too() -> None:
    import ml_dtypes

    data = calibration_data([ARRAY.astype(ml_dtypes.bfloat16)], (X,))
    assert rows(data.first()) == 70
    with pytest.raises(DataError, match="NaN or Inf"):
        calibration_data([np.full((1, 3), np.nan, ml_dtypes.bfloat16)], (X,))
