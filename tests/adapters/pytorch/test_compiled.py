"""Quantized models in ``torch.compile`` and ``torch.export``, as state dicts, copies and pickles:
everywhere the same outputs."""

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
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.aot_autograd import make_boxed_func

import octavo
import octavo.adapters.pytorch.apply.build
from octavo.adapters.pytorch.kernels.operators import is_portable

RULES = [
    {"ops": ["conv"], "mode": "static"},
    {"ops": ["static"], "mode": "static"},
    {"ops": ["dynamic"], "mode": "dynamic"},
    {
        "ops": ["token"],
        "mode": "dynamic",
        "input": {"dtype": "int8", "granularity": "token"},
    },
    {
        "ops": ["few"],
        "mode": "weight_only",
        "weight": {"dtype": "uint4", "granularity": "group:32"},
    },
]


class Mixed(nn.Module):
    """A layer for each kind of quantized module that :data:`RULES` names, and a residual add."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.static, self.dynamic, self.token, self.few = (
            nn.Linear(16, 64),
            nn.Linear(64, 64),
            nn.Linear(64, 64),
            nn.Linear(64, 32),
        )

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


COMPILER = bool(shutil.which("g++") or shutil.which("clang++"))
BACKENDS = [
    "aot_eager",
    pytest.param(
        "inductor",
        marks=pytest.mark.skipif(not COMPILER, reason="inductor needs a C++ compiler"),
    ),
]
RECORDS = pytest.mark.skipif(
    is_portable(), reason="torch 2.6 does not tell a compilation from an export"
)


class Recorder:
    """A compiler that keeps the names of the operators in the graphs it is given, and runs them as
    they are."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.graphs = 0

    def __call__(self, module: torch.fx.GraphModule, example: Any) -> Any:
        def keep(graph: torch.fx.GraphModule, _: Any) -> Any:
            self.graphs += 1
            self.names |= {
                str(n.target) for n in graph.graph.nodes if n.op == "call_function"
            }
            return make_boxed_func(graph.forward)

        return aot_autograd(fw_compiler=keep)(module, example)


def near(got: torch.Tensor, expected: np.ndarray) -> None:
    """Equal but for an input that lies between two codes, and for the 4-bit kernel's bfloat16,
    which exported arithmetic does not share."""
    np.testing.assert_allclose(
        got.detach().numpy(), expected, rtol=0, atol=0.02 * np.abs(expected).max()
    )
    assert (
        np.median(np.abs(got.detach().numpy() - expected))
        < 0.005 * np.abs(expected).max()
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiled_programs_give_the_outputs_of_eager_ones(backend: str) -> None:
    made, x = mixed()
    with torch.no_grad():
        compiled = torch.compile(made.model, fullgraph=True, backend=backend)
        # Few rows, another batch, many rows.
        for batch in (
            x,
            x[:3],
            torch.randn(200, 3, 8, 8),
        ):
            # inductor writes float operations between the kernels anew, so that an input may lie on
            # the other side between two codes
            atol = 0.0 if backend == "aot_eager" else 2e-3
            torch.testing.assert_close(
                compiled(batch), made.model(batch), rtol=0, atol=atol
            )


@RECORDS
def test_a_compiled_program_holds_the_kernels_and_no_float_weight() -> None:
    made, x = mixed()
    recorder = Recorder()
    with torch.no_grad():
        torch.compile(made.model, fullgraph=True, backend=recorder, dynamic=True)(x)
    own = {name for name in recorder.names if name.startswith("octavo.")}
    assert own == {
        "octavo.int8_conv.default",
        "octavo.int8_linear.default",
        "octavo.int4_linear.default",
    }
    assert not recorder.names & {
        f"aten.{op}.default" for op in ("mm", "addmm", "convolution", "embedding")
    }


@RECORDS
def test_one_program_takes_every_batch() -> None:
    made = mixed()[0]
    recorder = Recorder()
    compiled = torch.compile(made.model, fullgraph=True, backend=recorder, dynamic=True)
    with torch.no_grad():
        for count in (6, 9, 17):
            batch = torch.randn(count, 3, 8, 8)
            torch.testing.assert_close(
                compiled(batch), made.model(batch), rtol=1e-3, atol=1e-4
            )
    assert recorder.graphs == 1


@RECORDS
def test_codes_pass_between_compiled_layers_where_rows_are_many() -> None:
    torch.manual_seed(0)
    model, few, many = (
        nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32)).eval(),
        torch.randn(4, 32),
        torch.randn(300, 32),
    )
    made = octavo.quantize_model(model, "int8-static", calibration=[(many,)])
    recorder = Recorder()
    compiled = torch.compile(made.model, fullgraph=True, backend=recorder, dynamic=True)
    with torch.no_grad():
        for x in (few, many):
            np.testing.assert_array_equal(compiled(x), made.model(x))
    assert recorder.graphs == 2  # float values for few rows, codes for many


