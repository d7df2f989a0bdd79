"""Names of training that earlier documentation told users to import: the same things as behind the
door."""

from __future__ import annotations

import pytest

pytest.importorskip("torch")

from octavo.adapters.pytorch import peft_layers, qat, qlora
from octavo.adapters.pytorch.session import TorchSession
from octavo.adapters.pytorch.training import peft_layers as own_peft
from octavo.adapters.pytorch.training.qat import TorchQatModel


def test_training_by_its_earlier_name_is_a_model_of_the_contract() -> None:
    assert issubclass(qat.QuantizationAwareTraining, TorchQatModel)


def test_peft_is_found_where_it_was() -> None:
    assert peft_layers.peft_model is own_peft.peft_model
    assert peft_layers.load_peft_model is own_peft.load_peft_model


@pytest.mark.parametrize("name", ["reconstruct", "distill"])
def test_sessions_keep_their_earlier_methods(name: str) -> None:
    assert callable(getattr(TorchSession, name))


def test_updates_take_their_earlier_arguments() -> None:
    import inspect

    parameters = inspect.signature(qlora.add_adapters).parameters
    assert list(parameters) == ["candidate", "rank", "alpha", "dropout", "ops"]
