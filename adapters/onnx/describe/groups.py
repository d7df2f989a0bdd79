"""Groups: ops that take one decision, and channel scales that can be traded without changing the model's function."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import onnx_ir as ir

from octavo.adapters.onnx.prepare.folding import is_constant
from octavo.core.numerics.channels import EVERY, norm_steps
from octavo.core.values.graph import Group, tied_groups

from .streams import find_streams, takes

if TYPE_CHECKING:
    from .sites import Site

NORMS = frozenset({"LayerNormalization", "RMSNormalization"})
FREE_PRODUCERS = frozenset({"gelu", "silu", "mul"})
"""Activations that factors do not pass through: the group's value is divided by a multiplication of its own."""


def find_groups(sites: Mapping[str, Site], outside: Mapping[str, Site]) -> tuple[Group, ...]:
    """Return the groups of a graph.

    Args:
        sites: All sites.
        outside: Those of the main graph: channels are not traded in the bodies of If, Loop and Scan.

    ``scheme``: ops of one type with a tied weight. ``rescale``: a norm and the linear ops that read it (whoever else reads it is given
    the unscaled value back), a GELU or gate and its linear readers (divided by one multiplication more), or a convolution or linear op, ReLU and max pool in between, and the ops that alone read it.
    """
    return (
        # A table that is looked up and one that is multiplied with are two initializers, laid out by two kernels.
        *tied_groups((site.op for site in sites.values()), by_type=True),
        *_rescalable(outside),
        *(stream.group() for stream in find_streams(outside)),
    )


def _rescalable(sites: Mapping[str, Site]) -> Iterator[Group]:
    by_node = {site.node: site for site in sites.values()}
    for name, site in sites.items():
        value = site.last.outputs[0]
        if site.node.op_type in NORMS:
            width = _norm_width(site.node)
            readers = [
                by_node[n]
                for n, i in value.uses()
                if n in by_node and i == 0 and takes(by_node[n], ("linear",))
            ]
        elif site.op.type in FREE_PRODUCERS:
            readers = [
                by_node[n]
                for n, i in value.uses()
                if n in by_node and i == 0 and takes(by_node[n], ("linear",))
            ]
            member = readers[0].op.weight if readers else None
            width = member.shape[1 - member.channel_axis] if member is not None else 0
        else:
            continue
        if readers and width:
            members = tuple(dict.fromkeys(r.op.name for r in readers))
            producer = name if site.node.op_type in NORMS else ""
            norm = (
                [v.name or "" for v in site.node.inputs[1:3] if v is not None] if producer else []
            )
            gain, shift = (*norm, "", "")[:2]
            online = norm_steps(has_shift=bool(shift)) if producer else EVERY
            yield Group(
                f"rescale:{name}",
                "rescale",
                members,
                producer,
                width,
                value.name or "",
                gain=gain,
                shift=shift,
                takes=EVERY,
                online=online,
            )


def _norm_width(node: ir.Node) -> int:
    """Channels of a norm over the last axis whose scale and shift are constants; 0 for any other."""
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else -1
    x = node.inputs[0]
    rank = len(x.shape) if x is not None and x.shape is not None else None
    constants = [v for v in node.inputs[1:] if v is not None]
    if not constants or not all(
        is_constant(v) and v.shape is not None and len(v.shape) == 1 for v in constants
    ):
        return 0
    if (axis != -1 and (rank is None or axis != rank - 1)) or any(
        o.uses() for o in node.outputs[1:]
    ):
        return 0
    held = constants[0].const_value
    return held.size if held is not None else 0
