"""Where a model can be quantized: nodes recognized as operations of the neutral vocabulary.

A site is one operation with what is fused into it (bias add, ReLU). Nodes that only move or select
values (reshape, transpose, max pool) are carriers: they take the codes of their input as they are,
so nothing is to be chosen for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import onnx_ir as ir

from octavo.adapters.onnx.prepare.already_quantized import describe
from octavo.adapters.onnx.prepare.provenance import dtype_name
from octavo.adapters.onnx.prepare.scopes import NOTES, walk
from octavo.core.values.graph import InputInfo, ModelView

from .groups import find_groups
from .neighbours import keep_float_among_floats
from .recognizing import recognize
from .site import STEP, Site


@dataclass(frozen=True)
class Sites:
    """All sites of a graph, by op name, in execution order."""

    graph: ir.Graph
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
        inputs = tuple(_input_info(v) for v in self.graph.inputs)
        outputs = tuple(v.name or "" for v in self.graph.outputs)
        return ModelView(ops, groups, inputs, outputs, self.notes)


def find_sites(graph: ir.Graph) -> Sites:
    """Recognize the operations of a prepared graph and of the bodies in it; nothing is changed."""
    found: dict[str, Site] = {}
    fused: set[ir.Node] = set()
    integers: set[str] = set()
    for node in walk(graph):
        # In execution order what is fused comes after the node that took it in.
        if node in fused or STEP in node.meta:
            continue
        site = recognize(node, fused)
        if site is not None:
            found[site.name] = keep_float_among_floats(site, integers)
    _note_shared_weights(found)
    notes = (*graph.meta.get(NOTES, ()), describe(graph))
    return Sites(graph, found, tuple(filter(None, notes)))


def _note_shared_weights(sites: dict[str, Site]) -> None:
    """Let every op know which others read its weight."""
    readers: dict[str, list[str]] = {}
    for name, site in sites.items():
        if site.op.weight is not None:
            found = readers.setdefault(site.op.weight.name, [])
            found.append(name)
    for names in readers.values():
        if len(names) == 1:
            continue
        for name in names:
            op = sites[name].op
            assert op.weight is not None
            others = tuple(n for n in names if n != name)
            weight = replace(op.weight, shared_with=others)
            sharing = replace(op, weight=weight)
            sites[name] = replace(sites[name], op=sharing)


def _input_info(value: ir.Value) -> InputInfo:
    shape = None
    if value.shape is not None:
        shape = tuple(d if isinstance(d, int) else None for d in value.shape)
    if value.dtype is not None:
        dtype = value.dtype
    else:
        dtype = ir.DataType.FLOAT
    return InputInfo(value.name or "", shape, dtype_name(dtype))
