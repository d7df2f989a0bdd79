"""The repeated blocks of a model, and which values lie where between them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from torch import nn

from .layers import Layer
from .trace import Trace


def blocks_of(root: nn.Module, layers: Iterable[Layer]) -> list[str]:
    """Return the paths of the repeated blocks that hold the layers: the items of the outermost
    lists of modules."""
    outer = _outermost_lists(root)
    found: dict[str, None] = {}
    for layer in layers:
        for path in outer:
            if _is_below(layer.path, path):
                below = layer.path.removeprefix(f"{path}.")
                item = below.partition(".")[0]
                found[f"{path}.{item}"] = None
    return list(found)


def _outermost_lists(root: nn.Module) -> list[str]:
    lists = []
    for path, module in root.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) > 1:
            lists.append(path)
    outermost = []
    for path in lists:
        is_inside = any(_is_below(path, other) for other in lists)
        if not is_inside:
            outermost.append(path)
    return outermost


def called_once(blocks: Sequence[str], layers: Iterable[Layer], seen: Trace) -> bool:
    """True if every layer in the blocks is called once, by all batches."""
    for layer in layers:
        path = layer.path
        is_inside = any(is_in(path, block) for block in blocks)
        is_once = seen.calls.get(path, 0) <= 1 and path not in seen.sometimes
        if is_inside and not is_once:
            return False
    return True


def places_of(
    blocks: Sequence[str], layers: Iterable[Layer], seen: Trace
) -> Mapping[str, int]:
    """Return value -> its place among the blocks.

    2n + 1 lies in the block of number n, 2n between the one before and that. What repeated calls
    see has no place.
    """
    numbers = {path: 2 * i + 1 for i, path in enumerate(blocks)}
    places: dict[str, int] = {}
    often: set[str] = set()
    last = 0
    for layer in layers:
        op = layer.op
        if seen.calls.get(layer.path, 0) > 1:
            often.update(op.inputs)
            often.update(op.outputs)
            continue
        here = _place(layer.path, numbers, last)
        last = max(last, here)
        behind = _place(layer.end, numbers, last)
        places.setdefault(op.inputs[0], here)
        places.setdefault(op.outputs[0], behind)
    return {value: place for value, place in places.items() if value not in often}


def _place(path: str, numbers: Mapping[str, int], last: int) -> int:
    """Return the place of a module: its block's, or behind the last block that was met."""
    for block, number in numbers.items():
        if is_in(path, block):
            return number
    # The next even number: outside of the blocks.
    return last + last % 2


def is_in(path: str, block: str) -> bool:
    """True for what lies in a block, and for the block itself where that is a layer."""
    return path == block or _is_below(path, block)


def _is_below(path: str, other: str) -> bool:
    return path.startswith(f"{other}.")
