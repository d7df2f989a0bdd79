"""Models that cannot be traced: their layers are replaced in the module tree, and a run of the example tells what feeds what."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

from torch import nn

from octavo.adapters.pytorch.capture.standins.experts import expert_groups
from octavo.adapters.pytorch.capture.standins.parameters import forms_in
from octavo.adapters.pytorch.kernels.posts import POSTS
from octavo.adapters.pytorch.loose_weights.place import Batched
from octavo.core.values.graph import UNREACHED, Group, Op, tied_groups

from .blocks import blocks_of
from .capture import Capture
from .folding import folds
from .layers import Layer, find_layers, with_shapes
from .links import Factors, Link, input_link, is_norm
from .watching import BATCH_NORM, Trace

_TAKEN: Mapping[str, Collection[str]] = {
    "linear": POSTS,
    "conv": ("relu",),
    "conv_transpose": ("relu",),
}
"""Op type -> activation functions that its kernel takes in."""


class ModuleCapture(Capture):
    """A module tree.

    Args:
        root: A skeleton.
        seen: What the example's run showed; None without an example.
        why: Why the graph could not be traced, for the ledger.
        factors: Op name -> what it does to its input's channels first.
    """

    def __init__(
        self, root: nn.Module, seen: Trace | None, why: str, factors: Factors | None = None
    ) -> None:
        self.root = root
        self.factors = dict(factors or {})
        self._seen = seen
        self._why = why
        ops = find_layers(root)
        mixtures = dict(expert_groups(root))
        routed = [p for paths in mixtures.values() for p in paths]
        # Experts that no token of the example was routed to are there for other tokens.
        order = (
            [*dict.fromkeys([*(p for p in seen.order if p in ops), *routed])] if seen else list(ops)
        )
        order += [path for path in _tied_tables(ops, order) if path not in order]
        layers = [self._layer(ops[p], p) for p in order]
        self.layers = {layer.op.name: layer for layer in layers}
        notes = [why] if why else []
        idle = [p for p in ops if p not in seen.calls and p not in order] if seen else []
        self._idle = tuple(_unreached(ops[p]) for p in idle)
        if idle:
            notes.append(f"{UNREACHED}, which stays float: {', '.join(idle)}")
        if seen and seen.products:
            counts = ", ".join(f"{name} ({count})" for name, count in seen.products.items())
            notes.append(
                f"products outside of the layers stay float, by name and number of calls: {counts}"
            )
        self.notes = tuple(notes)
        self.links = {link.group.name: link for link in self._links()}
        together = [
            Group(name, "scheme", tuple(ops[p].name for p in paths))
            for name, paths in mixtures.items()
        ]
        together += [
            Group(n, "scheme", members) for n, members in matrix_groups(root, self.layers.values())
        ]
        self.groups = (
            *(link.group for link in self.links.values()),
            *together,
            *tied_groups(layer.op for layer in self.layers.values()),
        )
        self.outputs = tuple(f"output_{i}" for i in range(seen.results)) if seen else ("output_0",)

    @property
    def ops(self) -> tuple[Op, ...]:
        """The layers in execution order, then those that no batch reached: a branch that was not taken, or nothing calls them."""
        return (*super().ops, *self._idle)

    @property
    def seen(self) -> Trace | None:
        """What runs of batches showed; None where there was none."""
        return self._seen

    @property
    def why(self) -> str:
        """Why the graph could not be traced."""
        return self._why

    def facts(self) -> Mapping[str, Any]:
        """Return what a saved model needs to be seen the same way again."""
        facts = {
            "kind": "modules",
            "trace": self._seen.to_json() if self._seen else None,
            "why": self._why,
        }
        loose = forms_in(self.root)
        return {**facts, "parameters": loose} if loose else facts

    def on(self, root: nn.Module, factors: Factors) -> ModuleCapture:
        """Return the same view over another skeleton."""
        capture = ModuleCapture(root, self._seen, self._why, factors)
        capture.lender = self.lender
        return capture

    def _layer(self, op: Op, path: str) -> Layer:
        seen = self._seen
        if seen is None or not path:
            return Layer(op if seen is None else with_shapes(op, seen.shapes.get(path)), path)
        if path not in seen.calls:
            return Layer(op, path)
        if seen.calls[path] == 1:
            op = replace(op, inputs=(seen.values.get(path, f"{path}:in"),))
        op = with_shapes(op, seen.shapes.get(path))
        end, norm, act = path, "", ""
        after = seen.follower(end)
        if (
            after
            and seen.kinds[after] == BATCH_NORM
            and folds(op, self.root.get_submodule(after), seen.shapes.get(path))
        ):
            norm = end = after
            op = replace(op, bias=op.bias or f"{path}.bias")
            after = seen.follower(end)
        if after and seen.kinds[after] in _TAKEN.get(op.type, ()):
            act = end = after
            op = replace(op, attributes={**op.attributes, "fused": seen.kinds[act]})
        if end == path:
            return Layer(op, path)
        return Layer(
            replace(op, outputs=(f"{end}:out",)), path, norm, (seen.kinds[act],) if act else (), act
        )

    def _links(self) -> Iterator[Link]:
        """Yield norm -> layers links, and for every other value that only linear layers read a scaling of its own."""
        if self._seen is None:
            return
        readers: dict[str, list[Layer]] = {}
        for layer in self.layers.values():
            if layer.op.type == "linear" and "routed" not in layer.op.attributes:
                readers.setdefault(layer.op.inputs[0], []).append(layer)
        modules = dict(self.root.named_modules())
        for value, members in readers.items():
            if any(
                self._seen.calls[m.path] != 1 or (m.op.weight and m.op.weight.shared_with)
                for m in members
            ):
                continue
            source = value.removesuffix(":out")
            exclusive = source in modules and set(self._seen.readers(source)) == {
                m.path for m in members
            }
            if exclusive and is_norm(modules[source]):
                yield Link.of_norm(source, modules[source], members, value)
            else:
                yield input_link(members, value)

    @property
    def end(self) -> int:  # type: ignore[override]
        """Place behind all that follows the last repeated block."""
        return len(self.blocks) + 1

    @cached_property
    def blocks(self) -> list[str]:
        """Paths of the repeated blocks in the order of their calls; none where there is no telling what is called once."""
        if self._seen is None:
            return []
        paths = blocks_of(self.root, self.layers.values())
        inside = [
            layer.path
            for layer in self.layers.values()
            if any(_is_in(layer.path, p) for p in paths)
        ]
        every = self._seen.calls
        return (
            []
            if any(every.get(path, 0) > 1 or path in self._seen.sometimes for path in inside)
            else paths
        )

    @cached_property
    def places(self) -> Mapping[str, int]:
        """Value -> 2n + 1 in the block of number n, 2n between the one before and that; what repeated calls see has none."""
        places: dict[str, int] = {}
        often: set[str] = set()
        numbers = {path: 2 * i + 1 for i, path in enumerate(self.blocks)}
        last = 0

        def place(path: str) -> int:
            inside = [n for block, n in numbers.items() if _is_in(path, block)]
            return inside[0] if inside else last + last % 2

        for layer in self.layers.values() if self._seen else ():
            if self._seen is not None and self._seen.calls.get(layer.path, 0) > 1:
                often.update((*layer.op.inputs, *layer.op.outputs))
                continue
            at = place(layer.path)
            last = max(last, at)
            places.setdefault(layer.op.inputs[0], at)
            places.setdefault(layer.op.outputs[0], place(layer.end))
        return {value: at for value, at in places.items() if value not in often}

    def span(self, values: Collection[str]) -> tuple[int, int]:
        """Return the number of the first block that must run, and of the one before which a run may stop."""
        places = [self.places.get(value) for value in values]
        known = [at for at in places if at is not None]
        if not known or len(known) < len(places):
            return 0, self.end
        return min(known) // 2, self.end if max(known) == 2 * len(self.blocks) else (
            max(known) + 1
        ) // 2


def _tied_tables(ops: Mapping[str, Op], called: Collection[str]) -> list[str]:
    """Return tables that share their weight with a layer that is called: left alone, they would hold it in float."""
    held = {weight.name for path in called for weight in ops[path].weights}
    tables = (path for path, op in ops.items() if op.type == "embedding")
    return [path for path in tables if any(w.name in held for w in ops[path].weights)]


def matrix_groups(
    root: nn.Module, layers: Iterable[Layer]
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Yield (name, ops) for each parameter that holds many matrices: they take one decision."""
    paths = {layer.path: layer.op.name for layer in layers}
    for path, module in root.named_modules():
        if isinstance(module, Batched):
            members = (paths.get(f"{path}.{i}") for i in range(len(module)))
            found = tuple(name for name in members if name is not None)
            if len(found) > 1:
                yield path, found


def _is_in(path: str, block: str) -> bool:
    """True for what lies in a block, and for the block itself where that is a layer."""
    return path == block or path.startswith(f"{block}.")


def _unreached(op: Op) -> Op:
    # It claims no weight: what nothing reads is none of the weights that the forward uses.
    return replace(op, weight=None, further=(), bias=None, out_of_reach=UNREACHED)
