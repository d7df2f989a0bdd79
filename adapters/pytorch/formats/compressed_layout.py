"""How a compressed-tensors file is laid out as a whole.

Which ops have one scheme, what is written once, and how it is read. transformers reads a file in
one of two ways. It keeps layers compressed, each by the scheme of its group; or it decodes
everything as it loads (``dequantize``), which stacks experts, keeps ties and knows packed zero
points, but one scheme only for the layers outside of experts, and one for the experts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from .checkpoint import Checkpoint
from .expert_names import checkpoint_names

PACKED = "pack-quantized"
Schemes = Mapping[str, list[str]]
"""Scheme, as JSON, -> the ops that have it."""


def expert_parts(file: Checkpoint, name: str) -> tuple[str, ...]:
    """Return the names of the matrices that an expert's slice is read from.

    Raises:
        SchemeError: If the reader takes experts as one tensor, or some of a mixture's experts are
            float.
    """
    stem, _, index = name.rpartition(".")
    names = checkpoint_names(file.empty, stem)
    own = dict(file.empty.named_parameters()).get(stem)
    if not names or own is None:
        file.refuse(
            name,
            "it is one slice of a parameter, and transformers reads this architecture's experts "
            "as one tensor",
        )
    quantized = file.candidate.parameters
    count = own.shape[0]
    float_ones = [i for i in range(count) if f"{stem}.{i}" not in quantized]
    if float_ones:
        why = f"expert {float_ones[0]} of its mixture is float, and readers stack all of them"
        file.refuse(name, why, "quantize all, or none")
    return tuple(n.replace("*", index) for n in names)


def _by_scheme(file: Checkpoint, schemes: Mapping[str, str]) -> tuple[Schemes, Schemes]:
    """Return scheme -> ops, first of the layers, then of experts."""
    dense: dict[str, list[str]] = {}
    experts: dict[str, list[str]] = {}
    for name, scheme in schemes.items():
        is_layer = file.module(name) is not None
        ops = dense if is_layer else experts
        ops.setdefault(scheme, []).append(name)
    return dense, experts


def is_decoded(file: Checkpoint, schemes: Mapping[str, str]) -> bool:
    """True if the reader can decode everything as it loads, which is then what the file asks for.

    Left packed until the first call, zero points have no room (compressed-tensors 0.20), and
    classes that initialise their layers by hand (T5) fail to load (transformers 5.23).

    Args:
        file: What is written.
        schemes: Op name -> its scheme, as JSON.
    """
    if any(_format(scheme) != PACKED for scheme in schemes.values()):
        return False
    dense, experts = _by_scheme(file, schemes)
    return len(dense) <= 1 and len(experts) <= 1


def _format(scheme: str) -> str:
    found: str = json.loads(scheme)["format"]
    return found


@dataclass(frozen=True)
class Plan:
    """The layout of one file.

    Attributes:
        file: What is written.
        dense: The ops of each scheme, experts left out.
        experts: The experts of each scheme.
        decoded: The reader decodes everything as it loads.
        once: Ops whose tensors are those of an op that they are tied to.
        untied: The reader is told to tie no weights.
    """

    file: Checkpoint
    dense: Schemes
    experts: Schemes
    decoded: bool
    once: frozenset[str]
    untied: bool

    @classmethod
    def of(cls, file: Checkpoint, schemes: Mapping[str, str], decoded: bool) -> Plan:
        """Lay out ops by their schemes.

        Raises:
            SchemeError: If no way of reading takes them together; the message names an op and the
                remedy.
        """
        dense, experts = _by_scheme(file, schemes)
        if not decoded:
            if experts:
                _refuse_mixture(file, dense, experts)
            _refuse_packed_zeros(file, dense)
        once: set[str] = set()
        untied = False
        for group in file.ties():
            # What stays compressed has no ties: each layer's codes are its own there.
            if decoded and _is_one_weight(file, group, schemes):
                once.update(group[1:])
            else:
                file.untie(group)
                untied = True
        return cls(file, dense, experts, decoded, frozenset(once), untied)

    def configuration(self) -> dict[str, Any]:
        """Return ``quantization_config``."""
        targets = self._targets()
        formats = {_format(scheme) for scheme in targets}
        common = "mixed-precision"
        if len(formats) == 1:
            common = formats.pop()
        groups: dict[str, Any] = {}
        for i, (scheme, names) in enumerate(targets.items()):
            groups[f"group_{i}"] = {"targets": names, **json.loads(scheme)}
        configuration: dict[str, Any] = {
            "quant_method": "compressed-tensors",
            "format": common,
            "quantization_status": "compressed",
            "config_groups": groups,
            "ignore": self._float_layers(),
            "kv_cache_scheme": None,
        }
        if self.decoded:
            configuration["dequantize"] = True
        return configuration

    def _quantized(self) -> set[str]:
        """Return the quantized ops that are layers."""
        return {name for names in self.dense.values() for name in names}

    def _kinds(self) -> tuple[type[nn.Module], ...]:
        """Return the classes of layers that the file speaks of."""
        by_path = dict(self.file.empty.named_modules())
        modules = [by_path[name] for name in self._quantized()]
        both: tuple[type[nn.Module], ...] = (nn.Linear, nn.Embedding)
        kinds = [kind for kind in both if _any_is(kind, modules)]
        # The reader takes experts apart into linear layers.
        if self.experts and nn.Linear not in kinds:
            kinds.append(nn.Linear)
        return tuple(kinds)

    def _targets(self) -> dict[str, list[str]]:
        """Return scheme -> what has it: classes where one scheme is all, else names of layers."""
        kinds = [kind.__name__ for kind in self._kinds()]
        is_uniform = len(self.dense) == 1
        targets = {
            scheme: kinds if is_uniform else names
            for scheme, names in self.dense.items()
        }
        are_alike = set(self.experts) <= set(self.dense) or not self.dense
        for scheme in self.experts:
            targets[scheme] = kinds if are_alike else ["re:.*experts.*"]
        return targets

    def _float_layers(self) -> list[str]:
        """Return the layers of the classes that the file speaks of which are not quantized."""
        quantized = self._quantized()
        kinds = self._kinds()
        found = []
        for path, module in self.file.empty.named_modules():
            if isinstance(module, kinds) and path not in quantized:
                found.append(path)
        return found


def _any_is(kind: type[nn.Module], modules: Iterable[nn.Module]) -> bool:
    return any(isinstance(module, kind) for module in modules)


def _is_one_weight(
    file: Checkpoint, group: tuple[str, ...], schemes: Mapping[str, str]
) -> bool:
    """Return whether tied ops are all quantized, or all float, on one weight."""
    decided = file.candidate.parameters
    weights: set[int | None] = set()
    for name in group:
        is_quantized = name in schemes
        weights.add(id(decided[name].weight) if is_quantized else None)
    return len(weights) == 1


def _refuse_packed_zeros(file: Checkpoint, dense: Schemes) -> None:
    """Refuse packed zero points of layers that stay compressed."""
    for scheme, names in dense.items():
        is_symmetric = json.loads(scheme)["weights"]["symmetric"]
        if _format(scheme) == PACKED and not is_symmetric:
            file.refuse(
                names[0],
                "transformers reads packed zero points only where all quantized ops "
                "have one scheme",
                "make its weight symmetric, or give every op this scheme",
            )


def _refuse_mixture(file: Checkpoint, dense: Schemes, experts: Schemes) -> None:
    """Refuse experts that stay compressed, which transformers does not read."""
    first_experts = next(iter(experts.values()))
    name = first_experts[0]
    if len(experts) > 1:
        file.refuse(
            name,
            "transformers reads one scheme for all experts",
            "give them one weight dtype and granularity with a rule",
        )
    is_mixed = len(dense) > 1
    others = [
        names
        for scheme, names in dense.items()
        if is_mixed or _format(scheme) != PACKED
    ]
    file.refuse(
        name,
        "transformers decodes a file with experts as it loads, and then takes one weight_only "
        f"scheme for all other ops, and {others[0][0]!r} has another",
        "give the other ops one weight_only scheme, or keep them float",
    )
