"""The promise that each optional primitive that an adapter declares is there."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from octavo.core.contract.adapter import Opened, Session
from octavo.core.contract.training import TRAINING, Training
from octavo.core.errors import SchemeError


class Declaring:
    """``Capability.features`` against the methods of session and training."""

    def test_what_features_declare_is_there(self, opened: Opened) -> None:
        """Each declared feature is a method that the backend brings, of session or training."""
        features = opened.capability.features
        for name in ("rescale", "gradients", "revision", "export"):
            # Some come in kinds: ``export:onnx``, ``rescale:shift``.
            is_declared = any(f == name or f.startswith(f"{name}:") for f in features)
            if is_declared:
                assert _brings(opened.session, Session, name), (
                    f"feature {name!r} is missing"
                )
        _check_training(opened.session, sorted(features & TRAINING.keys()))


def _check_training(session: Session, features: Sequence[str]) -> None:
    """Features that learn are methods of a training; without one there is no training."""
    if not features:
        with pytest.raises(SchemeError):
            session.training()
        return
    training = session.training()
    for feature in features:
        for name in TRAINING[feature]:
            assert _brings(training, Training, name), f"feature {feature!r}: no {name}"


def _brings(offered: object, contract: type, name: str) -> bool:
    """Return whether a part has a method of its own in place of the contract's, which refuses."""
    return getattr(type(offered), name) is not getattr(contract, name)
