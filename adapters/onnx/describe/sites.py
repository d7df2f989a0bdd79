"""Where a model can be quantized: nodes recognized as operations of the neutral vocabulary.

A site is one operation with what is fused into it (bias add, ReLU). Nodes that only move or select
values (reshape, transpose, max pool) are carriers: they take the codes of their input as they are,
so nothing is to be chosen for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

from onnx_ir import DataType, Graph, Node, Value

from octavo.adapters.onnx.prepare.already_quantized import describe
from octavo.adapters.onnx.prepare.patterns import name_of
from octavo.adapters.onnx.prepare.provenance import dtype_name
from octavo.adapters.onnx.prepare.scopes import NOTES, walk
from octavo.core.authoring.sites import shared_weights
from octavo.core.values.graph import InputInfo, ModelView

from .groups import find_groups
from .neighbours import keep_float_among_floats
from .recognizing import recognize
from .site import STEP, Site


@dataclass(frozen=True)
class Sites:
    """All sites of a graph, by op name, in execution order."""

    graph: Graph
    sites: Mapping[str, Site]
    notes: tuple[str, ...] = field(default=())

    @cached_property
    def outside(self) -> Mapping[str, Site]:
        """The sites that stand in no body of If, Loop or Scan."""
        sites = self.sites.items()
        return {name: site for name, site in sites if site.node.graph is self.graph}

    @cached_property
    def view(self) -> ModelView:
        """The model as the core sees it."""
        ops = tuple(site.op for site in self.sites.values())
        groups = find_groups(self.sites, self.outside)
        inputs = tuple(map(_input_info, self.graph.inputs))
        outputs = tuple(map(name_of, self.graph.outputs))
        return ModelView(ops, groups, inputs, outputs, self.notes)


def find_sites(graph: Graph) -> Sites:
    """Recognize the operations of a prepared graph and of the bodies in it; nothing is changed."""
    found: dict[str, Site] = {}
    fused: set[Node] = set()
    integers: set[str] = set()
    for node in walk(graph):
        # In execution order what is fused comes after the node that took it in.
        if node in fused or STEP in node.meta:
            continue
        site = recognize(node, fused)
        if site is not None:
            found[site.name] = keep_float_among_floats(site, integers)
    for op in shared_weights(site.op for site in found.values()):
        found[op.name] = replace(found[op.name], op=op)
    noticed = graph.meta.get(NOTES, ())
    notes = filter(None, (*noticed, describe(graph)))
    return Sites(graph, found, tuple(notes))


def _input_info(value: Value) -> InputInfo:
    shape = None
    if value.shape is not None:
        shape = tuple(map(_known_length, value.shape))
    dtype = value.dtype
    if dtype is None:
        dtype = DataType.FLOAT
    return InputInfo(name_of(value), shape, dtype_name(dtype))


def _known_length(axis: object) -> int | None:
    """Return the length of an axis; None for one with a name alone."""
    return axis if isinstance(axis, int) else None
