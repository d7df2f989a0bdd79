"""Runs of a stretch of a traced graph."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import fx

from octavo.adapters.pytorch.capture.graph.traced import GraphCapture
from octavo.adapters.pytorch.run.batches import Call

from .watch import Halt, Watch


class GraphWatch(Watch):
    """A run of a stretch of a traced graph's nodes.

    What is kept are the values that are alive behind it.

    Args:
        twin: The graph over a skeleton of the model.
        capture: Where it is from.
        values: What to hand out.
        sink: Takes (name, tensor).
        start: Number of the first node that is run.
    """

    def __init__(
        self,
        twin: fx.GraphModule,
        capture: GraphCapture,
        values: Collection[str],
        sink: Callable[[str, torch.Tensor], None],
        start: int,
    ) -> None:
        self._start = start
        self._stop = capture.span(values)[1]
        placeholders = (
            node for node in capture.graph.nodes if node.op == "placeholder"
        )
        self._names = [str(node.target) for node in placeholders]
        self._watcher = _Stretch(
            twin, capture, frozenset(values), sink, (start, self._stop)
        )

    def __call__(
        self, call: Call, kept: Mapping[int, Any] | None = None
    ) -> Mapping[int, Any]:
        """Return the place of the first node that was not run -> values alive there, by node."""
        args, kwargs = call
        alive = dict(kept[self._start]) if kept and self._start else {}
        by_name = (kwargs[name] for name in self._names[len(args) :])
        with suppress(Halt):
            self._watcher.run(*args, *by_name, initial_env=alive)
        found, self._watcher.env = self._watcher.env, {}
        return {
            self._stop: {
                node: v for node, v in found.items() if _is_activation(node, v)
            }
        }


def _is_activation(node: fx.Node, value: Any) -> bool:
    """Return whether a value was made by the run; the model's own tensors were not."""
    return value is not None and node.op != "get_attr"


class _Stretch(fx.Interpreter):
    """Interprets a graph's nodes from one place to another.

    Args:
        twin: The graph over a skeleton of the model.
        capture: Where it is from.
        wanted: Names of values to hand out.
        sink: Takes (name, tensor).
        span: Numbers of the first node that is run, and of the first that is not.
    """

    def __init__(
        self,
        twin: fx.GraphModule,
        capture: GraphCapture,
        wanted: frozenset[str],
        sink: Callable[[str, torch.Tensor], None],
        span: tuple[int, int],
    ) -> None:
        super().__init__(twin)
        self._order = capture.order
        self._joined = capture.joined
        self._wanted = wanted
        self._sink = sink
        self._first, self._stop = span

    def run_node(self, n: fx.Node) -> Any:
        """Run a node of the stretch, and hand out what is wanted of it."""
        place = self._order[n]
        if place >= self._stop:
            raise Halt
        if place < self._first and n.op != "get_attr":
            return None  # it is dead behind the start
        name = self._joined.get(n)
        if name and f"{name}:in" in self._wanted:
            args, _ = self.fetch_args_kwargs_from_env(n)
            self._sink(f"{name}:in", args[0])
        result = super().run_node(n)
        self._hand_out(n.name, result)
        if name:
            self._hand_out(f"{name}:out", result)
        return result

    def _hand_out(self, name: str, value: Any) -> None:
        if name in self._wanted:
            self._sink(name, value)
