"""Where codes flow: values whose producer and whose consumers all speak integers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property

from onnx_ir import Node, Value

from octavo.adapters.onnx.describe.carriers import carries
from octavo.adapters.onnx.describe.site import Site
from octavo.adapters.onnx.prepare.constants import scalar
from octavo.adapters.onnx.prepare.patterns import input_at, name_of
from octavo.adapters.onnx.prepare.scopes import owner
from octavo.core.contract.adapter import OpParameters
from octavo.core.numerics.affine import QuantParams, integer_range

from .activations import CodesEditor, codes_key


def let_codes_flow(editor: CodesEditor) -> None:
    """Quantize the results of static ops for all who read them, where that is what they want."""
    flow = _Flow(editor)
    for name, params in editor.parameters.items():
        if params.scheme.mode == "static":
            flow.decide(editor.sites.sites[name], params)


class _Flow:
    def __init__(self, editor: CodesEditor) -> None:
        self._editor = editor

    def decide(self, site: Site, params: OpParameters) -> None:
        """Let the codes of a static op's result flow, where it is quantized."""
        value = site.op.outputs[0]
        chosen = None
        if params.outputs and params.scheme.output is not None:
            chosen = params.outputs[0]
        if chosen is None and self._is_read_alike(value):
            # A result that may stay float stays float where anybody reads it so.
            chosen = self._wanted[value][0]
        if chosen is None:
            return
        e = self._editor
        self._let_flow(e.values[value], chosen)
        if site.activation == "clip":
            clip = e.nodes[site.last.name or ""]
            _drop_clip(clip, chosen)

    @cached_property
    def _static(self) -> Sequence[tuple[Site, OpParameters]]:
        sites = self._editor.sites.sites
        found = []
        for name, params in self._editor.parameters.items():
            if params.scheme.mode == "static":
                found.append((sites[name], params))
        return found

    @cached_property
    def _wanted(self) -> Mapping[str, Sequence[QuantParams]]:
        """Per root value, the parameters its static consumers ask for."""
        found: dict[str, list[QuantParams]] = {}
        for site, params in self._static:
            for value, wanted in zip(site.roots, params.inputs, strict=True):
                if wanted is not None:
                    of_value = found.setdefault(value, [])
                    of_value.append(wanted)
        return found

    @cached_property
    def _leading(self) -> frozenset[str]:
        """Names of the values that static ops read, by themselves or through carriers."""
        found: set[str] = set()
        for site, _ in self._static:
            for index in site.inputs:
                value = site.node.inputs[index]
                while value is not None:
                    name = name_of(value)
                    found.add(name)
                    value = _carried(value)
        return frozenset(found)

    def _is_read_alike(self, name: str) -> bool:
        """True if all that reads a value is static and wants the same codes.

        Through carriers too.
        """
        wanted = self._wanted.get(name, ())
        value = self._editor.values[name]
        if not wanted or value.is_graph_output():
            return False
        meanings = set(map(codes_key, wanted))
        if len(meanings) > 1 or _is_put_out(value):
            return False
        # More ops than ask for codes: some of them read it in float.
        return _leaves(value) <= len(wanted)

    def _let_flow(self, value: Value, params: QuantParams) -> None:
        """Quantize a value for all who read it, and the values that carriers make of it."""
        carriers = _carriers(value)
        self._editor.let_flow(value, params)
        for carrier in carriers:
            moved = carrier.outputs[0]
            if name_of(moved) in self._leading:
                self._let_flow(moved, params)


def _carried(value: Value) -> Value | None:
    """Return what a carrier made a value of; None where no carrier did."""
    producer = value.producer()
    if producer is None or not carries(producer):
        return None
    return producer.inputs[0]


def _moved(value: Value) -> list[Value]:
    """Return the values that carriers make of a value."""
    return [carrier.outputs[0] for carrier in _carriers(value)]


def _carriers(value: Value) -> list[Node]:
    """Return the nodes that move a value and compute nothing."""
    return [user for user, index in value.uses() if index == 0 and carries(user)]


def _is_put_out(value: Value) -> bool:
    """True if the model puts a value out, or what carriers make of it."""
    if value.is_graph_output():
        return True
    return any(_is_put_out(moved) for moved in _moved(value))


def _leaves(value: Value) -> int:
    """Count the ops that read a value, by themselves or through carriers."""
    moved = _moved(value)
    direct = len(value.uses()) - len(moved)
    return direct + sum(_leaves(inner) for inner in moved)


def _drop_clip(clip: Node, params: QuantParams) -> None:
    """Leave a Clip out whose limits the codes' own range keeps, to within half a step."""
    scale, zero, _ = codes_key(params)
    qmin, qmax = integer_range(params.spec)
    low = scalar(input_at(clip, 1))
    high = scalar(input_at(clip, 2))
    lowest = (qmin - zero) * scale
    highest = (qmax - zero) * scale
    if low is not None and lowest < low - scale / 2:
        return
    if high is not None and highest > high + scale / 2:
        return
    value = clip.inputs[0]
    if value is None:
        return
    clipped = clip.outputs[0]
    clipped.replace_all_uses_with(value)
    owner(clip).remove(clip, safe=True)
