"""Codes from layer to layer: a quantized op writes the codes that the next one reads."""

from __future__ import annotations

from octavo.adapters.numpy.graph import Graph, Node

_PRODUCTS = ("octavo.QuantizedConv", "octavo.QuantizedGemm")


def fuse_requantization(graph: Graph) -> Graph:
    """Let a quantized op write codes where one Quantize is all that reads its float output."""
    consumers, producers = graph.consumers(), graph.producers()
    changed: dict[str, Node | None] = {}
    for node in graph.nodes:
        if node.op != "octavo.Quantize":
            continue
        value, scale, zero_point = node.inputs
        product = producers.get(value)
        if product is None or product.op not in _PRODUCTS:
            continue
        if value in graph.outputs or len(consumers[value]) != 1:
            continue
        zero = int(graph.initializers[zero_point])
        # Centred codes: the bounds lose the zero point.
        bounds = {
            "low": node.attributes["low"] - zero,
            "high": node.attributes["high"] - zero,
        }
        changed[product.name] = product.with_(
            inputs=(*product.inputs, scale),
            outputs=node.outputs,
            attributes={**product.attributes, **bounds},
        )
        changed[node.name] = None
    return graph.replaced(changed)
