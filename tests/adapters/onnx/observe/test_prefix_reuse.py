"""Candidates that start at a cut before their first changed node give what they give from the
beginning."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

from octavo.adapters.onnx.candidate import OnnxCandidate
from octavo.adapters.onnx.observe.cuts import cuts
from octavo.adapters.onnx.observe.prefix_reuse import Reuse
from octavo.adapters.onnx.session import OnnxSession
from octavo.core.contract import recall
from octavo.core.contract.plugins import PluginHost
from octavo.core.opening.spaces import build_space
from octavo.core.quantizing.realize import Realizer
from octavo.core.sensitivity.service import SensitivityService
from octavo.core.values.recipe import Recipe
from tests.adapters.onnx import models
from tests.helpers import as_opened

HOST = PluginHost(third_party=False)


def stacked(blocks: int = 3) -> onnx.ModelProto:
    """The transformer block several times in a row: the later ones read the hidden state in place
    of an embedding."""
    one = models.transformer_block()
    graph, names = one.graph, {n for node in one.graph.node for n in node.output}
    nodes = list(graph.node)
    for index in range(1, blocks):
        renamed = {name: f"{name}.{index}" for name in names}
        renamed["e"] = "y" if index == 1 else f"y.{index - 1}"
        for node in graph.node:
            if node.op_type != "Gather":
                inputs = [renamed.get(i, i) for i in node.input]
                made = helper.make_node(
                    node.op_type,
                    inputs,
                    [renamed[o] for o in node.output],
                    f"{node.name}.{index}",
                )
                made.attribute.extend(node.attribute)
                nodes.append(made)
    output = helper.make_tensor_value_info(
        nodes[-1].output[0], onnx.TensorProto.FLOAT, ["n", "s", 32]
    )
    made = helper.make_graph(
        nodes, "stacked", list(graph.input), [output], list(graph.initializer)
    )
    return helper.make_model(
        made, opset_imports=one.opset_import, ir_version=one.ir_version
    )


def calibrated(
    proto: onnx.ModelProto, batches: list[Any]
) -> tuple[OnnxSession, Realizer]:
    session = HOST.adapters()["onnx"].build().open(proto)
    assert isinstance(session, OnnxSession)
    found = as_opened(session)
    realizer = Realizer(found, build_space(found), HOST)
    realizer.calibrate(batches)
    return session, realizer


def last_alone(realizer: Realizer) -> OnnxCandidate:
    unit = realizer.space.tunable[-1]
    made = realizer.candidate(
        Recipe(dict.fromkeys(unit.ops, unit.choices[0]), (), "onnx"), draft=True
    )
    assert isinstance(made, OnnxCandidate)
    return made


CASES = {
    "transformer": (stacked, models.tokens),
    "convolutional": (models.convolutional, models.images),
}


@pytest.mark.parametrize("name", CASES)
def test_outputs_are_those_of_the_whole_run(name: str) -> None:
    make, data = CASES[name]
    batches: list[Any] = data()
    session, realizer = calibrated(make(), batches)
    runner = session.runner(batches)
    recalled = 0
    for unit in realizer.space.tunable:
        ways = {
            (s.mode, s.weight_bits): s for s in reversed(unit.choices) if not s.is_float
        }
        for scheme in ways.values():
            recipe = Recipe(dict.fromkeys(unit.ops, scheme), (), "onnx")
            draft = realizer.candidate(recipe, draft=True)
            found = list(runner(draft))
            # The whole model was never given to the runtime.
            recalled += "compiled" not in vars(draft.ledger)
            whole = realizer.candidate(recipe)
            for outputs, batch in zip(found, batches, strict=True):
                for y, y0 in zip(outputs, whole.run(batch), strict=True):
                    np.testing.assert_array_equal(y, y0)
            assert dict(draft.ledger) == whole.ledger
    assert recalled >= 5


def test_cuts_are_where_one_value_passes() -> None:
    session, _ = calibrated(stacked(), models.tokens())
    runner = session.runner(models.tokens())
    assert len(runner.cuts) >= 6
    assert all(len(cut.passing) == 1 for cut in runner.cuts)
    assert [cut.at for cut in runner.cuts] == sorted(cut.at for cut in runner.cuts)


def test_a_later_change_leaves_more_to_recall() -> None:
    batches: list[Any] = models.tokens()
    session, realizer = calibrated(stacked(), batches)
    runner = session.runner(batches)
    first = [
        runner.first_changed(
            realizer.candidate(
                Recipe(dict.fromkeys(u.ops, u.choices[0]), (), "onnx"), draft=True
            ).native.graph
        )
        for u in realizer.space.tunable
        if u.type == "linear"
    ]
    assert first == sorted(first)
    assert len(set(first)) >= 6


def test_values_that_are_too_many_are_not_remembered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batches: list[Any] = models.tokens()
    session, realizer = calibrated(stacked(), batches)
    monkeypatch.setattr(recall, "RECALL_BYTES", 100)
    candidate = last_alone(realizer)
    np.testing.assert_array_equal(
        next(session.runner(batches)(candidate))[0], candidate.run(batches[0])[0]
    )
    assert "compiled" in vars(candidate.ledger)


def test_a_cut_that_does_not_give_the_outputs_again_is_not_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batches: list[Any] = models.tokens()
    session, realizer = calibrated(stacked(), batches)
    runner = session.runner(batches)
    known, expected = runner._recorded
    runner.__dict__["_recorded"] = (known, tuple(y + 1 for y in expected))
    candidate = last_alone(realizer)
    np.testing.assert_array_equal(
        next(runner(candidate))[0], candidate.run(batches[0])[0]
    )


def test_graphs_with_subgraphs_are_not_cut() -> None:
    body = helper.make_graph(
        [helper.make_node("Relu", ["h"], ["b"])],
        "body",
        [],
        [helper.make_tensor_value_info("b", 1, None)],
    )
    nodes = [
        helper.make_node("Relu", ["x"], ["h"], "first"),
        helper.make_node("If", ["c"], ["i"], "if", then_branch=body, else_branch=body),
        helper.make_node("Relu", ["i"], ["y"], "last"),
    ]
    values = [
        helper.make_tensor_value_info(n, t, s)
        for n, t, s in (("x", 1, [2]), ("c", 9, []), ("y", 1, [2]))
    ]
    proto = helper.make_model(
        helper.make_graph(nodes, "g", values[:2], values[2:]),
        opset_imports=[helper.make_opsetid("", 18)],
    )
    assert cuts(ir.from_proto(proto)) == []


def test_a_draft_travels_with_its_ledger() -> None:
    _, realizer = calibrated(models.convolutional(), models.images())
    draft = realizer.candidate(
        realizer.space.recipe(realizer.space.first()), draft=True
    )
    again = pickle.loads(pickle.dumps(draft))
    assert again.ledger == dict(draft.ledger)


def test_sensitivities_are_those_of_whole_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    batches: list[Any] = models.tokens()
    _, realizer = calibrated(stacked(), batches)
    pairs = [(u.name, u.choices[0]) for u in realizer.space.tunable]
    found = SensitivityService(realizer.opened, realizer, batches)(
        "output_distance", pairs
    )
    monkeypatch.setattr(
        Reuse, "__call__", lambda self, candidate: (candidate.run(b) for b in batches)
    )
    assert (
        SensitivityService(realizer.opened, realizer, batches)("output_distance", pairs)
        == found
    )
