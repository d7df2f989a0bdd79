"""The backend's full part in tuning: every calibrator, algorithm and rescaling of the core, and a
run of the loop."""

from typing import Any

import numpy as np
import pytest

import octavo
from octavo.core.contract.plugins import PluginHost
from octavo.core.testing.conformance.case import cosine, outputs
from octavo.core.values.scheme import OpScheme, PartChoice, QuantSpec
from tests.adapters.numpy.test_conformance import (
    convolutional,
    images,
    tokens,
    transformer,
)
from tests.core.quantizing.test_algorithms import FEW

HOST = PluginHost(third_party=False)
W8, X8 = (
    QuantSpec(dtype="int8", granularity="channel"),
    QuantSpec(dtype="uint8", symmetric=False),
)
W4 = QuantSpec(dtype="int4", granularity="group:32")
MODELS: dict[str, tuple[Any, Any]] = {
    "convolutional": (convolutional, images),
    "transformer": (transformer, tokens),
}


def quantize(
    name: str,
    scheme: OpScheme,
    types: tuple[str, ...] = ("linear", "conv"),
    transforms: tuple[str, ...] = (),
) -> tuple[float, octavo.Quantized]:
    model, data = MODELS[name]
    batches = data()
    session = HOST.adapters()["numpy"].build().open(model(), batches[0])
    ops = [op.name for op in session.describe().ops if op.type in types]
    recipe = octavo.Recipe(
        dict.fromkeys(ops, scheme),
        tuple(PartChoice(kind=t) for t in transforms),
        "numpy",
    )
    made = octavo.quantize_model(model(), recipe, batches, host=HOST)
    assert all(made.ledger[op].honoured for op in ops)
    return cosine(
        outputs(made.candidate, batches), outputs(session.reference(), batches)
    ), made


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "calibrator", [c for c in HOST.parts("calibrators") if c != "token"]
)
def test_calibrators(name: str, calibrator: str) -> None:
    scheme = OpScheme(
        mode="static", weight=W8, input=X8, calibrator=PartChoice(kind=calibrator)
    )
    # Some calibrators clip by design, and the more the less data there is.
    assert quantize(name, scheme)[0] > 0.9


@pytest.mark.parametrize("algorithm", ["rtn", "hqq", "gptq", "awq"])
def test_algorithms_on_integer_layers(algorithm: str) -> None:
    """The iterative ones run on packed layers below: what a layer is made into is none of their
    business."""
    scheme = OpScheme(
        mode="static", weight=W8, input=X8, algorithm=PartChoice(kind=algorithm)
    )
    for name in MODELS:
        assert quantize(name, scheme)[0] > 0.98


@pytest.mark.parametrize("algorithm", HOST.parts("algorithms"))
def test_algorithms_on_packed_layers(algorithm: str) -> None:
    choice = PartChoice.model_validate({"kind": algorithm, **FEW.get(algorithm, {})})
    scheme = OpScheme(mode="weight_only", weight=W4, algorithm=choice)
    score, made = quantize("transformer", scheme, ("linear",))
    assert score > 0.97
    packed = [n for n in made.candidate.graph.nodes if n.op == "octavo.Dequantize"]
    assert len(packed) == 6
    # Two codes a byte, in memory as on disk.
    for node in packed:
        assert made.candidate.graph.initializers[node.inputs[0]].nbytes * 2 == np.prod(
            node.attributes["shape"]
        )


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("transform", HOST.parts("transforms"))
def test_rescalings(name: str, transform: str) -> None:
    assert (
        quantize(
            name, OpScheme(mode="static", weight=W8, input=X8), transforms=(transform,)
        )[0]
        > 0.98
    )


def test_the_loop_reaches_its_goal() -> None:
    batches = images()
    session = HOST.adapters()["numpy"].build().open(convolutional(), batches[0])
    truth = session.reference().run(batches[0])[0].argmax(1)
    result = octavo.autotune(
        convolutional(),
        lambda model: float(
            (np.asarray(model(batches[0][0])).argmax(1) == truth).mean()
        ),
        batches,
        tolerance=0.3,
        max_trials=4,
        minimise="size",
        host=HOST,
        confirm=False,
    )
    assert result.goal_met
    assert result.best.recipe.backend == "numpy"
