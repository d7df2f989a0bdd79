"""peft trains, saves and loads its adapters over a frozen nf4 base."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import octavo
from octavo.adapters.pytorch import TorchConfig
from octavo.adapters.pytorch.adapter import TorchAdapter
from octavo.adapters.pytorch.qlayers.weight_only import WeightOnlyLinear
from octavo.core.contract.training import Training
from octavo.core.errors import SchemeError

peft = pytest.importorskip("peft")
transformers = pytest.importorskip("transformers")

IDS = torch.arange(3, 27).view(2, 12)


def training() -> Training:
    """The door; which float model's session it comes from makes no difference to updates over a
    candidate."""
    model = nn.Sequential(nn.Linear(64, 64))
    return TorchAdapter(TorchConfig()).open(model, (torch.randn(2, 64),)).training()


def candidate(*more: dict[str, object], tied: bool = False) -> octavo.Quantized:
    """A small language model in nf4 with double quantization."""
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 96,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    config = transformers.LlamaConfig(
        **sizes,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=tied,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    nf4 = {
        "types": "linear",
        "mode": "weight_only",
        "weight": {"dtype": "nf4", "scale_dtype": "uint8"},
    }
    rules = [nf4, {"types": "embedding", "keep": "float"}, *more]
    return octavo.quantize_model(
        model, {"rules": rules}, calibration=[{"input_ids": IDS}]
    )


def test_peft_trains_saves_and_loads_over_an_nf4_base(tmp_path: Path) -> None:
    base = candidate()
    with torch.no_grad():
        before = base.model(IDS).logits
    model = training().add_low_rank(
        base.candidate, peft.LoraConfig(r=4, lora_alpha=16, task_type="CAUSAL_LM")
    )
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained
    assert all("lora_" in n for n in trained)
    assert sum(isinstance(m, WeightOnlyLinear) for m in model.modules()) == 15
    torch.testing.assert_close(
        model(input_ids=IDS).logits, before, rtol=1e-4, atol=1e-5
    )
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=1e-2
    )
    losses = []
    for _ in range(12):
        loss = model(input_ids=IDS, labels=IDS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    assert losses[-1] < 0.7 * losses[0]
    model.eval()
    model.save_pretrained(tmp_path)
    assert (tmp_path / "adapter_model.safetensors").stat().st_size < 200_000
    again = training().load_low_rank(base.candidate, tmp_path)
    given = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    with torch.no_grad():
        expected = model(**given).logits
        torch.testing.assert_close(again(**given).logits, expected)
        # Without its adapter the model is the base, which nobody has touched.
        with again.disable_adapter():
            torch.testing.assert_close(
                again(**given).logits, before, rtol=1e-4, atol=1e-5
            )
        torch.testing.assert_close(base.model(IDS).logits, before, rtol=0, atol=0)
    assert again.generate(**given, max_new_tokens=3, do_sample=False).shape == (2, 15)
    with pytest.raises(SchemeError, match="quantize that"):
        again.merge_and_unload()


def test_only_the_named_layers_get_an_update() -> None:
    base = candidate({"ops": ["lm_head", "*.mlp.*"], "keep": "float"}, tied=True)
    model = training().add_low_rank(
        base.candidate, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"])
    )
    assert (
        model.base_model.model.lm_head.weight
        is model.base_model.model.model.embed_tokens.weight
    )
    adapted = {
        n.split(".lora_A")[0].rpartition(".")[2]
        for n, p in model.named_parameters()
        if p.requires_grad and "lora_A" in n
    }
    assert adapted == {"q_proj", "v_proj"}


@pytest.mark.parametrize(
    "settings", [{"use_dora": True}, {"init_lora_weights": "pissa"}]
)
def test_what_reads_the_weight_is_refused(settings: dict[str, object]) -> None:
    with pytest.raises(SchemeError, match="read the base's weight"):
        training().add_low_rank(candidate().candidate, peft.LoraConfig(r=2, **settings))


def test_a_base_without_stored_weights_is_refused() -> None:
    base = octavo.quantize_model(
        nn.Sequential(nn.Linear(64, 64)),
        "int8-dynamic",
        calibration=[(torch.randn(2, 64),)],
    )
    with pytest.raises(SchemeError, match="no weight-only linear layer"):
        training().add_low_rank(base.candidate, peft.LoraConfig(r=2))
