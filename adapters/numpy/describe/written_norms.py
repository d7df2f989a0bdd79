"""Norms written out in single operators: their gain is a Mul, their shift an Add.

``x / sqrt(mean(x**2) + eps) * gain``: LLaMA's and Gemma's RMSNorm (whose gain 1 + w is one constant
once it is folded), and layer norms of exporters that know no LayerNormalization.
"""

from __future__ import annotations

from octavo.adapters.numpy.graph import Graph, Node


class WrittenNorms:
    """Finds the parameters of norms that are written out.

    Args:
        graph: The optimised graph.
    """

    def __init__(self, graph: Graph) -> None:
        self._constants = graph.initializers
        self._producers = graph.producers()
        self._consumers = graph.consumers()

    def parameters(self, node: Node) -> tuple[str, str] | None:
        """Return the names of the gain and shift of the norm that a node ends.

        The shift is empty where there is none. None for a node that ends no norm.
        """
        if node.op == "Mul":
            gain = self._gain(node)
            return (gain, "") if gain else None
        if node.op != "Add":
            return None
        for value, other in (node.inputs, node.inputs[::-1]):
            before = self._producers.get(value)
            if before is None or len(self._consumers[value]) > 1:
                continue
            gain = self._gain(before)
            if gain and self._width(other) == self._width(gain):
                return gain, other
        return None

    def _gain(self, node: Node) -> str:
        """Return the constant that a Mul multiplies what is normalised by; '' if it is no such."""
        if node.op != "Mul":
            return ""
        for value, other in (node.inputs, node.inputs[::-1]):
            if self._width(other) > 1 and self._is_normalised(value):
                return other
        return ""

    def _width(self, value: str) -> int:
        """Return the length of a constant vector along the last axis; 0 for anything else."""
        held = self._constants.get(value)
        if held is None or held.ndim == 0 or held.size != held.shape[-1]:
            return 0
        return int(held.size)

    def _is_normalised(self, value: str) -> bool:
        """True for what is divided by its own root mean square or deviation."""
        node = self._uncast(value)
        if node is None or len(node.inputs) < 2:
            return False
        if node.op == "Div":
            return self._is_power_of_variance(node.inputs[1], 0.5)
        is_product = node.op == "Mul"
        return is_product and any(
            self._is_power_of_variance(v, -0.5) for v in node.inputs
        )

    def _is_power_of_variance(self, value: str, exponent: float) -> bool:
        """True for a mean of squares over the last axis, plus a constant, to a power."""
        node = self._uncast(value)
        if node is None:
            return False
        if node.op == "Sqrt":
            return exponent == 0.5 and self._is_variance(node.inputs[0])
        if node.op == "Reciprocal":
            return self._is_power_of_variance(node.inputs[0], -exponent)
        if node.op == "Div" and self._number(node.inputs[0]) == 1.0:
            return self._is_power_of_variance(node.inputs[1], -exponent)
        is_power = node.op == "Pow" and self._number(node.inputs[1]) == exponent
        return is_power and self._is_variance(node.inputs[0])

    def _is_variance(self, value: str) -> bool:
        node = self._uncast(value)
        if node is None or node.op != "Add":
            return False
        is_kept_from_zero = any(v in self._constants for v in node.inputs)
        return is_kept_from_zero and any(map(self._is_mean_of_squares, node.inputs))

    def _is_mean_of_squares(self, value: str) -> bool:
        node = self._uncast(value)
        if node is None or node.op != "ReduceMean" or not node.get("keepdims", 1):
            return False
        square = self._uncast(node.inputs[0])
        if square is None:
            return False
        is_power = square.op == "Pow" and self._number(square.inputs[1]) == 2.0
        is_product = square.op == "Mul" and square.inputs[0] == square.inputs[1]
        axes = node.get("axes", None)
        held = self._constants.get(node.input(1))
        if axes is None and held is not None:
            axes = held.tolist()
        # The last axis by its number from the end: ranks are not known here.
        return (is_power or is_product) and list(axes or ()) == [-1]

    def _number(self, value: str) -> float | None:
        held = self._constants.get(value)
        return float(held.reshape(-1)[0]) if held is not None and held.size else None

    def _uncast(self, value: str) -> Node | None:
        """Return the node that computes a value, a change of type aside."""
        node = self._producers.get(value)
        while node is not None and node.op == "Cast":
            node = self._producers.get(node.inputs[0])
        return node
