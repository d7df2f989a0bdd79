"""What the checkpoint formats of transformers share: which models and weights they take, and the files around the weights."""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors.torch import save_file
from torch import nn

from octavo.adapters.pytorch.candidate import TorchCandidate
from octavo.adapters.pytorch.capture.standins.experts import packed_experts
from octavo.adapters.pytorch.capture.standins.parameters import loose_weights
from octavo.adapters.pytorch.files.architecture import (
    architecture_of,
    parameters_of_layers,
    rebuild,
)
from octavo.adapters.pytorch.modules.kinds import is_table, is_transposed_linear
from octavo.adapters.pytorch.modules.shared_copy import aliases, named_tensors
from octavo.core.contract.adapter import OpParameters
from octavo.core.errors import SchemeError
from octavo.core.numerics.affine import integer_range, is_integer
from octavo.core.numerics.packing import pack
from octavo.core.numerics.tensor import QuantizedTensor

Tensor = torch.Tensor


@dataclass(frozen=True)
class Checkpoint:
    """A candidate on its way into a checkpoint.

    Attributes:
        format: Name of the format, for messages.
        candidate: What is written.
        empty: The float module on the meta device: its classes and names are those that the reader will make.
    """

    format: str
    candidate: TorchCandidate
    empty: nn.Module

    @classmethod
    def of(cls, result: Any, format: str) -> Checkpoint:
        """Take a result, a quantized model or a candidate.

        Raises:
            SchemeError: If it is no model of transformers, or holds what no checkpoint can: the message names the op and the remedy.
        """
        candidate = getattr(result, "candidate", result)
        if not isinstance(candidate, TorchCandidate):
            raise SchemeError(
                f"{format} takes a model of the torch backend, not a {type(candidate).__name__}; tune with backends=['torch']"
            )
        facts = architecture_of(candidate.module)
        if facts is None:
            kind = type(candidate.module)
            raise SchemeError(
                f"{format} holds models whose class the transformers package defines, and this is a {kind.__module__}.{kind.__qualname__}; "
                "save it with result.save() and load it with octavo.load(folder, model=...)"
            )
        made = cls(format, _with_modules_alone(candidate), rebuild(facts, "meta"))
        candidate = made.candidate
        if not candidate.parameters:
            raise SchemeError(
                f"nothing in this model is quantized: {format} would hold the float model; use its save_pretrained"
            )
        for name in candidate.factors:
            made.refuse(
                name,
                "it changes its input's channels, which no layer before it could take in",
                "leave that transform out",
            )
        biases = {
            f"{name}.bias" for name, bias in candidate.biases.items() if bias is not None
        } | set(named_tensors(candidate.module))
        for name, module in made.empty.named_modules():
            if isinstance(module, nn.Linear) and module.bias is None and f"{name}.bias" in biases:
                made.refuse(
                    name,
                    "a shift of its input gave it a bias, which its architecture has not",
                    "leave that transform out",
                )
        return made

    def ties(self) -> tuple[tuple[str, ...], ...]:
        """Return the paths of modules whose weight is one tensor, for each such tensor of which an op is quantized."""
        found: dict[str, list[str]] = {}
        for name, first in aliases(self.empty).items():
            found.setdefault(first, [first]).append(name)
        paths = (
            tuple(dict.fromkeys(n.removesuffix(".weight") for n in names))
            for names in found.values()
        )
        return tuple(
            group for group in paths if not self.candidate.parameters.keys().isdisjoint(group)
        )

    def refuse(self, name: str, why: str, remedy: str = "") -> NoReturn:
        """Raise the error that says why an op cannot be held, and what to do."""
        raise SchemeError(
            f"{self.format} cannot hold op {name!r} [{self.candidate.recipe[name]}]: {why}; "
            + (remedy or f'keep it float with a rule: ops = ["{name}"], keep = "float"')
        )

    def module(self, name: str) -> nn.Module | None:
        """Return the module that the reader will make for an op; None for one of a mixture's experts, a slice of a parameter."""
        return dict(self.empty.named_modules()).get(name)

    def weight(self, name: str, parameters: OpParameters) -> IntegerMatrix:
        """Return an op's weight as whole numbers.

        Raises:
            SchemeError: If its codes are no integers on a scale.
        """
        weight = parameters.weight
        if weight is None or not is_integer(weight.params.spec) or weight.params.spec.bits > 8:
            self.refuse(
                name,
                "its weight is no integer of 2 to 8 bits",
                "give it an int or uint weight of 2 to 8 bits, or keep it float",
            )
        spec = weight.params.spec
        if spec.granularity.startswith("block:"):
            self.refuse(
                name,
                "scales of blocks have no place in the file",
                "use channel or group:N granularity",
            )
        module = self.module(name)
        return IntegerMatrix.of(
            weight, transposed=module is not None and is_transposed_linear(module)
        )

    def floats(self) -> dict[str, Tensor]:
        """Return every tensor that stays float under the name that the reader gives it, tied ones once, and the ops' biases."""
        owned = tuple(f"{name}." for name in self.candidate.parameters)
        kept = self.empty.state_dict().keys()
        root = self.candidate.module
        held = {**named_tensors(root), **dict(packed_experts(root)), **dict(_loose(root))}
        found = {n: t for n, t in held.items() if n in kept and not n.startswith(owned)}
        for name, bias in self.candidate.biases.items():
            if bias is not None:
                found[f"{name}.bias"] = bias.to(self.dtype(name))
        return found

    def dtype(self, name: str) -> torch.dtype:
        """Return the type that an op's float weight had."""
        weight = self.empty.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        return weight.dtype

    def untie(self, group: Sequence[str]) -> None:
        """See that a reader who is told not to tie weights makes the same function, each op with a weight of its own.

        Raises:
            SchemeError: If it does not.
        """
        name = next(n for n in group if n in self.candidate.parameters)
        others = ", ".join(repr(n) for n in group if n != name)
        facts = architecture_of(self.candidate.module)
        assert facts is not None
        config = {**facts["config"], "tie_word_embeddings": False}
        apart = aliases(rebuild({**facts, "config": config}, "meta"))
        # Models of this kind (T5) scale what goes into a tied head: without the tie they are another function.
        if config.get("is_encoder_decoder") or {f"{n}.weight" for n in group} & {
            *apart,
            *apart.values(),
        }:
            why = f"its weight is tied to that of {others}, which takes another form, and this architecture cannot be read without the tie"
            rule = json.dumps([*group])
            self.refuse(
                name,
                why,
                f'give them one weight_only scheme, or keep all of them float: ops = {rule}, keep = "float"',
            )

    def write(
        self,
        folder: Path,
        tensors: Mapping[str, Tensor],
        quantization: Mapping[str, Any],
        *,
        untied: bool = False,
    ) -> None:
        """Write tensors, configuration and generation settings as ``from_pretrained`` reads them; ``untied`` tells it to tie nothing."""
        folder.mkdir(parents=True, exist_ok=True)
        plain = {name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}
        save_file(plain, folder / "model.safetensors", metadata={"format": "pt"})
        module: Any = self.candidate.module
        config = copy.deepcopy(module.config)
        config.architectures = [type(module).__name__]
        config.dtype = module.dtype
        if untied:
            config.tie_word_embeddings = False
        config.quantization_config = dict(quantization)
        config.save_pretrained(folder)
        if (generation := getattr(module, "generation_config", None)) is not None:
            generation.save_pretrained(folder)


