"""The promise that a call takes what the model takes, whatever its size, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from array_api_compat import is_array_api_obj

from octavo.core.contract.adapter import Batch, Candidate
from octavo.core.numerics.arrays import to_numpy
from octavo.core.values.calls import arrays_in, parts, plainest
from octavo.core.values.graph import InputInfo

from .case import (
    AdapterCase,
    arrays,
    check_close_to_largest,
    check_equal,
    each,
    first_row,
    like,
    outputs,
    rms,
    runs,
)
from .visible import Bench

SURPLUS = 16
"""Arrays that are too many for any model of a test."""
LIKE = 0.4
"""Share of the error of rounding by which a row may differ: codes on a tie go either way."""
SUMS = 1e-4
"""Share of the outputs by which sums in float32 may differ."""
Wrong = tuple[str, Batch]
"""(what is wrong, a batch that is)."""


class Calling:
    """Batches that are wrong, unusual or written in another way; several outputs."""

    def test_wrong_inputs_are_a_data_error(
        self, case: AdapterCase, bench: Bench
    ) -> None:
        """Names, number, shapes and dtypes, of the quantized model and of the float one."""
        quantized = bench.realizer.candidate(bench.space.recipe(bench.space.first()))
        for model in (quantized, bench.opened.session.reference()):
            for what, batch in _wrong(case.batches[0], bench.opened.view.inputs):
                assert not runs(model, batch), (
                    f"a batch with {what} is run, where a DataError says what was expected"
                )

    def test_unusual_batches_run(self, case: AdapterCase, bench: Bench) -> None:
        """One row, zeros, and what the case calls odd: shapes as in float, and finite numbers."""
        quantized = bench.realizer.candidate(bench.space.recipe(bench.space.first()))
        reference = bench.opened.session.reference()
        for batch in (*_derived(case.batches[0], reference), *case.odd):
            wanted = arrays(reference.run(batch))
            got = arrays(quantized.run(batch))
            assert [y.shape for y in got] == [y.shape for y in wanted]
            for y, exact in zip(got, wanted, strict=True):
                is_finite = np.isfinite(y) | ~np.isfinite(exact)
                assert is_finite.all(), "numbers that are finite in float are not here"

    def test_one_row_is_what_it_was_among_others(
        self, case: AdapterCase, bench: Bench
    ) -> None:
        """With ranges from calibration no row knows of the others."""
        chosen = {}
        for unit in bench.space.tunable:
            static = [s for s in unit.choices if s.mode in ("static", "float")]
            chosen[unit.name] = static[0]
        candidate = bench.realizer.candidate(bench.space.recipe(chosen))
        reference = bench.opened.session.reference()
        whole = case.batches[0]
        row = first_row(whole)
        if row is None or not runs(reference, row):
            pytest.skip("the model takes one number of rows only")
        exact = [y[:1] for y in arrays(reference.run(whole))]
        if not _are_close(arrays(reference.run(row)), exact):
            pytest.skip("rows of the float model depend on each other")
        together = [y[:1] for y in arrays(candidate.run(whole))]
        alone = arrays(candidate.run(row))
        for one, among, plain in zip(alone, together, exact, strict=True):
            rounding = rms(among - plain)
            assert rms(one - among) <= LIKE * rounding + SUMS * rms(plain), (
                "a row alone gives other numbers than among others: ranges that were decided "
                "are found again at run time"
            )

    def test_outputs_come_in_their_order(self, case: AdapterCase, bench: Bench) -> None:
        """As many as the view names, each like its own in float."""
        quantized = bench.realizer.candidate(bench.space.recipe(bench.space.first()))
        batch = case.batches[0]
        got = quantized.run(batch)
        wanted = bench.opened.session.reference().run(batch)
        names = bench.opened.view.outputs
        assert isinstance(got, tuple), "run() returns a tuple, one output or several"
        assert len(got) == len(wanted) == len(names)
        for name, y, exact in zip(names, got, wanted, strict=True):
            assert isinstance(y, np.ndarray), name
            assert y.shape == exact.shape, name
            others = [other for other in wanted if other.shape == exact.shape]
            nearest = min(rms(y - other) for other in others)
            assert rms(y - exact) <= nearest, f"{name} is another output of the model"

    def test_batches_are_read_by_name(self, case: AdapterCase, bench: Bench) -> None:
        """In order, or by name in any order: the same outputs, and the inputs stay as they are."""
        quantized = bench.realizer.candidate(bench.space.recipe(bench.space.first()))
        batch = case.batches[0]
        values = _by_name(batch, bench.opened.view.inputs)
        before = [np.array(to_numpy(array)) for array in arrays_in(batch)]
        expected = arrays(quantized.run(batch))
        for array, was in zip(arrays_in(batch), before, strict=True):
            unchanged = np.array_equal(np.asarray(to_numpy(array)), was)
            assert unchanged, "a call writes into its inputs"
        if values is not None:
            backwards = dict(reversed(values.items()))
            for written in (tuple(values.values()), backwards):
                check_equal(arrays(quantized.run(written)), expected)

    def test_outputs_are_kept_by_later_calls(
        self, case: AdapterCase, bench: Bench
    ) -> None:
        """A runtime that has one place for its outputs hands out copies."""
        quantized = bench.realizer.candidate(bench.space.recipe(bench.space.first()))
        for model in (quantized, bench.opened.session.reference()):
            found = model.run(case.batches[0])
            was = [np.array(y) for y in found]
            model.run(each(case.batches[0], _zeros))
            kept = all(map(np.array_equal, found, was))
            assert kept, "the outputs of a call are overwritten by the next one"

    def test_native_gives_what_run_gives(self, case: AdapterCase, bench: Bench) -> None:
        """Called in order or by name, with arrays of the backend's own kind."""
        quantized = bench.realizer.candidate(bench.space.recipe(bench.space.first()))
        weights = [op.weight for op in bench.opened.view.ops if op.weight]
        own = bench.opened.session.tensor(weights[0].name) if weights else np.zeros(1)
        for batch in case.batches[:1]:
            args, kwargs = parts(batch)
            ordered = [_as(value, own) for value in args]
            named = {name: _as(value, own) for name, value in kwargs.items()}
            got = arrays(quantized.native(*ordered, **named))
            check_close_to_largest(got, outputs(quantized, [batch]), 1e-5)


