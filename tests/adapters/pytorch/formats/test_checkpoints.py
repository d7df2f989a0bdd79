"""Checkpoints for other tools, read back by those tools, or by an unpacking that is written here
from the format's description."""

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
from octavo.cli import main
from octavo.core.errors import ConfigError, SchemeError

transformers = pytest.importorskip("transformers")

IDS = torch.arange(3, 27).view(2, 12)
SIZES = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
MARKS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
INNER = [f"{m}_proj" for m in ("gate", "up", "down", "q", "k", "v", "o")]
FLOAT_HEAD = {"ops": ["lm_head"], "keep": "float"}


def llama(**settings: Any) -> nn.Module:
    """A small language model with biases, grouped keys and weights of ordinary size."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        **SIZES,
        **MARKS,
        num_key_value_heads=2,
        attention_bias=True,
        initializer_range=0.1,
        **settings,
    )
    model: nn.Module = transformers.LlamaForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)
    return model


def rules(
    mode: str,
    weight: dict[str, Any],
    source: dict[str, Any] | None = None,
    *more: dict[str, Any],
) -> dict[str, Any]:
    first = {
        "types": ["linear"],
        "mode": mode,
        "weight": weight,
        **({"input": source} if source else {}),
    }
    return {"rules": [first, {"types": ["embedding", "conv"], "keep": "float"}, *more]}


def quantized(model: nn.Module, scheme: Any) -> octavo.Quantized:
    return octavo.quantize_model(model, scheme, calibration=[{"input_ids": IDS}])


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(IDS).logits
    return result


def with_weights(model: nn.Module, result: octavo.Quantized) -> nn.Module:
    """Return the float model with the numbers that the quantized weights stand for: what float
    arithmetic must give."""
    twin = copy.deepcopy(model)
    for name, parameters in result.candidate.parameters.items():
        twin.get_submodule(name).weight.data = parameters.weight.dequantize().to(
            twin.dtype
        )
    return twin


INT8 = {"dtype": "int8", "granularity": "channel"}


@pytest.mark.parametrize(
    ("weight", "source", "mode"),
    [
        (INT8, {"dtype": "uint8"}, "dynamic"),
        (INT8, {"dtype": "uint8"}, "static"),
        ({"dtype": "int8", "granularity": "tensor"}, {"dtype": "int8"}, "static"),
    ],
)
def test_integer_layers_load_in_transformers_with_the_same_logits(
    weight: Any, source: Any, mode: str, tmp_path: Path
) -> None:
    pytest.importorskip("compressed_tensors")
    model = llama()
    result = quantized(model, rules(mode, weight, source))
    result.export("compressed-tensors", tmp_path / "out")
    assert (
        json.loads((tmp_path / "out/config.json").read_text())["quantization_config"][
            "format"
        ]
        == "int-quantized"
    )
    loaded = type(model).from_pretrained(tmp_path / "out")
    expected = logits(result.model)
    error, largest = (
        (logits(loaded) - expected).abs().amax(-1),
        float(expected.abs().max()),
    )
    # The reader divides where octavo multiplies: an input that lies between two codes may take the
    # other one, and shows in its row.
    assert float(error.median()) < 1e-6 * largest
    assert float(error.max()) < 0.02 * largest
    assert float((expected - logits(model)).abs().median()) > 1e-3 * largest


def test_scales_of_tokens_are_the_readers_own(tmp_path: Path) -> None:
    """compressed-tensors divides a token's largest magnitude by 127.5, octavo by 127: the weights
    are the same, inputs differ by rounding."""
    pytest.importorskip("compressed_tensors")
    model = llama()
    result = quantized(
        model, rules("dynamic", INT8, {"dtype": "int8", "granularity": "token"})
    )
    result.export("compressed-tensors", tmp_path / "out")
    loaded = type(model).from_pretrained(tmp_path / "out")
    got, expected = logits(loaded), logits(result.model)
    # Of all logits together: where one rounds the other way, a single one may be farther off.
    assert float((got - expected).norm()) < 0.05 * float(expected.norm())
    for name, parameters in result.candidate.parameters.items():
        torch.testing.assert_close(
            loaded.get_submodule(name).weight.data, parameters.weight.dequantize()
        )


@pytest.mark.parametrize(
    ("dtype", "granularity"),
    [
        ("uint4", "group:32"),
        ("int4", "group:32"),
        ("int4", "channel"),
        ("int8", "channel"),
        ("uint3", "group:32"),
        ("int2", "group:32"),
    ],
)
@pytest.mark.parametrize("tied", [False, True])
def test_packed_weights_load_in_transformers_with_the_same_logits(
    dtype: str, granularity: str, tied: bool, tmp_path: Path
) -> None:
    pytest.importorskip("compressed_tensors")
    model = llama(tie_word_embeddings=tied)
    result = quantized(
        model,
        rules(
            "weight_only",
            {"dtype": dtype, "granularity": granularity},
            None,
            *([FLOAT_HEAD] if tied else []),
        ),
    )
    result.export("compressed-tensors", tmp_path / "out")
    facts = json.loads((tmp_path / "out/config.json").read_text())[
        "quantization_config"
    ]
    assert (facts["format"], facts["ignore"]) == (
        "pack-quantized",
        ["lm_head"] if tied else [],
    )
    loaded = type(model).from_pretrained(tmp_path / "out")
    torch.testing.assert_close(
        logits(loaded), logits(with_weights(model, result)), rtol=0, atol=1e-5
    )
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied


def test_several_schemes_in_one_file(tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    model = llama()
    narrow = {
        "ops": ["*.down_proj"],
        "mode": "weight_only",
        "weight": {"dtype": "int4", "granularity": "group:32"},
    }
    result = quantized(model, rules("weight_only", INT8, None, narrow, FLOAT_HEAD))
    result.export("compressed-tensors", tmp_path / "out")
    loaded = type(model).from_pretrained(tmp_path / "out")
    torch.testing.assert_close(
        logits(loaded), logits(with_weights(model, result)), rtol=0, atol=1e-5
    )


def test_type_and_generation_settings_are_kept(tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    model = llama().to(torch.bfloat16)
    model.generation_config.max_new_tokens = 4
    quantized(model, rules("weight_only", INT8)).export(
        "compressed-tensors", tmp_path / "out"
    )
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.dtype == torch.bfloat16
    assert loaded.generation_config.max_new_tokens == 4
    assert model.config.architectures is None
    assert loaded.generate(IDS, attention_mask=torch.ones_like(IDS)).shape == (2, 16)


def unpacked(words: np.ndarray, bits: int) -> np.ndarray:
    """Return the codes (rows, words * 32 / bits) of rows of int32 words, read as one stream of bits
    from the lowest up."""
    stream = np.unpackbits(
        words.astype("<i4").view(np.uint8), axis=1, bitorder="little"
    )
    return stream.reshape(len(words), -1, bits) @ (1 << np.arange(bits))


def read_gptq(folder: Path, name: str) -> np.ndarray:
    """Return the weight (outputs, inputs) of a layer as AutoGPTQ's files mean it: scales * (code -
    (stored zero point + 1))."""
    tensors = {
        k: v.numpy()
        for k, v in load_file(folder / "model.safetensors").items()
        if k.startswith(f"{name}.")
    }
    facts = json.loads((folder / "quantize_config.json").read_text())
    codes = unpacked(np.ascontiguousarray(tensors[f"{name}.qweight"].T), facts["bits"])
    zeros = unpacked(tensors[f"{name}.qzeros"], facts["bits"]) + (
        1 if facts["checkpoint_format"] == "gptq" else 0
    )
    scales, group = tensors[f"{name}.scales"], tensors[f"{name}.g_idx"]
    assert (tensors[f"{name}.qweight"].dtype, scales.dtype, group.dtype) == (
        np.int32,
        np.float16,
        np.int32,
    )
    return scales[group].T.astype(np.float32) * (codes - zeros[group].T)


@pytest.mark.parametrize(
    ("dtype", "granularity", "group"),
    [
        ("uint4", "group:32", 32),
        ("int4", "group:32", 32),
        ("int4", "channel", -1),
        ("int8", "channel", -1),
        ("uint3", "group:32", 32),
        ("int2", "group:32", 32),
    ],
)
def test_gptq_files_hold_the_weights(
    dtype: str, granularity: str, group: int, tmp_path: Path
) -> None:
    model = llama(tie_word_embeddings=True)
    result = quantized(
        model,
        rules(
            "weight_only",
            {"dtype": dtype, "granularity": granularity},
            None,
            FLOAT_HEAD,
        ),
    )
    result.export("gptq", tmp_path / "out")
    facts = json.loads((tmp_path / "out/config.json").read_text())[
        "quantization_config"
    ]
    assert facts == json.loads((tmp_path / "out/quantize_config.json").read_text())
    assert (facts["bits"], facts["group_size"], facts["sym"]) == (
        int(dtype[-1]),
        group,
        dtype.startswith("int"),
    )
    assert (
        facts["desc_act"],
        facts["checkpoint_format"],
        facts["block_name_to_quantize"],
    ) == (
        False,
        "gptq",
        "model.layers",
    )
    assert {
        n.rpartition(".")[2] for n in facts["modules_in_block_to_quantize"][0]
    } == set(INNER)
    for name, parameters in result.candidate.parameters.items():
        np.testing.assert_allclose(
            read_gptq(tmp_path / "out", name),
            parameters.weight.dequantize(),
            rtol=1e-3,
            atol=1e-6,
        )
    tensors = load_file(tmp_path / "out/model.safetensors")
    torch.testing.assert_close(
        tensors["model.layers.0.self_attn.q_proj.bias"],
        model.model.layers[0].self_attn.q_proj.bias,
    )
    assert "lm_head.weight" not in tensors


@pytest.mark.parametrize("dtype", ["uint4", "int3", "uint2"])
def test_scales_of_float16_are_in_gptq_files_as_they_are(
    dtype: str, tmp_path: Path
) -> None:
    weight = {"dtype": dtype, "granularity": "group:32", "scale_dtype": "float16"}
    result = quantized(llama(), rules("weight_only", weight, None, FLOAT_HEAD))
    result.export("gptq", tmp_path / "out")
    for name, parameters in result.candidate.parameters.items():
        np.testing.assert_array_equal(
            read_gptq(tmp_path / "out", name), parameters.weight.dequantize()
        )


def test_a_zero_point_of_zero_takes_the_second_version(tmp_path: Path) -> None:
    model = llama()
    model.model.layers[0].mlp.up_proj.weight.data.abs_()
    result = quantized(
        model,
        rules(
            "weight_only",
            {"dtype": "uint4", "granularity": "group:32"},
            None,
            FLOAT_HEAD,
        ),
    )
    result.export("gptq", tmp_path / "out")
    assert (
        json.loads((tmp_path / "out/config.json").read_text())["quantization_config"][
            "checkpoint_format"
        ]
        == "gptq_v2"
    )
    for name, parameters in result.candidate.parameters.items():
        np.testing.assert_allclose(
            read_gptq(tmp_path / "out", name),
            parameters.weight.dequantize(),
            rtol=1e-3,
            atol=1e-6,
        )


@pytest.mark.parametrize("dtype", ["uint4", "int4", "uint3", "int8"])
def test_gptq_files_load_in_transformers(dtype: str, tmp_path: Path) -> None:
    """Runs where gptqmodel and optimum are installed; they bring a tower of packages that the tests
    do not ask for."""
    pytest.importorskip("gptqmodel")
    pytest.importorskip("optimum")
    model = llama()
    granularity = "channel" if dtype == "int8" else "group:32"
    result = quantized(
        model,
        rules(
            "weight_only",
            {"dtype": dtype, "granularity": granularity},
            None,
            FLOAT_HEAD,
        ),
    )
    result.export("gptq", tmp_path / "out")
    loaded = type(model).from_pretrained(tmp_path / "out", device_map="cpu")
    expected = logits(with_weights(model, result))
    torch.testing.assert_close(
        logits(loaded), expected, rtol=0, atol=0.01 * float(expected.abs().max())
    )


GROUPS = {"dtype": "uint4", "granularity": "group:32"}
BOTH = ("compressed-tensors", "gptq")
DYNAMIC = rules("dynamic", INT8, {"dtype": "uint8"})
HEADLESS = rules("weight_only", GROUPS, None, FLOAT_HEAD)


@pytest.mark.parametrize(
    ("formats", "scheme", "named", "remedy"),
    [
        (
            BOTH,
            rules("weight_only", {"dtype": "nf4"}),
            "lm_head|model.layers",
            "int or uint weight",
        ),
        (
            BOTH,
            rules("cast", {"dtype": "bfloat16"}),
            "lm_head|model",
            "int or uint weight",
        ),
        (("gptq",), DYNAMIC, "q_proj", "weight_only scheme"),
        (("gptq",), rules("weight_only", GROUPS), "lm_head", 'keep = "float"'),
        (("gptq",), "int4-weight-only", "embed_tokens", 'keep = "float"'),
        (
            ("gptq",),
            {
                "rules": [
                    *HEADLESS["rules"],
                    {
                        "ops": ["*.up_proj"],
                        "weight": {"dtype": "uint3", "granularity": "group:32"},
                    },
                ]
            },
            "proj",
            "one weight dtype",
        ),
        (
            ("gptq",),
            {
                "rules": [
                    *HEADLESS["rules"],
                    {"ops": ["*.1.mlp.up_proj"], "keep": "float"},
                ]
            },
            "up_proj",
            "quantize both, or neither",
        ),
        (
            ("compressed-tensors",),
            {
                "rules": [
                    *DYNAMIC["rules"],
                    {"ops": ["*.up_proj"], "mode": "weight_only", "weight": GROUPS},
                ]
            },
            "up_proj",
            "symmetric",
        ),
    ],
)
def test_what_a_format_cannot_hold_is_refused_by_name(
    formats: Any, scheme: Any, named: str, remedy: str, tmp_path: Path
) -> None:
    result = quantized(llama(), scheme)
    for to in formats:
        with pytest.raises(SchemeError, match=named) as refused:
            result.export(to, tmp_path / "out")
        assert remedy in str(refused.value)
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("to", BOTH)
def test_strange_classes_and_full_folders_are_refused(to: str, tmp_path: Path) -> None:
    own = octavo.quantize_model(
        nn.Sequential(nn.Linear(64, 64)),
        rules("weight_only", GROUPS),
        calibration=[(torch.randn(2, 64),)],
    )
    with pytest.raises(SchemeError, match=r"octavo\.load\(folder, model=\.\.\.\)"):
        own.export(to, tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(ConfigError, match="not empty"):
        own.export(to, tmp_path / "full")


def test_inputs_that_are_multiplied_are_refused(tmp_path: Path) -> None:
    model = llama()
    scheme = {**DYNAMIC, "transforms": ["smoothquant"]}
    result = quantized(model, scheme)
    assert result.candidate.factors
    with pytest.raises(SchemeError, match="changes its input's channels"):
        result.export("compressed-tensors", tmp_path / "out")


@pytest.mark.parametrize(
    "ops",
    [["h.0.attn.k_proj", "h.0.mlp.fc_in"], ["h.0.mlp.fc_in"]],
    ids=["quantized", "float"],
)
def test_biases_that_the_architecture_has_not_are_refused(
    ops: list[str], tmp_path: Path
) -> None:
    """GPT-J's norm takes in a shift, and its projections, quantized or float, gain biases."""
    sizes = {
        "vocab_size": 96,
        "n_embd": 64,
        "n_layer": 1,
        "n_head": 2,
        "n_positions": 64,
        "rotary_dim": 16,
        "bos_token_id": 1,
    }
    model = transformers.GPTJModel(
        transformers.GPTJConfig(**sizes, eos_token_id=2)
    ).eval()
    with torch.no_grad():
        model.h[0].ln_1.bias.normal_()
    result = quantized(model, rules("weight_only", GROUPS))
    schemes = {name: result.candidate.recipe[name] for name in ops}
    shifted = octavo.Recipe(
        schemes, (octavo.PartChoice(kind="outlier_suppression_plus"),), "torch"
    )
    ids = {"input_ids": torch.arange(16).reshape(2, 8)}
    made = octavo.quantize_model(model, shifted, [ids])
    with pytest.raises(SchemeError, match=r"k_proj.*gave it a bias"):
        made.export("compressed-tensors", tmp_path / "out")


def test_the_command_line_exports_a_saved_result(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("compressed_tensors")
    model = llama()
    result = quantized(model, DYNAMIC)
    result.save(tmp_path / "saved")
    with pytest.raises(SystemExit) as ended:
        main(
            [
                "export",
                str(tmp_path / "saved"),
                "--to",
                "compressed-tensors",
                "-o",
                str(tmp_path / "out"),
            ]
        )
    assert not ended.value.code
    assert "config.json" in capsys.readouterr().out
    loaded = type(model).from_pretrained(tmp_path / "out")
    assert float((logits(loaded) - logits(result.model)).abs().median()) < 1e-5
