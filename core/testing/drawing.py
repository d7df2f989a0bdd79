"""What a simulated problem draws at random: its units, their losses, and noise by tag."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence

import numpy as np

from octavo.core.values.scheme import FLOAT, OpScheme, QuantSpec
from octavo.core.values.space import Unit

BLOCK = 4
"""Units of a block."""

SCHEMES = (
    OpScheme(
        mode="weight_only", weight=QuantSpec(dtype="int3", granularity="group:32")
    ),
    OpScheme(
        mode="weight_only", weight=QuantSpec(dtype="int4", granularity="group:32")
    ),
    OpScheme(mode="weight_only", weight=QuantSpec(dtype="int8", granularity="channel")),
    FLOAT,
)


def draw_losses(random: np.random.Generator, units: int, pressure: float) -> np.ndarray:
    """Draw the loss of each unit under each of :data:`SCHEMES`, shape (units, 4)."""
    # A few units carry most of the loss, as in real networks.
    base = np.exp(random.normal(0.0, 1.5, units))
    jitter = np.exp(random.normal(0.0, 0.3, (units, 3)))
    # Each bit halves the step and quarters its square.
    bits = np.array([3.0, 4.0, 8.0])
    raw = base[:, None] * 4.0**-bits * jitter
    # Fewer bits never hurt less.
    raw = np.sort(raw, axis=1)[:, ::-1]
    all_int4 = raw[:, 1].sum()
    in_float = np.zeros((units, 1))
    return np.concatenate([raw / all_int4 * pressure, in_float], axis=1)


def unit_of(i: int, parameters: int) -> Unit:
    """Return the unit of a number, in its block."""
    block = f"b{i // BLOCK}"
    name = f"{block}.u{i}"
    kind = ("linear", "conv")[i % 2]
    return Unit(name, kind, (name,), SCHEMES, block, parameters, channels=32)


def draw_couplings(
    random: np.random.Generator, units: Sequence[Unit], coupling: float
) -> dict[tuple[str, str], float]:
    """Draw J for each pair of a block."""
    couplings = {}
    for a, b in itertools.combinations(units, 2):
        if a.block == b.block:
            drawn = random.uniform(0, 2 * coupling)
            couplings[a.name, b.name] = float(drawn)
    return couplings


def _bits_of(tag: str) -> int:
    """Return 64 bits that depend on the tag alone, in any process."""
    # Python's own hash of a text differs from process to process.
    digest = hashlib.sha256(tag.encode()).digest()
    return int.from_bytes(digest[:8], "big")


def uniform(tag: str) -> float:
    """Return a number in [0, 1) that depends on the tag alone."""
    return _bits_of(tag) / 2**64


def normal(tag: str) -> float:
    """Return a standard normal number that depends on the tag alone."""
    random = np.random.default_rng(_bits_of(tag))
    return float(random.normal())
