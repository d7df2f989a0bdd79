"""The recoveries by name, and the settings that they take."""

from __future__ import annotations

from typing import Any

import pytest

from octavo.core.contract.recovery import check_recovery, recovery_settings
from octavo.core.contract.training import Distillation, Reconstruction
from octavo.core.errors import ConfigError
from octavo.core.values.scheme import PartChoice


def choice(raw: Any) -> PartChoice:
    return PartChoice.model_validate(raw)


def test_settings_are_those_of_the_training() -> None:
    given = choice({"kind": "reconstruction", "iterations": 7})
    assert recovery_settings(given) == Reconstruction(iterations=7)
    assert recovery_settings(choice("distillation")) == Distillation()


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ("reconstructoin", "did you mean 'reconstruction'"),
        ({"kind": "reconstruction", "iteration": 3}, "did you mean 'iterations'"),
        ({"kind": "reconstruction", "iterations": "many"}, "iterations.*got 'many'"),
        ({"kind": "reconstruction", "iterations": -1}, "cannot be negative"),
        ({"kind": "qat", "epochs": 3}, "no setting 'epochs'"),
    ],
)
def test_what_is_wrong_is_named(raw: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        recovery_settings(choice(raw))


def test_training_is_the_last_step() -> None:
    check_recovery([choice("reconstruction"), choice("distillation"), choice("qat")])
    with pytest.raises(ConfigError, match="'distillation' comes after 'qat'"):
        check_recovery([choice("qat"), choice("distillation")])
