"""Checkpoints of architectures whose weights are no plain linear layers: tied heads, embeddings,
experts, GPT-2's Conv1D."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import octavo
from octavo.core.errors import SchemeError

transformers = pytest.importorskip("transformers")

from tests.adapters.pytorch.formats.test_checkpoints import (  # noqa: E402
    FLOAT_HEAD,
    IDS,
    INT8,
    MARKS,
    SIZES,
    llama,
    logits,
    quantized,
    read_gptq,
)

INT4 = {"dtype": "int4", "granularity": "group:32"}
UINT4 = {"dtype": "uint4", "granularity": "group:32"}


def scheme(
    weight: dict[str, Any],
    *more: dict[str, Any],
    types: tuple[str, ...] = ("linear", "embedding"),
) -> dict[str, Any]:
    free = [
        {"types": [t], "keep": "float"}
        for t in ("linear", "embedding")
        if t not in types
    ]
    return {
        "rules": [
            {"types": list(types), "mode": "weight_only", "weight": weight},
            *free,
            *more,
        ]
    }


def gpt2() -> nn.Module:
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 96,
        "n_embd": 64,
        "n_layer": 2,
        "n_head": 2,
        "n_positions": 64,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    model: nn.Module = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**sizes, initializer_range=0.1)
    ).eval()
    return model


def mixture(kind: str) -> nn.Module:
    torch.manual_seed(0)
    sizes = {
        **SIZES,
        **MARKS,
        "num_key_value_heads": 2,
        "initializer_range": 0.1,
        "num_experts_per_tok": 2,
    }
    few = {"moe_intermediate_size": 64, "num_experts": 4}
    config = {
        "Mixtral": lambda: transformers.MixtralConfig(**sizes, num_local_experts=4),
        "Qwen2Moe": lambda: transformers.Qwen2MoeConfig(
            **sizes, **few, shared_expert_intermediate_size=64
        ),
        "Qwen3Moe": lambda: transformers.Qwen3MoeConfig(**sizes, **few, head_dim=16),
    }[kind]()
    model: nn.Module = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    return model


def with_values(model: nn.Module, result: octavo.Quantized) -> nn.Module:
    """Return the float model with the numbers that the codes stand for, each op's own."""
    twin: Any = copy.deepcopy(model)
    for name, parameters in result.candidate.parameters.items():
        values = parameters.weight.dequantize()
        stem, _, index = name.rpartition(".")
        if index.isdigit():
            twin.get_parameter(stem).data[int(index)] = values
        elif name.endswith(".weight_layer"):
            # A router, which multiplies by a parameter of its own.
            twin.get_parameter(name.removesuffix("_layer")).data = values
        else:
            twin.get_submodule(name).weight = nn.Parameter(values)
    return twin


def same(model: nn.Module, result: octavo.Quantized, folder: Path) -> nn.Module:
    """Export, load with plain transformers and compare logits with float arithmetic on the values
    of the codes."""
    pytest.importorskip("compressed_tensors")
    result.export("compressed-tensors", folder)
    loaded: nn.Module = type(model).from_pretrained(folder)  # type: ignore[attr-defined]
    expected = logits(with_values(model, result))
    torch.testing.assert_close(
        logits(loaded), expected, rtol=0, atol=1e-5 * float(expected.abs().max())
    )
    assert float((expected - logits(model)).abs().max()) > 1e-3 * float(
        expected.abs().max()
    )
    return loaded


@pytest.mark.parametrize("weight", [INT4, UINT4, INT8], ids=str)
def test_a_tied_embedding_and_head_are_written_once(
    weight: dict[str, Any], tmp_path: Path
) -> None:
    model = llama(tie_word_embeddings=True)
    loaded: Any = same(model, quantized(model, scheme(weight)), tmp_path / "out")
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    assert not [
        name
        for name in load_file(tmp_path / "out/model.safetensors")
        if name.startswith("lm_head")
    ]


