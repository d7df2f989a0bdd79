"""A module tree of its own that shares every tensor with the original."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

from .module_references import mapped
from .wrapping import bare_hooks, inside, opaque_twin

Tensor = torch.Tensor
_TABLES = ("_parameters", "_buffers", "_modules")
_SETTINGS = (int, float, str, tuple, type(None))
_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks_always_called",
)
_REFERENCES = "_octavo_references"
_OWN = frozenset({*_TABLES, *_HOOKS, _REFERENCES})


def skeleton(root: nn.Module) -> nn.Module:
    """Return a new module tree in eval mode that shares parameters and buffers with ``root``,
    object for object.

    Modules, their tables of children, parameters, buffers and hooks are new, so that replacing a
    child or switching to eval mode never shows in the original. A module that is used twice is one
    module in the copy too; tied parameters stay tied. Costs microseconds a module, whatever the
    model's size.
    """
    made: dict[int, nn.Module] = {}
    copy = _twin(root, made)
    for twin in made.values():
        # What torch.jit made is a whole of its own.
        if not isinstance(twin, torch.jit.ScriptModule):
            _lead_to_twins(twin, made)
    return copy


def _twin(module: nn.Module, made: dict[int, nn.Module]) -> nn.Module:
    """Return a module's twin, with twins of its children; add all to ``made``, by the originals'
    identities."""
    identity = id(module)
    known = made.get(identity)
    if known is not None:
        return known
    bare = inside(module)
    if bare is not module:
        twin = _twin(bare, made)
        made[identity] = twin
        return twin
    opaque = opaque_twin(module)
    if opaque is not None:
        made[identity] = opaque
        return opaque
    twin = _bare_twin(module)
    # Before the children: one of them may lead back here.
    made[identity] = twin
    for name, child in module._modules.items():
        if child is not None:
            twin._modules[name] = _twin(child, made)
    return twin


def _bare_twin(module: nn.Module) -> nn.Module:
    """Return a twin with tables of its own, which still hold the module's own children."""
    state = dict(module.__dict__)
    for key in (*_TABLES, *_HOOKS):
        table = state.get(key)
        if table is not None:
            state[key] = table.copy()
    state["training"] = False
    # It would run the original.
    state["_compiled_call_impl"] = None
    twin: nn.Module = object.__new__(module.__class__)
    twin.__dict__.update(state)
    bare_hooks(twin)
    return twin


def _lead_to_twins(twin: nn.Module, made: Mapping[int, nn.Module]) -> None:
    """Let methods bound to an instance (patched forwards), plain references and containers lead to
    the twins."""
    own = twin.__dict__
    changed = []
    for key, old in list(own.items()):
        if key in _OWN:
            continue
        new = mapped(old, made)
        if new is not old:
            own[key] = new
            changed.append(key)
    forward = own.get("forward")
    # What was compiled, or hooked, is its class's own.
    if getattr(forward, "__func__", None) is type(twin).forward:
        del own["forward"]
    note_references(twin, tuple(changed))


def references(module: nn.Module) -> tuple[str, ...]:
    """Return the attributes of a module that :func:`note_references` noted."""
    found: tuple[str, ...] = module.__dict__.get(_REFERENCES, ())
    return found


def note_references(module: nn.Module, keys: tuple[str, ...]) -> None:
    """Note which attributes of a module lead to other modules of its tree without these being its
    children."""
    if keys:
        module.__dict__[_REFERENCES] = keys
    else:
        module.__dict__.pop(_REFERENCES, None)


def frozen(root: nn.Module) -> nn.Module:
    """Return a skeleton whose parameters are views that ask for no gradient; tied ones are one
    view, and the original's stay as they are."""
    twin = skeleton(root)
    views: dict[int, nn.Parameter] = {}
    for module in twin.modules():
        table = module._parameters
        for key, value in table.items():
            if value is not None:
                view = nn.Parameter(value.detach(), requires_grad=False)
                table[key] = views.setdefault(id(value), view)
    return twin


def set_submodule(root: nn.Module, path: str, module: nn.Module) -> None:
    """Put ``module`` at ``path`` below ``root``, under every name that the old one is registered by
    or held under."""
    old = root.get_submodule(path)
    table = {id(old): module}
    for parent in list(root.modules()):
        for name, child in parent._modules.items():
            if child is old:
                parent._modules[name] = module
        own = parent.__dict__
        for key in references(parent):
            own[key] = mapped(own[key], table)


def set_tensor(
    root: nn.Module, name: str, tensor: torch.Tensor, *, trained: bool = False
) -> None:
    """Replace a parameter or buffer of a skeleton under every name it is tied to; parameters are
    frozen unless ``trained``."""
    path, _, leaf = name.rpartition(".")
    owner = root.get_submodule(path)
    old = getattr(owner, leaf)
    new: Any = tensor
    if isinstance(old, nn.Parameter):
        new = nn.Parameter(tensor, requires_grad=trained)
    for module in root.modules():
        for table in (module._parameters, module._buffers):
            for key, value in table.items():
                if value is old:
                    table[key] = new


def add_bias(root: nn.Module, name: str, bias: torch.Tensor) -> bool:
    """Give a linear layer without a bias one, as a shift of its input does; False if ``name`` is no
    such layer's bias."""
    path, _, leaf = name.rpartition(".")
    owner = dict(root.named_modules()).get(path)
    if leaf != "bias" or not isinstance(owner, nn.Linear) or owner.bias is not None:
        return False
    if bias.shape != (owner.out_features,):
        return False
    owner._parameters["bias"] = nn.Parameter(bias, requires_grad=False)
    return True


def named_tensors(root: nn.Module) -> Mapping[str, torch.Tensor]:
    """Return every parameter and buffer by its first name; tied ones once, non-persistent buffers
    included."""
    found: dict[str, torch.Tensor] = dict(root.named_parameters())
    found.update(root.named_buffers())
    return found


def aliases(root: nn.Module) -> Mapping[str, str]:
    """Return, for every further name of a tied tensor, its first name."""
    first: dict[int, str] = {}
    found: dict[str, str] = {}
    pairs: Iterable[tuple[str, torch.Tensor]] = [
        *root.named_parameters(remove_duplicate=False),
        *root.named_buffers(remove_duplicate=False),
    ]
    for name, tensor in pairs:
        known = first.setdefault(id(tensor), name)
        if known != name:
            found[name] = known
    return found


def copy_settings(source: nn.Module, target: nn.Module) -> None:
    """Give a module that stands for another one the numbers and names that it carries, which models
    look at."""
    for key, value in source.__dict__.items():
        is_setting = isinstance(value, _SETTINGS) and not key.startswith("_")
        if is_setting and not hasattr(target, key):
            setattr(target, key, value)


def has_hooks(module: nn.Module) -> bool:
    """True if a forward hook is registered on the module itself."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def copy_hooks(source: nn.Module, target: nn.Module) -> None:
    """Register the forward hooks of ``source`` on ``target``."""
    for table in _HOOKS:
        getattr(target, table).update(getattr(source, table))
