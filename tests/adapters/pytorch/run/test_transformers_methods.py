"""Models of transformers by what their users do with a quantized one: architectures with layers of
their own, saving, casting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import octavo

transformers = pytest.importorskip("transformers")

Tensor = torch.Tensor
TEXT = {
    "vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 64, "max_position_embeddings": 64,
}  # fmt: skip
LLAMA = {**TEXT, "num_key_value_heads": 2, "head_dim": 16}
BART = {
    "vocab_size": 96, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "decoder_start_token_id": 1, "scale_embedding": True,
}  # fmt: skip
MAMBA = {
    "vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8,
    "intermediate_size": 64,
}  # fmt: skip
MAMBA2 = {
    "vocab_size": 96, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "head_dim": 16,
    "num_heads": 4, "n_groups": 2, "chunk_size": 8,
}  # fmt: skip
CLIP = {
    "text_config": {**TEXT, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
    "vision_config": {
        "image_size": 32, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 2, "intermediate_size": 64,
    },
    "projection_dim": 16,
}  # fmt: skip
IDS = {"input_ids": torch.arange(24).view(2, 12)}
PIXELS = {"pixel_values": torch.linspace(-1, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32)}
MODELS: dict[str, tuple[str, str, dict[str, Any], dict[str, Tensor]]] = {
    "falcon": (
        "FalconConfig", "FalconForCausalLM",
        {**TEXT, "ffn_hidden_size": 64, "new_decoder_architecture": True, "num_kv_heads": 2}, IDS,
    ),
    "gemma": ("Gemma2Config", "Gemma2ForCausalLM", LLAMA, IDS),
    "bart": ("BartConfig", "BartForConditionalGeneration", BART, IDS),
    "mamba": ("MambaConfig", "MambaForCausalLM", MAMBA, IDS),
    "mamba 2": ("Mamba2Config", "Mamba2ForCausalLM", MAMBA2, IDS),
    "recurrent gemma": (
        "RecurrentGemmaConfig", "RecurrentGemmaForCausalLM",
        {**LLAMA, "lru_width": 32, "attention_window_size": 16, "num_hidden_layers": 3}, IDS,
    ),
    "mixtral": (
        "MixtralConfig", "MixtralForCausalLM",
        {**LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2}, IDS,
    ),
    "clip": ("CLIPConfig", "CLIPModel", CLIP, {**IDS, **PIXELS}),
}  # fmt: skip
FLOAT = ("A_log", "bias", "conv1d.weight")
"""What nothing multiplies by: it, or a layer that the forward reads and never calls, stays float.
"""


def made(name: str) -> Any:
    config, model, settings, _ = MODELS[name]
    torch.manual_seed(0)
    return getattr(transformers, model)(
        getattr(transformers, config)(**settings)
    ).eval()


def logits(model: Any, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(**batch)[0]
    return result.flatten()


@pytest.mark.parametrize("calibrated", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_every_weight_is_quantized_and_the_model_still_generates(
    name: str, calibrated: bool, tmp_path: Path
) -> None:
    model, batch = made(name), MODELS[name][3]
    expected = logits(model, batch)
    data = [batch] if calibrated else None
    quantized = octavo.quantize_model(model, "int8-weight-only", calibration=data)
    got = logits(quantized.model, batch)
    assert float(torch.nn.functional.cosine_similarity(got, expected, dim=0)) > 0.999
    if calibrated:
        floats = [row.weight for row in quantized.coverage.rows if row.bits > 8]
        assert all(weight.endswith(FLOAT) for weight in floats)
    if name != "clip":
        prompt = batch["input_ids"][:1]
        with torch.no_grad():
            quantized.model.generate(prompt, max_new_tokens=3, do_sample=False)
    quantized.save(tmp_path / "saved")
    assert torch.equal(logits(octavo.load(tmp_path / "saved"), batch), got)


def test_a_tied_head_and_a_scaled_table_are_one_set_of_codes(tmp_path: Path) -> None:
    model = made("gemma")
    quantized = octavo.quantize_model(model, "int8-weight-only", calibration=[IDS])
    quantized.save(tmp_path / "saved")
    size = (tmp_path / "saved" / "model" / "model.safetensors").stat().st_size
    # Tied ones once.
    weights = sum(p.numel() for p in model.parameters() if p.ndim >= 2)
    assert {"lm_head", "model.embed_tokens"} <= set(quantized.candidate.ledger)
    # Codes, their scales (one float for each row of 32 or 64 numbers), norms, and the file's own
    # header.
    assert size < weights * (1 + 4 / 32) + 10_000
    assert quantized.coverage.total == weights


@pytest.mark.parametrize(
    "method", ["save_pretrained", "push_to_hub", "resize_token_embeddings"]
)
def test_what_only_the_float_model_can_do_is_refused(
    method: str, tmp_path: Path
) -> None:
    model = made("mixtral")
    quantized = octavo.quantize_model(
        model, "int8-weight-only", calibration=[IDS]
    ).model
    argument: Any = (
        100 if method == "resize_token_embeddings" else str(tmp_path / "out")
    )
    with pytest.raises(octavo.OctavoError, match="does not work on a quantized model"):
        getattr(quantized, method)(argument)
    assert not (tmp_path / "out").exists()
    model.save_pretrained(tmp_path / "float")  # the float model is what it was
    model.resize_token_embeddings(100)


@pytest.mark.parametrize("scheme", ["int8-dynamic", "int8-static", "int8-weight-only"])
def test_a_quantized_model_can_be_cast(scheme: str) -> None:
    model = made("gemma")
    expected = logits(model, IDS)
    quantized = octavo.quantize_model(model, scheme, calibration=[IDS]).model
    got = logits(quantized.to(torch.bfloat16), IDS)
    assert got.dtype == torch.bfloat16
    cosine = torch.nn.functional.cosine_similarity(got.float(), expected, dim=0)
    assert float(cosine) > 0.99
