"""A module tree with some layers on integer kernels, each in the place of its float one."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from octavo.adapters.pytorch.capture.layers import Layer
from octavo.adapters.pytorch.capture.module_tree import ModuleCapture
from octavo.adapters.pytorch.kernels.activation import Activation
from octavo.adapters.pytorch.modules.shared_copy import (
    copy_hooks,
    set_submodule,
    skeleton,
)
from octavo.adapters.pytorch.qlayers.simulated import is_simulated
from octavo.core.contract.adapter import OpParameters

from .build import placed, quantized_module, tie
from .input_maps import install
from .quantized_layers import static_form
from .shared_inputs import share

Parameters = Mapping[str, OpParameters]
_GIVING = ("linear", "conv", "conv_transpose")
"""Op types whose kernels can write codes."""


def rewrite_tree(
    capture: ModuleCapture,
    parameters: Parameters,
    biases: Mapping[str, torch.Tensor | None],
) -> nn.Module:
    """Return the module tree with the given layers replaced.

    Args:
        capture: The module tree.
        parameters: Op name -> what the core decided.
        biases: Op name -> bias as the op uses it.
    """
    twin = skeleton(capture.root)
    in_float = {
        name: own for name, own in capture.factors.items() if name not in parameters
    }
    install(twin, capture.layers, in_float)
    made: dict[str, nn.Module] = {}
    for name, decided in parameters.items():
        layer = capture.layers[name]
        old = twin.get_submodule(layer.path)
        gives, own = (
            _form_wanted(capture, name, parameters),
            capture.factors.get(name, ()),
        )
        new = quantized_module(layer, old, decided, biases[name], gives=gives, own=own)
        made[name] = new
        if not layer.path:
            return placed(old, new)
        set_submodule(twin, layer.path, placed(old, new))
        _leave_out_fused(twin, layer)
    tie(made, parameters)
    if capture.seen is not None:
        share(
            (capture.layers[name].op.inputs[0], module) for name, module in made.items()
        )
    return twin


def _leave_out_fused(twin: nn.Module, layer: Layer) -> None:
    """Let the modules that a layer takes in pass their input on."""
    if layer.norm:
        set_submodule(twin, layer.norm, nn.Identity().eval())
    if layer.act:
        idle = nn.Identity()
        copy_hooks(twin.get_submodule(layer.act), idle)
        set_submodule(twin, layer.act, idle.eval())


def _form_wanted(
    capture: ModuleCapture, name: str, parameters: Parameters
) -> Activation | None:
    """Return the codes that all readers of a layer's result take.

    None if one of them takes float values, or there may be others.
    """
    layer, seen = capture.layers[name], capture.seen
    if seen is None or layer.op.type not in _GIVING or not _can_give(parameters[name]):
        return None
    if not layer.act and seen.follower(layer.end):
        return None
    forms: dict[object, Activation] = {}
    for reader in seen.readers(layer.end):
        form = _form_read(capture, reader, parameters)
        if form is None:
            return None
        forms[form.key()] = form
    return next(iter(forms.values())) if len(forms) == 1 else None


def _can_give(decided: OpParameters) -> bool:
    """True if the scheme runs on integer kernels that can write codes of one scale."""
    scheme = decided.scheme
    on_integers = scheme.mode in ("static", "dynamic") and not is_simulated(scheme)
    return (
        on_integers and scheme.input is not None and scheme.input.granularity != "token"
    )


def _form_read(
    capture: ModuleCapture, reader: str, parameters: Parameters
) -> Activation | None:
    """Return the codes in which an op takes its input."""
    # A layer that changes its input does that and quantizes by itself.
    if reader not in parameters or reader in capture.factors:
        return None
    return static_form(parameters[reader], 0)
