"""Writes a folder with the model and its runner."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo.adapters.numpy.candidate import NumpyCandidate
from octavo.adapters.numpy.graph import Graph, Node
from octavo.adapters.numpy.kernels.casting import dtype_of
from octavo.core.errors import SchemeError

if TYPE_CHECKING:
    from collections.abc import Iterator

RUNNER = Path(__file__).with_name("runner.py")


def export(result: Any, folder: Path) -> None:
    """Write ``model.npz`` and ``run.py`` into a folder.

    Args:
        result: A result, a quantized model or a candidate of the NumPy backend.
        folder: Made where it is missing.

    Raises:
        SchemeError: If the model is another backend's, or has operators that the runner lacks.
    """
    candidate = getattr(result, "candidate", result)
    if not isinstance(candidate, NumpyCandidate):
        raise SchemeError(
            f"a standalone export takes a model of the numpy backend, not a {type(candidate).__name__}; tune with backends=['numpy']"
        )
    lacking = refusals(candidate.graph)
    if lacking:
        raise SchemeError(
            f"the standalone runner does not have: {', '.join(lacking)}. Save the model and load it with octavo instead"
        )
    folder.mkdir(parents=True, exist_ok=True)
    candidate.save(folder)
    (folder / "run.py").write_text(RUNNER.read_text())


def refusals(graph: Graph) -> list[str]:
    """Return what the runner lacks for a graph, by name and reason."""
    known = runner_operators()
    lacking = sorted(
        {f"{node.op} ({why})" for node in graph.nodes if (why := _refused(node, known))}
    )
    if graph.opset < 13 and any(n.op in ("Softmax", "LogSoftmax") for n in graph.nodes):
        lacking.append(f"Softmax (of operator set {graph.opset}; convert the model to 13 or later)")
    return lacking + [
        f"initializer {k!r} ({v.dtype})"
        for k, v in graph.initializers.items()
        if v.dtype.isbuiltin != 1
    ]


@cache
def runner_operators() -> frozenset[str]:
    """Return the operators that the runner has, read from its source."""
    return frozenset(_keys(ast.parse(RUNNER.read_text())))


def _keys(module: ast.Module) -> Iterator[str]:
    table = next(
        s
        for s in module.body
        if isinstance(s, ast.Assign) and getattr(s.targets[0], "id", "") == "OPS"
    )
    for node in ast.walk(table.value):
        if isinstance(node, ast.Dict):
            yield from (
                k.value
                for k in node.keys
                if isinstance(k, ast.Constant) and isinstance(k.value, str)
            )


def _refused(node: Node, known: frozenset[str]) -> str:
    """Return why the runner cannot run a node, or ''."""
    if node.op not in known:
        return "no such operator"
    if any(isinstance(a, Graph) for a in node.attributes.values()):
        return "it has a body"
    if node.op == "Cast" and dtype_of(node.attributes["to"]).isbuiltin != 1:
        return f"to {node.attributes['to']}"
    if node.op == "MaxPool" and len([v for v in node.outputs if v]) > 1:
        return "with indices"
    if node.op == "CumSum" and any(node.attributes.get(k) for k in ("exclusive", "reverse")):
        return "exclusive or reversed"
    if (
        node.op == "AveragePool"
        and node.attributes.get("ceil_mode")
        and node.attributes.get("count_include_pad")
    ):
        return "with both ceil_mode and count_include_pad"
    if node.op == "Slice" and node.attributes:
        return "of operator set 1 to 9"
    if node.op == "Pad" and "pads" in node.attributes:
        return "of operator set 1 to 10"
    if node.op == "BatchNormalization" and node.attributes.get("training_mode"):
        return "in training mode"
    return ""