@RECORDS
def test_compiled_transposed_convolutions_run_on_their_kernel() -> None:
    torch.manual_seed(0)
    model, x = (
        nn.Sequential(
            nn.ConvTranspose2d(8, 12, 4, 2, 1),
            nn.ReLU(),
            nn.ConvTranspose2d(12, 4, 2, 2),
        ).eval(),
        torch.randn(2, 8, 6, 5),
    )
    made = octavo.quantize_model(
        model,
        {"rules": [{"types": ["conv_transpose"], "mode": "dynamic"}]},
        calibration=[(x,)],
    )
    recorder = Recorder()
    compiled = torch.compile(made.model, fullgraph=True, backend=recorder, dynamic=True)
    with torch.no_grad():
        for batch in (x, x[..., :4].contiguous()):
            torch.testing.assert_close(
                compiled(batch), made.model(batch), rtol=0, atol=0
            )
        program = torch.export.export(made.model, (x,))
        near(program.module()(x), made.candidate.run((x,))[0])
    assert (
        recorder.graphs == 1 and "octavo.int8_conv_transpose.default" in recorder.names
    )
    assert "octavo" not in str(program.graph)


@RECORDS
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_compiled_recurrent_layers_run_on_their_kernel(kind: Any) -> None:
    torch.manual_seed(0)
    model, x = (
        kind(16, 32, 2, bidirectional=True, batch_first=True).eval(),
        torch.randn(3, 5, 16),
    )
    made = octavo.quantize_model(
        model,
        {"rules": [{"types": [kind.__name__.lower()], "mode": "dynamic"}]},
        calibration=[(x,)],
    )
    recorder = Recorder()
    with torch.no_grad():
        y, last = torch.compile(made.model, backend=recorder)(x)
        expected, state = made.model(x)
    assert "octavo.int8_recurrent.default" in recorder.names
    np.testing.assert_array_equal(y, expected)
    torch.testing.assert_close(last, state)


@RECORDS
def test_a_layer_compiled_outside_of_no_grad_runs_and_has_no_gradient() -> None:
    torch.manual_seed(0)
    model, x = (
        nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 8)).eval(),
        torch.randn(300, 16),
    )
    rules = [
        {
            "ops": ["1"],
            "mode": "dynamic",
            "input": {"dtype": "int8", "granularity": "token"},
        },
        {"ops": ["0"], "keep": "float"},
    ]
    made = octavo.quantize_model(model, {"rules": rules}, calibration=[(x,)])
    y = torch.compile(made.model, backend="aot_eager")(x)
    assert not y.requires_grad
    torch.testing.assert_close(y, made.model(x))


