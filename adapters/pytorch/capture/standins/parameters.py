"""Parameters that a forward multiplies by itself, as layers of the module that owns them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from octavo.adapters.pytorch.loose_weights.uses import BILINEAR, PLAIN, Form, Uses, matrices
from octavo.adapters.pytorch.loose_weights.weight_tensor import Batched, LooseWeight, Place
from octavo.adapters.pytorch.modules.kinds import kind_of
from octavo.adapters.pytorch.modules.shared_copy import note_references, references, skeleton
from octavo.adapters.pytorch.run.batches import Call, copied_call

from .sources import note_source

Tensor = torch.Tensor
_MOST = 64
"""A weight with more matrices than so many stays float: each of them would be a layer."""
_CONVS = {("conv", n): cls for n, cls in enumerate((nn.Conv1d, nn.Conv2d, nn.Conv3d), 1)}
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def loose_parameters(
    root: nn.Module, idle: Collection[str] = ()
) -> Iterator[tuple[str, nn.Module, str, nn.Parameter]]:
    """Yield (name, owner, attribute, parameter) of floating parameters of two or more axes that no layer holds.

    Args:
        root: A skeleton.
        idle: Paths of layers whose own parameters count as well: nobody calls them.
    """
    for path, module in root.named_modules():
        held_by_layer = kind_of(module) and path not in idle
        if held_by_layer or isinstance(module, nn.RNNBase):
            continue
        for leaf, held in module._parameters.items():
            if held is not None and held.ndim >= 2 and held.is_floating_point():
                yield (f"{path}.{leaf}" if path else leaf), module, leaf, held


def uses_of(root: nn.Module, call: Call) -> dict[str, Uses]:
    """Run the example and return what each loose parameter is used for, and each weight of a layer that is never called.

    Args:
        root: A skeleton; it is not changed.
        call: The example.

    Raises:
        Exception: Whatever the model raises that does not run over stand-ins for its parameters.
    """
    idle = _uncalled(root, call)
    twin, found = skeleton(root), dict[str, Uses]()
    for name, owner, leaf, held in list(loose_parameters(twin, idle)):
        found[name] = Uses()
        del owner._parameters[leaf]
        owner.__dict__[leaf] = LooseWeight(Place(owner, leaf, held.shape, {}, held, found[name]))
    if found:
        with torch.no_grad():
            args, kwargs = copied_call(call)
            twin(*args, **kwargs)
    return found


def _uncalled(root: nn.Module, call: Call) -> set[str]:
    """Return the paths of layers that the example's run never calls."""
    twin = skeleton(root)
    idle = {path for path, module in twin.named_modules() if kind_of(module)}

    def note(path: str) -> Any:
        return lambda *_: idle.discard(path)

    for path in list(idle):
        twin.get_submodule(path).register_forward_pre_hook(note(path))
    with torch.no_grad():
        args, kwargs = copied_call(call)
        twin(*args, **kwargs)
    return idle


def known_uses(root: nn.Module) -> dict[str, list[Form]]:
    """Return what loose parameters of torch's own modules are used for: their forwards are known without an example."""
    found: dict[str, list[Form]] = {}
    for name, owner, _, _ in loose_parameters(root):
        if isinstance(owner, nn.RNNCellBase):
            found[name] = [PLAIN]
        elif isinstance(owner, nn.Bilinear):
            found[name] = [BILINEAR]
    return found


def with_layers(root: nn.Module, wanted: Mapping[str, Collection[Form]]) -> nn.Module:
    """Give the owners of loose parameters layers that hold them, and stand-ins where the parameters were.

    The layers are children of the owner, named after the parameter: ``w_layer`` for ``w``; their weights are views of it. One
    parameter under two names stays one.

    Args:
        root: A skeleton; changed in place.
        wanted: Name of a parameter -> what it is used for.
    """
    views: dict[tuple[int, Form], nn.Module] = {}
    owners = {name.rpartition(".")[0] for name in wanted}
    for name, owner, leaf, held in list(loose_parameters(root, owners)):
        forms = [f for f in wanted.get(name, ()) if not obstacle(f, held)]
        if not forms:
            continue
        layers: dict[Form, str] = {}
        for form in forms:
            child = f"{leaf}_layer{len(layers) or ''}"
            key = (id(held), form)
            layer = skeleton(views[key]) if key in views else layer_for(form, held)
            views[key] = layer
            note_source(layer, leaf)
            layers[form] = child
            owner.add_module(child, layer)
        del owner._parameters[leaf]
        owner.__dict__[leaf] = LooseWeight(Place(owner, leaf, held.shape, layers))
        note_references(owner, (*references(owner), leaf))
    return root


