"""QLoRA's updates, held by octavo's layers and by peft's, against the papers' formula, written in
NumPy: y = x W^T + b + (alpha / rank) x A^T B^T."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from torch import nn

import octavo
from octavo.adapters.pytorch.training import door
from octavo.core.contract.training import LowRank
from octavo.core.errors import ConfigError, SchemeError

X = torch.randn(6, 32, generator=torch.Generator().manual_seed(1))
LIBRARIES = pytest.mark.parametrize("library", ["octavo", "peft"])


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 8)).eval()


def base(*more: dict[str, Any], **settings: Any) -> octavo.Quantized:
    # Of 3 bits there is no kernel, whose own precision would have to be allowed for.
    weight = {"dtype": "int3", "granularity": "group:32"}
    rules = [{"types": "linear", "mode": "weight_only", "weight": weight}, *more]
    return octavo.quantize_model(network(), {"rules": rules, **settings}, [(X,)])


def randomized(module: nn.Module) -> nn.Module:
    """Let the updates be as after training: both factors at random."""
    torch.manual_seed(4)
    for parameter in module.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.2)
    return module.eval()


def factors(module: nn.Module) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return A and B of each layer, in order."""
    found = [p.detach().numpy() for p in module.parameters() if p.requires_grad]
    return list(zip(found[0::2], found[1::2], strict=True))


def by_the_formula(
    quantized: octavo.Quantized, module: nn.Module, gain: float, x: np.ndarray
) -> np.ndarray:
    for name, (a, b) in zip(("0", "2"), factors(module), strict=True):
        weight = quantized.candidate.decided()[name].weight
        assert weight is not None
        matrix = weight.dequantize().numpy()
        bias = network().get_submodule(name).bias.detach().numpy()
        y = x @ matrix.T + bias + gain * (x @ a.T @ b.T)
        x = np.maximum(y, 0)
    return y


@LIBRARIES
@pytest.mark.parametrize(("rank", "alpha"), [(4, 8.0), (8, 8.0), (2, 16.0)])
def test_an_update_is_added_before_the_activation_with_a_gain_of_alpha_over_rank(
    library: str, rank: int, alpha: float
) -> None:
    start = base()
    module = octavo.qlora(start, rank=rank, alpha=alpha, library=library)
    assert [a.shape[0] for a, _ in factors(module)] == [rank, rank]
    assert [b.shape[1] for _, b in factors(module)] == [rank, rank]
    with torch.no_grad():
        np.testing.assert_allclose(module(X), start.model(X), rtol=1e-5, atol=1e-6)
        got = randomized(module)(X).numpy()
    wanted = by_the_formula(start, module, alpha / rank, X.numpy())
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


def test_by_default_the_gain_of_rank_16_is_one() -> None:
    start = base()
    module = octavo.qlora(start)
    assert [a.shape[0] for a, _ in factors(module)] == [16, 16]
    with torch.no_grad():
        got = randomized(module)(X).numpy()
    np.testing.assert_allclose(
        got, by_the_formula(start, module, 1.0, X.numpy()), rtol=1e-4, atol=1e-4
    )
    assert LowRank().alpha / LowRank().rank == 2.0


def test_an_update_begins_as_a_linear_layer_does_and_with_zeros() -> None:
    torch.manual_seed(0)
    module = octavo.qlora(base(), rank=16, library="octavo")
    for a, b in factors(module):
        bound = a.shape[1] ** -0.5
        assert 0.9 * bound < np.abs(a).max() <= bound
        assert abs(a.mean()) < 0.1 * bound
        assert not b.any()


