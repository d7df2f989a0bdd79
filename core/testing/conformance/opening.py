"""The promise that what is opened is the model that was given, from an interchange file too."""

from __future__ import annotations

from collections.abc import Callable
from os import PathLike, fspath
from typing import Any

import pytest

from octavo.core.contract.adapter import Batch
from octavo.core.errors import MissingFramework
from octavo.core.opening.spaces import build_space

from .case import AdapterCase, Arrays, arrays, check_close_to_largest, cosine, outputs

SAME = 1e-3
"""Share of the largest output by which two frameworks may differ in float."""


class Opening:
    """The model's card, its source, and the file of another framework."""

    def test_the_card_claims_the_model(self, case: AdapterCase) -> None:
        """``autotune`` finds the adapter by its card, or hands it a format that it accepts."""
        card = case.card
        assert card.claims(case.model) or _is_accepted(case, case.model), (
            f"{card.name}: models {card.models}, suffixes {card.suffixes} and accepted formats "
            f"{card.accepts} do not cover the model"
        )

    def test_the_float_model_is_its_source(
        self, case: AdapterCase, expected: Arrays
    ) -> None:
        """What is opened computes in float what its own framework does."""
        source = _source(case, case.model)
        if source is None:
            pytest.skip("no AdapterCase.source, and no other backend owns the file")
        check_close_to_largest(expected, _run(case, source), SAME)

    def test_an_interchange_file_is_the_same_model(
        self, case: AdapterCase, expected: Arrays
    ) -> None:
        """No op is lost or changed on the way, and what is opened can be quantized and kept."""
        if case.opens is None:
            pytest.skip("no AdapterCase.opens")
        assert case.card.claims(case.opens) or _is_accepted(case, case.opens), (
            f"{case.card.name} neither claims nor accepts {case.opens}"
        )
        opened = case.open_file()
        got = outputs(opened.session.reference(), case.batches)
        check_close_to_largest(got, expected, SAME)
        source = _source(case, case.opens)
        if source is not None:
            check_close_to_largest(got, _run(case, source), SAME)
        space = build_space(opened, simulated=True)
        assert space.tunable, "no op of the interchange file can be quantized"
        realizer = case.realizer(opened, space)
        candidate = realizer.candidate(space.recipe(space.first()))
        assert cosine(outputs(candidate, case.batches), got) >= case.closeness


def _is_accepted(case: AdapterCase, model: Any) -> bool:
    """True for a file in a format that the card opens from others."""
    if not isinstance(model, str | PathLike):
        return False
    suffixes = tuple(f".{name}" for name in case.card.accepts)
    return bool(suffixes) and str(fspath(model)).endswith(suffixes)


def _source(case: AdapterCase, model: Any) -> Callable[[Batch], Any] | None:
    """Return what runs a model in float without the backend under test; None if nothing does."""
    if case.source is not None:
        return case.source
    if not isinstance(model, str | PathLike):
        return None
    others = [
        card
        for card in case.host.adapters().values()
        if card.name != case.card.name and card.claims(model)
    ]
    if not others:
        return None
    try:
        session = others[0].build().open(model, case.batches[0])
    except MissingFramework:
        return None
    return session.reference().run  # type: ignore[no-any-return]


def _run(case: AdapterCase, source: Callable[[Batch], Any]) -> Arrays:
    return [y for batch in case.batches for y in arrays(source(batch))]
