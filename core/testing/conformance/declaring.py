"""The promise that each optional primitive that an adapter declares is there."""

from __future__ import annotations

import pytest

from octavo.core.contract.adapter import Opened, Session
from octavo.core.contract.training import TRAINING, Training
from octavo.core.errors import SchemeError


class Declaring:
    """``Capability.features`` against the methods of session and training."""

    def test_declared_primitives_are_there(self, opened: Opened) -> None:
        """Each declared feature of a session is a method that the backend brings."""
        features = opened.capability.features
        for name in ("rescale", "gradients", "export"):
            # Some come in kinds: ``export:onnx``, ``rescale:shift``.
            is_declared = any(f == name or f.startswith(f"{name}:") for f in features)
            if is_declared:
                assert _brings(opened.session, Session, name), f"feature {name!r} is missing"

    def test_declared_training_is_there(self, opened: Opened) -> None:
        """Each declared feature that learns is a method; without one there is no training."""
        learned = sorted(opened.capability.features & TRAINING.keys())
        if not learned:
            with pytest.raises(SchemeError):
                opened.session.training()
            return
        training = opened.session.training()
        for feature in learned:
            for name in TRAINING[feature]:
                assert _brings(training, Training, name), f"feature {feature!r}: no {name}"


def _brings(offered: object, contract: type, name: str) -> bool:
    """Return whether a part has a method of its own in place of the contract's, which refuses."""
    return getattr(type(offered), name) is not getattr(contract, name)