def _with_modules_alone(candidate: TorchCandidate) -> TorchCandidate:
    """Return a candidate without the ops for which a reader makes no layer: those of a parameter, and tables that make their ids.

    The numbers that their codes stand for are written in place of them.
    """
    made = copy.copy(candidate)
    root = candidate.module
    layers = parameters_of_layers(root)
    modules = dict(root.named_modules())
    made.parameters = {
        name: own
        for name, own in candidate.parameters.items()
        if name not in layers and not (name in modules and _makes_ids(modules[name]))
    }
    return made


def _makes_ids(module: nn.Module) -> bool:
    """Return whether a table is given more than ids: readers call theirs with ids alone."""
    return is_table(module) and len(inspect.signature(module.forward).parameters) > 1


def _loose(root: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters of which layers of octavo's own hold the codes, as float numbers."""
    for path, leaf, place in loose_weights(root):
        yield (f"{path}.{leaf}" if path else leaf), place.decoded().detach()


@dataclass(frozen=True)
class IntegerMatrix:
    """A weight (outputs, inputs) as unsigned codes: value = scale * (code - zero_point), group by group of inputs.

    Attributes:
        codes: 0 to 2**bits - 1, int32.
        scale: float32 (outputs, groups); (1, 1) for one scale.
        zero_point: int32, the same shape.
        bits: Width of a code.
        symmetric: Every zero point is the middle code.
        group: Inputs that share a scale; None for whole rows.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor
    bits: int
    symmetric: bool
    group: int | None

    @classmethod
    def of(cls, weight: QuantizedTensor, *, transposed: bool = False) -> IntegerMatrix:
        """Return the matrix of an integer weight (outputs, inputs), or of one that is stored as (inputs, outputs)."""
        spec, params = weight.params.spec, weight.params
        middle = 2 ** (spec.bits - 1) if integer_range(spec)[0] < 0 else 0
        rows = 1 if params.scale.ndim == 0 else params.scale.shape[0]
        scale, zero_point = (
            params.scale.reshape(rows, -1),
            params.zero_point.reshape(rows, -1) + middle,
        )
        codes = (weight.codes.t() if transposed else weight.codes).to(torch.int32) + middle
        return cls(
            codes.cpu(),
            scale.float().cpu(),
            zero_point.to(torch.int32).cpu(),
            spec.bits,
            spec.symmetric,
            spec.group_size,
        )

    def rows(self, part: slice) -> IntegerMatrix:
        """Return some of the outputs as a matrix of their own."""
        one = self.scale.shape[0] == 1
        return replace(
            self,
            codes=self.codes[part],
            scale=self.scale if one else self.scale[part],
            zero_point=self.zero_point if one else self.zero_point[part],
        )


def words(codes: Tensor, bits: int) -> Tensor:
    """Pack unsigned codes along the last axis into int32 words as one stream of bits, the first code lowest; zeros fill the last word."""
    octets = pack(codes, bits)
    padded = nn.functional.pad(octets, (0, -octets.shape[-1] % 4)).contiguous()
    return padded.view(torch.int32)
