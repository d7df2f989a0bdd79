"""Groups: ops that take one decision, and channel scales that can be traded.

Trading channel scales leaves the model's function as it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import onnx_ir as ir

from octavo.adapters.onnx.prepare.constants import is_constant
from octavo.adapters.onnx.prepare.patterns import int_of, rank_of
from octavo.core.numerics.channels import EVERY, norm_steps
from octavo.core.values.graph import Group, tied_groups

from .site import Site
from .streams import find_streams, takes
from .written_norms import Place, WrittenNorm, written_norm

NORMS = frozenset({"LayerNormalization", "RMSNormalization"})
FREE_PRODUCERS = frozenset({"gelu", "silu", "mul"})
"""Activations that factors do not pass through.

The group's value is divided by a multiplication of its own.
"""


def find_groups(
    sites: Mapping[str, Site], outside: Mapping[str, Site]
) -> tuple[Group, ...]:
    """Return the groups of a graph.

    Args:
        sites: All sites.
        outside: Those of the main graph: channels are not traded in the bodies of If, Loop, Scan.

    ``scheme``: ops of one type with a tied weight. ``rescale``: a norm and the linear ops that
    read it (whoever else reads it is given the unscaled value back), a GELU or gate and its linear
    readers (divided by one multiplication more), or a convolution or linear op, ReLU and max pool
    in between, and the ops that alone read it.
    """
    return (
        # A table that is looked up and one that is multiplied with are two initializers, laid out
        # by two kernels.
        *tied_groups((site.op for site in sites.values()), by_type=True),
        *_rescalable(outside),
        *(stream.group() for stream in find_streams(outside)),
    )


def _rescalable(sites: Mapping[str, Site]) -> Iterator[Group]:
    by_node = {site.node: site for site in sites.values()}
    for name, site in sites.items():
        is_norm = site.node.op_type in NORMS
        if not is_norm and site.kind not in FREE_PRODUCERS:
            continue
        written = written_norm(site.node)
        if written is not None and not site.activation:
            yield from _behind_written(site, written, by_node)
            continue
        # Whoever is no linear op goes on reading the value as it was.
        readers = _linear_readers(site.last.outputs[0], by_node)
        if not readers:
            continue
        if is_norm:
            group = _behind_norm(site, readers)
        else:
            group = _behind_activation(name, site, readers)
        if group is not None:
            yield group


def _linear_readers(value: ir.Value, by_node: Mapping[ir.Node, Site]) -> list[Site]:
    found = []
    for node, index in value.uses():
        reader = by_node.get(node)
        if reader is not None and index == 0 and takes(reader, ("linear",)):
            found.append(reader)
    return found


def _members(readers: list[Site]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(reader.name for reader in readers))


def _behind_norm(site: Site, readers: list[Site]) -> Group | None:
    """Return the group of a norm, which can write the changed value by itself."""
    width = _norm_width(site.node)
    if not width:
        return None
    name = site.name
    parameters = [v.name or "" for v in site.node.inputs[1:3] if v is not None]
    gain, shift = (*parameters, "", "")[:2]
    return Group(
        f"rescale:{name}",
        "rescale",
        _members(readers),
        name,
        width,
        site.last.outputs[0].name or "",
        gain=gain,
        shift=shift,
        takes=EVERY,
        online=norm_steps(has_shift=bool(shift)),
    )


def _behind_written(
    site: Site, norm: WrittenNorm, by_node: Mapping[ir.Node, Site]
) -> Iterator[Group]:
    """Yield the group of a norm that is written out in single operators."""
    value = norm.last.outputs[0]
    readers = _linear_readers(value, by_node)
    if not readers:
        return
    named = value.name or ""
    yield Group(
        f"rescale:{site.name}",
        "rescale",
        _members(readers),
        site.name,
        norm.width,
        named,
        (named,),
        gain=_input_name(norm.gain),
        shift="" if norm.shift is None else _input_name(norm.shift),
        takes=EVERY,
        online=norm_steps(has_shift=norm.shift is not None),
    )


def _input_name(place: Place) -> str:
    node, index = place
    value = node.inputs[index]
    return "" if value is None else value.name or ""


def _behind_activation(name: str, site: Site, readers: list[Site]) -> Group | None:
    """Return the group of an activation; every change of its value is a step of its own."""
    weight = readers[0].op.weight
    width = 0
    if weight is not None:
        width = weight.shape[1 - weight.channel_axis]
    if not width:
        return None
    value = site.last.outputs[0].name or ""
    members = _members(readers)
    return Group(
        f"rescale:{name}",
        "rescale",
        members,
        "",
        width,
        value,
        takes=EVERY,
        online=EVERY,
    )


def _norm_width(node: ir.Node) -> int:
    """Channels of a norm over the last axis with constant parameters; 0 for any other."""
    parameters = [v for v in node.inputs[1:] if v is not None]
    if not parameters or not all(_is_vector(v) for v in parameters):
        return 0
    has_statistics = any(output.uses() for output in node.outputs[1:])
    if has_statistics or not _is_over_last_axis(node):
        return 0
    held = parameters[0].const_value
    if held is None:
        return 0
    return held.size


def _is_vector(value: ir.Value) -> bool:
    return is_constant(value) and rank_of(value) == 1


def _is_over_last_axis(norm: ir.Node) -> bool:
    axis = int_of(norm, "axis", -1)
    if axis == -1:
        return True
    rank = rank_of(norm.inputs[0])
    return rank is not None and axis == rank - 1
