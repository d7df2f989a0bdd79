"""Saved models of transformers make their own architecture again; what is not transformers' own is
never made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import octavo
from octavo.core.errors import ModelError, UnsafeFile

transformers = pytest.importorskip("transformers")

IDS = torch.arange(3, 27).view(2, 12)
SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
HARMLESS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def llama(**settings: object) -> torch.nn.Module:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        **SIZES, **HARMLESS, num_key_value_heads=2, **settings
    )
    model: torch.nn.Module = transformers.LlamaForCausalLM(config).eval()
    return model


def saved(
    model: torch.nn.Module, folder: Path, scheme: str = "int8-dynamic"
) -> octavo.Quantized:
    quantized = octavo.quantize_model(model, scheme, calibration=[{"input_ids": IDS}])
    quantized.save(folder)
    return quantized


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_language_model_comes_back_by_itself(
    tied: bool, dtype: torch.dtype, tmp_path: Path
) -> None:
    model = llama(tie_word_embeddings=tied).to(dtype)
    model.generation_config.max_new_tokens = 5
    model.generation_config.do_sample = False
    quantized = saved(
        model, tmp_path / "out", "int4-weight-only" if tied else "int8-dynamic"
    )
    loaded = octavo.load(tmp_path / "out")
    assert type(loaded) is type(model)
    with torch.no_grad():
        logits = loaded(IDS).logits
        assert logits.dtype == dtype
        torch.testing.assert_close(logits, quantized.model(IDS).logits, rtol=0, atol=0)
    given = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    assert loaded.generation_config.max_new_tokens == 5
    torch.testing.assert_close(
        loaded.generate(**given), quantized.model.generate(**given)
    )


def test_a_factory_still_works(tmp_path: Path) -> None:
    quantized = saved(llama(), tmp_path / "out")
    with torch.no_grad():
        torch.testing.assert_close(
            octavo.load(tmp_path / "out", llama)(IDS).logits,
            quantized.model(IDS).logits,
        )


class Own(transformers.LlamaForCausalLM):
    pass


def test_a_class_of_ones_own_must_be_given(tmp_path: Path) -> None:
    saved(Own(llama().config).eval(), tmp_path / "out")
    with pytest.raises(ModelError, match="no architecture"):
        octavo.load(tmp_path / "out")


@pytest.mark.parametrize(
    "name",
    [
        "Trainer",
        "LlamaConfig",
        "pipeline",
        "AutoModelForCausalLM",
        "PreTrainedModel",
        "os",
        "../evil",
        "__class__",
    ],
)
def test_only_model_classes_of_transformers_are_made(name: str, tmp_path: Path) -> None:
    saved(llama(), tmp_path / "out")
    file = tmp_path / "out" / "model" / "model.json"
    facts = json.loads(file.read_text())
    facts["architecture"]["class"] = name
    file.write_text(json.dumps(facts))
    with pytest.raises(UnsafeFile, match="no model class of transformers"):
        octavo.load(tmp_path / "out")


def test_a_configuration_that_does_not_fit_is_a_typed_error(tmp_path: Path) -> None:
    saved(llama(), tmp_path / "out")
    file = tmp_path / "out" / "model" / "model.json"
    facts = json.loads(file.read_text())
    facts["architecture"]["config"]["num_hidden_layers"] = 1
    file.write_text(json.dumps(facts))
    with pytest.raises(ModelError):
        octavo.load(tmp_path / "out")
