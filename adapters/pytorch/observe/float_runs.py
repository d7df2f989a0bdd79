"""Running the float model that was captured, whole or a stretch of it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import fx, nn

from octavo.adapters.pytorch.apply.input_maps import install
from octavo.adapters.pytorch.capture.capture import Capture
from octavo.adapters.pytorch.capture.graph.traced import GraphCapture
from octavo.adapters.pytorch.capture.module_tree import ModuleCapture
from octavo.adapters.pytorch.modules.shared_copy import skeleton
from octavo.adapters.pytorch.run.batches import Call, tensors_in

from .block_watch import BlockWatch, repeats
from .graph_watch import GraphWatch
from .watch import Watch

TensorSink = Callable[[str, torch.Tensor], None]
"""Takes a value's name and the value."""


def float_model(capture: Capture) -> nn.Module:
    """Return a skeleton of the float model.

    Its layers change their inputs as the capture says.
    """
    twin = skeleton(capture.root)
    install(twin, capture.layers, capture.factors)
    if capture.lender is not None:
        capture.lender.lend(twin)
    return twin


def watch_for(
    capture: Capture, values: Collection[str], sink: TensorSink, start: int = 0
) -> Watch:
    """Return a runner of the float model that hands each named value to ``sink``.

    Args:
        capture: The float model.
        values: What to hand out.
        sink: Takes (name, tensor).
        start: Place where runs start: 0, or one that another watch kept, and no later than the
            first value.
    """
    twin = float_model(capture)
    if isinstance(capture, GraphCapture):
        return GraphWatch(
            fx.GraphModule(twin, capture.graph), capture, values, sink, start
        )
    assert isinstance(capture, ModuleCapture)
    wanted = set(values)
    _hand_out(twin, capture, wanted, sink)
    stop = capture.span(values)[1]
    between = any(capture.places.get(value) == 2 * stop for value in wanted)
    return BlockWatch(twin, capture.blocks, start, stop, beyond=between)


def resumes(capture: Capture, call: Call) -> bool:
    """Return whether runs that start where others stopped give what a whole run gives, bit for bit.

    Of a module tree this is established by running one batch both ways.
    """
    if isinstance(capture, GraphCapture):
        return True  # what is alive at a node is all that those after it read
    assert isinstance(capture, ModuleCapture)
    return repeats(lambda: float_model(capture), capture.blocks, call)


def _hand_out(
    twin: nn.Module, capture: ModuleCapture, wanted: Collection[str], sink: TensorSink
) -> None:
    """Let the layers of a skeleton hand each wanted value out, where it is met first."""
    taken: set[str] = set()
    for layer in capture.layers.values():
        source, result = layer.op.inputs[0], layer.op.outputs[0]
        if source in wanted and source not in taken:
            taken.add(source)
            module = twin.get_submodule(layer.path)
            module.register_forward_pre_hook(_feed(source, sink), with_kwargs=True)
        if result in wanted and result not in taken:
            taken.add(result)
            end = twin.get_submodule(layer.end)
            end.register_forward_hook(_drain(result, sink))


def _feed(value: str, sink: TensorSink) -> Callable[..., None]:
    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = next(tensors_in((args, kwargs)), None)
        if x is not None:
            sink(value, x)

    return hook


def _drain(value: str, sink: TensorSink) -> Callable[..., None]:
    def hook(_: nn.Module, args: Any, output: Any) -> None:
        sink(value, output)

    return hook
