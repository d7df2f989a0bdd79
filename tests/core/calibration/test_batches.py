"""What a loader yields and what a model's call takes."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import octavo
from octavo.core.calibration.data import calibration_data, rows
from octavo.core.calibration.reading import choose_reading
from octavo.core.errors import DataError
from octavo.core.values.calls import Batch, flat, parts
from octavo.core.values.graph import InputInfo
from octavo.core.values.takes import Takes

X, Y, MASK = (
    np.ones((4, 3), np.float32),
    np.array([0, 1, 2, 1]),
    np.array([True, True, False, False]),
)
Sample = namedtuple("Sample", "x y")
REQUIRED = frozenset({"x"})


@dataclass
class Record:
    x: Any
    label: Any


def takes(
    *positional: str, required: tuple[str, ...] | None = None, **more: bool
) -> Takes:
    return Takes(
        positional,
        positional,
        frozenset(positional if required is None else required),
        **more,
    )


def runner(*, takes_pairs: bool = False, uses_mask: Any = "shape"):
    """A model of one array, or of a pair, and an optional mask."""

    def run(batch: Batch) -> tuple[np.ndarray, ...]:
        args, kwargs = parts(batch)
        values = [*args, *kwargs.values()]
        if takes_pairs:
            (a, b), *rest = values
            values = [a + b, *rest]
        result = values[0] * 1.0
        if len(values) > 1 and uses_mask == "shape":
            if values[1].shape != result.shape:
                raise RuntimeError("mask and x differ in shape")
            result = result * values[1]
        elif len(values) > 1 and uses_mask:
            result = result * values[1][:, None]
        return (result,)

    return run


def read(raw: Any, what: Takes, attempt: Any = None) -> tuple[Batch, str]:
    reading = choose_reading(raw, what, attempt)
    return reading(raw, 0), reading.note


def test_labels_are_dropped_and_said() -> None:
    for raw in [
        (X, Y),
        [X, Y],
        Sample(X, Y),
        {"x": X, "y": Y},
        Record(X, Y),
        {"x": X, "label": Y, "path": ["a"] * 4},
    ]:
        batch, note = read(raw, takes("x"), runner())
        args, kwargs = parts(batch)
        assert [*args, *kwargs.values()][0] is X
        assert len(args) + len(kwargs) == 1
        assert "left out" in note


def test_what_the_model_takes_is_said_to_be_dropped_by_nobody() -> None:
    for raw in [(X,), [X], {"x": X}, octavo.Call(X), octavo.Call(x=X)]:
        batch, note = read(raw, takes("x"), runner())
        assert not note
        args, kwargs = parts(batch)
        assert [*args, *kwargs.values()] == [X]


@pytest.mark.parametrize("pair", [(X, MASK), {"x": X, "mask": MASK}])
def test_pairs_of_inputs_and_labels(pair: Any) -> None:
    """((x, mask), y) for forward(x, mask) is unpacked; for forward(pair) it is not."""

    def both(batch: Batch) -> tuple[np.ndarray, ...]:
        args, kwargs = parts(batch)
        x, mask = [*args, *kwargs.values()]
        return (x * mask[:, None],)

    batch, note = read((pair, Y), takes("x", "mask"), both)
    args, kwargs = parts(batch)
    assert [*args, *kwargs.values()][1] is MASK
    assert "first item" in note


def test_a_pair_that_is_one_argument_stays_whole() -> None:
    batch, note = read(((X, X), Y), takes("pair"), runner(takes_pairs=True))
    assert batch == ((X, X),)
    assert "labels?" in note
    batch, _ = read((X, X), takes("pair"), runner(takes_pairs=True))
    assert isinstance(batch[0], tuple)  # type: ignore[index]


def test_labels_that_do_not_run_as_a_mask_are_no_mask() -> None:
    batch, note = read(
        (X, Y), takes("x", "mask", required=("x",)), runner(uses_mask="shape")
    )
    assert batch == (X,)
    assert "left out" in note


def test_labels_that_would_run_as_an_optional_argument_are_refused() -> None:
    with pytest.raises(
        DataError, match=r"item 1 may be 'weights' or labels.*octavo\.Batches"
    ):
        choose_reading(
            (X, Y), takes("x", "weights", required=("x",)), runner(uses_mask=True)
        )
    with pytest.raises(DataError, match=r"octavo\.Batches"):
        choose_reading(
            [X, Y], takes("x", "mask", required=("x",)), runner(uses_mask=True)
        )


def test_a_mask_is_known_as_one() -> None:
    batch, note = read(
        (X, MASK), takes("x", "mask", required=("x",)), runner(uses_mask=True)
    )
    assert len(batch) == 2
    assert not note
    zeros_and_ones = (X > 5).astype(np.int64)
    batch, _ = read(
        (X, zeros_and_ones),
        takes("input_ids", "attention_mask", required=()),
        runner(uses_mask="shape"),
    )
    assert len(batch) == 2


def test_what_makes_no_difference_may_be_given() -> None:
    batch, _ = read(
        (X, Y), takes("x", "targets", required=("x",)), runner(uses_mask=False)
    )
    assert len(batch) == 2


def test_labels_that_make_no_difference_as_a_mask_are_no_mask() -> None:
    labels = np.full((4, 3), 7)
    batch, note = read(
        (X, labels),
        takes("input_ids", "attention_mask", required=()),
        runner(uses_mask=False),
    )
    assert batch == (X,)
    assert "left out" in note


def test_any_number_of_values() -> None:
    star = Takes((), (), any_positional=True)
    assert len(read((X, X), star, lambda b: (sum(b),))[0]) == 2  # type: ignore[arg-type]
    # A wrapper that hands on whatever it is given takes what its inside takes.
    batch, note = read(
        (X, Y),
        Takes((), (), any_positional=True, any_keyword=True),
        runner(uses_mask="shape"),
    )
    assert batch == (X,)
    assert "left out" in note


def test_names_that_a_wrapper_does_not_hand_on() -> None:
    def inner(batch: Batch) -> tuple[np.ndarray, ...]:
        args, kwargs = parts(batch)
        (x,) = [*args, *kwargs.values()]
        return (x,)

    batch, note = read(
        {"x": X, "labels": Y},
        Takes((), (), any_positional=True, any_keyword=True),
        inner,
    )
    assert batch == {"x": X}
    assert "labels" in note


def test_a_mapping_that_is_the_argument() -> None:
    batch, _ = read({"image": X, "size": 3}, takes("batch"), lambda b: (b[0]["image"],))  # type: ignore[index]
    assert batch == ({"image": X, "size": 3},)


def test_a_list_that_is_the_argument() -> None:
    images = [np.ones((3, 4, 4), np.float32), np.ones((3, 5, 6), np.float32)]

    def detector(batch: Batch) -> tuple[np.ndarray, ...]:
        found = parts(batch)[0][0]
        if not isinstance(found, list):
            raise TypeError("expected a list of images")
        return tuple(i.mean((1, 2)) for i in found)

    batch, _ = read(images, takes("images", "targets", required=("images",)), detector)
    assert batch == (images,)
    batch, note = read(
        (images, [{"boxes": X}, {"boxes": X}]), takes("images"), detector
    )
    assert batch == (images,)
    assert "left out" in note


@pytest.mark.parametrize(
    ("raw", "what", "message"),
    [
        ({"z": X}, takes("x", "y"), r"keys \['z'\]"),
        ((X,), takes("x", "y"), "'y' is missing"),
        ((), takes("x"), "octavo.Batches"),
        ({"x": X}, takes("x", "y"), "'y' is missing"),
        (octavo.Call(X, x=X), takes("x"), "twice"),
        (octavo.Call(X, z=X), takes("x"), "called 'z'"),
        (octavo.Call(X, Y), takes("x"), "takes 1 inputs"),
    ],
)
def test_what_fits_no_reading_is_refused(raw: Any, what: Takes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        choose_reading(raw, what, None)


def test_a_batch_that_does_not_run_names_its_shapes() -> None:
    def broken(_: Batch) -> tuple[np.ndarray, ...]:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(
        DataError, match=r"x float32\(4, 3\).*cannot be multiplied.*octavo\.Batches"
    ):
        choose_reading((X, Y), takes("x"), broken)


def test_leaves_are_checked_where_they_lie() -> None:
    bad = {"b": {"x": X, "l": [np.array([1.0, np.nan])]}}
    reading = choose_reading((bad,), takes("d"), None)
    with pytest.raises(DataError, match=r"batch 1, input 'd\.b\.l\[0\]' holds NaN"):
        calibration_data([({"b": {"x": X}},), (bad,)], (), reading)
    with pytest.raises(DataError, match=r"'d\.b': object is no array"):
        calibration_data([({"b": object()},)], (), reading)


def test_digests_tell_trees_apart() -> None:
    reading = choose_reading(({"a": X},), takes("d"), None)

    def digest(tree: Any) -> str:
        return calibration_data([(tree,)], (), reading).digest()

    assert digest({"a": X, "flag": True}) == digest({"a": X.copy(), "flag": True})
    assert len({digest({"a": X, "flag": f}) for f in (True, False, None, 1, "1")}) == 5
    assert digest({"a": X}) != digest({"b": X})


def test_files_keep_their_declared_dimensions_and_free_ones_are_free() -> None:
    inputs = (InputInfo("x", (None, None, 3)),)
    data = calibration_data([(np.ones((2, n, 3), np.float32),) for n in (4, 7)], inputs)
    assert [b[0].shape for b in data] == [(2, 4, 3), (2, 7, 3)]  # type: ignore[index]
    with pytest.raises(DataError, match=r"expected shape \(any, any, 3\)"):
        calibration_data([np.ones((2, 4, 5), np.float32)], inputs)


# octavo.Batches


def test_batches_pick_the_inputs() -> None:
    loader = [{"image": X * i, "label": Y, "meta": object()} for i in (1, 2)]
    for pick in (
        lambda b: b["image"],
        lambda b: (b["image"],),
        lambda b: [b["image"]],
        lambda b: {"x": b["image"]},
    ):
        data = calibration_data(
            octavo.Batches(loader, inputs=pick), (InputInfo("x", (None, 3)),)
        )
        assert not data.notes
        for _ in range(2):
            assert [
                float([*parts(b)[0], *parts(b)[1].values()][0][0, 0]) for b in data
            ] == [
                1.0,
                2.0,
            ]


def test_batches_of_a_factory_are_streamed_and_those_of_a_generator_kept() -> None:
    made = []

    def factory() -> Iterator[Any]:
        made.append(1)
        yield from [(X, Y), (X, Y)]

    data = calibration_data(
        octavo.Batches(factory, inputs=lambda b: b[0]), (InputInfo("x", (None, 3)),)
    )
    assert data.batches is None
    before = len(made)
    assert sum(rows(b) for b in data) == 8
    assert len(made) == before + 1
    kept = calibration_data(
        octavo.Batches(factory(), inputs=lambda b: b[0]), (InputInfo("x", (None, 3)),)
    )
    assert [sum(rows(b) for b in kept) for _ in range(2)] == [8, 8]


def test_batches_of_an_array_and_a_mapping() -> None:
    table = {"x": np.ones((70, 3), np.float32), "y": np.zeros(70)}
    data = calibration_data(
        octavo.Batches(table, inputs=lambda b: b["x"]), (InputInfo("x", (None, 3)),)
    )
    assert sum(rows(b) for b in data) == 70


def test_batches_drop_nothing_and_guess_nothing() -> None:
    with pytest.raises(DataError, match="takes 1 inputs"):
        calibration_data(
            octavo.Batches([(X, Y)], inputs=lambda b: b), (InputInfo("x", (None, 3)),)
        )
    with pytest.raises(DataError, match="batch 0: 'image'"):
        calibration_data(
            octavo.Batches([{"x": X}], inputs=lambda b: b["image"]),
            (InputInfo("x", (None, 3)),),
        )
    with pytest.raises(DataError, match="function of one batch"):
        octavo.Batches([X], inputs=0)  # type: ignore[arg-type]


def test_trees_for_a_graph_are_their_arrays_in_order() -> None:
    tree = {"x": {"a": X}, "l": [Y]}
    for given, wanted in zip(flat((tree, None), ("p", "q")), (X, Y), strict=True):
        assert given is wanted
    by_name = flat({"b": tree, "flag": True}, ("b.x.a", "b.l[0]"))
    assert by_name["b.x.a"] is X  # type: ignore[call-overload]
    assert by_name["b.l[0]"] is Y  # type: ignore[call-overload]
    assert set(by_name) == {"b.x.a", "b.l[0]"}
    assert flat(([[1.0, 2.0]],), ("x",)) == ([[1.0, 2.0]],)


@pytest.mark.parametrize("layout", ["to_sparse", "to_sparse_csr"])
def test_sparse_tensors_are_leaves_too(layout: str) -> None:
    torch = pytest.importorskip("torch")
    sparse = getattr(torch.eye(4), layout)()
    reading = choose_reading((sparse,), takes("x"), None)
    data = calibration_data([(sparse,)], (), reading)
    assert (
        data.digest()
        == calibration_data([(getattr(torch.eye(4), layout)(),)], (), reading).digest()
    )
    with pytest.raises(DataError, match="holds NaN"):
        calibration_data([(getattr(torch.eye(4) / 0, layout)(),)], (), reading)
