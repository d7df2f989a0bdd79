"""The promise that numbers are those of the decisions: rounded as they say, and where they say."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import pytest

from octavo.core.values.scheme import OpScheme

from .case import rms
from .visible import Visible

AGREES = 0.15
"""Share of the error of rounding by which a result may differ from the kit's own.

A value on a tie goes the other way in float32, once in some thousand; a bias in 32 bits is rounded.
"""
OF_INPUTS = 0.5
"""Share of the error that rounding the inputs alone makes: whoever leaves them in float is a whole
one off."""
FLOAT32 = 1e-5
"""Share of the result by which sums in float32 may differ."""
MODES = ("static", "dynamic", "weight_only")


class Computing:
    """What one op writes, against the kit's own arithmetic."""

    def test_numbers_are_those_of_the_rounded_op(
        self, seen_ops: Sequence[Visible]
    ) -> None:
        """Each scheme computes what rounding says in plain NumPy, and not what float says."""
        types: set[str] = set()
        tried = 0
        for visible in seen_ops:
            tried += _check_op(visible, again=visible.op.type in types)
            types.add(visible.op.type)
        if not tried:
            pytest.skip(
                "no op of known formula writes an output of a model: "
                "give AdapterCase.alone or Adapter.sample"
            )


def _check_op(visible: Visible, *, again: bool) -> int:
    """Check the schemes of an op; return how many could be."""
    return sum(_check_scheme(visible, scheme) for scheme in _schemes(visible, again))


def _schemes(visible: Visible, again: bool) -> list[OpScheme]:
    """Return every offer that is a kernel, and of the simulated ones one of each sort.

    Args:
        visible: The op.
        again: Its type was tried: of kernels one of each sort too.
    """
    found: dict[Hashable, OpScheme] = {}
    for scheme in visible.bench.offers(visible.op):
        said = visible.bench.opened.capability.realization(visible.op, scheme)
        grain = scheme.weight.granularity if scheme.weight and again else ""
        is_plain = said != "kernel" or again
        sort: Hashable = (scheme.mode, said, grain) if is_plain else scheme
        if scheme.mode in MODES:
            found.setdefault(sort, scheme)
    return list(found.values())


def _check_scheme(visible: Visible, scheme: OpScheme) -> bool:
    """Check one scheme; return whether the kit could."""
    candidate, parameters = visible.bench.candidate(visible.op, scheme)
    decided = parameters[visible.op.name]
    wanted = visible.rounded(decided)
    with_float_inputs = visible.rounded(decided, float_inputs=True)
    if wanted is None or with_float_inputs is None:
        return False
    exact, got = visible.exact(), visible.got(candidate)
    rounding = rms(wanted - exact)
    slack = FLOAT32 * rms(exact)
    off = rms(got - wanted)
    what = f"{visible.op.name} ({visible.op.type}) as [{scheme}]"
    assert off <= AGREES * rounding + slack, (
        f"{what}: {off:.3g} from what rounding gives, which is {rounding:.3g} from float; "
        f"the result is {rms(got - exact):.3g} from float"
    )
    of_inputs = rms(wanted - with_float_inputs)
    if scheme.mode != "weight_only":
        assert off <= OF_INPUTS * of_inputs + slack, (
            f"{what}: its inputs are not rounded: {off:.3g} from what rounding gives, of "
            f"which the inputs make {of_inputs:.3g}"
        )
    return True