def operator_calls() -> dict[str, tuple[Any, ...]]:
    """One call of each operator and of each way through it."""
    generator = torch.Generator().manual_seed(0)
    x, codes = (
        torch.randn(5, 64, generator=generator),
        torch.randint(-127, 128, (32, 64), dtype=torch.int8, generator=generator),
    )
    scale, bias = (
        torch.rand(32, generator=generator) * 0.01,
        torch.randn(32, generator=generator),
    )
    image, taps = (
        torch.randn(2, 4, 6, 7, generator=generator),
        codes.view(-1)[:288].view(8, 4, 3, 3),
    )
    static, dynamic = (0.02, [128, 0, 255], False), (None, [], False)
    real = (1.0, 0, torch.float32, "")
    linear, conv, ops = (
        (codes, scale, bias, None, False, False),
        (taps, scale[:8], bias[:8]),
        torch.ops.octavo,
    )
    four, groups = (
        torch.randint(0, 256, (32, 32), dtype=torch.uint8, generator=generator),
        torch.rand(32, 2, generator=generator),
    )
    form = ([1, 2], [1, 1], [1, 1], 1, [])
    small, state = (
        torch.randint(1, 256, (48, 16), dtype=torch.uint8, generator=generator),
        torch.zeros(1, 2, 12),
    )
    cell = [
        small,
        scale[:1].repeat(48),
        small[:, :12].contiguous(),
        scale[1:2].repeat(48),
    ]
    return {
        "few rows": (ops.int8_linear, x, *linear, *static, *real),
        "many rows": (ops.int8_linear, x.repeat(40, 1), *linear, *dynamic, *real),
        "codes": (
            ops.int8_linear,
            x.repeat(40, 1),
            *linear,
            *static,
            0.1,
            128,
            torch.uint8,
            "relu",
        ),
        "rows": (
            ops.int8_linear,
            x[None],
            codes.t().contiguous(),
            scale,
            bias,
            torch.rand(64),
            True,
            True,
            None,
            [],
            True,
            *real,
        ),
        "conv": (ops.int8_conv, image, *conv, None, None, 0, *form, *dynamic, *real),
        "conv, added": (
            ops.int8_conv,
            image,
            *conv,
            torch.randn(2, 8, 6, 4),
            None,
            0,
            *form,
            *static,
            *real,
        ),
        "conv, padded": (
            ops.int8_conv,
            image,
            *conv,
            None,
            None,
            0,
            *form[:4],
            [1, 0, 2, 0],
            *static,
            0.1,
            7,
            torch.uint8,
            "relu",
        ),
        "transposed": (
            ops.int8_conv_transpose,
            image,
            taps.view(4, 8, 3, 3),
            scale[:8],
            None,
            [2, 3],
            [1, 0],
            [1, 0],
            [1, 1],
            1,
            *dynamic,
            *real,
        ),
        "int4": (ops.int4_linear, x, four, groups, None, -8),
        "fp8": (
            ops.fp8_linear,
            x,
            torch.full((32, 64), 56, dtype=torch.uint8),
            scale,
            True,
        ),
        "recurrent": (
            ops.int8_recurrent,
            torch.randn(2, 5, 16),
            None,
            [state, state],
            cell,
            [],
            "lstm",
            1,
            False,
            True,
        ),
    }


@pytest.mark.parametrize("name", list(operator_calls()))
def test_operators_obey_what_torch_asks_of_them(name: str) -> None:
    operator, *arguments = operator_calls()[name]
    torch.library.opcheck(operator.default, tuple(arguments))


@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_program_takes_any_batch(strict: bool, tmp_path: Path) -> None:
    made, x = mixed()
    with torch.no_grad():
        program = torch.export.export(
            made.model,
            (x,),
            dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
            strict=strict,
        )
        assert "octavo" not in str(program.graph)  # who loads it may not have octavo
        torch.export.save(program, tmp_path / "mixed.pt2")
        loaded = torch.export.load(tmp_path / "mixed.pt2").module()
        for batch in (x, torch.cat([x, -x])):
            near(loaded(batch), made.candidate.run((batch,))[0])


def test_a_language_model_is_captured_and_exported() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    config = transformers.LlamaConfig(
        **sizes, pad_token_id=0, bos_token_id=1, eos_token_id=2, use_cache=False
    )
    ids = torch.arange(3, 27).view(2, 12)
    made = octavo.quantize_model(
        transformers.LlamaForCausalLM(config).eval(),
        "int8-dynamic",
        calibration=[{"input_ids": ids}],
    )
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
        "candidate, x = pickle.load(open(sys.argv[1], 'rb')); numpy.save(sys.argv[2], "
        "candidate.run((x,))[0])"
    )
    # The class of this file is not importable there, as a class of a notebook is not: cloudpickle
    # takes it along by value.
    (tmp_path / "candidate.pkl").write_bytes(by_value((made.candidate, x)))
    arguments = [
        str(tmp_path / "candidate.pkl"),
        str(tmp_path / "out.npy"),
        str(torch.get_num_threads()),
    ]
    subprocess.run([sys.executable, "-c", code, *arguments], check=True)
    np.testing.assert_allclose(
        np.load(tmp_path / "out.npy"), made.candidate.run((x,))[0], rtol=0, atol=1e-6
    )


def test_a_transformers_candidate_is_pickled() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=96,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
    )
    batch = {"input_ids": torch.arange(24).view(2, 12)}
    made = octavo.quantize_model(
        transformers.BertModel(config).eval(), "int8-dynamic", calibration=[batch]
    )
    for how in (pickle, cloudpickle):
        again = pickle.loads(how.dumps(made.candidate))
        np.testing.assert_array_equal(again.run(batch)[0], made.candidate.run(batch)[0])
