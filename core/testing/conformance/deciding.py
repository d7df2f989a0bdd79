"""The promise that each decision of the core is carried out, wherever in the model an op stands.

What the rest of the model makes of an op's result is not known to the kit. It needs not be: two
sets of decisions that stand for the same numbers must give the same outputs, and sets that stand
for others must not.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from dataclasses import replace

import numpy as np
import pytest

from octavo.core.authoring.reference import rounded_forward
from octavo.core.contract.adapter import Batch, OpParameters
from octavo.core.numerics.affine import is_integer
from octavo.core.numerics.arrays import to_numpy
from octavo.core.values.graph import Op
from octavo.core.values.scheme import OpScheme

from .case import AdapterCase, first_row, rms, runs
from .crafting import PRODUCTS, Crafted
from .visible import Bench, observed

SAME = 0.1
"""Share of an effect by which two runs may differ that must be alike: codes on a tie, a bias in 32
bits whose step is another one."""
LIKE = 0.5
"""The same for runs that are only near each other."""
FELT = 1e-3
"""Share of the outputs below which a change has no effect that could be told from rounding."""

SUMS = 1e-5
"""Share of the outputs by which sums in float32 may differ."""
ENOUGH = 2
"""Ops of a type whose bias is looked at."""


class Deciding:
    """Ranges, zero points, scales and biases, each by itself."""

    def test_inputs_keep_to_their_range(self, bench: Bench) -> None:
        """A static grid so coarse that each input is 0 leaves nothing of the products."""
        for crafted in _crafted(bench, _by_static_input):
            scale, zero_point, low, high = crafted.grid()
            reach = scale * max(zero_point - low, high - zero_point)
            as_decided = crafted.run(crafted.decided)
            none = crafted.run(crafted.without_products())
            coarse = crafted.run(crafted.with_input(2.5 * reach, zero_point))
            effect = rms(as_decided - none)
            if effect > FELT * rms(as_decided):
                assert rms(coarse - none) <= LIKE * effect, (
                    f"{crafted.what}: the scale of its input is not used: inputs that round to "
                    "0 have an effect"
                )

    def test_zero_points_of_inputs_are_used(self, bench: Bench) -> None:
        """Two zero points whose codes stand for the same numbers give the same outputs."""
        for crafted in _crafted(bench, _by_zero_point):
            scale, zero_point, low, high = crafted.grid()
            # A scale twice as wide needs half of the codes, which may lie here or there.
            first = low + (zero_point - low + 1) // 2
            room = (high - low) // 2
            near, far = first + room // 16, first + room - room // 8
            as_decided = crafted.run(crafted.decided)
            none = crafted.run(crafted.without_products())
            one = crafted.run(crafted.with_input(2 * scale, near))
            other = crafted.run(crafted.with_input(2 * scale, far))
            effect = rms(as_decided - none)
            if effect > FELT * rms(as_decided):
                assert rms(one - other) <= SAME * effect, (
                    f"{crafted.what}: the zero point of its input changes the numbers"
                )
                assert rms(one - as_decided) <= LIKE * effect, (
                    f"{crafted.what}: the zero point of its input is not used"
                )

    def test_scales_belong_to_their_channels(self, bench: Bench) -> None:
        """Codes twice as large under scales half as large, here and there, change nothing."""
        random = np.random.default_rng(0)
        for crafted in _crafted(bench, _by_many_scales):
            weight = crafted.weight
            if weight.extra is not None:
                continue
            drawn = random.integers(1, 3, tuple(weight.params.scale.shape))
            zeros = crafted.zero_codes()
            # Towards zero: doubled again, no code leaves its range.
            half = np.trunc((_codes(crafted) - zeros) / 2).astype(np.int64)
            plain = crafted.run(crafted.with_codes(half + zeros, weight.params))
            in_codes = crafted.run(
                crafted.with_codes(half * crafted.spread(drawn) + zeros, weight.params)
            )
            in_scales = crafted.run(
                crafted.with_codes(half + zeros, crafted.scaled(drawn))
            )
            effect = rms(in_codes - plain)
            if effect > FELT * rms(plain):
                assert rms(in_codes - in_scales) <= SAME * effect, (
                    f"{crafted.what}: its weight's scales are not those of their channels "
                    f"(axis {weight.params.axis})"
                )

    def test_inner_products_are_those_of_rounding(
        self, case: AdapterCase, bench: Bench
    ) -> None:
        """Layers in the middle of the model round as those at its end do."""
        row = first_row(case.batches[0])
        reference = bench.opened.session.reference()
        if row is None or not runs(reference, row):
            pytest.skip("the model takes one number of rows only")
        tried = 0
        for op in _ops(bench, "linear"):
            for scheme in _apart(bench, "linear", _by_mode):
                is_rounded = scheme.mode in ("static", "dynamic")
                if op.bias and is_rounded and scheme in bench.offers(op):
                    tried += _check_inner(Crafted(bench, op, scheme), row)
        if not tried:
            pytest.skip("no linear op with a bias writes one vector for one row")

    def test_a_corrected_bias_is_used(self, bench: Bench) -> None:
        """``OpParameters.bias`` takes the place of the model's own."""
        for kind in PRODUCTS & bench.space.types.keys():
            ops = [op for op in _ops(bench, kind) if op.bias]
            for scheme in _apart(bench, kind, _by_mode):
                takers = [op for op in ops if scheme in bench.offers(op)]
                felt = 0
                for op in takers:
                    felt += _feels_its_bias(Crafted(bench, op, scheme))
                    if felt == ENOUGH:
                        break
                # A key's bias moves no softmax: one op may feel nothing, not all of them.
                assert felt or not takers, (
                    f"{kind} as [{scheme}]: a corrected bias (OpParameters.bias) changes nothing"
                )


