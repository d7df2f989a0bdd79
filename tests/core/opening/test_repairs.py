"""Low-rank repairs that a backend cannot carry out: refused before any work, or left out."""

from __future__ import annotations

import pytest

from octavo.core.errors import ConfigError, SchemeError
from octavo.core.tuning.quantize import quantize_model
from octavo.core.values.capability import Capability, Offer
from octavo.core.values.graph import Op, Weight
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import FLOAT, RTN, OpScheme, PartChoice, QuantSpec
from tests.tiny import calibration, chain, host

GPTQ, REPAIR = PartChoice(kind="gptq"), PartChoice(kind="low_rank")
INT4 = QuantSpec(dtype="int4", granularity="group:32")
PLAIN = OpScheme(mode="weight_only", weight=INT4, algorithm=GPTQ)
REPAIRED = PLAIN.variant(refined_by=(REPAIR,))


def op(kind: str) -> Op:
    return Op("one", kind, ("x",), ("y",), Weight("w", (8, 64)))


def capability() -> Capability:
    offers = {
        "linear": (
            Offer(OpScheme(mode="weight_only", weight=INT4), repairs=True),
            Offer(OpScheme(mode="dynamic", weight=INT4, input=INT4)),
        ),
        "conv": (Offer(OpScheme(mode="weight_only", weight=INT4)),),
    }
    return Capability("some", offers=offers)


def test_an_offer_says_whether_it_takes_a_repair() -> None:
    known = capability()
    assert known.repairable(op("linear"), REPAIRED) == (REPAIRED, "")
    assert known.realization(op("linear"), REPAIRED) == "kernel"
    assert known.repairable(op("conv"), PLAIN) == (PLAIN, "")
    assert known.repairable(op("conv"), FLOAT) == (FLOAT, "")
    left, why = known.repairable(op("conv"), REPAIRED)
    assert left == PLAIN
    assert "some has no low-rank repair for a weight_only conv" in why
    with pytest.raises(SchemeError, match="no low-rank repair goes with it"):
        known.realization(op("conv"), REPAIRED)
    dynamic = OpScheme(mode="dynamic", weight=INT4, input=INT4, algorithm=REPAIR)
    left, why = known.repairable(op("linear"), dynamic)
    assert "dynamic linear" in why
    # What the repair alone would have rounded is rounded to nearest.
    assert left.algorithm == RTN


def test_a_backend_that_never_heard_of_it_refuses() -> None:
    rule = {"types": "linear", "algorithm": [["gptq", "low_rank"]]}
    with pytest.raises(ConfigError, match="low_rank repairs no op of this model: tiny"):
        quantize_model(chain(), {"rules": [rule]}, calibration(), host=host())
    plain = quantize_model(chain(), "int8-static", calibration(), host=host())
    name, scheme = next(
        (name, line.applied)
        for name, line in plain.ledger.items()
        if line.applied.weight is not None
    )
    asked = Recipe({name: scheme.variant(refined_by=(REPAIR,))}, (), "tiny")
    with pytest.raises(SchemeError, match="leave low_rank out of its scheme"):
        quantize_model(chain(), asked, calibration(), host=host())
