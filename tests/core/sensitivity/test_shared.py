"""Sensitivities shared between backends, and kept between runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

import octavo
from octavo.core.errors import StoreError
from octavo.core.sensitivity.shared import SharedSensitivity, signatures
from octavo.core.values.scheme import FLOAT, OpScheme, PartChoice, QuantSpec
from octavo.core.values.space import TuningSpace, Unit
from tests import tiny

W4 = OpScheme(
    mode="weight_only", weight=QuantSpec(dtype="int4", granularity="group:32")
)
W8 = OpScheme(mode="weight_only", weight=QuantSpec(dtype="int8", granularity="channel"))


def space(backend: str, *units: tuple[str, str, int, int]) -> TuningSpace:
    return TuningSpace(
        backend,
        tuple(
            Unit(n, t, (n,), (W4, W8, FLOAT), parameters=p, channels=c)
            for n, t, p, c in units
        ),
    )


class Own:
    """Counts what a backend is asked itself."""

    def __init__(self, value: float) -> None:
        self.value = value
        self.asked: list[tuple[str, str]] = []
        self.lent: dict[str, float] = {}

    def under(self, transforms: tuple[PartChoice, ...]):
        def ask(kind: str, pairs: Sequence[tuple[str, OpScheme]]) -> list[float]:
            self.asked += [(kind, name) for name, _ in pairs]
            return [self.value + i for i in range(len(pairs))]

        return ask

    def lend(self, kind: str, unit: str, *rest: object) -> None:
        self.lent[unit] = rest[-1]  # type: ignore[assignment]


def test_counterparts_are_scored_once() -> None:
    torch = space(
        "torch",
        ("a", "linear", 64, 8),
        ("b", "linear", 64, 8),
        ("c", "conv", 9, 1),
        ("sum", "add", 0, 1),
    )
    onnx = space(
        "onnx",
        ("/a/MatMul", "linear", 64, 8),
        ("/b/MatMul", "linear", 64, 8),
        ("/c/Conv", "conv", 9, 1),
        ("/Add", "add", 0, 1),
        ("/d", "conv", 4, 1),
    )
    scores: dict = {}
    first, second = Own(1.0), Own(100.0)
    one, two = (
        SharedSensitivity(first, torch, scores),
        SharedSensitivity(second, onnx, scores),
    )  # type: ignore[arg-type]
    assert one("weight_error", [("a", W4), ("b", W4), ("sum", W4)]) == [1.0, 2.0, 3.0]
    # a and b are known by their place, /Add has no weight to know it by, /d has no counterpart.
    assert two(
        "weight_error", [("/b/MatMul", W4), ("/Add", W4), ("/d", W4), ("/a/MatMul", W4)]
    ) == [2.0, 100.0, 101.0, 1.0]
    assert [name for _, name in second.asked] == ["/Add", "/d"]
    # The second backend knows what the first one answered for it: its result tells it.
    assert second.lent == {"/b/MatMul": 2.0, "/a/MatMul": 1.0}
    assert first.lent == {}
    assert two("weight_error", [("/a/MatMul", W8)]) == [100.0]
    assert two("output_distance", [("/a/MatMul", W4)]) == [100.0]
    assert two.under((PartChoice(kind="smoothquant"),))(
        "weight_error", [("/a/MatMul", W4)]
    ) == [100.0]


def test_what_one_backend_cannot_carry_out_is_not_held_against_another() -> None:
    scores: dict = {}
    one = SharedSensitivity(
        Own(float("inf")), space("torch", ("a", "linear", 64, 8)), scores
    )  # type: ignore[arg-type]
    two = SharedSensitivity(Own(3.0), space("onnx", ("/a", "linear", 64, 8)), scores)  # type: ignore[arg-type]
    assert one("weight_error", [("a", W4)]) == [float("inf")]
    assert two("weight_error", [("/a", W4)]) == [3.0]


def test_units_are_no_counterparts_where_their_number_differs() -> None:
    fused = space("onnx", ("qkv", "linear", 64, 8))
    apart = space("torch", ("q", "linear", 64, 8), ("k", "linear", 64, 8))
    assert not set(signatures(fused).values()) & set(signatures(apart).values())


def test_scores_are_kept_between_runs(tmp_path: Path) -> None:
    def tune(**changes: object) -> octavo.Result:
        return octavo.autotune(
            tiny.chain(),
            tiny.accuracy,
            tiny.calibration(),
            **{
                "strategy": "mse",
                "minimise": "size",
                "host": tiny.host(),
                "max_trials": 3,
                "sensitivities": tmp_path / "scores.json",
                "storage": tmp_path / f"{len(list(tmp_path.iterdir()))}.db",
                **changes,
            },
        )

    first = tune()
    (kept,) = tmp_path.glob("scores.*.json")
    assert kept.name == "scores.tiny.json"
    before = kept.read_bytes()
    assert [t.recipe for t in tune(tolerance=0.02).trials][:1] == [
        t.recipe for t in first.trials
    ][:1]
    assert kept.read_bytes() == before
    other = tiny.chain()
    other.weights[0] *= 1.5
    with pytest.raises(StoreError, match="another model"):
        octavo.autotune(
            other,
            tiny.accuracy,
            tiny.calibration(),
            strategy="mse",
            minimise="size",
            host=tiny.host(),
            sensitivities=tmp_path / "scores.json",
            storage=tmp_path / "x.db",
        )
