"""The unchanged things that the fuzzer mutates: small models of all backends, their saved results,
a history, data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import octavo
from octavo.adapters.numpy.files.archive import save_graph
from octavo.adapters.numpy.graph import Builder, Graph
from octavo.core.errors import SchemeError

ROWS = 4  # samples of a batch
SIZE = 8  # pixels of an image's side
WIDTH = 16  # features of a row
CONFIG: dict[str, Any] = {
    "strategy": {"kind": "bayesian", "over": "op", "sampler": "random"},
    "max_trials": 2,
    "timeout": "10min",
    "trial_timeout": 30.0,
    "stop": "budget",
    "seed": 3,
    "accuracy": {
        "metric": "score",
        "tolerance": 0.5,
        "mode": "relative",
        "higher_is_better": True,
    },
    "objective": {"minimise": ["size", {"kind": "latency"}]},
    "rules": [
        {
            "types": ["linear"],
            "mode": ["static", "dynamic"],
            "weight": {"dtype": ["int8"], "granularity": ["channel", "tensor"]},
        },
        {
            "ops": ["first*"],
            "algorithm": ["rtn", {"kind": "gptq", "damping": 0.01}],
            "calibrator": ["minmax", "mse"],
        },
    ],
    "transforms": ["smoothquant"],
    "simulated": False,
    "racing": {"error": 0.05},
    "holdout": 0.0,
    "confirm": False,
    "non_finite": "error",
    "gram_megabytes": 64,
    "executor": {"kind": "inline"},
    "budgets": {"size": 0.9, "bits": 16},
    "plugins": {"autoload": False, "allow": [], "deny": []},
}
"""Every setting that a configuration has, so that each is mutated."""


def images() -> np.ndarray:
    """Return float32 images (rows, 3, 8, 8)."""
    return (
        np.random.default_rng(0)
        .standard_normal((ROWS, 3, SIZE, SIZE))
        .astype(np.float32)
    )


def rows() -> np.ndarray:
    """Return float32 rows (rows, 16)."""
    return np.random.default_rng(1).standard_normal((ROWS, WIDTH)).astype(np.float32)


def score(model: Any) -> float:
    """Score a model of rows: how near its outputs are to a fixed plane. Any finite
    number would do."""
    return 1.0 + float(np.tanh(np.asarray(model(rows())).mean()))


def module() -> nn.Module:
    """Return a convolutional torch module of images, in eval mode."""
    torch.manual_seed(0)
    body = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.ReLU(),
    )
    head = nn.Sequential(
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 16),
        nn.LayerNorm(16),
        nn.GELU(),
        nn.Linear(16, 4),
    )
    return nn.Sequential(body, head).eval()


class Tokens(nn.Module):
    """An embedding, an LSTM and attention: what is not a plain layer. Takes rows of float32
    numbers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.table = nn.Embedding(20, 16)
        self.recurrent = nn.LSTM(16, 16, batch_first=True)
        self.query, self.key, self.value = (
            nn.Linear(16, 16),
            nn.Linear(16, 16),
            nn.Linear(16, 16),
        )
        self.extra = nn.Parameter(torch.randn(16, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return one value for each of 16 tokens."""
        tokens = self.table((x.abs() * 5).long().clamp(0, 19))
        states, _ = self.recurrent(tokens)
        mixed = nn.functional.scaled_dot_product_attention(
            self.query(states), self.key(states), self.value(states)
        )
        summed: torch.Tensor = (mixed @ self.extra).mean(-1)
        return summed


def tokens() -> nn.Module:
    """Return :class:`Tokens` in eval mode."""
    return Tokens().eval()


def graph() -> Graph:
    """Return a NumPy graph of rows."""
    draw = np.random.default_rng(2)
    b = Builder()
    x = b.input("x", (None, WIDTH))
    hidden = b.Relu(
        b.Gemm(x, _weight(draw, 16, 16), np.zeros(16, np.float32), name="first")
    )
    added = b.Add(b.MatMul(hidden, _weight(draw, 16, 16), name="second"), hidden)
    normed = b.LayerNormalization(
        added, np.ones(16, np.float32), np.zeros(16, np.float32), axis=-1, epsilon=1e-5
    )
    return b.graph(
        b.Softmax(
            b.Gemm(normed, _weight(draw, 16, 4), np.zeros(4, np.float32), name="last"),
            axis=1,
        )
    )


def _weight(draw: np.random.Generator, *shape: int) -> np.ndarray:
    return draw.standard_normal(shape).astype(np.float32)


def convolutional() -> onnx.ModelProto:
    """Return an ONNX model of images: convolutions, a residual add, pooling, a classifier."""
    draw = np.random.default_rng(3)
    weights = {
        "w1": _weight(draw, 8, 3, 3, 3),
        "b1": _weight(draw, 8),
        "w2": _weight(draw, 8, 8, 3, 3),
        "w3": _weight(draw, 8, 4),
    }
    weights["w3b"] = _weight(draw, 4)
    nodes = [
        helper.make_node(
            "Conv",
            ["x", "w1", "b1"],
            ["c1"],
            "conv1",
            pads=[1, 1, 1, 1],
            kernel_shape=[3, 3],
        ),
        helper.make_node("Relu", ["c1"], ["r1"], "relu1"),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], "conv2", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c2", "r1"], ["a"], "add"),
        helper.make_node("GlobalAveragePool", ["a"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flatten", axis=1),
        helper.make_node("Gemm", ["f", "w3", "w3b"], ["y"], "classify"),
    ]
    return _model(nodes, weights, ["N", 3, SIZE, SIZE], ["N", 4])


def controlled() -> onnx.ModelProto:
    """Return an ONNX model of rows with an If, a local function, a Constant node, an LSTM and
    dynamic shapes."""
    draw = np.random.default_rng(4)
    weights = {
        "w": _weight(draw, 16, 16),
        "inner": _weight(draw, 16, 16),
        "W": _weight(draw, 1, 64, 16),
        "R": _weight(draw, 1, 64, 16),
    }
    value = helper.make_tensor_value_info("t", TensorProto.FLOAT, None)
    other = helper.make_tensor_value_info("e", TensorProto.FLOAT, None)
    then = helper.make_graph(
        [helper.make_node("MatMul", ["m", "inner"], ["t"], "inside")],
        "then",
        [],
        [value],
    )
    orelse = helper.make_graph(
        [helper.make_node("Identity", ["m"], ["e"], "outside")], "else", [], [other]
    )
    shape = numpy_helper.from_array(np.array([0, 1, 16], np.int64), "shape")
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"], "multiply"),
        helper.make_node("ReduceMax", ["m"], ["top"], "top", keepdims=0),
        helper.make_node(
            "Constant",
            [],
            ["zero"],
            "zero",
            value=numpy_helper.from_array(np.float32(0), "zero"),
        ),
        helper.make_node("Greater", ["top", "zero"], ["condition"], "compare"),
        helper.make_node(
            "If",
            ["condition"],
            ["branched"],
            "branch",
            then_branch=then,
            else_branch=orelse,
        ),
        helper.make_node("Twice", ["branched"], ["doubled"], "twice", domain="local"),
        helper.make_node("Constant", [], ["shape"], "shape", value=shape),
        helper.make_node("Reshape", ["doubled", "shape"], ["steps"], "reshape"),
        helper.make_node(
            "LSTM", ["steps", "W", "R"], ["sequence"], "recurrent", hidden_size=16
        ),
        helper.make_node(
            "ReduceMean", ["sequence"], ["y"], "mean", axes=[0, 1, 2], keepdims=0
        ),
    ]
    twice = helper.make_function(
        "local",
        "Twice",
        ["a"],
        ["b"],
        [helper.make_node("Add", ["a", "a"], ["b"])],
        [helper.make_opsetid("", 17)],
    )
    made = _model(nodes, weights, ["N", WIDTH], [WIDTH])
    made.functions.append(twice)
    made.opset_import.append(helper.make_opsetid("local", 1))
    return made


def _model(
    nodes: list[Any], weights: dict[str, np.ndarray], takes: list[Any], gives: list[Any]
) -> onnx.ModelProto:
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, takes)]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, gives)]
    initializers = [numpy_helper.from_array(a, n) for n, a in weights.items()]
    graph_proto = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    return helper.make_model(
        graph_proto, opset_imports=[helper.make_opsetid("", 17)], ir_version=9
    )


MODULES: dict[str, tuple[Callable[[], nn.Module], Callable[[], np.ndarray]]] = {
    "module": (module, images),
    "tokens": (tokens, rows),
}
"""Torch modules by name, with what makes their inputs."""

PROTOS: dict[str, tuple[Callable[[], onnx.ModelProto], Callable[[], np.ndarray]]] = {
    "convolutional": (convolutional, images),
    "controlled": (controlled, rows),
}
"""ONNX models by name, with what makes their inputs."""

SAVED = {
    "torch-static": ("module", "int8-static"),
    "torch-weights": ("tokens", "int4-weight-only"),
    "onnx-static": ("convolutional", "int8-static"),
    "onnx-dynamic": ("controlled", "int8-dynamic"),
    "numpy-static": ("graph", "int8-static"),
    "numpy-weights": ("graph", "int4-weight-only"),
}
"""Saved result -> (model, scheme)."""


def inputs_of(name: str) -> np.ndarray:
    """Return a batch for a model of the corpus."""
    return rows() if name == "graph" else {**MODULES, **PROTOS}[name][1]()


def model_of(name: str) -> Any:
    """Return a model of the corpus."""
    return graph() if name == "graph" else {**MODULES, **PROTOS}[name][0]()


def build(folder: Path) -> None:
    """Write the corpus: models, saved results of every backend, a searched one with its history and
    sensitivities, data."""
    (folder / "saved").mkdir(parents=True)
    for name, (make, _) in PROTOS.items():
        onnx.save(make(), folder / f"{name}.onnx")
    (folder / "outside").mkdir()
    options: dict[str, Any] = {
        "save_as_external_data": True,
        "location": "weights.bin",
        "size_threshold": 0,
    }
    onnx.save(convolutional(), folder / "outside" / "model.onnx", **options)
    save_graph(graph(), folder / "graph.npz")
    torch.save(module().state_dict(), folder / "state.pt")
    np.savez(
        folder / "rows.npz",
        x=np.concatenate([rows()] * 4),
        labels=np.arange(4 * ROWS) % 4,
    )
    np.save(folder / "x.npy", np.concatenate([rows()] * 4))
    for name, (source, scheme) in SAVED.items():
        _quantized(source, scheme).save(folder / "saved" / name)
    settings = {
        "strategy": "auto",
        "max_trials": 2,
        "minimise": "size",
        "tolerance": 0.5,
        "confirm": False,
    }
    result = octavo.autotune(
        graph(),
        score,
        [rows()],
        **settings,
        storage=folder / "history.db",
        sensitivities=folder / "sensitivities.json",
    )
    result.save(folder / "saved" / "searched")


def _quantized(source: str, scheme: str) -> octavo.Quantized:
    try:
        return octavo.quantize_model(model_of(source), scheme, [inputs_of(source)])
    except SchemeError:  # not every processor's integer kernels are right
        return octavo.quantize_model(
            model_of(source), "int8-weight-only", [inputs_of(source)]
        )
