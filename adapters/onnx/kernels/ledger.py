"""What became of each op: read in the graph that ONNX Runtime executes, when somebody asks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import onnx_ir as ir

from octavo.adapters.onnx import OnnxConfig
from octavo.adapters.onnx.apply.nodes import Emitted
from octavo.adapters.onnx.describe.carriers import carries
from octavo.adapters.onnx.describe.site import Site
from octavo.adapters.onnx.run.compiling import Compiled, compile_model
from octavo.core.contract.adapter import OpParameters
from octavo.core.values.ledger import Applied
from octavo.core.values.scheme import FLOAT

from .executed import given_codes, low_precision_kernels


@dataclass(frozen=True)
class Decided:
    """What was to become of each op.

    Attributes:
        sites: The operations of the float model, by name.
        parameters: What the core decided, by op name.
        emitted: What was written for each op.
        paired: Main node -> remark, where pairs could not become operators of the QOperator form.
    """

    sites: Mapping[str, Site]
    parameters: Mapping[str, OpParameters]
    emitted: Mapping[str, Emitted]
    paired: Mapping[str, str]


class ExecutedLedger(Mapping[str, Applied]):
    """The ledger of a model. Its lines are known by name at once; reading one compiles the model.

    Args:
        model: With the recipe carried out.
        config: Providers and threads.
        decided: What was to become of each op.
    """

    def __init__(self, model: ir.Model, config: OnnxConfig, decided: Decided) -> None:
        self._model = model
        self._config = config
        self._decided = decided

    @cached_property
    def compiled(self) -> Compiled:
        """The model as ONNX Runtime executes it, with the optimized graph."""
        return compile_model(self._model, self._config, inspect=True)

    @cached_property
    def _kernels(self) -> Mapping[str, str]:
        return low_precision_kernels(self.compiled.nodes, self._decided.emitted)

    @cached_property
    def _moving_codes(self) -> frozenset[str]:
        """Carriers that are given codes in the graph that ONNX Runtime executes.

        Those that it left out altogether are not among them.
        """
        decided = self._decided
        if all(given.scheme.is_float for given in decided.parameters.values()):
            return frozenset()
        carriers = {}
        for name, site in decided.sites.items():
            if carries(site.node):
                carriers[site.node.name] = name
        moving = given_codes(self.compiled.nodes, carriers)
        return frozenset(carriers[node] for node in moving)

    def __getitem__(self, name: str) -> Applied:
        site = self._decided.sites[name]
        given = self._decided.parameters.get(name)
        if given is None or given.scheme.is_float:
            return self._float_line(name, site)
        line = self._line(name, given)
        written = self._decided.emitted.get(name)
        if written is None:
            return line
        remark = self._decided.paired.get(written.node)
        if not remark:
            return line
        return replace(line, reason=f"{line.reason}; {remark}")

    def _float_line(self, name: str, site: Site) -> Applied:
        if name in self._moving_codes:
            return Applied(FLOAT, FLOAT, "codes", site.op.out_of_reach)
        return float_line(site)

    def _line(self, name: str, given: OpParameters) -> Applied:
        if name in self._kernels:
            return given.line("kernel", self._kernels[name])
        if given.scheme.mode == "cast":
            return given.line("simulated", "ONNX Runtime computes it in float32")
        return given.line("simulated", "ONNX Runtime fused no integer kernel here")

    def __iter__(self) -> Iterator[str]:
        return iter(self._decided.sites)

    def __len__(self) -> int:
        return len(self._decided.sites)

    def __reduce__(self) -> tuple[Any, ...]:
        # Sessions do not travel; the lines do.
        return dict, (dict(self),)


def float_line(site: Site) -> Applied:
    """Return the line of an op that runs in float: one that could carry codes is given none."""
    reason = site.op.out_of_reach
    if carries(site.node):
        reason = "it computes nothing, and its input is float here"
    return Applied(FLOAT, FLOAT, "kernel", reason)
