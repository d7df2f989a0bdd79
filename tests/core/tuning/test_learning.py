"""Training by the public names: what quantize_model returns, or a model and a scheme, goes into an
ordinary loop and comes back quantized."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import cloudpickle
import numpy as np
import pytest
import torch
from torch import nn

import octavo
from octavo.core.errors import ConfigError, SchemeError
from tests import tiny

X = torch.randn(16, 32, generator=torch.Generator().manual_seed(5))
WANTED = torch.randn(16, 8, generator=torch.Generator().manual_seed(6))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 8)).eval()


def trained(module: nn.Module, steps: int = 15) -> nn.Module:
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    for _ in range(steps):
        loss = nn.functional.mse_loss(module(X), WANTED)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return module


def loss_of(module: nn.Module) -> float:
    with torch.no_grad():
        return nn.functional.mse_loss(module(X), WANTED).item()


@pytest.mark.parametrize("start", ["calibration", "lsq"])
def test_what_was_trained_comes_back_as_it_was_trained(
    start: str, tmp_path: Path
) -> None:
    base = octavo.quantize_model(network(), "int8-static", calibration=[(X,)])
    module = octavo.prepare_qat(base, start=start)
    trained(module)
    result = octavo.convert(module)
    assert isinstance(result, octavo.Quantized)
    with torch.no_grad():
        torch.testing.assert_close(result.model(X), module(X), rtol=1e-5, atol=1e-6)
    assert loss_of(result.model) < 0.6 * loss_of(base.model)
    assert dict(result.ledger) == dict(base.ledger)
    assert result.coverage == base.coverage
    assert result.notes[-1] == f"trained quantization-aware (LSQ, steps from {start})"
    # The float model of the comparison is the one before training.
    (output,) = result.compare(measure=False).outputs
    assert output.largest > 0.1
    result.save(tmp_path / "saved")
    again = octavo.load(tmp_path / "saved", network)
    with torch.no_grad():
        torch.testing.assert_close(again(X), result.model(X), rtol=0, atol=0)


def test_a_model_and_a_scheme_are_what_quantize_model_takes() -> None:
    module = octavo.prepare_qat(network(), "int8-static", [(X,)])
    base = octavo.quantize_model(network(), "int8-static", [(X,)])
    result = octavo.convert(module)
    assert result.candidate.recipe == base.candidate.recipe
    with torch.no_grad():
        torch.testing.assert_close(result.model(X), base.model(X), rtol=0, atol=1e-6)
    assert (
        octavo.convert(octavo.prepare_qat(base)).candidate.recipe
        == (
            octavo.convert(octavo.prepare_qat(network(), calibration=[(X,)]))
        ).candidate.recipe
    )


def test_copies_and_wrappers_of_a_module_are_converted_as_they_are_now() -> None:
    module = octavo.prepare_qat(network(), "int8-static", [(X,)])
    before = copy.deepcopy(module)
    trained(module)
    for other, wanted in (
        (before, before),
        (torch.compile(module, backend="eager"), module),
        (nn.DataParallel(module), module),
    ):
        with torch.no_grad():
            torch.testing.assert_close(
                octavo.convert(other).model(X), wanted(X), rtol=1e-5, atol=1e-6
            )
    assert loss_of(before) > 1.5 * loss_of(module)


def test_what_was_converted_does_not_change_with_further_training() -> None:
    rules = [{"ops": "0", "keep": "float"}, {"types": "linear", "mode": "dynamic"}]
    module = octavo.prepare_qat(network(), {"rules": rules}, [(X,)])
    result = octavo.convert(trained(module, 3))
    with torch.no_grad():
        before = result.model(X)
        # The layer that stays float has been trained, too.
        assert not torch.equal(
            result.model.get_submodule("0").weight, network()[0].weight
        )
    trained(module, 3)
    with torch.no_grad():
        torch.testing.assert_close(result.model(X), before, rtol=0, atol=0)


def test_a_checkpoint_is_a_state_dict() -> None:
    module = trained(octavo.prepare_qat(network(), "int8-static", [(X,)]))
    again = octavo.prepare_qat(network(), "int8-static", [(X,)])
    again.load_state_dict(module.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(
            octavo.convert(again).model(X), octavo.convert(module).model(X)
        )
    lost = pickle.loads(pickle.dumps(module))
    with pytest.raises(ConfigError, match="state_dict"):
        octavo.convert(lost)


def test_what_octavo_did_not_prepare_is_not_converted() -> None:
    with pytest.raises(ConfigError, match="a Sequential that octavo did not prepare"):
        octavo.convert(network())


def test_what_is_quantized_keeps_its_scheme_and_its_data() -> None:
    base = octavo.quantize_model(network(), "int8-static", [(X,)])
    with pytest.raises(ConfigError, match="leave scheme and calibration out"):
        octavo.prepare_qat(base, "int8-dynamic")
    with pytest.raises(ConfigError, match="leave scheme and calibration out"):
        octavo.qlora(base, calibration=[(X,)])


def test_a_start_that_there_is_not_is_refused_before_anything_is_quantized() -> None:
    with pytest.raises(ConfigError, match="'calibration' or 'lsq', not 'minmax'"):
        octavo.prepare_qat(network(), "int8-static", start="minmax")


@pytest.mark.parametrize("learn", [octavo.prepare_qat, octavo.qlora])
@pytest.mark.parametrize("backend", ["onnx", "numpy"])
def test_backends_that_train_nothing_say_so_first(learn: object, backend: str) -> None:
    # Without calibration data: nothing was quantized that would have asked for them.
    with pytest.raises(SchemeError, match=f"backend '{backend}' has no training"):
        learn(network(), "int8-static", backend=backend)  # type: ignore[operator]


def test_a_quantized_model_of_a_backend_that_trains_nothing_says_so() -> None:
    base = octavo.quantize_model(
        tiny.chain(), "int8-dynamic", tiny.calibration(), host=tiny.host()
    )
    for learn in (octavo.prepare_qat, octavo.qlora, octavo.distill):
        with pytest.raises(SchemeError, match="backend 'tiny' has no training"):
            learn(base)


def test_a_saved_result_is_trained_with_its_float_model(tmp_path: Path) -> None:
    base = octavo.quantize_model(network(), "int8-static", [(X,)])
    base.save(tmp_path / "saved")
    again = octavo.convert(octavo.prepare_qat(network(), tmp_path / "saved", [(X,)]))
    assert again.candidate.recipe == base.candidate.recipe
    with pytest.raises(ConfigError, match=r"prepare_qat\(model, "):
        octavo.prepare_qat(pickle.loads(cloudpickle.dumps(base)))


def test_a_recipe_with_transforms_is_trained_on_the_transformed_model() -> None:
    settings = {
        "rules": [{"types": "linear", "mode": "static"}],
        "transforms": ["smoothquant"],
    }
    base = octavo.quantize_model(network(), settings, [(X,)])
    assert base.candidate.recipe.transforms
    module = octavo.prepare_qat(base)
    with torch.no_grad():
        torch.testing.assert_close(module(X), base.model(X), rtol=1e-5, atol=1e-6)
    trained(module)
    with torch.no_grad():
        torch.testing.assert_close(
            octavo.convert(module).model(X), module(X), rtol=1e-5, atol=1e-6
        )


def test_updates_over_a_quantized_base_learn() -> None:
    base = octavo.quantize_model(network(), "int4-weight-only", [(X,)])
    module = octavo.qlora(base, rank=4, alpha=8.0)
    with torch.no_grad():
        torch.testing.assert_close(module(X), base.model(X), rtol=1e-4, atol=1e-5)
    before = loss_of(module)
    trained(module)
    assert loss_of(module) < 0.7 * before
    np.testing.assert_allclose(loss_of(base.model), before, rtol=1e-4)


def test_distillation_moves_a_model_towards_its_teacher() -> None:
    torch.manual_seed(3)
    rules = [
        {
            "types": "linear",
            "mode": "weight_only",
            "weight": {"dtype": "uint2", "granularity": "group:32"},
        }
    ]
    base = octavo.quantize_model(network(), {"rules": rules}, [(X,)])

    def distance(model: nn.Module, teacher: nn.Module) -> float:
        with torch.no_grad():
            goal = torch.log_softmax(teacher(X), -1)
            own = torch.log_softmax(model(X), -1)
        return (goal.exp() * (goal - own)).sum(-1).mean().item()

    learned = octavo.distill(base, steps=60, half=False)
    assert distance(learned.model, network()) < 0.8 * distance(base.model, network())
    torch.manual_seed(9)
    other = nn.Sequential(nn.Linear(32, 8)).train()
    towards = octavo.distill(base, other, [(X,)], steps=60, half=False)
    assert other.training
    assert distance(towards.model, other) < distance(learned.model, other)
    assert dict(learned.ledger) == dict(base.ledger)
    assert "teacher" in learned.notes[-1]
    with pytest.raises(ConfigError, match="no setting 'step'; did you mean"):
        octavo.distill(base, step=3)
    with pytest.raises(ConfigError, match="takes what quantize_model returns"):
        octavo.distill(network())  # type: ignore[arg-type]
