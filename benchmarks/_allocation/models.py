"""The models whose allocations are compared."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.special import log_softmax

from benchmarks._tasks import Logits
from benchmarks.algorithms import load_task

from .bench import Outputs, Subject

LENGTH = 256
BATCH = 4
GROUPED = {"dtype": ["uint2", "uint3", "uint4", "int8"], "granularity": "group:32"}
"""2, 3 and 4 bits with a zero point, 8 without one."""


def llama(folder: Path, rows: int) -> Subject:
    """Return the language model of OCTAVO_LM: the linear layers of its blocks; the tied embedding
    and head stay in float."""
    task = load_task(folder)

    def score(model: Any) -> float:
        return math.exp(_surprise(model, other))

    with torch.no_grad():
        calibration = task.calibration(samples=8, length=LENGTH)
        other = task.calibration(samples=8, length=LENGTH, seed=2)
        tokens = np.load(folder / "heldout.npy").astype(np.int64)[: rows * LENGTH]
        held_out = torch.from_numpy(tokens).view(-1, LENGTH)
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


@torch.no_grad()
def _surprise(model: Any, tokens: torch.Tensor) -> float:
    total = 0.0
    for part in tokens.split(BATCH):
        logits = model(part)[:, :-1].float()
        flat = logits.reshape(-1, logits.shape[-1])
        total += float(
            torch.nn.functional.cross_entropy(
                flat, part[:, 1:].reshape(-1), reduction="sum"
            )
        )
    return total / (tokens.shape[0] * (tokens.shape[1] - 1))
