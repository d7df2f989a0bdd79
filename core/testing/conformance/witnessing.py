"""The promise that ``kernel`` means low precision, told by something else than the ledger."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo.core.contract.adapter import Candidate
from octavo.core.numerics.affine import integer_range
from octavo.core.numerics.arrays import to_numpy
from octavo.core.values.calls import arrays_in
from octavo.core.values.scheme import OpScheme

from .case import AdapterCase, arrays, like
from .crafting import Crafted
from .visible import Bench, Visible

EXACT = 1e-9
"""Share of the sum of all terms' sizes that may be left of terms which cancel: integers leave 0,
float32 some 1e-8."""
LARGEST = 60
"""Of the whole numbers of which inputs and weights are made: within 7 bits, for reduced ranges."""
STEP = 0.1
"""Between two inputs. No power of two, so that float arithmetic rounds its multiples."""


class Witnessing:
    """The case's witness; where there is none, sums that only integers add up to 0."""

    def test_kernels_are_witnessed(self, case: AdapterCase, bench: Bench) -> None:
        """Where the ledger says ``kernel``, the runtime shows it; and it shows none in float."""
        witness = _witness(case)
        for units in bench.space.types.values():
            for unit in units[: case.ops_per_type]:
                op = bench.opened.view.by_name[unit.ops[0]]
                for scheme in bench.offers(op):
                    candidate, _ = bench.candidate(op, scheme)
                    _check(witness, candidate, op.name)
        plain = bench.opened.session.reference()
        for unit in bench.space.tunable:
            for name in unit.ops:
                assert witness(plain, name), (
                    f"the witness sees a low-precision kernel for {name} in the float model"
                )

    def test_kernels_are_witnessed_together(
        self, case: AdapterCase, bench: Bench, tmp_path: Path
    ) -> None:
        """Everything quantized at once, as it was made and as it is loaded again."""
        witness = _witness(case)
        recipe = bench.space.recipe(bench.space.first())
        candidate = bench.realizer.candidate(recipe)
        candidate.save(tmp_path)
        loaded = case.adapter().load(tmp_path, case.float_model)
        for name in candidate.ledger:
            _check(witness, candidate, name)
            _check(witness, loaded, name, "when it is loaded again")

    def test_integer_products_leave_nothing(
        self, case: AdapterCase, seen_ops: Sequence[Visible]
    ) -> None:
        """Terms that cancel sum up to 0 in integers; float arithmetic leaves its rounding errors.

        It stands in for a witness, where a linear op of known result reads the model's input.
        """
        if case.witness is not None:
            pytest.skip("the case has a witness, which tells more")
        tried = 0
        for visible in seen_ops:
            for scheme in visible.bench.offers(visible.op):
                if _can_cancel(visible, scheme):
                    tried += 1
                    _check_cancels(visible, scheme)
        if not tried:
            pytest.skip(
                "no static linear kernel reads the model's input and writes its output: give "
                "AdapterCase.witness, or a model of one op (AdapterCase.alone)"
            )


def _witness(case: AdapterCase) -> Callable[[Candidate, str], str]:
    if case.witness is None:
        pytest.skip(
            "no AdapterCase.witness: 'kernel' is believed as far as numbers tell"
        )
    return case.witness


def _check(
    witness: Callable[[Candidate, str], str],
    candidate: Candidate,
    name: str,
    when: str = "",
) -> None:
    """Hold a line of the ledger against what the witness sees."""
    line = candidate.ledger.get(name)
    if line is None or line.realization != "kernel" or line.applied.is_float:
        return
    shown = witness(candidate, name)
    said = " ".join(filter(None, (f"{name} as [{line.applied}]", when)))
    assert not shown, f"{said}: the ledger says kernel, the witness: {shown}"


def _can_cancel(visible: Visible, scheme: OpScheme) -> bool:
    """Return whether the kit knows the codes of all terms."""
    op, bench = visible.op, visible.bench
    weight, given = scheme.weight, scheme.input
    if (
        not _is_alone(visible)
        or scheme.mode != "static"
        or weight is None
        or given is None
    ):
        return False
    is_plain = weight.dtype == "int8" and weight.symmetric
    is_plain &= weight.granularity in ("tensor", "channel") and scheme.output is None
    is_kernel = bench.opened.capability.realization(op, scheme) == "kernel"
    return is_plain and is_kernel and given.bits == 8


def _is_alone(visible: Visible) -> bool:
    """True for a linear op that is the whole model."""
    view = visible.bench.opened.view
    is_one_op = len(view.ops) == 1 and len(view.inputs) == 1
    if not is_one_op or visible.op.type != "linear":
        return False
    given = np.asarray(to_numpy(_fed(visible)), np.float64)
    (read,) = visible.seen[0]
    return given.shape == read.shape and bool(np.allclose(given, read, rtol=1e-6))


def _fed(visible: Visible) -> Any:
    """Return the one array of the first batch."""
    (array,) = arrays_in(visible.bench.case.batches[0])
    return array


def _check_cancels(visible: Visible, scheme: OpScheme) -> None:
    crafted = Crafted(visible.bench, visible.op, scheme)
    rows = visible.seen[0][0]
    numbers, codes = _cancelling(rows.shape, crafted)
    x = like((numbers * STEP).astype(np.float32), _fed(visible))
    # The grid of the inputs: each of them is a multiple of its step.
    _, _, low, high = crafted.grid()
    spec = scheme.input
    assert spec is not None
    middle = 0 if spec.symmetric and low < 0 else (low + high + 1) // 2
    decided = crafted.with_input(STEP, middle)
    weight = crafted.with_codes(codes, crafted.weight.params).weight
    decided = replace(decided, weight=weight)
    if visible.op.bias:
        bias = crafted.with_bias(np.zeros_like(crafted.own_bias())).bias
        decided = replace(decided, bias=bias)
    candidate = crafted.applied(decided)
    y = arrays(candidate.run((x,)))[0]
    scale = np.max(np.asarray(to_numpy(crafted.weight.params.scale)))
    terms = np.abs(numbers).max() * np.abs(codes).max() * STEP * scale * rows.shape[-1]
    left = float(np.abs(y.reshape(-1, y.shape[-1])[0]).max())
    assert left <= EXACT * terms, (
        f"{crafted.what}: terms that cancel leave {left:.3g}, as float arithmetic does: this is "
        "no integer kernel"
    )


def _cancelling(
    shape: tuple[int, ...], crafted: Crafted
) -> tuple[np.ndarray, np.ndarray]:
    """Return whole inputs, and weights' codes with which the first row's products cancel.

    Two inputs a and b meet the weights b and -a, over their greatest common divisor.
    """
    random = np.random.default_rng(0)
    low, high = integer_range(crafted.weight.params.spec)
    largest = min(LARGEST, high, -low)
    numbers = random.integers(1, largest + 1, shape)
    numbers *= random.choice((-1, 1), shape)
    row = numbers.reshape(-1, shape[-1])[0]
    assert crafted.op.weight is not None
    is_rows = crafted.op.weight.channel_axis == 0
    channels = crafted.op.weight.shape[0 if is_rows else 1]
    count = shape[-1] // 2
    drawn = random.permuted(np.tile(np.arange(shape[-1]), (channels, 1)), axis=1)
    first, second = drawn[:, :count], drawn[:, count : 2 * count]
    shared = np.gcd(row[first], row[second])
    codes = np.zeros((channels, shape[-1]), np.int64)
    np.put_along_axis(codes, first, row[second] // shared, axis=1)
    np.put_along_axis(codes, second, -row[first] // shared, axis=1)
    return numbers, codes if is_rows else codes.T
