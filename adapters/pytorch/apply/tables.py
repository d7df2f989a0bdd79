"""Quantized tables of modules that do more than to look rows up."""

from __future__ import annotations

from typing import Any

from torch import nn

from octavo.adapters.pytorch.loose_weights.forms import EMBEDDING
from octavo.adapters.pytorch.loose_weights.place import Place
from octavo.adapters.pytorch.loose_weights.weight_tensor import LooseWeight
from octavo.adapters.pytorch.modules.shared_copy import note_references, skeleton


def around(module: nn.Module, table: nn.Module) -> nn.Module:
    """Return a twin of such a module that looks its rows up in another table, and does all else
    itself.

    Args:
        module: The float module.
        table: What its weight became.
    """
    twin: Any = skeleton(module)
    weight = twin._parameters.pop("weight")
    twin.add_module("weight_layer", table)
    place = Place(twin, "weight", weight.shape, {EMBEDDING: "weight_layer"})
    twin.__dict__["weight"] = LooseWeight(place)
    note_references(twin, ("weight",))
    twin._forward_hooks.clear()
    twin._forward_pre_hooks.clear()
    made: nn.Module = twin.eval()
    return made
