"""How a compressed-tensors file is laid out as a whole: which ops have one scheme, what is written once, and how it is read.

transformers reads a file in one of two ways. It keeps layers compressed, each by the scheme of its group; or it decodes
everything as it loads (``dequantize``), which stacks experts, keeps ties and knows packed zero points, but one scheme only for the
layers outside of experts, and one for the experts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from .checkpoint import Checkpoint
from .expert_names import checkpoint_names

_PACKED = "pack-quantized"


def expert_parts(file: Checkpoint, name: str) -> tuple[str, ...]:
    """Return the names of the matrices that an expert's slice is read from.

    Raises:
        SchemeError: If the reader takes experts as one tensor, or some of a mixture's experts are float.
    """
    stem, _, index = name.rpartition(".")
    names = checkpoint_names(file.empty, stem)
    own = dict(file.empty.named_parameters()).get(stem)
    if not names or own is None:
        file.refuse(
            name,
            "it is one slice of a parameter, and transformers reads this architecture's experts as one tensor",
        )
    float_ones = [i for i in range(own.shape[0]) if f"{stem}.{i}" not in file.candidate.parameters]
    if float_ones:
        file.refuse(
            name,
            f"expert {float_ones[0]} of its mixture is float, and readers stack all of them",
            "quantize all, or none",
        )
    return tuple(n.replace("*", index) for n in names)


def _by_scheme(
    file: Checkpoint, schemes: Mapping[str, str]
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Return scheme -> ops, first of the layers, then of experts."""
    dense: dict[str, list[str]] = {}
    experts: dict[str, list[str]] = {}
    for name, scheme in schemes.items():
        (dense if file.module(name) is not None else experts).setdefault(scheme, []).append(name)
    return dense, experts


def is_decoded(file: Checkpoint, schemes: Mapping[str, str]) -> bool:
    """True if the reader can decode everything as it loads, which is then what the file asks for.

    Left packed until the first call, zero points have no room (compressed-tensors 0.20), and classes that initialise their layers by
    hand (T5) fail to load (transformers 5.23).

    Args:
        file: What is written.
        schemes: Op name -> its scheme, as JSON.
    """
    packed = all(json.loads(s)["format"] == _PACKED for s in schemes.values())
    return packed and all(len(found) <= 1 for found in _by_scheme(file, schemes))


@dataclass(frozen=True)
class Plan:
    """The layout of one file.

    Attributes:
        file: What is written.
        dense: Scheme, as JSON, -> the ops that have it; experts left out.
        experts: Likewise for experts.
        decoded: The reader decodes everything as it loads.
        once: Ops whose tensors are those of an op that they are tied to.
        untied: The reader is told to tie no weights.
    """

    file: Checkpoint
    dense: Mapping[str, list[str]]
    experts: Mapping[str, list[str]]
    decoded: bool
    once: frozenset[str]
    untied: bool

    @classmethod
    def of(cls, file: Checkpoint, schemes: Mapping[str, str], decoded: bool) -> Plan:
        """Lay out ops by their schemes.

        Raises:
            SchemeError: If no way of reading takes them together; the message names an op and the remedy.
        """
        dense, experts = _by_scheme(file, schemes)
        if experts and not decoded:
            _refuse_mixture(file, dense, experts)
        zeros = next(
            (
                n
                for s, names in dense.items()
                if not decoded and _has_packed_zeros(s)
                for n in names
            ),
            None,
        )
        if zeros is not None:
            why = (
                "transformers reads packed zero points only where all quantized ops have one scheme"
            )
            file.refuse(zeros, why, "make its weight symmetric, or give every op this scheme")
        once: set[str] = set()
        untied = False
        for group in file.ties():
            weights = {
                id(file.candidate.parameters[n].weight) if n in schemes else None for n in group
            }
            if decoded and len(weights) == 1:
                once.update(group[1:])
            else:
                file.untie(group)
                untied = True
        return cls(file, dense, experts, decoded, frozenset(once), untied)

    def configuration(self) -> dict[str, Any]:
        """Return ``quantization_config``."""
        quantized = {name for names in self.dense.values() for name in names}
        kinds = [
            k
            for k in (nn.Linear, nn.Embedding)
            if any(isinstance(self.file.module(n), k) for n in quantized)
        ]
        kinds += [nn.Linear] if self.experts and nn.Linear not in kinds else []
        alike = set(self.experts) <= set(self.dense) or not self.dense
        targets = {
            scheme: [k.__name__ for k in kinds] if len(self.dense) == 1 else names
            for scheme, names in self.dense.items()
        }
        if self.experts:
            targets |= {
                s: [k.__name__ for k in kinds] if alike else ["re:.*experts.*"]
                for s in self.experts
            }
        formats = {json.loads(scheme)["format"] for scheme in targets}
        layers = [
            path
            for path, module in self.file.empty.named_modules()
            if isinstance(module, tuple(kinds))
        ]
        return {
            "quant_method": "compressed-tensors",
            "format": next(iter(formats)) if len(formats) == 1 else "mixed-precision",
            "quantization_status": "compressed",
            "config_groups": {
                f"group_{i}": {"targets": t, **json.loads(s)}
                for i, (s, t) in enumerate(targets.items())
            },
            "ignore": [path for path in layers if path not in quantized],
            "kv_cache_scheme": None,
            **({"dequantize": True} if self.decoded else {}),
        }


def _refuse_mixture(
    file: Checkpoint, dense: Mapping[str, list[str]], experts: Mapping[str, list[str]]
) -> None:
    name = next(n for names in experts.values() for n in names)
    if len(experts) > 1:
        file.refuse(
            name,
            "transformers reads one scheme for all experts",
            "give them one weight dtype and granularity with a rule",
        )
    why = "transformers decodes a file with experts as it loads, and then takes one weight_only scheme for all other ops"
    other = next(
        iter(
            names
            for s, names in dense.items()
            if len(dense) > 1 or json.loads(s)["format"] != _PACKED
        )
    )[0]
    file.refuse(
        name,
        f"{why}, and {other!r} has another",
        "give the other ops one weight_only scheme, or keep them float",
    )


def _has_packed_zeros(scheme: str) -> bool:
    row = json.loads(scheme)
    return row["format"] == _PACKED and not row["weights"]["symmetric"]