def _feels_its_bias(crafted: Crafted) -> bool:
    """Return whether another bias changes the outputs; the model's own must not."""
    own = crafted.own_bias()
    step = max(1.0, float(np.abs(own).max()))
    other = own + step * np.random.default_rng(0).normal(size=own.shape)
    as_decided = crafted.run(crafted.decided)
    same = crafted.run(crafted.with_bias(own))
    changed = crafted.run(crafted.with_bias(other))
    felt = FELT * rms(as_decided)
    assert rms(same - as_decided) <= felt, (
        f"{crafted.what}: the model's own bias, given as a corrected one, changes the outputs"
    )
    return rms(changed - as_decided) > felt


def _check_inner(crafted: Crafted, row: Batch) -> bool:
    """Hold an op anywhere in the model against plain NumPy; return whether the kit could.

    Where an op writes one vector, its result can be had in another way: without products and with
    that vector as its bias.
    """
    read = observed(crafted.bench, crafted.op, row)
    is_one_vector = len(read) == 1 and read[0].size == read[0].shape[-1]
    own = crafted.own_bias()
    decided = crafted.decided
    wanted = rounded_forward(crafted.op, read, decided, own)
    halfway = rounded_forward(crafted.op, read, decided, own, float_inputs=True)
    if not is_one_vector or wanted is None or halfway is None:
        return False
    none = crafted.without_products()
    got = crafted.run(decided, [row])
    right = crafted.run(_with_result(crafted, none, wanted), [row])
    wrong = crafted.run(_with_result(crafted, none, halfway), [row])
    assert rms(got - right) <= LIKE * rms(right - wrong) + SUMS * rms(right), (
        f"{crafted.what}: its result is not what rounding gives; it is "
        f"{rms(got - right):.3g} away, and {rms(got - wrong):.3g} from unrounded inputs"
    )
    return True


def _with_result(
    crafted: Crafted, none: OpParameters, result: np.ndarray
) -> OpParameters:
    return replace(none, bias=crafted.with_bias(result.reshape(-1)).bias)


Wanted = Callable[[OpScheme], Hashable]
"""What decides which offers are alike for a test, one of which is tried; None leaves one out."""


def _by_static_input(scheme: OpScheme) -> Hashable:
    return scheme.input if scheme.mode == "static" else None


def _by_zero_point(scheme: OpScheme) -> Hashable:
    found = _by_static_input(scheme)
    return found if scheme.input and not scheme.input.symmetric else None


def _by_many_scales(scheme: OpScheme) -> Hashable:
    spec = scheme.weight
    if spec is None or spec.granularity == "tensor" or spec.scale_dtype is not None:
        return None
    return scheme.mode, spec


def _by_mode(scheme: OpScheme) -> Hashable:
    return scheme.mode


def _crafted(bench: Bench, wanted: Wanted) -> Iterator[Crafted]:
    """Yield one op for each offer that a test tells apart; skip the test where there is none.

    The ops of a type take turns, so that many of them are met.
    """
    tried = 0
    for kind in PRODUCTS & bench.space.types.keys():
        for index, scheme in enumerate(_apart(bench, kind, wanted)):
            takers = [op for op in _ops(bench, kind) if scheme in bench.offers(op)]
            tried += 1
            yield Crafted(bench, takers[index % len(takers)], scheme)
    if not tried:
        pytest.skip("the case has no op with such an offer")


def _apart(bench: Bench, kind: str, wanted: Wanted) -> list[OpScheme]:
    """Return the first offer of each sort, of all ops of a type."""
    found: dict[Hashable, OpScheme] = {}
    for op in _ops(bench, kind):
        for scheme in bench.offers(op):
            is_int = scheme.weight is not None and is_integer(scheme.weight)
            sort = wanted(scheme)
            if is_int and sort is not None and scheme.mode != "cast":
                found.setdefault((kind, sort), scheme)
    return list(found.values())


def _ops(bench: Bench, kind: str) -> list[Op]:
    """Return the ops of a type that have one weight and decide for themselves."""
    ops = [op for op in bench.opened.view.ops if op.type == kind]
    return [op for op in ops if len(op.weights) == 1 and bench.offers(op)]


def _codes(crafted: Crafted) -> np.ndarray:
    return np.asarray(to_numpy(crafted.weight.codes)).astype(np.int64)
