"""Which module of a candidate belongs to which op."""

from __future__ import annotations

from torch import nn
from torch.fx import GraphModule, Node

from octavo.adapters.pytorch.capture.capture import Capture
from octavo.adapters.pytorch.qlayers.quantize import Quantize
from octavo.core.contract.attribution import Step, owners_of
from octavo.core.values.layers import REST

Places = dict[str, str]
"""Path of a module -> its op."""


def places_of(capture: Capture, module: nn.Module) -> Places:
    """Return the modules of each op: its layer, what that takes in, and what quantizes for it.

    Args:
        capture: The float model.
        module: A candidate of it.
    """
    found: Places = {}
    for name, layer in capture.layers.items():
        for path in (layer.path, layer.norm, layer.act):
            # An activation that several layers share is the first one's; only '' is no path.
            if path or path == layer.path:
                found.setdefault(path, name)
    if isinstance(module, GraphModule):
        found.update(_quantizers(module, found))
    return found


def _quantizers(module: GraphModule, places: Places) -> Places:
    """Return the modules that make codes of a value; each belongs to the op that reads these."""
    nodes: list[Node] = list(module.graph.nodes)
    parts = dict(module.named_modules())
    makes_codes = []
    steps = []
    for node in nodes:
        path = str(node.target)
        is_call = node.op == "call_module"
        makes_codes.append(is_call and isinstance(parts[path], Quantize))
        owner = places.get(path, REST) if is_call else REST
        reads = [read.name for read in node.all_input_nodes]
        steps.append(Step(None if makes_codes[-1] else owner, reads, [node.name]))
    found = zip(nodes, owners_of(steps), makes_codes, strict=True)
    return {str(node.target): op for node, op, makes in found if makes}
