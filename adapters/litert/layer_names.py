"""Operators of a converted Keras model, named by the layers that they come from."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any

from ai_edge_litert import schema_py_generated as schema

PRODUCTS = frozenset(
    {
        schema.BuiltinOperator.CONV_2D,
        schema.BuiltinOperator.DEPTHWISE_CONV_2D,
        schema.BuiltinOperator.FULLY_CONNECTED,
        schema.BuiltinOperator.TRANSPOSE_CONV,
    }
)
"""Operators with a weight, which take the bare name of their layer."""

_CODES = {number: name for name, number in vars(schema.BuiltinOperator).items()}


def named_by_layers(model: Any, keras: Any) -> None:
    """Rename what operators return: ``block/conv`` in place of ``model_1/block_1/conv_1/..``.

    A product that is alone in its layer has the layer's name; other operators have their kind
    behind it: ``attention/softmax``. What no layer is known of keeps its name without the
    model's own scope: that has a number which counts the models of a process.

    Args:
        model: As the schema classes hold it; its names change.
        keras: The Keras model that it was converted from.
    """
    main = model.subgraphs[0]
    reader = _Reader(keras)
    # What a model returns has no layer's name: the converter calls it by its place.
    ends = dict(zip(map(int, main.outputs), reader.outputs, strict=False))
    reader.is_numbered = any(reader.numbers(t.name.decode()) for t in main.tensors)
    found: dict[str, list[tuple[Any, str]]] = defaultdict(list)
    for tensor in main.tensors:
        tensor.name = reader.without_root(tensor.name.decode()).encode()
    for operator in main.operators:
        code = model.operatorCodes[operator.opcodeIndex]
        number = max(code.builtinCode, code.deprecatedBuiltinCode)
        tensor = main.tensors[operator.outputs[0]]
        path = reader.path(tensor.name.decode(), is_product=number in PRODUCTS)
        if not path:
            path = ends.get(int(operator.outputs[0]), "")
        if path:
            found[path].append((tensor, _CODES[number].lower()))
    products = {_CODES[number].lower() for number in PRODUCTS}
    for path, made in found.items():
        weighted = [tensor for tensor, kind in made if kind in products]
        for tensor, kind in made:
            is_alone = [tensor] == weighted or len(made) == 1
            tensor.name = (path if is_alone else f"{path}/{kind}").encode()


class _Reader:
    """Finds layers in the names that tracing gives: scopes, numbered where a name was taken."""

    def __init__(self, keras: Any) -> None:
        layers = [layer for layer in keras._flatten_layers() if layer is not keras]
        self.layers = {layer.name for layer in layers}
        # Batch norm has vectors only: what it folds into has the operator's name.
        self.weighted = {
            layer.name
            for layer in layers
            if any(len(weight.shape) > 1 for weight in layer.weights)
        }
        self.root = keras.name
        self.is_numbered = False
        outputs = list(getattr(keras, "outputs", None) or ())
        self.outputs = [tensor._keras_history.operation.name for tensor in outputs]

    def numbers(self, name: str) -> bool:
        """True if a name has the model's scope with a number: a second trace numbers all scopes."""
        return re.match(rf"{re.escape(self.root)}_\d+/", name) is not None

    def without_root(self, name: str) -> str:
        """Return a name without the model's own scope, which counts the models of a process."""
        return re.sub(rf"(^|;){re.escape(self.root)}(_\d+)?/", r"\1/", name)

    def path(self, name: str, *, is_product: bool) -> str:
        """Return the layers that a name tells, joined; empty where it tells none.

        Fused operators have all their names, between semicolons.
        """
        paths = [self._of_scopes(part) for part in name.split(";")]
        if is_product:
            paths.sort(key=lambda path: not self.weighted.isdisjoint(path[-1:]))
        return "/".join(paths[-1])

    def _of_scopes(self, part: str) -> list[str]:
        found: list[str] = []
        for scope in part.split("/")[1:-1]:
            plain = re.sub(r"_\d+$", "", scope) if self.is_numbered else scope
            if plain in self.layers and plain not in found:
                found.append(plain)
            elif scope in self.layers and scope not in found:
                found.append(scope)
        return found
