"""A graph and the bodies of If, Loop and Scan in it: one set of names, one place for tensors.

Every node and value of a model has a name of its own, whatever scope it stands in, and every tensor
is an initializer of the main graph, which all bodies see. So an operation in a body is found,
described and rewritten like any other.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator

from onnx_ir import AttributeType, Graph, Node, Value

NOTES = "octavo.notes"
"""Where a model's graph keeps what was noticed while it was read; a clone has it too."""


def bodies(node: Node) -> Iterator[tuple[str, Graph]]:
    """Yield (attribute name, graph) of the bodies that a node holds."""
    for name, attribute in node.attributes.items():
        kind = attribute.type
        if kind == AttributeType.GRAPH:
            yield name, attribute.as_graph()
        elif kind == AttributeType.GRAPHS:
            for index, graph in enumerate(attribute.as_graphs()):
                yield f"{name}_{index}", graph


def has_bodies(node: Node) -> bool:
    """True if a node holds a body."""
    first = next(bodies(node), None)
    return first is not None


def scopes(graph: Graph) -> Iterator[Graph]:
    """Yield a graph, and after it every body in it at any depth."""
    yield graph
    for node in graph:
        for _, body in bodies(node):
            yield from scopes(body)


def _inner_graphs(graph: Graph) -> Iterator[Graph]:
    """Yield every body in a graph, at any depth."""
    every = scopes(graph)
    next(every)  # the graph itself
    yield from every


def walk(graph: Graph) -> Iterator[Node]:
    """Yield all nodes in the order in which they run.

    Those of a body come before the node that holds it.
    """
    for node in graph:
        for _, body in bodies(node):
            yield from walk(body)
        yield node


def owner(node: Node) -> Graph:
    """Return the graph that a node stands in."""
    graph = node.graph
    assert isinstance(graph, Graph)
    return graph


def name_all(graph: Graph) -> None:
    """Give every node and value of a main graph and its bodies a name of its own.

    A node of a body is named after the path to it, ``holder/then_branch/node``. The names of the
    model's own inputs and outputs stay; so does every name that is free.
    """
    # Nodes and values may share names: ONNX keeps them apart.
    values = _Names()
    nodes = _Names()
    # The ends of the model go first, so that nothing else takes their names.
    for value in (*graph.inputs, *graph.outputs):
        values.keep(value)
    _name(graph, "", values, nodes)


class _Names:
    """Names that are taken, and the values and nodes that have theirs already."""

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._done: set[Value] = set()

    def free(self, wanted: str) -> str:
        """Return a name that nobody has, and take it."""
        name = free_name(wanted, self._taken)
        self._taken.add(name)
        return name

    def keep(self, value: Value, scope: str = "", default: str = "value") -> None:
        """Let a value keep its name if it is free, and give it another one otherwise."""
        if value in self._done:
            return
        self._done.add(value)
        wanted = value.name or default
        if wanted in self._taken:
            wanted = f"{scope}{wanted}"
        name = self.free(wanted)
        if name != value.name:
            value.name = name


def _name(graph: Graph, scope: str, values: _Names, nodes: _Names) -> None:
    # A list of its own: giving an initializer a name changes what holds it.
    tensors = list(graph.initializers.values())
    for value in (*graph.inputs, *graph.outputs, *tensors):
        values.keep(value, scope)
    for node in graph:
        wanted = node.name or node.op_type
        name = nodes.free(f"{scope}{wanted}")
        node.name = name
        for index, value in enumerate(node.outputs):
            # An output without a name that nobody reads is one that is left out.
            if value.name or value.uses() or index == 0:
                values.keep(value, scope, f"{name}_output_{index}")
        for label, body in bodies(node):
            _name(body, f"{name}/{label}/", values, nodes)


def share_imports(graph: Graph) -> None:
    """Let every body say which opsets it is written in: the main graph's."""
    imports = graph.opset_imports
    for body in _inner_graphs(graph):
        body.opset_imports.update(imports)


def lift_initializers(graph: Graph) -> None:
    """Move the initializers of all bodies to the main graph.

    One that is put out by its body stays there: a body's outputs are computed in it.
    """
    for body in _inner_graphs(graph):
        held = body.initializers
        for name, value in tuple(held.items()):
            # An initializer that is an input too may be given another value there.
            if value.is_graph_input() or value.is_graph_output():
                continue
            del held[name]
            value.name = free_name(name, graph.initializers)
            graph.register_initializer(value)


def free_name(wanted: str, *taken: Container[str]) -> str:
    """Return a name that is taken nowhere: the wanted one, or that with a number."""
    name = wanted
    number = 0
    while any(name in names for names in taken):
        number += 1
        name = f"{wanted}_{number}"
    return name


def captured(nodes: Iterable[Node], put_out: Iterable[Value] = ()) -> tuple[Value, ...]:
    """Return the values that nodes, and the bodies in them, read and do not write.

    In the order in which they are met; initializers are not among them.

    Args:
        nodes: In execution order.
        put_out: Values that are put out after them; read too.
    """
    met = _Met()
    met.meet(nodes, put_out)
    return tuple(value for value in met.read if value not in met.written)


class _Met:
    """The values that nodes read and write, in the order in which they are met."""

    def __init__(self) -> None:
        self.written: set[Value] = set()
        self.read: dict[Value, None] = {}

    def meet(self, nodes: Iterable[Node], put_out: Iterable[Value]) -> None:
        for node in nodes:
            for value in node.inputs:
                self._meet_read(value)
            for _, body in bodies(node):
                self._meet_body(body)
            self.written.update(node.outputs)
        for value in put_out:
            self._meet_read(value)

    def _meet_body(self, body: Graph) -> None:
        own = body.initializers.values()
        self.written.update(body.inputs)
        self.written.update(own)
        self.meet(body, body.outputs)

    def _meet_read(self, value: Value | None) -> None:
        if value is None:
            return
        # An initializer that an input can override is no constant.
        if value.is_graph_input() or not value.is_initializer():
            self.read[value] = None


def tensors_of(nodes: Iterable[Node]) -> dict[str, Value]:
    """Return the initializers that nodes, and the bodies in them, read, by name."""
    found: dict[str, Value] = {}
    for node in nodes:
        for value in node.inputs:
            if value is not None and value.is_initializer():
                found[value.name or ""] = value
        for _, body in bodies(node):
            found.update(_tensors_from_outside(body))
    return found


def _tensors_from_outside(body: Graph) -> dict[str, Value]:
    """Return the initializers of the graphs around a body that it reads or puts out."""
    read = tensors_of(body)
    for value in body.outputs:
        if value.is_initializer():
            read[value.name or ""] = value
    own = set(body.initializers.values())
    return {name: value for name, value in read.items() if value not in own}
