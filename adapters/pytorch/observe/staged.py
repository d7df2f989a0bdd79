"""Observing a model a few values at a time: a pass ends after the last value asked for, and the next one goes on from there."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn
from torch.utils._pytree import tree_flatten, tree_leaves

from octavo.adapters.pytorch.capture.capture import Capture, Halt, Watch
from octavo.adapters.pytorch.modules.shared_copy import set_submodule
from octavo.adapters.pytorch.run.batches import Call, tensors_in
from octavo.core.contract.adapter import Sink
from octavo.core.errors import DataError, OctavoError
from octavo.core.values.calls import Call as Given
from octavo.core.values.calls import shown

from .prefix_reuse import Recall, bytes_of, copied

if TYPE_CHECKING:
    from octavo.adapters.pytorch.capture.traced import GraphCapture

_PLAIN = (torch.Tensor, bool, int, float, str, type(None))


class Resumable:
    """Observes values over the same batches, some of them at a time.

    What the stretch of the model after the last value needs is kept for each batch, around one place in the model at a time, and
    a call whose values all lie behind it starts there. Any other call runs from the inputs.

    Args:
        capture: The float model.
        calls: Gives the batches; it may be called again.
        limit: Bytes that may be kept, the batches included; where they are not enough nothing is.
    """

    def __init__(self, capture: Capture, calls: Callable[[], Iterator[Call]], limit: int) -> None:
        self._capture = capture
        self._calls = calls
        self._limit = limit
        self._kept: list[tuple[Call, Mapping[int, Any]]] = []
        self._resumes: bool | None = None

    def __call__(self, values: Iterable[str], sink: Sink) -> int:
        """Hand each array of each named value to ``sink``; return the number of batches."""
        values = tuple(values)
        first, stop = self._capture.span(values)
        # Whoever fails on the way leaves nothing half done behind.
        kept, self._kept = self._kept, []
        start = max((place for place in kept[0][1] if place <= first), default=0) if kept else 0
        start = start if start and self._from_there(kept[0][0]) else 0
        source: Iterator[tuple[Call, Any]] = (
            _taken(kept) if start else ((call, None) for call in self._calls())
        )
        if not start:
            kept.clear()
        watch = self._capture.watch(values, sink, start)
        reached: list[tuple[Call, Mapping[int, Any]]] = []
        keeps, room, count = (
            stop < self._capture.end and self._limit > 0 and self._resumes is not False,
            self._limit,
            0,
        )
        with torch.no_grad():
            for call, before in source:
                after = _watched(watch, call, before, count)
                del before
                count += 1
                if not keeps:
                    continue
                reached.append((call, after))
                room -= bytes_of(reached[-1])
                # A batch that did not come by the same places cannot go on where the others do.
                if room < 0 or after.keys() != reached[0][1].keys():
                    keeps = False
                    reached.clear()
        self._kept = reached
        return count

    def _from_there(self, call: Call) -> bool:
        if self._resumes is None:
            self._resumes = self._capture.resumes(call)
        return self._resumes


def _watched(watch: Watch, call: Call, before: Any, number: int) -> Mapping[int, Any]:
    try:
        return watch(call, before)
    except OctavoError:
        raise
    except Exception as error:
        args, kwargs = call
        said = (str(error) or type(error).__name__).splitlines()[0]
        given = shown(Given(*args, **kwargs))
        raise DataError(
            f"calibration batch {number} ({given}) does not run on the float model: {said}"
        ) from error


def _taken(kept: list[tuple[Call, Any]]) -> Iterator[tuple[Call, Any]]:
    """Yield the items, each let go of."""
    kept.reverse()
    while kept:
        yield kept.pop()


class GraphWatch(Watch):
    """A run of a stretch of a traced graph's nodes; what is kept are the values that are alive behind it.

    Args:
        twin: The graph over a skeleton of the model.
        capture: Where it is from.
        values: What to hand out.
        sink: Takes (name, tensor).
        start: Number of the first node that is run.
    """

    def __init__(
        self,
        twin: fx.GraphModule,
        capture: GraphCapture,
        values: Collection[str],
        sink: Callable[[str, torch.Tensor], None],
        start: int,
    ) -> None:
        wanted, order, joined = set(values), capture.order, capture.joined
        self._start, self._stop = start, (stop := capture.span(values)[1])
        self._names = [str(n.target) for n in capture.graph.nodes if n.op == "placeholder"]

        class Watcher(fx.Interpreter):
            def run_node(self, n: fx.Node) -> Any:
                if order[n] >= stop:
                    raise Halt
                if order[n] < start and n.op != "get_attr":
                    return None  # it is dead behind the start
                name = joined.get(n)
                if name and f"{name}:in" in wanted:
                    sink(f"{name}:in", self.fetch_args_kwargs_from_env(n)[0][0])
                result = super().run_node(n)
                if n.name in wanted:
                    sink(n.name, result)
                if name and f"{name}:out" in wanted:
                    sink(f"{name}:out", result)
                return result

        self._watcher = Watcher(twin)

    def __call__(self, call: Call, kept: Mapping[int, Any] | None = None) -> Mapping[int, Any]:
        """Return the place of the first node that was not run -> values alive there, by node."""
        args, kwargs = call
        alive = dict(kept[self._start]) if kept and self._start else {}
        with suppress(Halt):
            self._watcher.run(
                *args, *(kwargs[n] for n in self._names[len(args) :]), initial_env=alive
            )
        found, self._watcher.env = self._watcher.env, {}
        # The model's own tensors are no activations.
        return {
            self._stop: {
                node: value
                for node, value in found.items()
                if value is not None and node.op != "get_attr"
            }
        }


class BlockWatch(Watch):
    """A run of a module tree from one of its repeated blocks on.

    The modules around the blocks run each time; the blocks before the start give back what the last of them put out. Kept are
    the input and the output of the last block that runs: values of one block may be asked for on several occasions.

    Args:
        twin: A skeleton of the model, with the hooks that observe.
        blocks: Paths of its blocks, in the order of their calls.
        start: Number of the first block that is run.
        stop: Number of the block before which the run ends; more than there are: it goes on to the model's end.
        beyond: Whether something is asked for between the block before ``stop`` and that one.
    """

    def __init__(
        self, twin: nn.Module, blocks: Sequence[str], start: int, stop: int, *, beyond: bool = False
    ) -> None:
        self._twin, self._start = twin, start
        self._recalls = [Recall(twin.get_submodule(path), None) for path in blocks[:start]]
        for path, recall in zip(blocks[:start], self._recalls, strict=True):
            set_submodule(twin, path, recall)
        self._reached: dict[int, Any] = {}
        if stop > len(blocks):
            return
        for place in range(max(start, stop - 2) + 1, stop + 1):
            hook = partial(self._keep, place, place == stop and not beyond)
            twin.get_submodule(blocks[place - 1]).register_forward_hook(hook)
        if stop < len(blocks):
            twin.get_submodule(blocks[stop]).register_forward_pre_hook(_halt)

    def _keep(self, place: int, ends: bool, _: nn.Module, __: Any, output: Any) -> None:
        self._reached[place] = output if ends else copied(output)  # what follows may work in place
        if ends:
            raise Halt

    def __call__(self, call: Call, kept: Mapping[int, Any] | None = None) -> Mapping[int, Any]:
        """Return block number -> what the block before it put out."""
        return self.run(call, kept or {})[0]

    def run(self, call: Call, kept: Mapping[int, Any]) -> tuple[Mapping[int, Any], Any]:
        """Return what :meth:`__call__` does, and the model's result where the run went that far."""
        self._reached = {self._start: kept[self._start]} if self._start else {}
        for recall in self._recalls:
            recall.output = kept[self._start]
        result = None
        try:
            result = self._twin(*call[0], **call[1])
        except Halt:
            pass
        finally:
            reached, self._reached = self._reached, {}
            for recall in self._recalls:
                recall.output = None
        # What was made in the middle of a run pins all memory below it: it moves, and to where the last block's was.
        spare = [output for place, output in kept.items() if place != self._start]
        for place in reached:
            if place != self._start:
                reached[place] = _copied_into(spare.pop() if spare else None, reached[place])
        return reached, result


