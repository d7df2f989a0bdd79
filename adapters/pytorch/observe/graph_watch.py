"""Runs of a stretch of a traced graph."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import fx

from octavo.adapters.pytorch.capture.traced import GraphCapture
from octavo.adapters.pytorch.run.batches import Call

from .watch import Halt, Watch


class GraphWatch(Watch):
    """A run of a stretch of a traced graph's nodes; what is kept are the values that are alive behind it.

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
        wanted, order, joined = set(values), capture.order, capture.joined
        self._start, self._stop = start, (stop := capture.span(values)[1])
        self._names = [str(n.target) for n in capture.graph.nodes if n.op == "placeholder"]

        class Watcher(fx.Interpreter):
            def run_node(self, n: fx.Node) -> Any:
                if order[n] >= stop:
                    raise Halt
                if order[n] < start and n.op != "get_attr":
                    return None  # it is dead behind the start
                name = joined.get(n)
                if name and f"{name}:in" in wanted:
                    sink(f"{name}:in", self.fetch_args_kwargs_from_env(n)[0][0])
                result = super().run_node(n)
                if n.name in wanted:
                    sink(n.name, result)
                if name and f"{name}:out" in wanted:
                    sink(f"{name}:out", result)
                return result

        self._watcher = Watcher(twin)

    def __call__(self, call: Call, kept: Mapping[int, Any] | None = None) -> Mapping[int, Any]:
        """Return the place of the first node that was not run -> values alive there, by node."""
        args, kwargs = call
        alive = dict(kept[self._start]) if kept and self._start else {}
        with suppress(Halt):
            self._watcher.run(
                *args, *(kwargs[n] for n in self._names[len(args) :]), initial_env=alive
            )
        found, self._watcher.env = self._watcher.env, {}
        # The model's own tensors are no activations.
        return {
            self._stop: {
                node: value
                for node, value in found.items()
                if value is not None and node.op != "get_attr"
            }
        }
