"""What the checkpoint formats of transformers share.

Which models and weights they take, and the files around the weights.
"""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
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
from octavo.core.numerics.affine import is_integer

from .integer_matrix import IntegerMatrix

Tensor = torch.Tensor


@dataclass(frozen=True)
class Checkpoint:
    """A candidate on its way into a checkpoint.

    Attributes:
        format: Name of the format, for messages.
        candidate: What is written.
        empty: The float module on the meta device: its classes and names are those that the reader
            will make.
    """

    format: str
    candidate: TorchCandidate
    empty: nn.Module

    @classmethod
    def of(cls, result: Any, format: str) -> Checkpoint:
        """Take a result, a quantized model or a candidate.

        Raises:
            SchemeError: If it is no model of transformers, or holds what no checkpoint can: the
                message names the op and the remedy.
        """
        candidate = getattr(result, "candidate", result)
        if not isinstance(candidate, TorchCandidate):
            raise SchemeError(
                f"{format} takes a model of the torch backend, not a {type(candidate).__name__}; "
                "tune with backends=['torch']"
            )
        facts = architecture_of(candidate.module)
        if facts is None:
            kind = type(candidate.module)
            raise SchemeError(
                f"{format} holds models whose class the transformers package defines, "
                f"and this is a {kind.__module__}.{kind.__qualname__}; "
                "save it with result.save() and load it with octavo.load(folder, model=...)"
            )
        made = cls(format, _with_modules_alone(candidate), rebuild(facts, "meta"))
        if not made.candidate.parameters:
            raise SchemeError(
                f"nothing in this model is quantized: {format} would hold the float model; "
                "use its save_pretrained"
            )
        made._refuse_transforms()
        return made

    def _refuse_transforms(self) -> None:
        """Refuse what a transform left behind that the architecture has no place for."""
        remedy = "leave that transform out"
        for name in self.candidate.factors:
            why = "it changes its input's channels, which no layer before it could take in"
            self.refuse(name, why, remedy)
        held = set(named_tensors(self.candidate.module))
        held |= {
            f"{name}.bias"
            for name, bias in self.candidate.biases.items()
            if bias is not None
        }
        for name, module in self.empty.named_modules():
            lacks_bias = isinstance(module, nn.Linear) and module.bias is None
            if lacks_bias and f"{name}.bias" in held:
                why = "a shift of its input gave it a bias, which its architecture has not"
                self.refuse(name, why, remedy)

    def ties(self) -> tuple[tuple[str, ...], ...]:
        """Return the paths of modules that share their weight.

        One group for each such tensor of which an op is quantized.
        """
        names_of: dict[str, list[str]] = {}
        for name, first in aliases(self.empty).items():
            names_of.setdefault(first, [first]).append(name)
        groups: list[tuple[str, ...]] = []
        for names in names_of.values():
            paths = tuple(dict.fromkeys(name.removesuffix(".weight") for name in names))
            if not self.candidate.parameters.keys().isdisjoint(paths):
                groups.append(paths)
        return tuple(groups)

    def refuse(self, name: str, why: str, remedy: str = "") -> NoReturn:
        """Raise the error that says why an op cannot be held, and what to do."""
        scheme = self.candidate.recipe[name]
        remedy = (
            remedy or f'keep it float with a rule: ops = ["{name}"], keep = "float"'
        )
        raise SchemeError(
            f"{self.format} cannot hold op {name!r} [{scheme}]: {why}; {remedy}"
        )

    def module(self, name: str) -> nn.Module | None:
        """Return the module that the reader will make for an op.

        None for one of a mixture's experts, a slice of a parameter.
        """
        return dict(self.empty.named_modules()).get(name)

    def weight(self, name: str, parameters: OpParameters) -> IntegerMatrix:
        """Return an op's weight as whole numbers.

        Raises:
            SchemeError: If its codes are no integers on a scale.
        """
        weight = parameters.weight
        if (
            weight is None
            or not is_integer(weight.params.spec)
            or weight.params.spec.bits > 8
        ):
            self.refuse(
                name,
                "its weight is no integer of 2 to 8 bits",
                "give it an int or uint weight of 2 to 8 bits, or keep it float",
            )
        if weight.repair is not None:
            why = "its low-rank repair has no place in the file"
            self.refuse(name, why, "leave low_rank out of its scheme")
        if weight.params.spec.granularity.startswith("block:"):
            why = "scales of blocks have no place in the file"
            self.refuse(name, why, "use channel or group:N granularity")
        module = self.module(name)
        transposed = module is not None and is_transposed_linear(module)
        return IntegerMatrix.of(weight, transposed=transposed)

    def floats(self) -> dict[str, Tensor]:
        """Return every tensor that stays float, and the ops' biases.

        They have the names that the reader gives them; tied ones are there once.
        """
        owned = tuple(f"{name}." for name in self.candidate.parameters)
        kept = self.empty.state_dict().keys()
        root = self.candidate.module
        held = {
            **named_tensors(root),
            **dict(packed_experts(root)),
            **dict(_loose(root)),
        }
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
        """See that a reader who is told not to tie weights makes the same function.

        Each op then has a weight of its own.

        Raises:
            SchemeError: If it does not.
        """
        facts = architecture_of(self.candidate.module)
        assert facts is not None
        config = {**facts["config"], "tie_word_embeddings": False}
        apart = aliases(rebuild({**facts, "config": config}, "meta"))
        still_tied = {*apart, *apart.values()}
        weights = {f"{path}.weight" for path in group}
        # Models of this kind (T5) scale what goes into a tied head: without the tie they are
        # another function.
        scales_tied_head = config.get("is_encoder_decoder")
        if not scales_tied_head and still_tied.isdisjoint(weights):
            return
        name = next(path for path in group if path in self.candidate.parameters)
        others = ", ".join(repr(path) for path in group if path != name)
        rule = json.dumps([*group])
        self.refuse(
            name,
            f"its weight is tied to that of {others}, which takes another form, "
            "and this architecture cannot be read without the tie",
            "give them one weight_only scheme, or keep all of them float: "
            f'ops = {rule}, keep = "float"',
        )

    def write(
        self,
        folder: Path,
        tensors: Mapping[str, Tensor],
        quantization: Mapping[str, Any],
        *,
        untied: bool = False,
    ) -> None:
        """Write tensors, configuration and generation settings as ``from_pretrained`` reads them.

        Args:
            folder: Made where it is missing.
            tensors: By the reader's names.
            quantization: ``quantization_config``.
            untied: Tell the reader to tie nothing.
        """
        folder.mkdir(parents=True, exist_ok=True)
        # Clones: safetensors writes no tensors that share memory.
        plain = {
            name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()
        }
        save_file(plain, folder / "model.safetensors", metadata={"format": "pt"})
        module: Any = self.candidate.module
        config = copy.deepcopy(module.config)
        config.architectures = [type(module).__name__]
        config.dtype = module.dtype
        if untied:
            config.tie_word_embeddings = False
        config.quantization_config = dict(quantization)
        config.save_pretrained(folder)
        generation = getattr(module, "generation_config", None)
        if generation is not None:
            generation.save_pretrained(folder)


def _with_modules_alone(candidate: TorchCandidate) -> TorchCandidate:
    """Return a candidate without the ops for which a reader makes no layer.

    Those are ops of a parameter, and tables that make their ids. The numbers that their codes
    stand for are written in place of them.
    """
    modules = candidate.module.named_modules()
    without_layer = {path for path, module in modules if _makes_ids(module)}
    without_layer |= parameters_of_layers(candidate.module).keys()
    made = copy.copy(candidate)
    made.parameters = {
        name: own
        for name, own in candidate.parameters.items()
        if name not in without_layer
    }
    return made


def _makes_ids(module: nn.Module) -> bool:
    """Return whether a table is given more than ids: readers call theirs with ids alone."""
    return is_table(module) and len(inspect.signature(module.forward).parameters) > 1


def _loose(root: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters of which layers of octavo's own hold the codes, as float numbers."""
    for path, leaf, place in loose_weights(root):
        yield (f"{path}.{leaf}" if path else leaf), place.decoded().detach()