def forms_in(root: nn.Module) -> dict[str, list[Any]]:
    """Return parameter -> JSON-ready forms of what :func:`with_layers` made; from them it makes the same again."""
    found: dict[str, list[Any]] = {}
    for path, leaf, place in loose_weights(root):
        name = f"{path}.{leaf}" if path else leaf
        found[name] = [form.to_json() for form in place.layers]
    return found


def loose_weights(root: nn.Module) -> Iterator[tuple[str, str, Place]]:
    """Yield (path of the owner, attribute, place) of every stand-in for a weight."""
    for path, module in root.named_modules():
        for leaf in references(module):
            held = module.__dict__.get(leaf)
            if isinstance(held, LooseWeight):
                yield path, leaf, held._place


def from_json(raw: Mapping[str, Any]) -> dict[str, list[Form]]:
    """Read what :func:`forms_in` returned."""
    return {name: [Form.from_json(f) for f in forms] for name, forms in raw.items()}


def obstacle(form: Form, held: Tensor) -> str:
    """Return why no layer can hold a parameter for a use; empty where one can."""
    if form.kind == "product" and form.batch:
        count = 1
        for axis in form.batch:
            count *= held.shape[axis]
        return f"it holds {count} matrices, of which each would be a layer" if count > _MOST else ""
    if form.kind == "conv_transpose" and form.geometry[-1] < 1:
        return "its geometry is none of a layer"
    return ""


def why_float(use: Uses, held: Tensor) -> str:
    """Return why no layer holds a parameter, from what the example's run showed; empty where one can, or nothing reads it."""
    bars = [why for form in use.forms if (why := obstacle(form, held))]
    if bars:
        return bars[0]
    if use.forms or not use.reads:
        return ""
    return f"it is a factor of no product that a layer computes: it is read by {', '.join(use.reads[:4])}"


def layer_for(form: Form, held: nn.Parameter) -> nn.Module:
    """Return the layer that uses a parameter in that form; its weight is a view of it, or the parameter itself."""
    if form.kind == "product":
        whole = held if form == PLAIN and held.ndim == 2 else None
        made = matrices(held.detach(), form)
        if form.batch:
            return Batched([_linear(nn.Parameter(m, held.requires_grad)) for m in made]).eval()
        return _linear(whole if whole is not None else nn.Parameter(made, held.requires_grad))
    layer: nn.Module
    if form.kind == "embedding":
        layer = nn.Embedding(held.shape[0], held.shape[1], device="meta")
    elif form.kind == "conv":
        stride, padding, dilation, groups = form.geometry
        kind: Any = _CONVS["conv", held.ndim - 2]
        channels = (held.shape[1] * groups, held.shape[0], tuple(held.shape[2:]))
        settings = {"dilation": dilation, "groups": groups, "bias": False, "device": "meta"}
        layer = kind(*channels, stride, padding, **settings)
    else:
        stride, padding, more, dilation, groups = form.geometry
        kind = _TRANSPOSED[held.ndim - 3]
        channels = (held.shape[0], held.shape[1] * groups, tuple(held.shape[2:]))
        settings = {"dilation": dilation, "bias": False, "device": "meta"}
        layer = kind(*channels, stride, padding, more, groups, **settings)
    layer._parameters["weight"] = held
    return layer.eval()


def _linear(weight: nn.Parameter) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    made._parameters["weight"] = weight
    return made.eval()