def _copied_into(old: Any, output: Any) -> Any:
    """Return a copy, in the memory of ``old`` where that is built and shaped alike."""
    (new, form), (there, other) = tree_flatten(output), tree_flatten(old)
    alike = form == other and all(
        (type(a), a.shape, a.dtype, a.device) == (type(b), b.shape, b.dtype, b.device)
        if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)
        else a is b
        for a, b in zip(new, there, strict=True)
    )
    if not alike:
        return copied(output)
    for a, b in zip(new, there, strict=True):
        if isinstance(a, torch.Tensor):
            b.copy_(a)
    return old


def _halt(_: nn.Module, __: Any) -> None:
    raise Halt


def repeats(fresh: Callable[[], nn.Module], blocks: Sequence[str], call: Call) -> bool:
    """True if runs that begin at each of the blocks give, bit for bit, what the whole run gives.

    Costs about two runs of the model.

    Args:
        fresh: Makes a skeleton of the model.
        blocks: Paths of its blocks, in the order of their calls.
        call: One batch.
    """
    # An object among the inputs (a cache) may remember the run.
    if not blocks or not all(isinstance(leaf, _PLAIN) for leaf in tree_leaves(call)):
        return False
    whole: list[tuple[str, str]] = []
    twin = fresh()
    for path in blocks:
        twin.get_submodule(path).register_forward_hook(
            lambda _, __, output, path=path: whole.append((path, _digest(output)))
        )
    with torch.no_grad():
        args, kwargs = copied(call)
        expected = _digest(twin(*args, **kwargs))
        if [path for path, _ in whole] != list(blocks):
            return False
        kept: Mapping[int, Any] = {}
        try:
            for number, (_, digest) in enumerate(whole):
                kept = BlockWatch(fresh(), blocks, number, number + 1)(copied(call), kept)
                if _digest(kept[number + 1]) != digest:
                    return False
            result = BlockWatch(fresh(), blocks, len(blocks), len(blocks) + 1).run(
                copied(call), kept
            )[1]
        except Exception:
            return False  # what lies between the blocks takes no other block's output
    return _digest(result) == expected


def _digest(value: Any) -> str:
    total = hashlib.sha256()
    for tensor in tensors_in(value):
        plain = tensor.detach().cpu().contiguous()
        total.update(f"{plain.dtype} {tuple(plain.shape)}\n".encode())
        if plain.numel():
            total.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()