def _wrong(batch: Batch, inputs: Sequence[InputInfo]) -> Iterator[Wrong]:
    """Yield batches that no model with these inputs takes."""
    args, kwargs = parts(batch)
    yield "nothing in it", ()
    yield "nothing but an unknown name", {"no such input": np.zeros((1, 1), np.float32)}
    # More than one: a module may have arguments that the batches leave out.
    more = [*args, *kwargs.values(), *[np.ones(1)] * SURPLUS]
    yield "arrays too many", plainest(more, {})
    values = _by_name(batch, inputs)
    if values is None:
        return
    yield "an unknown name beside the others", {**values, "no such input": np.ones(1)}
    for info in inputs:
        rest = {name: value for name, value in values.items() if name != info.name}
        if is_array_api_obj(values[info.name]):
            yield f"input {info.name!r} missing", rest
            for what, array in _wrong_arrays(
                info, np.asarray(to_numpy(values[info.name]))
            ):
                yield f"{info.name!r} of {what}", {**rest, info.name: array}


def _by_name(batch: Batch, inputs: Sequence[InputInfo]) -> dict[str, Any] | None:
    """Return a batch by the names of the inputs; None where it does not have them all."""
    args, kwargs = parts(batch)
    names = [info.name for info in inputs]
    values = dict(zip(names, args, strict=False)) | dict(kwargs)
    return {name: values[name] for name in names} if set(values) == set(names) else None


def _wrong_arrays(
    info: InputInfo, array: np.ndarray
) -> Iterator[tuple[str, np.ndarray]]:
    yield "text", np.full(array.shape, "a")
    if array.dtype.kind == "f":
        yield "complex numbers", array.astype(np.complex64)
    if array.dtype.kind in "iu":
        yield "broken numbers", array + np.float32(0.5)
    for axis, length in enumerate(info.shape or ()):
        if isinstance(length, int):
            longer = np.concatenate([array, array.take([0], axis)], axis)
            yield f"length {length + 1} along axis {axis}", longer
    if info.shape is not None:
        yield "one axis too many", array[None]


def _derived(batch: Batch, reference: Candidate) -> Iterator[Batch]:
    """Yield the first row alone and zeros, where the float model takes them."""
    for changed in (first_row(batch), each(batch, _zeros)):
        if changed is not None and runs(reference, changed):
            yield changed


def _zeros(value: Any) -> Any:
    return value * 0 if is_array_api_obj(value) else value


def _are_close(got: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> bool:
    if [y.shape for y in got] != [y.shape for y in wanted]:
        return False
    pairs = zip(got, wanted, strict=True)
    return all(rms(a - b) <= 1e-3 * rms(b) for a, b in pairs)


def _as(value: Any, own: Any) -> Any:
    """Return an array in the backend's own kind."""
    if not is_array_api_obj(value):
        return value
    return like(np.asarray(to_numpy(value)), own)
