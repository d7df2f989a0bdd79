"""The promise that an adapter carries out what it offers, all of it and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from octavo.core.contract.adapter import Candidate, Opened, OpParameters, Session
from octavo.core.errors import SchemeError
from octavo.core.quantizing.realize import Realizer
from octavo.core.values.graph import Op
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import OpScheme, QuantSpec
from octavo.core.values.space import TuningSpace, Unit

from .case import (
    AdapterCase,
    Arrays,
    check_close_to_largest,
    check_equal,
    cosine,
    outputs,
)
from .visible import Bench


class CarryingOut:
    """Capability and ledger are honest, results repeat, and the float model stays what it was."""

    def test_all_float_is_the_float_model(
        self, case: AdapterCase, opened: Opened, expected: Arrays
    ) -> None:
        """An empty recipe changes nothing but rounding (folding may reorder sums)."""
        plain = opened.session.apply(Recipe(backend=opened.name), {})
        check_close_to_largest(outputs(plain, case.batches), expected, 1e-4)

    def test_every_offer_is_carried_out(
        self,
        case: AdapterCase,
        opened: Opened,
        space: TuningSpace,
        realizer: Realizer,
        expected: Arrays,
    ) -> None:
        """What is offered runs, the ledger says so, and the outputs are near the float model's."""
        for unit, scheme in _offers(case, space):
            candidate = realizer.candidate(space.recipe({unit.name: scheme}))
            _check_ledger(candidate, opened, opened.view.by_name[unit.name], scheme)
            got = outputs(candidate, case.batches)
            is_finite = all(np.isfinite(y).all() for y in got)
            assert is_finite, (
                f"{unit.name} as [{scheme}] gives outputs that are not finite"
            )
            # Fewer bits may hurt a small model as much as they like.
            if scheme.weight_bits >= 8:
                near = cosine(got, expected)
                assert near >= case.closeness, (
                    f"{unit.name} as [{scheme}]: cosine {near:.4f}"
                )

    def test_what_is_not_offered_is_refused(self, bench: Bench) -> None:
        """``apply`` itself refuses a scheme outside the capability, whatever it could make of it.

        The core asks only for what is offered; a recipe from elsewhere may name anything.
        """
        for kind, units in bench.space.types.items():
            op = bench.opened.view.by_name[units[0].ops[0]]
            offers = bench.offers(op)
            if not offers:
                continue
            scheme = _not_offered(bench, op, offers)
            _, decided = bench.decisions(op, offers[0])
            asked = {op.name: replace(decided[op.name], scheme=scheme)}
            recipe = Recipe({op.name: scheme}, backend=bench.opened.name)
            assert _is_refused(bench, recipe, asked), (
                f"apply carries out {kind} as [{scheme}], which is not offered"
            )

    def test_everything_at_once(
        self,
        case: AdapterCase,
        opened: Opened,
        space: TuningSpace,
        realizer: Realizer,
        expected: Arrays,
    ) -> None:
        """The first choice of every op, together; the backend's own ledger has them all."""
        recipe = space.recipe(space.first())
        candidate = realizer.candidate(recipe)
        own = _made_by_itself(opened, recipe, realizer.parameters(recipe))
        for unit in space.tunable:
            missing = set(unit.ops) - set(own.ledger)
            assert not missing, f"the ledger has no line for {sorted(missing)}"
        assert cosine(outputs(candidate, case.batches), expected) >= case.closeness

    def test_the_same_recipe_gives_the_same_outputs(
        self, case: AdapterCase, space: TuningSpace, realizer: Realizer
    ) -> None:
        """Determinism, bit for bit, and a weight is quantized once however often it is used."""
        recipe = space.recipe(space.first())
        first = outputs(realizer.candidate(recipe), case.batches)
        quantized = realizer.weights_quantized
        second = outputs(realizer.candidate(recipe), case.batches)
        assert realizer.weights_quantized == quantized
        check_equal(first, second)

    def test_nothing_is_changed(
        self,
        case: AdapterCase,
        opened: Opened,
        space: TuningSpace,
        realizer: Realizer,
        expected: Arrays,
    ) -> None:
        """After applying and running candidates, the float model is what it was."""
        before = opened.session.fingerprint()
        outputs(realizer.candidate(space.recipe(space.first())), case.batches)
        assert opened.session.fingerprint() == before
        assert case.open().session.fingerprint() == before
        check_equal(outputs(opened.session.reference(), case.batches), expected)

    def test_a_candidate_is_not_changed_by_the_next(
        self, case: AdapterCase, bench: Bench, expected: Arrays
    ) -> None:
        """Recipes carried out later, and runs of other candidates, leave a candidate alone."""
        space, realizer = bench.space, bench.realizer
        first = realizer.candidate(space.recipe(space.first()))
        before = outputs(first, case.batches)
        said = dict(first.ledger)
        last = {unit.name: unit.choices[-2] for unit in space.tunable}
        outputs(realizer.candidate(space.recipe(last)), case.batches)
        plain = bench.opened.session.apply(Recipe(backend=bench.opened.name), {})
        check_close_to_largest(outputs(plain, case.batches), expected, 1e-4)
        check_equal(outputs(first, case.batches), before)
        assert dict(first.ledger) == said, "the ledger was changed by another candidate"


def _made_by_itself(
    opened: Opened, recipe: Recipe, decided: Mapping[str, OpParameters]
) -> Candidate:
    """Return what the backend makes of a recipe, before the core adds lines to its ledger."""
    session = opened.session
    has_own = type(session).carry_out is not Session.carry_out
    made = session.carry_out if has_own else session.apply
    return made(recipe, decided)


def _is_refused(
    bench: Bench, recipe: Recipe, asked: Mapping[str, OpParameters]
) -> bool:
    try:
        bench.opened.session.apply(recipe, asked)
    except SchemeError:
        return True
    return False


def _not_offered(bench: Bench, op: Op, offers: Sequence[OpScheme]) -> OpScheme:
    """Return a scheme near an offer, which a backend could carry out and does not offer."""
    mode_changed = [
        OpScheme(mode="weight_only", weight=scheme.weight)
        for scheme in offers
        if scheme.weight is not None
    ]
    narrower = [
        scheme.variant(weight=scheme.weight.model_copy(update={"dtype": "int5"}))
        for scheme in offers
        if scheme.weight is not None
    ]
    odd = OpScheme(mode="static", input=QuantSpec(dtype="int5"))
    for scheme in (*mode_changed, *narrower, odd):
        try:
            bench.opened.capability.realization(op, scheme)
        except SchemeError:
            return scheme
    raise AssertionError(f"{op.name} is offered everything, int5 too")


def _offers(case: AdapterCase, space: TuningSpace) -> Iterator[tuple[Unit, OpScheme]]:
    """Yield every scheme but float for the first ops of each type."""
    for units in space.types.values():
        for unit in units[: case.ops_per_type]:
            for scheme in unit.choices[:-1]:
                yield unit, scheme


def _check_ledger(
    candidate: Candidate, opened: Opened, op: Op, scheme: OpScheme
) -> None:
    line = candidate.ledger.get(op.name)
    assert line is not None, (
        f"the ledger has no line for {op.name!r}, which the recipe quantizes"
    )
    assert line.requested == scheme
    assert line.honoured, (
        f"{op.name} was asked for as [{scheme}], which the capability offers, "
        f"and became [{line.applied}]: {line.reason}"
    )
    said = opened.capability.realization(op, scheme)
    assert line.realization == said, (
        f"{op.name} as [{scheme}]: the ledger and the capability disagree"
    )
