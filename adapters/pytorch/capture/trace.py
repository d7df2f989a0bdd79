"""What runs of batches showed of a module tree."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Self

BATCH_NORM = "batch_norm"
"""Kind of a batch norm in :attr:`Trace.kinds`."""


@dataclass
class Trace:
    """What one run of the example showed. Modules are named by their paths.

    Attributes:
        order: Layers in the order of their first call.
        calls: Module -> number of calls.
        shapes: Layer -> shape of its first output.
        values: Layer -> name of the value it was given: ``module:out`` of the watched module that
            made it, or ``layer:in`` of the layer that was given the same tensor first.
        acts: Activation module or batch norm -> the layer or batch norm whose output it was given.
        kinds: Activation module -> its function's name; batch norm -> :data:`BATCH_NORM`.
        escaped: Watched modules whose output something else than a layer or an activation module
            reads.
        results: How many tensors the model returned.
        products: Function -> how often it multiplied outside of the watched modules.
        sometimes: Watched modules that some batches call and others do not.
    """

    order: list[str] = field(default_factory=list)
    calls: dict[str, int] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)
    acts: dict[str, str] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    escaped: set[str] = field(default_factory=set)
    results: int = 1
    products: dict[str, int] = field(default_factory=dict)
    sometimes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping."""
        raw = asdict(self)
        raw["escaped"] = sorted(self.escaped)
        raw["shapes"] = {path: list(shape) for path, shape in self.shapes.items()}
        return raw

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Self:
        """Read what :meth:`to_json` wrote."""
        fields = dict(raw)
        fields["escaped"] = set(raw["escaped"])
        fields["shapes"] = {path: tuple(shape) for path, shape in raw["shapes"].items()}
        return cls(**fields)

    def follower(self, path: str) -> str:
        """Return the activation module or batch norm that is all that reads a module's output.

        Empty if there is none.
        """
        found = []
        for act, source in self.acts.items():
            if source == path and self.calls[act] == 1:
                found.append(act)
        is_followed_by_one = len(found) == 1 and path not in self.escaped
        if not is_followed_by_one or self.calls[path] != 1:
            return ""
        is_read_by_layers = f"{path}:out" in self.values.values()
        return "" if is_read_by_layers else found[0]

    def readers(self, path: str) -> list[str]:
        """Return the layers that were given a module's output; none if anything else
        reads it too."""
        is_called_once = self.calls.get(path) == 1
        if not is_called_once or path in self.escaped or path in self.acts.values():
            return []
        result = f"{path}:out"
        found = []
        for layer, value in self.values.items():
            if value != result:
                continue
            if self.calls[layer] != 1:
                return []
            found.append(layer)
        return found
