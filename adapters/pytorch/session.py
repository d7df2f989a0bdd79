"""One opened module."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn

from octavo.adapters.pytorch.apply.input_maps import install
from octavo.adapters.pytorch.apply.whole_model import quantized_model
from octavo.adapters.pytorch.capture.capture import Capture
from octavo.adapters.pytorch.capture.census import Reads, census, unclaimed
from octavo.adapters.pytorch.capture.exported import is_exported, recovered
from octavo.adapters.pytorch.capture.folding import folded
from octavo.adapters.pytorch.capture.further_batches import look_further
from octavo.adapters.pytorch.capture.layers import Layer
from octavo.adapters.pytorch.capture.rescaling import rescaled
from octavo.adapters.pytorch.kernels.saturation import why_in_float
from octavo.adapters.pytorch.modules.shared_copy import (
    aliases,
    has_hooks,
    named_tensors,
    set_submodule,
    set_tensor,
    skeleton,
)
from octavo.adapters.pytorch.observe.gradients import gradients
from octavo.adapters.pytorch.observe.prefix_reuse import Reuse
from octavo.adapters.pytorch.observe.staged import Resumable
from octavo.adapters.pytorch.run.batches import Call, parameters_of, takes, tensors_in, to_call
from octavo.adapters.pytorch.run.transformers_methods import refuse_what_fails
from octavo.core.calibration.reading import Reading
from octavo.core.contract.adapter import Batch, OpParameters, Session, Sink
from octavo.core.contract.training import Training
from octavo.core.errors import ModelError, SchemeError, nearest
from octavo.core.numerics.affine import Array
from octavo.core.numerics.channels import Factors as Rescaling
from octavo.core.values.calls import Call as Given
from octavo.core.values.calls import named_leaves
from octavo.core.values.capability import Capability
from octavo.core.values.graph import HeldWeight, InputInfo, ModelView
from octavo.core.values.ledger import Applied
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import FLOAT

from .candidate import TorchCandidate, digest
from .files.origin import Origin
from .offers import capability


class TorchSession(Session):
    """One opened module; the module that was given is never changed.

    Args:
        capture: How the model is seen.
        device: Where candidates run.
        example: One batch as a call, or None.
        notes: What a reader must know, for the ledger.
        given: The model as it was given; ``capture`` may see stand-ins for some of its modules. None where the model was changed since.
        counted: What its forward uses; None where the model was changed since.
        reading: How a loader's batches become calls; None where there was no example to tell.
        plain: The module that was counted: as it was given, with weights that are computed in eval mode as plain ones.

    Attributes:
        reads: What runs of the model read, where it was counted.
        others: Calls that differ from the example in shapes or plain values.
    """

    def __init__(
        self,
        capture: Capture,
        device: torch.device,
        example: Call | None,
        notes: tuple[str, ...] = (),
        given: nn.Module | None = None,
        counted: Sequence[HeldWeight] | None = None,
        reading: Reading | None = None,
        plain: nn.Module | None = None,
    ) -> None:
        self.capture = capture
        self._device = device
        self._example = example
        self._notes = notes
        self._given = given
        self._counted = counted
        self._reading = reading
        self._plain = plain
        self.reads: Reads | None = None
        self.others: tuple[Call, ...] = ()
        self._folded: dict[str, tuple[torch.Tensor, torch.Tensor | None]] = {}
        self._view: ModelView | None = None

    def describe(self) -> ModelView:
        """Return the layers that may be quantized, in execution order."""
        if self._view is None:
            notes = (*self._notes, *self.capture.notes, *_hook_notes(self.capture))
            seen, unclaimed = self.capture, self._unclaimed()
            self._view = ModelView(
                seen.ops, seen.groups, self._inputs(), seen.outputs, notes, unclaimed, self._reading
            )
        return self._view

    def census(self) -> Sequence[HeldWeight] | None:
        """Return the parameters and buffers of two or more dimensions that the forward uses, as the module names them."""
        return self._counted

    def _unclaimed(self) -> tuple[HeldWeight, ...]:
        if self._counted is None or self._plain is None:
            return ()
        weights = [weight for op in self.capture.ops for weight in op.weights]
        claimed = [weight.name for weight in weights]
        sources = {name for weight in weights for name in weight.made_of}
        found = unclaimed(self._counted, self._plain, self.capture.root, claimed)
        reasons = self.capture.reasons
        return tuple(
            replace(weight, reason=reasons.get(weight.name) or weight.reason)
            for weight in found
            if weight.name not in sources
        )

    def _inputs(self) -> tuple[InputInfo, ...]:
        if self._example is None:
            return tuple(
                InputInfo(p.name, None)
                for p in parameters_of(self.capture.root)
                if p.default is p.empty
            )
        args, kwargs = self._example
        given = named_leaves(Given(*args, **kwargs), takes(self.capture.root).positional)
        # A module declares no shapes: every axis is free.
        return tuple(
            InputInfo(path, None, str(leaf.dtype).removeprefix("torch."))
            for path, leaf in given
            if isinstance(leaf, torch.Tensor)
        )

    def capability(self) -> Capability:
        """Return what runs on this device."""
        return capability(str(self._device))

    def observe(self, batches: Iterable[Batch], values: Iterable[str], sink: Sink) -> int:
        """Run the float model over the batches and hand each wanted value to ``sink``."""
        return Resumable(self.capture, lambda: self._calls(batches), 0)(values, sink)

    def watcher(self, batches: Iterable[Batch], limit: int) -> Resumable:
        """Return what observes values over the same batches, each time from where it stopped before."""
        return Resumable(self.capture, lambda: self._calls(batches), limit)

    def further(self, batches: Sequence[Batch]) -> TorchSession:
        """Return a session that knows the branches that these batches take, and the axes in which they differ."""
        if self._example is None:
            return self
        device = next((t.device for t in tensors_in(self._example)), self._device)
        calls = [to_call(batch, self.capture.root, device) for batch in batches]
        with self.reads or nullcontext():
            capture = look_further(self.capture, self._example, calls)
        counted = self._counted
        if self._plain is not None and self.reads is not None:
            counted = census(self._plain, self.reads, branches=capture.facts()["kind"] == "modules")
        seen = (self._example, self._notes, self._given, counted, self._reading, self._plain)
        session = TorchSession(capture, self._device, *seen)
        session.reads, session.others = self.reads, tuple(calls)
        return session

    def _calls(self, batches: Iterable[Batch]) -> Iterator[Call]:
        return (to_call(b, self.capture.root, self._device) for b in batches)

    def tensor(self, name: str) -> Array:
        """Return a weight or bias as the op uses it, float32 where a batch norm is folded in."""
        for layer in self.capture.layers.values():
            if layer.norm and name in (f"{layer.path}.weight", f"{layer.path}.bias"):
                weight, bias = self._fold(layer)
                return weight if name.endswith(".weight") else bias
        tensors = named_tensors(self.capture.root)
        if name not in tensors:
            first = aliases(self.capture.root)
            if name not in first:
                raise ModelError(f"the model has no tensor called {name!r}{nearest(name, tensors)}")
            name = first[name]
        return self._brought(tensors[name].detach())

    def _fold(self, layer: Layer) -> tuple[torch.Tensor, torch.Tensor | None]:
        if layer.op.name not in self._folded:
            self._folded[layer.op.name] = folded(layer, self.capture.root)
        weight, bias = self._folded[layer.op.name]
        return self._brought(weight), None if bias is None else self._brought(bias)

    def _brought(self, tensor: torch.Tensor) -> torch.Tensor:
        lender = self.capture.lender
        return tensor if lender is None else lender.bring(tensor)

    def _settled(self, root: nn.Module) -> nn.Module:
        """Return a module with all of its tensors where candidates run."""
        lender = self.capture.lender
        return root if lender is None else lender.settled(root)

    def _whole(self) -> Capture:
        """Return the view over a model that is where candidates run as a whole: what learns needs all of it."""
        if self.capture.lender is None:
            return self.capture
        capture = self.capture.on(self._settled(self.capture.root), self.capture.factors)
        capture.lender = None
        return capture

    def apply(self, recipe: Recipe, parameters: Mapping[str, OpParameters]) -> TorchCandidate:
        """Carry a recipe out."""
        offered, view = self.capability(), self.describe()
        ledger: dict[str, Applied] = {}
        biases: dict[str, torch.Tensor | None] = {}
        active = {n: p for n, p in parameters.items() if not p.scheme.is_float}
        for name, decided in active.items():
            if name not in view.by_name:
                raise SchemeError(
                    f"this model has no op called {name!r}{nearest(name, view.by_name)}"
                )
            op = view.by_name[name]
            realization = offered.realization(op, decided.scheme)
            ledger[name] = decided.line(
                realization, why_in_float(decided, op.weight.channel_axis if op.weight else 0)
            )
            if decided.bias is not None:
                biases[name] = torch.as_tensor(decided.bias)
            else:
                biases[name] = self._fold(self.capture.layers[name])[1] if op.bias else None
        ledger |= {
            op.name: Applied(FLOAT, FLOAT, reason=op.out_of_reach)
            for op in view.ops
            if op.out_of_reach
        }
        module = quantized_model(self.capture, active, biases)
        module = refuse_what_fails(module) if active else module
        seen = self.capture
        origin = Origin(recipe, seen.facts(), active, biases, seen.factors)
        return TorchCandidate(self._settled(module), ledger, self._device, origin)

    def reference(self) -> TorchCandidate:
        """Return the model as it was given, in eval mode."""
        if self._given is not None:
            return given_candidate(self._settled(skeleton(self._given)), self._device)
        seen = self.capture
        root = skeleton(seen.root)
        install(root, seen.layers, seen.factors)
        origin = Origin(Recipe(backend="torch"), seen.facts(), factors=seen.factors)
        return TorchCandidate(self._settled(root), {}, self._device, origin)

    def fingerprint(self) -> str:
        """Return a content digest of structure and weights."""
        return digest(self.capture.root)

    def runner(self, batches: Sequence[Batch]) -> Reuse:
        """Return what runs candidates over the same batches, each from its first changed layer on."""
        return Reuse(self._whole(), list(self._calls(batches)))

    def rescale(self, factors: Mapping[str, Rescaling]) -> TorchSession:
        """Return a session over the same function with other channels."""
        root, own = rescaled(self.capture.root, self.capture.links, factors, self.capture.factors)
        return TorchSession(self.capture.on(root, own), self._device, self._example, self._notes)

    def gradients(
        self,
        batches: Iterable[Batch],
        tensors: Iterable[str],
        sink: Sink,
        *,
        seed: int = 0,
        along: Mapping[str, Array] | None = None,
    ) -> int:
        """Hand gradients with respect to weights to ``sink``, or Hessian-vector products (feature ``gradients``)."""
        calls = self._calls(batches)
        return gradients(self._whole(), calls, tensors, sink, seed, along or {})

    def over(self, root: nn.Module) -> TorchSession:
        """Return a session over another skeleton of the same structure (trained weights)."""
        return TorchSession(
            self.capture.on(root, self.capture.factors), self._device, self._example, self._notes
        )

    def training(self) -> Training:
        """Return what learns from data; its modules are imported only now."""
        from .training.door import TorchTraining

        return TorchTraining(self.capture, self._whole, self._calls, self.over)

    def export(self, format: str, path: Path) -> None:
        """Write the float model as ONNX."""
        if format != "onnx":
            raise SchemeError(f"the torch backend exports onnx, not {format!r}")
        from octavo.adapters.pytorch.formats.onnx_export import export_onnx

        if self._example is None:
            raise ModelError(
                "exporting to ONNX needs one batch of example inputs; give calibration data"
            )
        root = skeleton(self.capture.root)
        install(root, self.capture.layers, self.capture.factors)
        export_onnx(root, self._example, path, self.others)


GIVEN: Mapping[str, Any] = {"kind": "given"}
"""How a candidate was seen that is the model as it was given."""


def given_candidate(root: nn.Module, device: torch.device) -> TorchCandidate:
    """Return a float model as a candidate, without stand-ins."""
    return TorchCandidate(root, {}, device, Origin(Recipe(backend="torch"), GIVEN))


def _hook_notes(capture: Capture) -> Iterable[str]:
    for layer in capture.layers.values():
        if layer.norm and has_hooks(capture.root.get_submodule(layer.norm)):
            yield f"hooks on {layer.norm} do not run where it is folded into {layer.path}"


def open_root(model: nn.Module, device: torch.device | None = None) -> nn.Module:
    """Return a skeleton of a model, out of what it is wrapped in, with its tensors on ``device``.

    Raises:
        ModelError: If a tensor holds no data.
    """
    root = skeleton(model)
    for path, module in list(root.named_modules()):
        if isinstance(module, fx.GraphModule) and is_exported(module):
            if not path:
                root = recovered(module)
            else:
                set_submodule(root, path, recovered(module))
    for name, tensor in named_tensors(root).items():
        if tensor.is_meta:
            raise ModelError(
                f"tensor {name!r} is on the meta device and holds no numbers; load the checkpoint first"
            )
        if device is not None and tensor.device != device:
            set_tensor(root, name, tensor.detach().to(device))
    return root
