"""One opened model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import openvino as ov
import openvino.opset13 as ops

from octavo.plugin import (
    Applied,
    Batch,
    Capability,
    Factors,
    Group,
    HeldWeight,
    ModelError,
    ModelView,
    OpParameters,
    Recipe,
    Session,
    Sink,
    feed,
    nearest,
    one_op_parameters,
)

from . import OpenVinoConfig
from .candidate import Executable, OpenVinoCandidate, compile_model
from .describe import Description
from .emit import Emitter
from .offers import STATIC, capability
from .prepare import digest, prepared
from .rescaling import rescale, rescale_groups
from .samples import sample
from .witness import executed, ledger


class OpenVinoSession(Session):
    """A model prepared for quantization, beside the model as it was given.

    Args:
        source: An ``ov.Model``; never changed.
        config: The card's settings.
        rescaled: A prepared model with other channels, and the groups of the one it was made of.
    """

    def __init__(
        self,
        source: Any,
        config: OpenVinoConfig,
        rescaled: tuple[Any, tuple[Group, ...]] | None = None,
    ) -> None:
        self.config = config
        self._source = source
        model = prepared(source) if rescaled is None else rescaled[0]
        self._found = Description(model)
        view = self._found.view
        groups = (*view.groups, *rescale_groups(self._found.sites))
        self._view = replace(view, groups=groups if rescaled is None else rescaled[1])
        self._watched: tuple[tuple[str, ...], Executable] | None = None

    def describe(self) -> ModelView:
        """Return the ops, values and groups."""
        return self._view

    def capability(self) -> Capability:
        """Return what this CPU executes, established on models of one op."""
        types = {op.type for op in self.describe().ops if not op.out_of_reach}
        return capability(self.config, probe, types)

    def observe(
        self, batches: Iterable[Batch], values: Iterable[str], sink: Sink
    ) -> int:
        """Run the float model over the batches; values become outputs of it."""
        wanted = tuple(dict.fromkeys(values))
        runs = self._watching(wanted)
        count = 0
        for batch in batches:
            fed = feed(batch, self.describe().inputs)
            count += 1
            for value, array in zip(wanted, runs.run(fed), strict=True):
                sink(value, array)
        return count

    def _watching(self, wanted: tuple[str, ...]) -> Executable:
        """Return the model with these values as its only outputs."""
        if self._watched is None or self._watched[0] != wanted:
            model = self._found.model.clone()
            nodes = {n.get_friendly_name(): n for n in model.get_ordered_ops()}
            ports = [self._found.ports[value] for value in wanted]
            shown = [ops.result(nodes[name].output(index)) for name, index in ports]
            watched = ov.Model(shown, model.get_sinks(), model.get_parameters(), "")
            self._watched = wanted, Executable(compile_model(watched, self.config))
        return self._watched[1]

    def tensor(self, name: str) -> np.ndarray:
        """Return a weight or bias, float32."""
        if name not in self._found.tensors:
            hint = nearest(name, self._found.tensors)
            raise ModelError(f"the model has no tensor {name!r}{hint}")
        return self._found.tensor(name)

    def census(self) -> Sequence[HeldWeight]:
        """Return the floating constants that the prepared model reads."""
        return self._found.census

    def carry_out(
        self, recipe: Recipe, parameters: Mapping[str, OpParameters]
    ) -> OpenVinoCandidate:
        """Carry a recipe out, and read in the execution graph what became of each op."""
        model = self._found.model.clone()
        Emitter(model, self._found.sites, convolves=convolves()).emit(parameters)
        candidate = OpenVinoCandidate(model, self.config, recipe, {})
        lines = ledger(self._found.sites, parameters, candidate.compiled.compiled, {})
        return candidate.with_ledger(lines)

    def rescale(self, factors: Mapping[str, Factors]) -> OpenVinoSession:
        """Return a session with other channels and the same function."""
        groups = self._view.groups
        model = rescale(self._found.model, self._found.sites, groups, factors)
        return OpenVinoSession(self._source, self.config, (model, groups))

    def reference(self) -> OpenVinoCandidate:
        """Return the model as it was given."""
        lines: dict[str, Applied] = {}
        return OpenVinoCandidate(
            self._source, self.config, Recipe(backend="openvino"), lines
        )

    def fingerprint(self) -> str:
        """Digest of structure and weights of the source."""
        return digest(self._source)


def probe(
    config: OpenVinoConfig, kind: str, *, largest: bool = False
) -> tuple[OpenVinoSession, Batch]:
    """Return a session of a model with one op, which carries out whatever it is given."""
    found = sample(kind, largest=largest)
    if found is None:
        raise ModelError(f"there is no model of a {kind}")
    model, batch = found
    return OpenVinoSession(model, config), batch


@lru_cache
def convolves() -> bool:
    """True where 8-bit convolutions have a better kernel than 8-bit matrix products.

    Read off the kernel's name: a matrix product that is no ``brgemm`` is a plain loop.
    """
    session, _ = probe(OpenVinoConfig(threads=1), "linear")
    (op,) = session.describe().ops
    given = {op.name: one_op_parameters(op, STATIC, session.tensor)}
    model = session._found.model.clone()
    Emitter(model, session._found.sites, convolves=False).emit(given)
    nodes = executed(compile_model(model, session.config))
    kernels = [n.primitive for n in nodes[op.name] if n.layer == "FullyConnected"]
    return not any("brgemm" in kernel for kernel in kernels)
