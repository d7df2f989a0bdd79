"""Transformers by architecture, tiny and with random weights: described, quantized, run, saved and
loaded with equal outputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from octavo.adapters.pytorch import TorchConfig
from octavo.adapters.pytorch.adapter import TorchAdapter
from octavo.adapters.pytorch.capture.standins.experts import Experts, packed_experts
from octavo.core.contract.plugins import PluginHost
from octavo.core.errors import ConfigError
from octavo.core.opening.rules import Rule
from octavo.core.opening.spaces import build_space
from octavo.core.quantizing.realize import Realizer
from octavo.core.sensitivity.service import SensitivityService
from octavo.core.values.recipe import Recipe
from tests.helpers import as_opened, torch_session

transformers = pytest.importorskip("transformers")

TEXT = {
    "vocab_size": 96,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}
LLAMA = {**TEXT, "num_key_value_heads": 2, "head_dim": 16}
IDS = {"input_ids": torch.arange(24).view(2, 12)}
PIXELS = {"pixel_values": torch.linspace(-1, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32)}
SEEN = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
}
CASES: dict[str, tuple[str, str, dict[str, Any], dict[str, torch.Tensor]]] = {
    "bert": ("BertConfig", "BertModel", TEXT, IDS),
    "roberta": ("RobertaConfig", "RobertaModel", {**TEXT, "pad_token_id": 1}, IDS),
    "gpt2": (
        "GPT2Config",
        "GPT2LMHeadModel",
        {"vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64},
        IDS,
    ),
    "llama": ("LlamaConfig", "LlamaForCausalLM", LLAMA, IDS),
    "mistral": ("MistralConfig", "MistralForCausalLM", LLAMA, IDS),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", LLAMA, IDS),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", LLAMA, IDS),
    "gemma": ("GemmaConfig", "GemmaForCausalLM", LLAMA, IDS),
    "opt": (
        "OPTConfig",
        "OPTForCausalLM",
        {**TEXT, "ffn_dim": 64, "word_embed_proj_dim": 32},
        IDS,
    ),
    "bloom": (
        "BloomConfig",
        "BloomForCausalLM",
        {"vocab_size": 96, "hidden_size": 32, "n_layer": 2, "n_head": 2},
        IDS,
    ),
    "t5": (
        "T5Config",
        "T5Model",
        {
            "vocab_size": 96,
            "d_model": 32,
            "d_kv": 16,
            "d_ff": 64,
            "num_layers": 2,
            "num_heads": 2,
        },
        {**IDS, "decoder_input_ids": torch.arange(10).view(2, 5)},
    ),
    "vit": ("ViTConfig", "ViTModel", SEEN, PIXELS),
    "swin": (
        "SwinConfig",
        "SwinModel",
        {
            "image_size": 32,
            "patch_size": 2,
            "embed_dim": 32,
            "depths": [1, 1],
            "num_heads": [2, 2],
            "window_size": 4,
        },
        PIXELS,
    ),
    "convnext": (
        "ConvNextConfig",
        "ConvNextModel",
        {"hidden_sizes": [32, 32], "depths": [1, 1], "num_stages": 2},
        PIXELS,
    ),
    "resnet": (
        "ResNetConfig",
        "ResNetModel",
        {"embedding_size": 16, "hidden_sizes": [32, 32], "depths": [1, 1]},
        PIXELS,
    ),
    "mobilenet": (
        "MobileNetV2Config",
        "MobileNetV2Model",
        {"image_size": 32, "depth_multiplier": 0.35},
        PIXELS,
    ),
    "whisper": (
        "WhisperConfig",
        "WhisperModel",
        {
            "vocab_size": 96,
            "d_model": 32,
            "encoder_layers": 1,
            "decoder_layers": 1,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 64,
            "decoder_ffn_dim": 64,
            "num_mel_bins": 8,
            "max_source_positions": 20,
            "max_target_positions": 20,
            "pad_token_id": 0,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "decoder_start_token_id": 1,
        },
        {
            "input_features": torch.linspace(-1, 1, 2 * 8 * 40).view(2, 8, 40),
            "decoder_input_ids": torch.arange(10).view(2, 5),
        },
    ),
    "mixture of experts": (
        "MixtralConfig",
        "MixtralForCausalLM",
        {**LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2},
        IDS,
    ),
    "mixture, transposed with biases": (
        "GptOssConfig",
        "GptOssForCausalLM",
        {
            **LLAMA,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        },
        IDS,
    ),
}
EXPERTS = [n for n in CASES if n.startswith("mixture")]


def make(name: str) -> torch.nn.Module:
    config, model, settings, _ = CASES[name]
    torch.manual_seed(0)
    built: torch.nn.Module = getattr(transformers, model)(
        getattr(transformers, config)(**settings)
    ).eval()
    return built


@pytest.mark.parametrize("name", CASES)
def test_an_architecture_is_quantized_saved_and_loaded(
    name: str, tmp_path: Path
) -> None:
    model, batch = make(name), CASES[name][3]
    session = torch_session(model, batch)
    opened = as_opened(session)
    space = build_space(opened)
    realizer = Realizer(opened, space, PluginHost(third_party=False))
    assert any(u.type in ("linear", "conv") for u in space.tunable)
    expected = session.reference().run(batch)[0].ravel().astype(np.float64)
    for number, (mode, dtype, least) in enumerate(
        (("dynamic", "int8", 0.98), ("weight_only", "uint4", 0.9))
    ):
        wanted = {
            u.name: s
            for u in space.tunable
            if (
                s := next(
                    (
                        s
                        for s in u.choices
                        if s.mode == mode and s.weight and s.weight.dtype == dtype
                    ),
                    None,
                )
            )
            is not None
        }
        candidate = realizer.candidate(space.recipe(wanted))
        got = candidate.run(batch)[0]
        flat = got.ravel().astype(np.float64)
        assert (
            flat @ expected / np.linalg.norm(flat) / np.linalg.norm(expected) >= least
        )
        folder = tmp_path / str(number)
        folder.mkdir()
        candidate.save(folder)
        loaded = TorchAdapter(TorchConfig()).load(folder, make(name))
        np.testing.assert_array_equal(loaded.run(batch)[0], got)


@pytest.mark.parametrize("name", EXPERTS)
def test_every_expert_is_quantized_whether_a_token_met_it_or_not(name: str) -> None:
    model, batch = make(name), CASES[name][3]
    # One token meets two of four experts.
    session = torch_session(model, {"input_ids": torch.tensor([[5]])})
    opened = as_opened(session)
    space = build_space(
        opened,
        [
            Rule(
                types="linear",
                mode="weight_only",
                weight={"dtype": "int8"},
                algorithm="gptq",
            )
        ],
    )
    mixtures = [u for u in space.units if "experts." in u.name]
    assert [len(u.ops) for u in mixtures] == [
        4
    ] * 4  # first and second layers of two blocks
    assert sum(u.parameters for u in mixtures) == sum(
        p.numel()
        for n, p in model.named_parameters()
        if "experts." in n and p.ndim == 3
    )
    assert not any(
        "not called" in note or "three axes" in note for note in opened.view.notes
    )
    realizer = Realizer(opened, space, PluginHost(third_party=False))
    # Gram matrices of some experts stay empty.
    realizer.calibrate([{"input_ids": torch.tensor([[5]])}])
    recipe = space.recipe({u.name: u.choices[0] for u in mixtures})
    got, expected = (
        realizer.candidate(recipe).run(batch)[0],
        session.reference().run(batch)[0],
    )
    assert 0 < np.linalg.norm(got - expected) < 0.02 * np.linalg.norm(expected)
    losses = SensitivityService(opened, realizer, [batch])(
        "weight_error", [(u.name, u.choices[0]) for u in mixtures]
    )
    assert all(0 < loss < 0.1 for loss in losses)
    with pytest.raises(ConfigError, match="nothing"):
        build_space(opened, [Rule(ops="*experts*", mode="static")])


@pytest.mark.parametrize("name", EXPERTS)
def test_the_stand_in_for_a_mixture_computes_what_transformers_computes(
    name: str,
) -> None:
    model, batch = make(name), CASES[name][3]
    session = torch_session(model, batch)
    plain, given = session.apply(Recipe(backend="torch"), {}), session.reference()
    assert any(isinstance(m, Experts) for m in plain.native.modules())
    assert not any(isinstance(m, Experts) for m in given.native.modules())
    np.testing.assert_allclose(
        plain.run(batch)[0], given.run(batch)[0], rtol=1e-4, atol=1e-5
    )
    packed = {n: p for n, p in model.named_parameters() if "experts." in n}
    for stem, held in packed_experts(plain.native):
        torch.testing.assert_close(held, packed[stem].detach())
    assert {n for n, _ in packed_experts(plain.native)} == set(packed)
    exported = torch.export.export(
        session.apply(Recipe(backend="torch"), {}).native.model.layers[0].mlp,
        (torch.randn(1, 6, 32),),
    )
    x = torch.randn(1, 6, 32)
    found, wanted = exported.module()(x), model.model.layers[0].mlp(x)
    for a, b in zip(
        *(y if isinstance(y, tuple) else (y,) for y in (found, wanted)), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
