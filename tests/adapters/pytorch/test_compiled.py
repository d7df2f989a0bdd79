"""Quantized models in ``torch.compile`` and ``torch.export``, as state dicts, copies and pickles: everywhere the same outputs."""

from __future__ import annotations

import copy
import pickle
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
import torch
from torch import nn

import octavo

RULES = [
    {"ops": ["conv"], "mode": "static"},
    {"ops": ["static"], "mode": "static"},
    {"ops": ["dynamic"], "mode": "dynamic"},
    {"ops": ["token"], "mode": "dynamic", "input": {"dtype": "int8", "granularity": "token"}},
    {"ops": ["few"], "mode": "weight_only", "weight": {"dtype": "uint4", "granularity": "group:32"}},
]


class Mixed(nn.Module):
    """A layer for each kind of quantized module, and a residual add."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.static, self.dynamic, self.token, self.few = nn.Linear(16, 64), nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.conv(x))).mean((2, 3))
        x = nn.functional.gelu(self.static(x))
        return self.few(self.token(x + self.dynamic(x)))


def mixed() -> tuple[octavo.Quantized, torch.Tensor]:
    torch.manual_seed(0)
    model, x = Mixed().eval(), torch.randn(6, 3, 8, 8)
    made = octavo.quantize_model(model, {"rules": RULES}, calibration=[(x,)])
    assert len(made.ledger) == 5
    return made, x


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Forget what was compiled; torch warns of its own internals."""
    torch.compiler.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def by_value(thing: object) -> bytes:
    """Pickle a thing with the classes of this file."""
    module = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(module)
    try:
        found: bytes = cloudpickle.dumps(thing)
        return found
    finally:
        cloudpickle.unregister_pickle_by_value(module)


def near(got: torch.Tensor, expected: np.ndarray) -> None:
    """Equal but for an input that lies between two codes, and for the 4-bit kernel's bfloat16, which compiled arithmetic does not share."""
    np.testing.assert_allclose(got.detach().numpy(), expected, rtol=0, atol=0.02 * np.abs(expected).max())
    assert np.median(np.abs(got.detach().numpy() - expected)) < 0.005 * np.abs(expected).max()


def test_a_whole_graph_is_captured() -> None:
    made, x = mixed()
    with torch.no_grad():
        near(torch.compile(made.model, fullgraph=True, backend="aot_eager")(x), made.candidate.run((x,))[0])


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="torch.compile generates C++")
def test_compiled_code_gives_the_same_outputs() -> None:
    made, x = mixed()
    with torch.no_grad():
        near(torch.compile(made.model, fullgraph=True)(x), made.candidate.run((x,))[0])


def test_an_exported_program_takes_any_batch(tmp_path: Path) -> None:
    made, x = mixed()
    with torch.no_grad():
        program = torch.export.export(made.model, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
        torch.export.save(program, tmp_path / "mixed.pt2")
        loaded = torch.export.load(tmp_path / "mixed.pt2").module()
        for batch in (x, torch.cat([x, -x])):
            near(loaded(batch), made.candidate.run((batch,))[0])


def test_a_language_model_is_captured_and_exported() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.LlamaConfig(**sizes, pad_token_id=0, bos_token_id=1, eos_token_id=2, use_cache=False)
    ids = torch.arange(3, 27).view(2, 12)
    made = octavo.quantize_model(transformers.LlamaForCausalLM(config).eval(), "int8-dynamic", calibration=[{"input_ids": ids}])
    expected = made.candidate.run({"input_ids": ids})[0]
    with torch.no_grad():
        near(torch.compile(made.model, backend="eager")(ids).logits, expected)
        near(torch.export.export(made.model, (ids,)).module()(ids).logits, expected)


def test_a_state_dict_round_trip_and_a_deep_copy() -> None:
    made, x = mixed()
    expected = made.candidate.run((x,))[0]
    twin = copy.deepcopy(made.model)
    state = {k: v.clone() for k, v in made.model.state_dict().items()}
    with torch.no_grad():
        for tensor in twin.state_dict().values():
            tensor.zero_()
        assert not np.array_equal(twin(x).numpy(), expected)
        twin.load_state_dict(state, strict=True)
        np.testing.assert_array_equal(twin(x), expected)
        np.testing.assert_array_equal(made.model(x), expected)


def test_a_candidate_runs_in_a_child_process(tmp_path: Path) -> None:
    made, x = mixed()
    code = (
        "import pickle, sys, numpy, torch; torch.set_num_threads(int(sys.argv[3]));"
        "candidate, x = pickle.load(open(sys.argv[1], 'rb')); numpy.save(sys.argv[2], candidate.run((x,))[0])"
    )
    # The class of this file is not importable there, as a class of a notebook is not: cloudpickle takes it along by value.
    (tmp_path / "candidate.pkl").write_bytes(by_value((made.candidate, x)))
    arguments = [str(tmp_path / "candidate.pkl"), str(tmp_path / "out.npy"), str(torch.get_num_threads())]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True)
    np.testing.assert_allclose(np.load(tmp_path / "out.npy"), made.candidate.run((x,))[0], rtol=0, atol=1e-6)


def test_a_transformers_candidate_is_pickled() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=96, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    batch = {"input_ids": torch.arange(24).view(2, 12)}
    made = octavo.quantize_model(transformers.BertModel(config).eval(), "int8-dynamic", calibration=[batch])
    for how in (pickle, cloudpickle):
        again = pickle.loads(how.dumps(made.candidate))
        np.testing.assert_array_equal(again.run(batch)[0], made.candidate.run(batch)[0])