@LIBRARIES
def test_dropout_is_of_the_updates_input_and_in_training_alone(library: str) -> None:
    start = base({"ops": "2", "keep": "float"})
    module = octavo.qlora(start, rank=4, alpha=8.0, dropout=0.5, library=library)
    randomized(module)
    (a, b) = factors(module)[0]
    with torch.no_grad():
        quiet = module(X).numpy()
        module.train()
        torch.manual_seed(7)
        mask = nn.functional.dropout(torch.ones_like(X), 0.5).numpy()
        torch.manual_seed(7)
        got = module(X).numpy()
    weight = start.candidate.decided()["0"].weight
    assert weight is not None
    first = network()[0]
    plain = X.numpy() @ weight.dequantize().numpy().T + first.bias.detach().numpy()
    last = network()[2]

    def through(x: np.ndarray) -> np.ndarray:
        hidden = np.maximum(plain + 2.0 * (x @ a.T @ b.T), 0)
        return hidden @ last.weight.detach().numpy().T + last.bias.detach().numpy()

    np.testing.assert_allclose(quiet, through(X.numpy()), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(got, through(X.numpy() * mask), rtol=1e-4, atol=1e-4)


@LIBRARIES
def test_only_the_updates_learn(library: str) -> None:
    start = base({"ops": "2", "keep": "float"})
    module = octavo.qlora(start, rank=4, library=library)
    asking = {n for n, p in module.named_parameters() if p.requires_grad}
    assert len(asking) == 2
    before = {n: t.clone() for n, t in module.state_dict().items()}
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(3):
        module(X).square().mean().backward()
        optimizer.step()
    changed = {
        n for n, t in module.state_dict().items() if not torch.equal(t, before[n])
    }
    assert changed == asking
    assert all(p.grad is None for n, p in module.named_parameters() if n not in asking)
    # Inputs of the first layer may ask for gradients, too (what comes before it learns).
    x = X.clone().requires_grad_()
    module(x).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


@LIBRARIES
def test_a_merged_model_computes_what_was_trained(library: str) -> None:
    start = base()
    module = randomized(octavo.qlora(start, rank=4, alpha=8.0, library=library))
    merged = octavo.merge_adapters(module)
    assert type(merged) is nn.Sequential
    assert [type(m) for m in merged] == [nn.Linear, nn.ReLU, nn.Linear]
    assert not any(p.requires_grad for p in merged.parameters())
    with torch.no_grad():
        wanted = module(X)
        torch.testing.assert_close(merged(X), wanted, rtol=1e-4, atol=1e-4)
    again = octavo.quantize_model(merged, "int8-weight-only", [(X,)])
    with torch.no_grad():
        assert (again.model(X) - wanted).abs().max() < 0.05 * wanted.abs().max()
    onto_float = octavo.merge_adapters(module, "float")
    for name, (a, b) in zip(("0", "2"), factors(module), strict=True):
        weight = network().get_submodule(name).weight.detach().numpy() + 2.0 * b @ a
        got = onto_float.get_submodule(name).weight.detach().numpy()
        np.testing.assert_allclose(got, weight, rtol=1e-5, atol=1e-6)
    assert torch.equal(start.origin.reference.native[0].weight, network()[0].weight)  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match="'quantized' or 'float', not 'nf4'"):
        octavo.merge_adapters(module, "nf4")  # type: ignore[arg-type]


@LIBRARIES
def test_updates_are_kept_beside_the_base_saved_and_loaded(
    library: str, tmp_path: Path
) -> None:
    start = base()
    module = randomized(
        octavo.qlora(start, rank=4, alpha=8.0, ops=["0"], library=library)
    )
    kept = octavo.convert(module)
    with torch.no_grad():
        wanted = module(X)
        torch.testing.assert_close(kept.model(X), wanted, rtol=1e-5, atol=1e-5)
    changed = kept.ledger["0"].requested
    assert dict(changed.refined_by[-1].options)["rank"] == 4
    assert kept.ledger["2"] == start.ledger["2"]
    assert kept.notes[-1] == "low-rank updates beside the base"
    codes = kept.candidate.decided()["0"].weight
    assert codes is not None
    assert codes.nbytes == start.candidate.decided()["0"].weight.nbytes + 4 * 4 * (  # type: ignore[union-attr]
        32 + 64
    )
    kept.save(tmp_path / "saved")
    with torch.no_grad():
        again = octavo.load(tmp_path / "saved", network)(X)
    torch.testing.assert_close(again, wanted, rtol=1e-5, atol=1e-5)
    # A second round of updates goes over the first.
    further = randomized(octavo.qlora(kept, rank=2, ops=["0"], library=library))
    with torch.no_grad():
        wanted = further(X)
        torch.testing.assert_close(
            octavo.convert(further).model(X), wanted, rtol=1e-5, atol=1e-5
        )


@LIBRARIES
@pytest.mark.parametrize("has_peft", [True, False])
def test_adapters_are_files_of_peft(
    library: str, has_peft: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = base()
    module = randomized(octavo.qlora(start, rank=4, alpha=8.0, library=library))
    folder = octavo.save_adapters(module, tmp_path / "a")
    assert {p.name for p in folder.iterdir()} >= {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    # peft itself over the float model.
    theirs = peft.PeftModel.from_pretrained(network(), str(folder))
    onto_float = octavo.merge_adapters(module, "float")
    with torch.no_grad():
        torch.testing.assert_close(theirs(X), onto_float(X), rtol=1e-4, atol=1e-4)
    monkeypatch.setattr(door, "_has_peft", lambda: has_peft)
    again = octavo.load_adapters(start, folder)
    assert isinstance(again, peft.PeftModel) == has_peft
    assert not any(p.requires_grad for p in again.parameters())
    with torch.no_grad():
        torch.testing.assert_close(again(X), module(X), rtol=1e-5, atol=1e-6)
    further = octavo.load_adapters(start, folder, trainable=True)
    assert sum(p.requires_grad for p in further.parameters()) == 4
    with torch.no_grad():
        torch.testing.assert_close(octavo.convert(again).model(X), module(X))


def test_without_peft_its_files_are_read_as_far_as_they_are_plain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "_has_peft", lambda: False)
    module = octavo.qlora(base(), rank=4)
    assert type(module).__name__ != "PeftModel"
    folder = octavo.save_adapters(module, tmp_path / "a")
    other = octavo.quantize_model(
        nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8)),
        "int4-weight-only",
        [(torch.randn(2, 64),)],
    )
    with pytest.raises(ConfigError, match=r"has the shape \(4, 32\)"):
        octavo.load_adapters(other, folder)
    settings = json.loads((folder / "adapter_config.json").read_text())
    for key, value in (("use_dora", True), ("use_rslora", True), ("bias", "all")):
        (folder / "adapter_config.json").write_text(
            json.dumps({**settings, key: value})
        )
        with pytest.raises(ConfigError, match=f"{key} is .*without peft"):
            octavo.load_adapters(base(), folder)
    (folder / "adapter_config.json").unlink()
    with pytest.raises(ConfigError, match="holds no low-rank updates"):
        octavo.load_adapters(base(), folder)
    with pytest.raises(ConfigError, match="does not exist"):
        octavo.load_adapters(base(), tmp_path / "nowhere")


