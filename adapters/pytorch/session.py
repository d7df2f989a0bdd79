"""One opened module."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from octavo.adapters.pytorch.apply.input_maps import install
from octavo.adapters.pytorch.apply.places import places_of
from octavo.adapters.pytorch.apply.rescaling import rescaled
from octavo.adapters.pytorch.apply.whole_model import quantized_model
from octavo.adapters.pytorch.capture.capture import Capture
from octavo.adapters.pytorch.capture.census import census
from octavo.adapters.pytorch.capture.description import Background, description
from octavo.adapters.pytorch.capture.folding import folded
from octavo.adapters.pytorch.capture.further_batches import look_further
from octavo.adapters.pytorch.capture.layers import Layer
from octavo.adapters.pytorch.capture.links import norm_of_sum
from octavo.adapters.pytorch.kernels.saturation import why_in_float
from octavo.adapters.pytorch.modules.shared_copy import (
    aliases,
    named_tensors,
    skeleton,
)
from octavo.adapters.pytorch.observe.gradients import gradients
from octavo.adapters.pytorch.observe.prefix_reuse import Reuse
from octavo.adapters.pytorch.observe.revision import TorchRevision
from octavo.adapters.pytorch.observe.staged import Resumable
from octavo.adapters.pytorch.run.batches import Call, tensors_in, to_call
from octavo.adapters.pytorch.run.transformers_methods import refuse_what_fails
from octavo.core.contract.adapter import Batch, OpParameters, Session, Sink
from octavo.core.contract.output_metric import OutputMetric
from octavo.core.contract.training import Distillation, Reconstruction, Training
from octavo.core.errors import ModelError, SchemeError, nearest
from octavo.core.numerics.affine import Array
from octavo.core.numerics.channels import Factors
from octavo.core.values.capability import Capability
from octavo.core.values.graph import HeldWeight, ModelView
from octavo.core.values.ledger import Applied
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import FLOAT

from .candidate import TorchCandidate, digest, given_candidate
from .files.origin import Origin
from .offers import capability


class TorchSession(Session):
    """One opened module; the module that was given is never changed.

    Args:
        capture: How the model is seen.
        device: Where candidates run.
        example: One batch as a call, or None.
        notes: What a reader must know, for the ledger.
        background: What is known of the model as it was given.
    """

    def __init__(
        self,
        capture: Capture,
        device: torch.device,
        example: Call | None,
        notes: tuple[str, ...] = (),
        background: Background | None = None,
    ) -> None:
        self.capture = capture
        self._device = device
        self._example = example
        self._notes = notes
        self._background = background or Background()
        self._folded: dict[str, tuple[torch.Tensor, torch.Tensor | None]] = {}
        self._view: ModelView | None = None

    def describe(self) -> ModelView:
        """Return the layers that may be quantized, in execution order."""
        if self._view is None:
            self._view = description(
                self.capture, self._example, self._notes, self._background
            )
        return self._view

    def census(self) -> Sequence[HeldWeight] | None:
        """Return the parameters and buffers of two or more dimensions that the forward uses, as the
        module names them."""
        return self._background.counted

    def capability(self) -> Capability:
        """Return what runs on this device."""
        return capability(str(self._device))

    def observe(
        self, batches: Iterable[Batch], values: Iterable[str], sink: Sink
    ) -> int:
        """Run the float model over the batches and hand each wanted value to ``sink``."""
        return self.watcher(batches, 0)(values, sink)

    def watcher(self, batches: Iterable[Batch], limit: int) -> Resumable:
        """Return what observes values over the same batches, each time from where it stopped
        before."""
        return Resumable(self.capture, lambda: self._calls(batches), limit)

    def further(self, batches: Sequence[Batch]) -> TorchSession:
        """Return a session that knows the branches that these batches take, and the axes in which
        they differ."""
        if self._example is None:
            return self
        known = self._background
        device = next((t.device for t in tensors_in(self._example)), self._device)
        calls = [to_call(batch, self.capture.root, device) for batch in batches]
        with known.reads or nullcontext():
            capture = look_further(self.capture, self._example, calls)
        counted = known.counted
        if known.plain is not None and known.reads is not None:
            counted = census(known.plain, known.reads, branches=capture.has_branches)
        background = replace(known, counted=counted, others=tuple(calls))
        return TorchSession(
            capture, self._device, self._example, self._notes, background
        )

    def _calls(self, batches: Iterable[Batch]) -> Iterator[Call]:
        return (to_call(batch, self.capture.root, self._device) for batch in batches)

    def tensor(self, name: str) -> Array:
        """Return a weight or bias as the op uses it, float32 where a batch norm is folded in."""
        for layer in self.capture.layers.values():
            if layer.norm and name in (f"{layer.path}.weight", f"{layer.path}.bias"):
                weight, bias = self._fold(layer)
                return weight if name.endswith(".weight") else bias
        tensors = named_tensors(self.capture.root)
        summed = norm_of_sum(self.capture.root, self.capture.links.values(), name)
        if summed is not None:
            return self._brought(summed)
        if name not in tensors:
            first = aliases(self.capture.root)
            if name not in first:
                raise ModelError(
                    f"the model has no tensor called {name!r}{nearest(name, tensors)}"
                )
            name = first[name]
        return self._brought(tensors[name].detach())

    def _fold(self, layer: Layer) -> tuple[torch.Tensor, torch.Tensor | None]:
        if layer.op.name not in self._folded:
            self._folded[layer.op.name] = folded(layer, self.capture.root)
        weight, bias = self._folded[layer.op.name]
        if bias is not None:
            bias = self._brought(bias)
        return self._brought(weight), bias

    def _brought(self, tensor: torch.Tensor) -> torch.Tensor:
        lender = self.capture.lender
        return tensor if lender is None else lender.bring(tensor)

    def _settled(self, root: nn.Module) -> nn.Module:
        """Return a module with all of its tensors where candidates run."""
        lender = self.capture.lender
        return root if lender is None else lender.settled(root)

    def _whole(self) -> Capture:
        """Return the view over a model that is where candidates run as a whole: what learns needs
        all of it."""
        if self.capture.lender is None:
            return self.capture
        whole = self.capture.on(self._settled(self.capture.root), self.capture.factors)
        return whole.lent_by(None)

    def carry_out(
        self, recipe: Recipe, parameters: Mapping[str, OpParameters]
    ) -> TorchCandidate:
        """Carry a recipe out."""
        seen = self.capture
        active: dict[str, OpParameters] = {}
        ledger: dict[str, Applied] = {}
        biases: dict[str, torch.Tensor | None] = {}
        for name, decided in parameters.items():
            if not decided.scheme.is_float:
                active[name] = decided
                ledger[name] = self._line(name, decided)
                biases[name] = self._bias(name, decided)
        for op in self.describe().ops:
            if op.out_of_reach:
                ledger[op.name] = Applied(FLOAT, FLOAT, reason=op.out_of_reach)
        module = quantized_model(seen, active, biases)
        if active:
            module = refuse_what_fails(module)
        origin = Origin(recipe, seen.facts(), active, biases, seen.factors)
        places = places_of(seen, module)
        return TorchCandidate(
            self._settled(module), ledger, self._device, origin, places
        )

    def _line(self, name: str, decided: OpParameters) -> Applied:
        """Return what the ledger says of one op."""
        op = self.describe().by_name[name]
        realization = self.capability().realization(op, decided.scheme)
        axis = op.weight.channel_axis if op.weight else 0
        return decided.line(realization, why_in_float(decided, axis))

    def _bias(self, name: str, decided: OpParameters) -> torch.Tensor | None:
        """Return the bias that one op uses: the one that was decided, else the model's own."""
        if decided.bias is not None:
            return torch.as_tensor(decided.bias)
        if not self.describe().by_name[name].bias:
            return None
        return self._fold(self.capture.layers[name])[1]

    def reference(self) -> TorchCandidate:
        """Return the model as it was given, in eval mode."""
        given = self._background.given
        if given is not None:
            return given_candidate(self._settled(skeleton(given)), self._device)
        origin = Origin(
            Recipe(backend="torch"), self.capture.facts(), factors=self.capture.factors
        )
        return TorchCandidate(
            self._settled(self._float_root()), {}, self._device, origin
        )

    def _float_root(self) -> nn.Module:
        """Return a skeleton of the float model, whose layers change their inputs as they must."""
        root = skeleton(self.capture.root)
        install(root, self.capture.layers, self.capture.factors)
        return root

    def fingerprint(self) -> str:
        """Return a content digest of structure and weights."""
        return digest(self.capture.root)

    def runner(self, batches: Sequence[Batch]) -> Reuse:
        """Return what runs candidates over the same batches, each from its first
        changed layer on."""
        return Reuse(self._whole(), list(self._calls(batches)))

    def rescale(self, factors: Mapping[str, Factors]) -> TorchSession:
        """Return a session over the same function with other channels."""
        seen = self.capture
        root, own = rescaled(seen.root, seen.links, factors, seen.factors)
        return self._changed(seen.on(root, own))

    def over(self, root: nn.Module) -> TorchSession:
        """Return a session over another skeleton of the same structure (trained weights)."""
        return self._changed(self.capture.on(root, self.capture.factors))

    def _changed(self, capture: Capture) -> TorchSession:
        """Return a session of a changed model: what was known of the given one is no
        longer true."""
        return TorchSession(capture, self._device, self._example, self._notes)

    def gradients(
        self,
        batches: Iterable[Batch],
        tensors: Iterable[str],
        sink: Sink,
        *,
        seed: int = 0,
        along: Mapping[str, Array] | None = None,
        metric: OutputMetric | None = None,
    ) -> int:
        """Hand gradients with respect to weights to ``sink``, or Hessian-vector products (feature
        ``gradients``)."""
        calls = self._calls(batches)
        return gradients(self._whole(), calls, tensors, sink, seed, along or {}, metric)

    def revision(self, batches: Iterable[Batch], limit: int) -> TorchRevision:
        """Return a skeleton whose weights may be replaced (feature ``revision``)."""
        return TorchRevision(self._whole(), lambda: self._calls(batches), limit)

    def training(self) -> Training:
        """Return what learns from data; its modules are imported only now."""
        from .training.door import TorchTraining

        return TorchTraining(self.capture, self._whole, self._calls, self.over)

    def reconstruct(
        self,
        parameters: Mapping[str, OpParameters],
        batches: Iterable[Batch],
        settings: Reconstruction | None = None,
    ) -> dict[str, OpParameters]:
        """Earlier name of :meth:`Training.reconstruct`."""
        return self.training().reconstruct(parameters, batches, settings)

    def distill(
        self,
        parameters: Mapping[str, OpParameters],
        batches: Iterable[Batch],
        settings: Distillation | None = None,
    ) -> dict[str, OpParameters]:
        """Earlier name of :meth:`Training.distill`."""
        return self.training().distill(parameters, batches, settings)

    def export(self, format: str, path: Path) -> None:
        """Write the float model as ONNX."""
        if format != "onnx":
            raise SchemeError(f"the torch backend exports onnx, not {format!r}")
        from octavo.adapters.pytorch.formats.onnx_export import export_onnx

        if self._example is None:
            raise ModelError(
                "exporting to ONNX needs one batch of example inputs; give calibration data"
            )
        export_onnx(self._float_root(), self._example, path, self._background.others)
