"""The ledger of a backend that does what it is asked."""

from __future__ import annotations

import numpy as np

from octavo.plugin import (
    FLOAT,
    Applied,
    Capability,
    ModelView,
    Offer,
    Op,
    OpScheme,
    QuantSpec,
    Weight,
    ledger_lines,
    one_op_parameters,
)

W8 = OpScheme(mode="weight_only", weight=QuantSpec(dtype="int8"))
VIEW = ModelView(
    (
        Op("a", "linear", weight=Weight("w", (2, 2))),
        Op("b", "linear", weight=Weight("w", (2, 2))),
        Op("pool", "max_pool"),
        Op("odd", "conv", out_of_reach="its weight is computed"),
    )
)


def test_each_op_has_its_line() -> None:
    offered = Capability("mine", offers={"linear": (Offer(W8, "simulated"),)})
    decided = one_op_parameters(VIEW.ops[0], W8, {"w": np.eye(2, dtype=np.float32)})
    lines = ledger_lines(VIEW, {"a": decided}, offered, carriers=["pool"])
    assert lines == {
        "a": Applied(W8, W8, "simulated"),
        "b": Applied(FLOAT, FLOAT),
        "pool": Applied(FLOAT, FLOAT, "codes"),
        "odd": Applied(FLOAT, FLOAT, reason="its weight is computed"),
    }


def test_a_reason_of_the_backends_own_is_told() -> None:
    offered = Capability("mine", offers={"linear": (Offer(W8),)})
    decided = one_op_parameters(
        VIEW.ops[0], W8, {"w": np.eye(2, dtype=np.float32)}, reduced=True
    )
    lines = ledger_lines(
        VIEW, {"a": decided}, offered, reason=lambda op: f"{op.name} is packed"
    )
    assert lines["a"].reason.startswith("a is packed; ")
    assert lines["a"].applied == decided.carried
