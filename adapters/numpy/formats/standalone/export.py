"""Writes a folder with the model and its runner."""

from __future__ import annotations

import runpy
from functools import cache
from pathlib import Path
from typing import Any

from octavo.adapters.numpy.candidate import NumpyCandidate
from octavo.adapters.numpy.graph import Graph, Node
from octavo.adapters.numpy.kernels.casting import dtype_of
from octavo.core.errors import SchemeError

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
            "a standalone export takes a model of the numpy backend, not a "
            f"{type(candidate).__name__}; tune with backends=['numpy']"
        )
    lacking = ", ".join(refusals(candidate.graph))
    if lacking:
        raise SchemeError(
            f"the standalone runner does not have: {lacking}. Save the model and load it with "
            "octavo instead"
        )
    folder.mkdir(parents=True, exist_ok=True)
    candidate.save(folder)
    (folder / "run.py").write_text(RUNNER.read_text())


def refusals(graph: Graph) -> list[str]:
    """Return what the runner lacks for a graph, by name and reason."""
    lacking = set()
    for node in graph.nodes:
        reason = _why_not(node)
        if reason:
            lacking.add(f"{node.op} ({reason})")
    found = sorted(lacking)
    has_softmax = any(node.op in ("Softmax", "LogSoftmax") for node in graph.nodes)
    if has_softmax and graph.opset < 13:
        found.append(
            f"Softmax (of operator set {graph.opset}; convert the model to 13 or later)"
        )
    for name, array in graph.initializers.items():
        if not _is_own(array.dtype):
            found.append(f"initializer {name!r} ({array.dtype})")
    return found


@cache
def runner_operators() -> frozenset[str]:
    """Return the operators that the runner has: what its table OPS names."""
    return frozenset(runpy.run_path(str(RUNNER))["OPS"])


def _is_own(dtype: Any) -> bool:
    """True for NumPy's own types: those of ml_dtypes need a package that the runner has not."""
    return bool(dtype.isbuiltin == 1)


def _why_not(node: Node) -> str:
    """Return why the runner cannot run a node, or ''."""
    if node.op not in runner_operators():
        return "no such operator"
    if node.bodies():
        return "it has a body"
    partial = _PARTIAL.get(node.op)
    return partial(node) if partial else ""


def _cast(node: Node) -> str:
    to = node.attributes["to"]
    return "" if _is_own(dtype_of(to)) else f"to {to}"


def _max_pool(node: Node) -> str:
    return "with indices" if any(node.outputs[1:]) else ""


def _cum_sum(node: Node) -> str:
    is_special = node.get("exclusive", 0) or node.get("reverse", 0)
    return "exclusive or reversed" if is_special else ""


def _average_pool(node: Node) -> str:
    both = node.get("ceil_mode", 0) and node.get("count_include_pad", 0)
    return "with both ceil_mode and count_include_pad" if both else ""


def _slice(node: Node) -> str:
    return "of operator set 1 to 9" if node.attributes else ""


def _pad(node: Node) -> str:
    return "of operator set 1 to 10" if "pads" in node.attributes else ""


def _batch_normalization(node: Node) -> str:
    return "in training mode" if node.get("training_mode", 0) else ""


_PARTIAL = {
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_normalization,
    "Cast": _cast,
    "CumSum": _cum_sum,
    "MaxPool": _max_pool,
    "Pad": _pad,
    "Slice": _slice,
}
"""Operators that the runner has in part: what it lacks of each."""
