"""Commands in this process, on a small ONNX model with long names; a tuned result of it."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from octavo.cli import main

LONG = "backbone.stages.0/convolution_with_a_long_name"


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


def ran(*arguments: object, encoding: str = "utf-8") -> Ended:
    """Run a command with standard streams of an encoding, as a pipe has them."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2)]
    code = 0
    with (
        contextlib.redirect_stdout(streams[0]),
        contextlib.redirect_stderr(streams[1]),
    ):
        try:
            main([str(a) for a in arguments])
        except SystemExit as ended:
            code = int(ended.code or 0)
    texts = []
    for stream in streams:
        stream.flush()
        held: io.BytesIO = stream.buffer  # type: ignore[assignment]
        texts.append(held.getvalue().decode(encoding))
    return Ended(code, *texts)


Command = Callable[..., Ended]


@pytest.fixture
def octavo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """Run a command in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OCTAVO_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("COLUMNS", raising=False)
    return ran


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A convolution and a linear layer, with samples and their labels beside it."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("a folder, ümläute")
    weights = {"w0": (8, 1, 3, 3), "b0": (8,), "w1": (5, 288), "b1": (5,)}
    held = [
        onnx.numpy_helper.from_array(
            rng.normal(scale=0.2, size=shape).astype(np.float32), name
        )
        for name, shape in weights.items()
    ]
    nodes = [
        onnx.helper.make_node("Conv", ["image", "w0", "b0"], ["hidden"], LONG),
        onnx.helper.make_node("Relu", ["hidden"], ["active"], "Relu"),
        onnx.helper.make_node("Flatten", ["active"], ["flat"], "Flatten"),
        onnx.helper.make_node(
            "Gemm", ["flat", "w1", "b1"], ["logits"], "classifier", transB=1
        ),
    ]
    image = onnx.helper.make_tensor_value_info("image", 1, ["n", 1, 8, 8])
    logits = onnx.helper.make_tensor_value_info("logits", 1, ["n", 5])
    graph = onnx.helper.make_graph(nodes, "small", [image], [logits], held)
    opset = onnx.helper.make_opsetid("", 17)
    path = folder / "small.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10), path)
    images = rng.normal(size=(200, 1, 8, 8)).astype(np.float32)
    session = onnxruntime.InferenceSession(path)
    labels = session.run(None, {"image": images})[0].argmax(1)
    np.savez(folder / "small.npz", image=images, labels=labels)
    return path


@pytest.fixture(scope="session")
def data(model: Path) -> Path:
    """Samples with labels."""
    return model.with_suffix(".npz")


@pytest.fixture(scope="session")
def tuned(model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A result of two trials, whose history lies beside it."""
    folder = tmp_path_factory.mktemp("results") / "tuned"
    ended = ran(*tune_arguments(model, data), "-o", folder)
    assert ended.code == 0, ended.err
    return folder


def tune_arguments(model: Path, data: Path) -> list[object]:
    """Return the arguments of a short run, which measures latency too."""
    score = ["--metric", "accuracy", "--tolerance", "0.2", "--minimise", "size"]
    limits = ["--minimise", "latency", "--max-trials", "2", "--strategy", "basic"]
    return ["tune", model, "--data", data, *score, *limits]


def environment() -> dict[str, str]:
    """Return this process's environment with ``octavo`` on its path."""
    here = str(Path(sys.executable).parent)
    return {**os.environ, "PATH": os.pathsep.join([here, os.environ.get("PATH", "")])}
