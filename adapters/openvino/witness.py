"""What a compiled model really runs, as its own execution graph shows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from octavo.plugin import Applied, Capability, OpParameters, ledger_lines

from .describe import Description, Site

_INTEGERS = frozenset({"i8", "u8"})
_PACKED = frozenset({"i8", "u8", "i4", "u4", "u2", "nf4", "f4e2m1", "f8e4m3", "f8e5m2"})
_LAYERS = {
    "linear": {"FullyConnected", "MatMul", "Convolution"}, "conv": {"Convolution"},
    "conv_transpose": {"Deconvolution"}, "matmul": {"MatMul", "Subgraph"},
    "embedding": {"Gather"}, "lstm": {"RNNSeq", "RNNCell"}, "gru": {"RNNSeq", "RNNCell"},
}  # fmt: skip
"""Op type -> the layers that can be its own: others may have inherited its name."""
_SUFFIXES = ("/Dequantization", "_original", "/codes")
"""What the compiler, and octavo for look-ups, append to the names of nodes that they write anew."""


@dataclass(frozen=True)
class Executed:
    """A node of the execution graph.

    Attributes:
        layer: Its type.
        primitive: The kernel's name.
        precision: What it computes in, or what its weights are held in.
    """

    layer: str
    primitive: str
    precision: str

    @property
    def multiplies_integers(self) -> bool:
        """True for products of 8-bit integers.

        The precision alone does not show it: a product of float activations and packed weights has
        that of its weights.
        """
        is_integer = self.primitive.lower().endswith("_i8")
        return is_integer and self.precision in _INTEGERS

    def __str__(self) -> str:
        return f"{self.layer} {self.primitive} on {self.precision}"


def executed(compiled: Any) -> dict[str, list[Executed]]:
    """Return the nodes that a compiled model runs, by the names of those that they were made of."""
    found: dict[str, list[Executed]] = {}
    for node in compiled.get_runtime_model().get_ordered_ops():
        layer, names = names_of(node)
        info = node.get_rt_info()
        kernel, precision = (
            _text(info, "primitiveType"),
            _text(info, "runtimePrecision"),
        )
        for name in names:
            found.setdefault(name, []).append(Executed(layer, kernel, precision))
    return found


def names_of(node: Any) -> tuple[str, tuple[str, ...]]:
    """Return the layer that a node of an execution graph is, and what it was made of."""
    info = node.get_rt_info()
    # Where a node was written anew, its own name is right and the list is another node's.
    names = (
        node.get_friendly_name(),
        *_text(info, "originalLayersNames").split(","),
    )
    return _text(info, "layerType"), tuple(dict.fromkeys(map(plain, names)))


def _text(info: Any, key: str) -> str:
    return str(info[key].astype(str)) if key in info else ""


def plain(name: str) -> str:
    """Return the name of the node that one was written anew for."""
    for suffix in _SUFFIXES:
        name = name.split(suffix)[0]
    return name


def why_no_kernel(
    site: Site, given: OpParameters, nodes: Mapping[str, list[Executed]]
) -> str:
    """Return why an op is no low-precision kernel in an execution graph; '' where it is one."""
    shown = [node for name in site.nodes for node in nodes.get(name, ())]
    layers = _LAYERS.get(site.op.type)
    if layers is not None:
        shown = [node for node in shown if node.layer in layers]
    if not shown:
        return "the execution graph does not show it"
    if any(_is_low(site, given, node) for node in shown):
        return ""
    return f"OpenVINO runs it as {shown[0]}"


def _is_low(site: Site, given: OpParameters, node: Executed) -> bool:
    if given.scheme.mode == "static":
        if site.op.weight is None and site.op.type != "matmul":
            # An elementwise op reads codes; its sum is float inside, as QLinearAdd's.
            return node.precision in _INTEGERS
        return node.multiplies_integers
    is_held = node.precision in _PACKED
    if site.op.type == "embedding":
        return is_held
    return is_held and not node.multiplies_integers


def lines(
    found: Description,
    parameters: Mapping[str, OpParameters],
    nodes: Mapping[str, list[Executed]],
) -> dict[str, Applied]:
    """Return the ledger: what became of each op, as the execution graph shows it.

    Args:
        found: The model.
        parameters: Of the ops that are quantized.
        nodes: As :func:`executed` returns them.
    """
    sites = found.sites
    carriers = {
        name
        for name, site in sites.items()
        if site.op.type in ("reshape", "max_pool")
        and any(node.precision in _INTEGERS for node in nodes.get(name, ()))
    }
    made = ledger_lines(found.view, {}, Capability("openvino"), carriers=carriers)
    for name, given in parameters.items():
        if not given.scheme.is_float:
            why_not = why_no_kernel(sites[name], given, nodes)
            made[name] = given.line("simulated" if why_not else "kernel", why_not)
    return made
