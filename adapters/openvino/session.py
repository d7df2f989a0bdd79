"""One opened model, and the backend that opens it and loads what was saved."""

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
    one_op_parameters,
)

from . import OpenVinoConfig
from .candidate import OpenVinoCandidate
from .describe import Description
from .emit import Emitter
from .figures import owners_in
from .offers import DYNAMIC, STATIC, capability
from .prepare import digest, prepared
from .rescaling import rescale, rescale_groups
from .running import Executable, compile_model, set_dynamic_group
from .samples import sample
from .witness import executed, lines

_NOT_AT_RUN_TIME = "this CPU's products round no activations at run time"
_AT_RUN_TIME = "its inputs are rounded at run time, as those of all packed weights here"


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
        groups = (*view.groups, *rescale_groups(self._found))
        self._view = replace(view, groups=groups if rescaled is None else rescaled[1])
        self._owners = owners_in(self._found, source)
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
        found = self._found.tensor(name)
        if found is None:
            raise ModelError(f"the model has no tensor {name!r}")
        return found

    def census(self) -> Sequence[HeldWeight]:
        """Return the floating constants that the prepared model reads."""
        return self._found.census

    def carry_out(
        self, recipe: Recipe, parameters: Mapping[str, OpParameters]
    ) -> OpenVinoCandidate:
        """Carry a recipe out, and read in the execution graph what became of each op."""
        model = self.emitted(parameters, convolves=convolves())
        candidate = OpenVinoCandidate(model, self.config, recipe, {}, self._owners)
        nodes = executed(candidate.compiled.compiled)
        return candidate.with_ledger(
            _with_dynamic(lines(self._found, parameters, nodes), parameters)
        )

    def emitted(
        self, parameters: Mapping[str, OpParameters], *, convolves: bool
    ) -> Any:
        """Return the model with its quantized ops written.

        Args:
            parameters: Op name -> what was decided.
            convolves: Static linear ops become convolutions.
        """
        model = self._found.model.clone()
        Emitter(model, self._found.sites, convolves=convolves).emit(parameters)
        specs = [
            given.scheme.input for given in parameters.values() if _is_dynamic(given)
        ]
        sizes = [
            spec.group_size for spec in specs if spec is not None and spec.group_size
        ]
        set_dynamic_group(model, min(sizes, default=0))
        return model

    def rescale(self, factors: Mapping[str, Factors]) -> OpenVinoSession:
        """Return a session with other channels and the same function."""
        groups = self._view.groups
        model = rescale(self._found, groups, factors)
        return OpenVinoSession(self._source, self.config, (model, groups))

    def reference(self) -> OpenVinoCandidate:
        """Return the model as it was given."""
        recipe = Recipe(backend="openvino")
        return OpenVinoCandidate(self._source, self.config, recipe, {}, self._owners)

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
    session, op, _ = _linear()
    given = {op: one_op_parameters(session.describe().ops[0], STATIC, session.tensor)}
    model = session.emitted(given, convolves=False)
    nodes = executed(compile_model(model, session.config))
    kernels = [n.primitive for n in nodes[op] if n.layer == "FullyConnected"]
    return not any("brgemm" in kernel for kernel in kernels)


@lru_cache
def _rounds_at_run_time() -> bool:
    """True where activations in front of packed weights are rounded when they are asked to be."""
    session, op, batch = _linear()
    given = {op: one_op_parameters(session.describe().ops[0], DYNAMIC, session.tensor)}
    model = session.emitted(given, convolves=False)
    answers = []
    for size in (32, 0):
        set_dynamic_group(model, size)
        candidate = OpenVinoCandidate(model.clone(), session.config, Recipe(), {})
        answers.append(candidate.run(batch)[0])
    rounded, exact = answers
    return not np.array_equal(rounded, exact)


def _linear() -> tuple[OpenVinoSession, str, Batch]:
    session, batch = probe(OpenVinoConfig(threads=1), "linear")
    return session, session.describe().ops[0].name, batch


def _is_dynamic(given: OpParameters) -> bool:
    return given.scheme.mode == "dynamic"


def _with_dynamic(
    ledger: Mapping[str, Applied], parameters: Mapping[str, OpParameters]
) -> dict[str, Applied]:
    """Return a ledger that says what inputs are rounded at run time: a setting of whole models."""
    made = dict(ledger)
    if not any(map(_is_dynamic, parameters.values())):
        return made
    for name, given in parameters.items():
        line = made[name]
        if _is_dynamic(given) and not _rounds_at_run_time():
            kept = given.scheme.variant(mode="weight_only", input=None)
            made[name] = replace(line, applied=kept, reason=_NOT_AT_RUN_TIME)
        elif given.scheme.mode == "weight_only" and _rounds_at_run_time():
            made[name] = replace(line, reason=_AT_RUN_TIME)
    return made
