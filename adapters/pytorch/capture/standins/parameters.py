"""Parameters that a forward multiplies by itself, as layers of the module that owns them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from octavo.adapters.pytorch.loose_weights.forms import BILINEAR, PLAIN, Form, Uses
from octavo.adapters.pytorch.loose_weights.place import Place
from octavo.adapters.pytorch.loose_weights.weight_tensor import LooseWeight
from octavo.adapters.pytorch.modules.kinds import kind_of
from octavo.adapters.pytorch.modules.shared_copy import (
    note_references,
    references,
    skeleton,
)
from octavo.adapters.pytorch.run.batches import Call, copied_call

from .layers_for_uses import layer_for, obstacle
from .sources import note_source

_Wanted = dict[str, list[Form]]
"""Name of a parameter -> what it is used for."""
_Known = dict[tuple[int, Form], nn.Module]
"""Layers that were made, by the identity of the parameter and what they do with it."""


class Loose(NamedTuple):
    """A parameter that no layer holds.

    Attributes:
        name: Its path.
        owner: The module that holds it.
        leaf: As which attribute.
        held: The parameter.
    """

    name: str
    owner: nn.Module
    leaf: str
    held: nn.Parameter


def loose_parameters(root: nn.Module, idle: Collection[str] = ()) -> Iterator[Loose]:
    """Yield floating parameters of two or more axes that no layer holds.

    Args:
        root: A skeleton.
        idle: Paths of layers whose own parameters count as well: nobody calls them.
    """
    for path, module in root.named_modules():
        held_by_layer = kind_of(module) and path not in idle
        if held_by_layer or isinstance(module, nn.RNNBase):
            continue
        for leaf, held in module._parameters.items():
            if held is None or held.ndim < 2:
                continue
            if held.is_floating_point():
                name = _joined(path, leaf)
                yield Loose(name, module, leaf, held)


def _joined(path: str, leaf: str) -> str:
    return f"{path}.{leaf}" if path else leaf


def uses_of(root: nn.Module, call: Call) -> dict[str, Uses]:
    """Run the example and return what each loose parameter is used for.

    So is each weight of a layer that is never called.

    Args:
        root: A skeleton; it is not changed.
        call: The example.

    Raises:
        Exception: Whatever the model raises that does not run over stand-ins for its parameters.
    """
    idle = _uncalled(root, call)
    twin = skeleton(root)
    found: dict[str, Uses] = {}
    # A list, since owners change while it is read.
    loose = list(loose_parameters(twin, idle))
    for name, owner, leaf, held in loose:
        uses = Uses()
        found[name] = uses
        del owner._parameters[leaf]
        place = Place(
            owner,
            leaf,
            held.shape,
            layers={},
            held=held,
            uses=uses,
        )
        owner.__dict__[leaf] = LooseWeight(place)
    if found:
        _run(twin, call)
    return found


def _run(root: nn.Module, call: Call) -> None:
    with torch.no_grad():
        # A copy, since models may write into their inputs.
        args, kwargs = copied_call(call)
        root(*args, **kwargs)


def _uncalled(root: nn.Module, call: Call) -> set[str]:
    """Return the paths of layers that the example's run never calls."""
    twin = skeleton(root)
    idle = set()
    for path, module in twin.named_modules():
        if kind_of(module):
            idle.add(path)

    def note(path: str) -> Any:
        return lambda *_: idle.discard(path)

    for path in list(idle):
        layer = twin.get_submodule(path)
        layer.register_forward_pre_hook(note(path))
    _run(twin, call)
    return idle


def known_uses(root: nn.Module) -> _Wanted:
    """Return what loose parameters of torch's own modules are used for.

    Their forwards are known without an example.
    """
    found: _Wanted = {}
    for name, owner, _, _ in loose_parameters(root):
        if isinstance(owner, nn.RNNCellBase):
            found[name] = [PLAIN]
        elif isinstance(owner, nn.Bilinear):
            found[name] = [BILINEAR]
    return found


def with_layers(root: nn.Module, wanted: Mapping[str, Collection[Form]]) -> nn.Module:
    """Give the owners of loose parameters layers that hold them, and stand-ins in their place.

    The layers are children of the owner, named after the parameter: ``w_layer`` for ``w``; their
    weights are views of it. One parameter under two names stays one.

    Args:
        root: A skeleton; changed in place.
        wanted: Name of a parameter -> what it is used for.
    """
    known: _Known = {}
    owners = {name.rpartition(".")[0] for name in wanted}
    for loose in list(loose_parameters(root, owners)):
        asked = wanted.get(loose.name, ())
        forms = [form for form in asked if not obstacle(form, loose.held)]
        if forms:
            _replace(loose, forms, known)
    return root


def _replace(loose: Loose, forms: list[Form], known: _Known) -> None:
    """Let layers hold one parameter.

    Args:
        loose: The parameter.
        forms: What it is used for.
        known: Layers made so far, by parameter and form; added to.
    """
    _, owner, leaf, held = loose
    layers: dict[Form, str] = {}
    for form in forms:
        key = (id(held), form)
        if key in known:
            layer = skeleton(known[key])
        else:
            layer = layer_for(form, held)
        known[key] = layer
        note_source(layer, leaf)
        number = len(layers)
        child = f"{leaf}_layer{number or ''}"
        layers[form] = child
        owner.add_module(child, layer)
    del owner._parameters[leaf]
    place = Place(owner, leaf, held.shape, layers)
    owner.__dict__[leaf] = LooseWeight(place)
    known_before = references(owner)
    note_references(owner, (*known_before, leaf))


def loose_weights(root: nn.Module) -> Iterator[tuple[str, str, Place]]:
    """Yield (path of the owner, attribute, place) of every stand-in for a weight."""
    for path, module in root.named_modules():
        for leaf in references(module):
            held = module.__dict__.get(leaf)
            if isinstance(held, LooseWeight):
                yield path, leaf, held._place


def forms_in(root: nn.Module) -> dict[str, list[Any]]:
    """Return parameter -> JSON-ready forms of what :func:`with_layers` made.

    From them it makes the same again.
    """
    found: dict[str, list[Any]] = {}
    for path, leaf, place in loose_weights(root):
        name = _joined(path, leaf)
        found[name] = [form.to_json() for form in place.layers]
    return found


def from_json(raw: Mapping[str, Any]) -> _Wanted:
    """Read what :func:`forms_in` returned."""
    found: _Wanted = {}
    for name, forms in raw.items():
        found[name] = [Form.from_json(form) for form in forms]
    return found
