"""Looking at a model again with batches of other shapes: which branches they take, and whether a
graph holds for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from torch import nn

from octavo.adapters.pytorch.capture.graph.traced import GraphCapture
from octavo.adapters.pytorch.capture.graph.tracing import why_it_does_not_hold
from octavo.adapters.pytorch.capture.standins.graph_products import stands_for_call
from octavo.adapters.pytorch.modules.shared_copy import skeleton
from octavo.adapters.pytorch.run.batches import Call

from .capture import Capture
from .choosing import capture_of, example_trace
from .module_tree import ModuleCapture
from .trace import Trace


def look_further(capture: Capture, example: Call, others: Sequence[Call]) -> Capture:
    """Return a view that holds for further batches too; the same one where it does already.

    A graph that gives other outputs for them than the module follows one branch of several, and is
    given up. Of a module tree, layers are seen that only these batches reach, and what is not the
    same for all of them is not fused.

    Args:
        capture: The view by the example.
        example: The example.
        others: Batches that differ from it in shapes or plain values.
    """
    if isinstance(capture, GraphCapture):
        whys = (
            why_it_does_not_hold(capture.root, capture.graph, call) for call in others
        )
        why = next(filter(None, whys), "")
        if not why:
            return capture
        found = capture_of(_without_calls(capture.root), example, "modules")
        assert isinstance(found, ModuleCapture)
        why = f"layers are replaced one by one, nothing is fused: {why}"
        capture = ModuleCapture(found.root, found.seen, why)
    assert isinstance(capture, ModuleCapture)
    if capture.seen is None:
        return capture
    traces = [capture.seen, *_traces(capture.root, others)]
    together = merged(traces)
    if together == capture.seen:
        return capture
    return capture.widened(together)


def _traces(root: nn.Module, calls: Sequence[Call]) -> list[Trace]:
    found = []
    for call in calls:
        try:
            found.append(example_trace(root, call))
        except Exception:
            continue
    return found


def _without_calls(root: nn.Module) -> nn.Module:
    """Return a skeleton without the layers that stand for a graph's functional calls."""
    twin = skeleton(root)
    for module in twin.modules():
        for name, child in list(module._modules.items()):
            if child is not None and stands_for_call(child):
                del module._modules[name]
    return twin


def merged(traces: Sequence[Trace]) -> Trace:
    """Return what several runs showed together.

    What one run does not show, or shows otherwise, is no rule: a layer that is not always called,
    or not always given the same value, has an input of its own, and nothing is folded into what is
    not always followed by the same.
    """
    first = traces[0]
    order = list(dict.fromkeys(path for trace in traces for path in trace.order))
    escaped: set[str] = set().union(*(trace.escaped for trace in traces))
    shapes: dict[str, tuple[int, ...]] = {}
    for trace in reversed(traces):  # so that the first one's hold
        shapes |= trace.shapes
    kinds: dict[str, str] = {}
    for trace in traces:
        kinds |= trace.kinds
    return replace(
        first,
        order=order,
        calls=_most(traces, lambda trace: trace.calls),
        shapes=shapes,
        values=_common_values(traces, order, escaped),
        acts=_common_acts(traces, escaped),
        kinds=kinds,
        escaped=escaped,
        results=max(trace.results for trace in traces),
        products=_most(traces, lambda trace: trace.products),
        sometimes=[
            path for path in order if any(path not in trace.calls for trace in traces)
        ],
    )


def _common_values(
    traces: Sequence[Trace], order: Iterable[str], escaped: set[str]
) -> dict[str, str]:
    """Return what layers are always given; add what they are given at times to ``escaped``."""
    values: dict[str, str] = {}
    for path in order:
        found = {trace.values.get(path) for trace in traces}
        value = found.pop() if len(found) == 1 else None
        values[path] = value or f"{path}:in"
        if value is not None:
            continue
        for trace in traces:
            source = trace.values.get(path, "")
            if source.endswith(":out"):
                escaped.add(source.removesuffix(":out"))
    return values


def _common_acts(traces: Sequence[Trace], escaped: set[str]) -> dict[str, str]:
    """Return what activation modules always follow; add what they follow at times to
    ``escaped``."""
    acts: dict[str, str] = {}
    for act in dict.fromkeys(act for trace in traces for act in trace.acts):
        sources = {trace.acts.get(act) for trace in traces}
        source = sources.pop() if len(sources) == 1 else None
        if source is not None:
            acts[act] = source
        else:
            escaped.update(source for source in sources if source is not None)
    return acts


def _most(
    traces: Sequence[Trace], counts: Callable[[Trace], dict[str, int]]
) -> dict[str, int]:
    found: dict[str, int] = {}
    for trace in traces:
        for name, count in counts(trace).items():
            found[name] = max(count, found.get(name, 0))
    return found
