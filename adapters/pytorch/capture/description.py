"""What a session tells of its model: layers, inputs, and the weights that no layer claims."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from octavo.adapters.pytorch.modules.shared_copy import has_hooks
from octavo.adapters.pytorch.run.batches import Call, parameters_of, takes
from octavo.core.calibration.reading import Reading
from octavo.core.values.calls import Call as Given
from octavo.core.values.calls import named_leaves
from octavo.core.values.graph import HeldWeight, InputInfo, ModelView

from .capture import Capture
from .census import Reads, unclaimed


@dataclass(frozen=True)
class Background:
    """What is known of a session's model as it was given.

    Attributes:
        given: The model; what was captured may have stand-ins for some of its modules. None where
            the model was changed since.
        plain: The module that was counted: as it was given, with weights that are computed in eval
            mode as plain ones.
        counted: What its forward uses; None where the model was changed since.
        reads: What runs of the model read, where it was counted.
        reading: How a loader's batches become calls; None where there was no example to tell.
        others: Calls that differ from the example in shapes or plain values.
    """

    given: nn.Module | None = None
    plain: nn.Module | None = None
    counted: Sequence[HeldWeight] | None = None
    reads: Reads | None = None
    reading: Reading | None = None
    others: tuple[Call, ...] = ()


def description(
    seen: Capture,
    example: Call | None,
    notes: tuple[str, ...],
    background: Background,
) -> ModelView:
    """Return the view of a captured model, its layers in execution order.

    Args:
        seen: How the model is seen.
        example: One batch as a call, or None.
        notes: What a reader must know, beside the capture's own notes.
        background: What is known of the model as it was given.
    """
    return ModelView(
        seen.ops,
        seen.groups,
        inputs=_inputs(seen.root, example),
        outputs=seen.outputs,
        notes=(*notes, *seen.notes, *_hook_notes(seen)),
        unclaimed=_unclaimed(seen, background),
        reading=background.reading,
    )


def _unclaimed(seen: Capture, background: Background) -> tuple[HeldWeight, ...]:
    counted = background.counted
    plain = background.plain
    if counted is None or plain is None:
        return ()
    weights = [weight for op in seen.ops for weight in op.weights]
    claimed = [weight.name for weight in weights]
    sources = {name for weight in weights for name in weight.made_of}
    found = []
    for weight in unclaimed(counted, plain, seen.root, claimed):
        if weight.name not in sources:
            reason = seen.reasons.get(weight.name) or weight.reason
            found.append(replace(weight, reason=reason))
    return tuple(found)


def _inputs(root: nn.Module, example: Call | None) -> tuple[InputInfo, ...]:
    """Return the tensors of the example; without one, the parameters that have no default."""
    if example is None:
        parameters = parameters_of(root)
        required = [p for p in parameters if p.default is p.empty]
        return tuple(InputInfo(p.name, None) for p in required)
    args, kwargs = example
    positional = takes(root).positional
    found = []
    for path, leaf in named_leaves(Given(*args, **kwargs), positional):
        if isinstance(leaf, torch.Tensor):
            dtype = str(leaf.dtype).removeprefix("torch.")
            # A module declares no shapes: every axis is free.
            found.append(InputInfo(path, None, dtype))
    return tuple(found)


def _hook_notes(seen: Capture) -> Iterator[str]:
    for layer in seen.layers.values():
        norm = layer.norm
        if norm and has_hooks(seen.root.get_submodule(norm)):
            yield f"hooks on {norm} do not run where it is folded into {layer.path}"