@pytest.mark.parametrize("kept", ["lm_head", "model.embed_tokens"])
def test_one_of_them_in_float_is_written_untied(kept: str, tmp_path: Path) -> None:
    model = llama(tie_word_embeddings=True)
    loaded: Any = same(
        model,
        quantized(model, scheme(INT8, {"ops": [kept], "keep": "float"})),
        tmp_path / "out",
    )
    assert not torch.equal(loaded.lm_head.weight, loaded.model.embed_tokens.weight)
    assert (
        json.loads((tmp_path / "out/config.json").read_text())["tie_word_embeddings"]
        is False
    )


def test_a_tied_head_with_a_scheme_of_its_own_among_several(tmp_path: Path) -> None:
    """Where layers stay compressed, embedding and head are two layers with the same codes."""
    model = llama(tie_word_embeddings=True)
    others = {"ops": ["*.down_proj"], "mode": "weight_only", "weight": INT4}
    same(model, quantized(model, scheme(INT8, others)), tmp_path / "out")


def test_an_embedding_beside_int8_layers(tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    model = llama()
    dynamic = {
        "types": ["linear"],
        "mode": "dynamic",
        "weight": INT8,
        "input": {"dtype": "uint8"},
    }
    result = quantized(
        model, {"rules": [dynamic, {"types": ["embedding"], "weight": INT8}]}
    )
    assert result.candidate.recipe["model.embed_tokens"].mode == "weight_only"
    result.export("compressed-tensors", tmp_path / "out")
    loaded = type(model).from_pretrained(tmp_path / "out")
    expected = logits(result.model)
    error, largest = (
        (logits(loaded) - expected).abs().amax(-1),
        float(expected.abs().max()),
    )
    # The reader divides where octavo multiplies: an input between two codes may take the other one,
    # and shows in its row.
    assert float(error.median()) < 1e-6 * largest
    assert float(error.max()) < 0.02 * largest


@pytest.mark.parametrize("kind", ["Mixtral", "Qwen2Moe", "Qwen3Moe"])
def test_experts_are_written_as_the_reader_stacks_them(
    kind: str, tmp_path: Path
) -> None:
    model = mixture(kind)
    gate = {"ops": ["*shared_expert_gate"], "keep": "float"}
    result = quantized(
        model, scheme(INT4, *([gate] if kind == "Qwen2Moe" else []), types=("linear",))
    )
    assert sum("experts." in name for name in result.candidate.parameters) == 2 * 2 * 4
    same(model, result, tmp_path / "out")
    names = [
        n
        for n in load_file(tmp_path / "out/model.safetensors")
        if ".experts.0." in n and n.endswith("weight_packed")
    ]
    parts = (
        ("w1", "w2", "w3")
        if kind == "Mixtral"
        else ("down_proj", "gate_proj", "up_proj")
    )
    assert sorted(n.split(".")[-2] for n in names) == sorted(parts * 2)


def test_experts_take_a_scheme_of_their_own(tmp_path: Path) -> None:
    model = mixture("Mixtral")
    same(
        model,
        quantized(
            model,
            scheme(
                UINT4,
                {
                    "ops": ["*.experts.*"],
                    "weight": {"dtype": "int3", "granularity": "group:32"},
                },
            ),
        ),
        tmp_path / "out",
    )


@pytest.mark.parametrize(
    ("rules", "named", "remedy"),
    [
        (scheme(UINT4, types=("linear",)), "experts", "symmetric"),
        (
            scheme(INT4, {"ops": ["*.q_proj"], "weight": INT8}, types=("linear",)),
            "experts.*and 'model.layers.0.self_attn.q_proj' has another",
            "one weight_only scheme",
        ),
        (
            scheme(INT4, {"ops": ["*.down_proj.*"], "weight": INT8}, types=("linear",)),
            "experts",
            "one weight dtype",
        ),
        (
            {
                "rules": [
                    {"types": ["linear"], "mode": "dynamic"},
                    {"types": ["embedding"], "keep": "float"},
                ]
            },
            "experts",
            "weight_only scheme",
        ),
    ],
)
def test_mixtures_that_no_reader_takes_are_refused(
    rules: Any, named: str, remedy: str, tmp_path: Path
) -> None:
    result = quantized(mixture("Mixtral"), rules)
    with pytest.raises(SchemeError, match=named) as refused:
        result.export("compressed-tensors", tmp_path / "out")
    assert remedy in str(refused.value)


def test_a_narrow_embedding_among_several_schemes_is_refused(tmp_path: Path) -> None:
    result = quantized(llama(), scheme(INT4, {"ops": ["*.down_proj"], "weight": INT8}))
    with pytest.raises(SchemeError, match=r"embed_tokens.*give it int8"):
        result.export("compressed-tensors", tmp_path / "out")


def test_gptq_refuses_experts_and_names_the_other_format(tmp_path: Path) -> None:
    result = quantized(mixture("Mixtral"), scheme(INT4, FLOAT_HEAD, types=("linear",)))
    with pytest.raises(SchemeError, match=r"experts.*export compressed-tensors"):
        result.export("gptq", tmp_path / "out")


def test_encoder_decoders_whose_forward_knows_the_tie_are_refused(
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 96,
        "d_model": 64,
        "d_kv": 16,
        "d_ff": 128,
        "num_layers": 1,
        "num_heads": 4,
        "decoder_start_token_id": 0,
    }
    model = transformers.T5ForConditionalGeneration(
        transformers.T5Config(**sizes)
    ).eval()
    data = [{"input_ids": IDS, "decoder_input_ids": IDS}]
    rules = scheme(INT8, {"ops": ["shared"], "keep": "float"})
    result = octavo.quantize_model(model, rules, calibration=data)
    assert "lm_head" in result.candidate.parameters
    with pytest.raises(SchemeError, match=r"'lm_head'.*cannot be read without the tie"):
        result.export("compressed-tensors", tmp_path / "out")


@pytest.mark.parametrize(
    "weight", [UINT4, INT4, {"dtype": "int3", "granularity": "group:64"}, INT8], ids=str
)
def test_gptq_holds_conv1d_as_the_linear_layer_that_it_is(
    weight: dict[str, Any], tmp_path: Path
) -> None:
    """The file, decoded by the format's description and computed with nn.Linear, gives
    the logits."""
    model = gpt2()
    result = quantized(model, scheme(weight, FLOAT_HEAD, types=("linear",)))
    result.export("gptq", tmp_path / "out")
    facts = json.loads((tmp_path / "out/config.json").read_text())[
        "quantization_config"
    ]
    assert facts["block_name_to_quantize"] == "transformer.h"
    assert set(facts["modules_in_block_to_quantize"][0]) == {
        "attn.c_attn",
        "attn.c_proj",
        "mlp.c_fc",
        "mlp.c_proj",
    }
    tensors = load_file(tmp_path / "out/model.safetensors")
    reader: Any = type(model)(model.config).eval()
    for name, parameters in result.candidate.parameters.items():
        values = read_gptq(tmp_path / "out", name).astype(np.float32)
        np.testing.assert_allclose(
            values.T, parameters.weight.dequantize(), rtol=1e-3, atol=1e-6
        )
        layer = nn.Linear(values.shape[1], values.shape[0])
        layer.weight, layer.bias = (
            nn.Parameter(torch.from_numpy(values)),
            nn.Parameter(tensors[f"{name}.bias"]),
        )
        reader.set_submodule(name, layer)
    rest = {
        n: t
        for n, t in tensors.items()
        if n.rpartition(".")[0] not in result.candidate.parameters
    }
    assert not reader.load_state_dict(rest, strict=False).unexpected_keys
    reader.tie_weights()
    expected = logits(with_values(model, result))
    # Scales are float16 in the file.
    torch.testing.assert_close(
        logits(reader), expected, rtol=0, atol=2e-3 * float(expected.abs().max())
    )


def test_compressed_tensors_refuses_conv1d(tmp_path: Path) -> None:
    result = quantized(gpt2(), scheme(INT4, types=("linear",)))
    with pytest.raises(SchemeError, match=r"'transformer\.h\.0\..*Conv1D.*export gptq"):
        result.export("compressed-tensors", tmp_path / "out")


def test_a_gpt2_table_and_head_are_exported_alone(tmp_path: Path) -> None:
    model = gpt2()
    blocks = {"ops": ["transformer.h.*"], "keep": "float"}
    same(model, quantized(model, scheme(INT4, blocks)), tmp_path / "out")