class Nested(nn.Module):
    """Layers whose last names say too little."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.ModuleList([nn.Linear(32, 32), nn.Linear(32, 32)])
        self.second = nn.ModuleList([nn.Linear(32, 32)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in (*self.first, *self.second):
            x = torch.tanh(layer(x))
        return x


@LIBRARIES
@pytest.mark.parametrize(
    ("ops", "wanted"),
    [
        (["first.0"], {"first.0"}),
        (["first.*"], {"first.0", "first.1"}),
        (["*.0", "first.1"], {"first.0", "first.1", "second.0"}),
        (None, {"first.0", "first.1", "second.0"}),
    ],
)
def test_just_the_named_layers_get_an_update(
    library: str, ops: list[str] | None, wanted: set[str]
) -> None:
    start = octavo.quantize_model(Nested(), "int4-weight-only", [(X,)])
    module = octavo.qlora(start, rank=2, ops=ops, library=library)
    asking = [n for n, p in module.named_parameters() if p.requires_grad]
    found = {
        n.removeprefix("base_model.model.")
        .split(".lora_")[0]
        .removesuffix(".down")
        .removesuffix(".up")
        for n in asking
    }
    assert found == wanted
    assert len(asking) == 2 * len(wanted)
    with pytest.raises(SchemeError, match="'third' is no weight-only linear layer"):
        octavo.qlora(start, ops=["third"], library=library)


def test_a_model_that_is_a_single_layer_is_held_by_octavos_own() -> None:
    torch.manual_seed(0)
    start = octavo.quantize_model(nn.Linear(32, 16), "int4-weight-only", [(X,)])
    module = randomized(octavo.qlora(start, rank=4))
    with torch.no_grad():
        wanted = module(X)
        for model in (octavo.convert(module).model, octavo.merge_adapters(module)):
            torch.testing.assert_close(model(X), wanted, rtol=1e-4, atol=1e-4)
    with pytest.raises(SchemeError, match="single layer"):
        octavo.qlora(start, library="peft")


@LIBRARIES
def test_updates_read_the_input_before_it_is_rescaled(
    library: str, tmp_path: Path
) -> None:
    start = base(transforms=["awq"])
    assert start.candidate.factors
    module = randomized(octavo.qlora(start, rank=4, alpha=8.0, library=library))
    with torch.no_grad():
        wanted = module(X)
        for model in (octavo.convert(module).model, octavo.merge_adapters(module)):
            torch.testing.assert_close(model(X), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank of updates is at least 1, not 0"),
        ({"dropout": 1.0}, "dropout is a share from 0 to below 1, not 1.0"),
        ({"dropout": -0.1}, "not -0.1"),
        ({"library": "loralib"}, "library is one of auto, octavo, peft, not 'loralib'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        octavo.qlora(base(), **settings)


def test_trainer_trains_and_saves_updates_that_octavos_layers_hold(
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    sizes = {"vocab_size": 32, "hidden_size": 32, "intermediate_size": 64}
    config = transformers.LlamaConfig(
        **sizes, num_hidden_layers=1, num_attention_heads=2
    )
    model = transformers.LlamaForCausalLM(config).eval()
    ids = torch.arange(3, 27).view(2, 12)
    start = octavo.quantize_model(model, "int4-weight-only", [{"input_ids": ids}])
    module = octavo.qlora(start, rank=2, library="octavo")
    settings = transformers.TrainingArguments(
        str(tmp_path), max_steps=3, learning_rate=0.1, report_to=[], use_cpu=True
    )
    rows = [{"input_ids": row, "labels": row} for row in ids]
    transformers.Trainer(module, settings, train_dataset=rows).train()
    module.eval()
    again = octavo.load_adapters(start, tmp_path / "checkpoint-3")
    with torch.no_grad():
        wanted = module(input_ids=ids).logits
        torch.testing.assert_close(again(input_ids=ids).logits, wanted)
        assert not torch.equal(start.model(input_ids=ids).logits, wanted)


def test_without_updates_there_is_nothing_to_save_or_merge() -> None:
    module = octavo.prepare_qat(network(), "int8-static", [(X,)])
    for use in (octavo.merge_adapters, lambda m: octavo.save_adapters(m, "nowhere")):
        with pytest.raises(SchemeError, match=r"no low-rank updates: octavo\.qlora"):
            use(module)
    assert not Path("nowhere").exists()
