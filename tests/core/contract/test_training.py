"""A backend without training says so, and what there is instead."""

from __future__ import annotations

from inspect import signature
from typing import Any

import pytest

from octavo.core.contract.training import TRAINING, Training
from octavo.core.errors import SchemeError
from tests import tiny

METHODS = [(feature, name) for feature, names in TRAINING.items() for name in names]


@pytest.mark.parametrize(("feature", "name"), METHODS)
def test_what_a_backend_does_not_learn_is_refused_by_its_feature(
    feature: str, name: str
) -> None:
    method = getattr(Training(), name)
    given: list[Any] = [
        p for p in signature(method).parameters.values() if p.default is p.empty
    ]
    with pytest.raises(SchemeError, match=feature):
        method(*(None for p in given if p.kind is not p.VAR_KEYWORD))


def test_every_method_belongs_to_a_feature() -> None:
    public = {name for name in vars(Training) if not name.startswith("_")}
    assert public == {name for _, name in METHODS}


def test_a_session_without_training_names_the_remedy() -> None:
    host = tiny.host()
    batch = (tiny.calibration()[0],)
    session = host.adapters()["tiny"].build(None).open(tiny.chain(), batch)
    with pytest.raises(SchemeError, match="algorithm that needs no gradients"):
        session.training()
