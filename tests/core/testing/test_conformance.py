"""The kit itself: it passes an honest backend and catches dishonest ones."""

from dataclasses import replace

import numpy as np
import pytest

from octavo.core.contract.training import Training
from octavo.core.testing.conformance import AdapterCase, AdapterConformance
from octavo.core.values.ledger import Applied
from tests import tiny


class TestTiny(AdapterConformance):
    @pytest.fixture(scope="class")
    @classmethod
    def case(cls) -> AdapterCase:
        return case()


def case() -> AdapterCase:
    host = tiny.host()
    return AdapterCase(
        host.adapters()["tiny"],
        tiny.chain(),
        [(b,) for b in tiny.calibration()[:2]],
        host=host,
    )


def _pieces(c: AdapterCase):
    from octavo.core.opening.spaces import build_space

    opened = c.open()
    space = build_space(opened)
    return (
        opened,
        space,
        c.realizer(opened, space),
        [np.asarray(c.model(b[0]), np.float64) for b in c.batches],
    )


def test_a_backend_that_silently_stays_in_float_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from octavo_tiny.backend import TinyCandidate

    from octavo.core.values.scheme import FLOAT

    c = case()
    opened, space, realizer, expected = _pieces(c)
    init = TinyCandidate.__init__

    def dishonest(self, chain, recipe, layers) -> None:
        init(self, chain, recipe, {})
        self.ledger = {
            name: Applied(recipe[name], FLOAT, reason="too hard") for name in recipe
        }

    monkeypatch.setattr(TinyCandidate, "__init__", dishonest)
    with pytest.raises(AssertionError, match="too hard"):
        AdapterConformance().test_every_offer_is_carried_out(
            c, opened, space, realizer, expected
        )


def test_a_backend_that_changes_the_model_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from octavo_tiny.backend import TinySession

    c = case()
    opened, space, realizer, expected = _pieces(c)
    carry_out = TinySession.carry_out

    def careless(self, recipe, parameters):
        self.chain.weights[0] += 1e-3
        return carry_out(self, recipe, parameters)

    monkeypatch.setattr(TinySession, "carry_out", careless)
    with pytest.raises(AssertionError):
        AdapterConformance().test_nothing_is_changed(
            c, opened, space, realizer, expected
        )


def test_a_backend_that_declares_what_it_lacks_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    c = case()
    for features, missing in (
        ({"rescale:shift"}, "rescale"),
        ({"distillation"}, "no distill"),
        ({"low_rank"}, "no add_low_rank"),
    ):
        opened = c.open()
        monkeypatch.setattr(
            type(opened.session), "training", lambda _: Training(), raising=False
        )
        declared = replace(opened.capability, features=frozenset(features))
        with pytest.raises(AssertionError, match=missing):
            AdapterConformance().test_what_features_declare_is_there(
                replace(opened, capability=declared)
            )
