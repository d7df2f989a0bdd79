"""What became of each op: read in the graph that ONNX Runtime executes, when somebody asks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

import onnx_ir as ir

from octavo.adapters.onnx import OnnxConfig
from octavo.adapters.onnx.describe.sites import Sites, carries
from octavo.adapters.onnx.offers import given_codes, low_precision_kernels
from octavo.adapters.onnx.run import Compiled, compile_model
from octavo.core.contract.adapter import OpParameters
from octavo.core.values.ledger import Applied
from octavo.core.values.scheme import FLOAT

from .editing import Emitted


class Carried(Mapping[str, Applied]):
    """The ledger of a model. Its lines are known by name at once; reading one compiles the model.

    Args:
        model: With the recipe carried out.
        config: Providers and threads.
        sites: The operations of the float model.
        parameters: What the core decided, by op name.
        emitted: What was written for each op.
        paired: Main node -> remark, where operators of the QOperator form took the place of pairs.
    """

    def __init__(
        self,
        model: ir.Model,
        config: OnnxConfig,
        sites: Sites,
        parameters: Mapping[str, OpParameters],
        emitted: Mapping[str, Emitted],
        paired: Mapping[str, str],
    ) -> None:
        self._model = model
        self._config = config
        self._sites = sites.sites
        self._parameters = parameters
        self._emitted = emitted
        self._paired = paired

    @cached_property
    def compiled(self) -> Compiled:
        """The model as ONNX Runtime executes it, with the optimized graph."""
        return compile_model(self._model, self._config, inspect=True)

    @cached_property
    def _kernels(self) -> Mapping[str, str]:
        return low_precision_kernels(self.compiled.nodes, self._emitted)

    def __getitem__(self, name: str) -> Applied:
        site = self._sites[name]
        given = self._parameters.get(name)
        if given is None or given.scheme.is_float:
            if not carries(site.node):
                return Applied(FLOAT, FLOAT, "kernel", site.op.out_of_reach)
            if name in self._moving:
                return Applied(FLOAT, FLOAT, "codes", site.op.out_of_reach)
            return Applied(
                FLOAT, FLOAT, "kernel", "it computes nothing, and its input is float here"
            )
        line = self._line(name, given)
        remark = self._paired.get(self._emitted[name].node) if name in self._emitted else None
        return replace(line, reason=f"{line.reason}; {remark}") if remark else line

    @cached_property
    def _moving(self) -> frozenset[str]:
        """Carriers that are given codes in the graph that ONNX Runtime executes; those that it left out altogether among them."""
        if all(given.scheme.is_float for given in self._parameters.values()):
            return frozenset()
        carriers = {
            site.node.name: name for name, site in self._sites.items() if carries(site.node)
        }
        return frozenset(
            carriers[node]
            for node in given_codes(self.compiled.nodes, carriers)
            if node is not None
        )

    def _line(self, name: str, given: OpParameters) -> Applied:
        scheme = given.scheme
        if name in self._kernels:
            return given.line("kernel", self._kernels[name])
        why = (
            "ONNX Runtime computes it in float32"
            if scheme.mode == "cast"
            else "ONNX Runtime fused no integer kernel here"
        )
        return given.line("simulated", why)

    def __iter__(self) -> Iterator[str]:
        return iter(self._sites)

    def __len__(self) -> int:
        return len(self._sites)

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)
