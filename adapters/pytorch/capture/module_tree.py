"""Models that cannot be traced: a run of the example tells what feeds what among the modules."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cached_property
from typing import Any

from torch import nn

from octavo.adapters.pytorch.capture.standins.experts import expert_groups
from octavo.adapters.pytorch.capture.standins.parameters import forms_in
from octavo.core.values.graph import UNREACHED, Op, tied_groups

from .blocks import blocks_of, called_once, places_of
from .capture import Capture
from .layers import find_layers
from .links import InputMaps
from .trace import Trace
from .tree_layers import decided_together, layer_of, links_of, order_of, unreached


class ModuleCapture(Capture):
    """A module tree.

    Args:
        root: A skeleton.
        seen: What the example's run showed; None without an example.
        why: Why the graph could not be traced, for the ledger.
        factors: Op name -> what it does to its input's channels first.
        reasons: Parameter that no layer holds -> why not.

    Attributes:
        seen: What runs of batches showed; None where there was none.
        why: Why the graph could not be traced.
    """

    def __init__(
        self,
        root: nn.Module,
        seen: Trace | None,
        why: str,
        factors: InputMaps | None = None,
        reasons: Mapping[str, str] | None = None,
    ) -> None:
        self.root = root
        self.factors = dict(factors or {})
        self.seen = seen
        self.why = why
        self.reasons = reasons or {}
        ops = find_layers(root)
        routed: list[str] = []
        for _, paths in expert_groups(root):
            routed += paths
        order = order_of(ops, routed, seen)
        layers = [layer_of(ops[path], path, root, seen) for path in order]
        self.layers = {layer.op.name: layer for layer in layers}
        idle: list[str] = []
        if seen is not None:
            met = {*seen.calls, *order}
            idle = [path for path in ops if path not in met]
        self._idle = tuple(unreached(ops[path]) for path in idle)
        self.notes = tuple(_notes(why, idle, seen))
        links = links_of(root, layers, seen) if seen is not None else ()
        self.links = {link.group.name: link for link in links}
        self.groups = (
            *(link.group for link in self.links.values()),
            *decided_together(root, ops, layers),
            *tied_groups(layer.op for layer in layers),
        )
        results = seen.results if seen is not None else 1
        self.outputs = tuple(f"output_{i}" for i in range(results))

    @property
    def ops(self) -> tuple[Op, ...]:
        """The layers in execution order, then those that no batch reached.

        These are in a branch that was not taken, or nothing calls them.
        """
        return (*super().ops, *self._idle)

    @property
    def has_branches(self) -> bool:
        """True: a run of a module tree shows the branches that it takes."""
        return True

    def facts(self) -> Mapping[str, Any]:
        """Return what a saved model needs to be seen the same way again."""
        trace = self.seen.to_json() if self.seen is not None else None
        facts = {"kind": "modules", "trace": trace, "why": self.why}
        loose = forms_in(self.root)
        if loose:
            facts["parameters"] = loose
        return facts

    def on(self, root: nn.Module, factors: InputMaps) -> ModuleCapture:
        """Return the same view over another skeleton."""
        capture = ModuleCapture(root, self.seen, self.why, factors)
        return capture.lent_by(self.lender)

    def widened(self, seen: Trace) -> ModuleCapture:
        """Return the view that further batches showed."""
        capture = ModuleCapture(self.root, seen, self.why, self.factors)
        return capture.lent_by(self.lender)

    @property
    def end(self) -> int:
        """Place behind all that follows the last repeated block."""
        return len(self.blocks) + 1

    @cached_property
    def blocks(self) -> list[str]:
        """Paths of the repeated blocks in the order of their calls.

        None where there is no telling what is called once.
        """
        if self.seen is None:
            return []
        layers = self.layers.values()
        paths = blocks_of(self.root, layers)
        return paths if called_once(paths, layers, self.seen) else []

    @cached_property
    def places(self) -> Mapping[str, int]:
        """Value -> its place among the blocks, see :func:`~.blocks.places_of`."""
        if self.seen is None:
            return {}
        return places_of(self.blocks, self.layers.values(), self.seen)

    def span(self, values: Collection[str]) -> tuple[int, int]:
        """Return the number of the first block that must run, and of the one before which a run may
        stop."""
        places = [self.places[value] for value in values if value in self.places]
        if not places or len(places) < len(values):
            return 0, self.end
        first = min(places) // 2
        last = max(places)
        is_behind_all = last == 2 * len(self.blocks)
        stop = self.end if is_behind_all else (last + 1) // 2
        return first, stop

    def before_readers(self, values: Collection[str]) -> int:
        """Return the number of the first block that must run: its readers lie in it, or behind."""
        return self.span(values)[0]


def _notes(why: str, idle: Collection[str], seen: Trace | None) -> list[str]:
    """Return what was out of reach and why."""
    notes = [why] if why else []
    if idle:
        names = ", ".join(idle)
        notes.append(f"{UNREACHED}, which stays float: {names}")
    if seen is not None and seen.products:
        counted = [f"{name} ({count})" for name, count in seen.products.items()]
        counts = ", ".join(counted)
        notes.append(
            f"products outside of the layers stay float, by name and number of calls: {counts}"
        )
    return notes
