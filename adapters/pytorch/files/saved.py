"""Saved candidates: one safetensors file and one JSON file."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from octavo.adapters.pytorch.capture.links import InputMaps
from octavo.adapters.pytorch.capture.standins.modules import STAND_INS
from octavo.adapters.pytorch.modules.shared_copy import aliases, named_tensors
from octavo.core.contract.adapter import OpParameters
from octavo.core.errors import ModelError
from octavo.core.numerics.tensor import QuantizedTensor
from octavo.core.values.layers import REST
from octavo.core.values.recipe import Recipe

from .architecture import architecture_of
from .origin import Origin
from .stored_weights import (
    plain,
    read_map,
    read_params,
    read_weight,
    write_map,
    write_params,
    write_weight,
)

Tensor = torch.Tensor
TENSORS, FACTS = "model.safetensors", "model.json"
_FORMAT = 3
"""Written. 3 packs zero points and drops what the spec or a second level implies."""

_READ = (2, _FORMAT)
_DAMAGE = (KeyError, TypeError, AttributeError, RuntimeError)
"""What is raised where rows and tensors do not belong together."""


@dataclass(frozen=True)
class Saved:
    """What a folder holds.

    Attributes:
        recipe: What was carried out.
        parameters: Op name -> what the core had decided.
        floats: Float tensors by name.
        tied: Further name -> first name.
        facts: How the model was seen.
        factors: Op name -> what it does to its input's channels first.
        architecture: What the float module can be made from; None where it must be given.
    """

    recipe: Recipe
    parameters: Mapping[str, OpParameters]
    floats: Mapping[str, Tensor]
    tied: Mapping[str, str]
    facts: Mapping[str, Any]
    factors: InputMaps
    architecture: Mapping[str, Any] | None


def save(module: nn.Module, origin: Origin, folder: Path) -> None:
    """Write a candidate: sub-byte codes are packed, and a weight that several ops share is written
    once.

    Args:
        module: The candidate's module.
        origin: What it was made from.
        folder: Where to; it exists.
    """
    tensors: dict[str, Tensor] = {}
    facts: dict[str, Any] = {
        "format": _FORMAT,
        # What was learned shows in the tensors: said here, it would cost bytes of a budget.
        "recipe": origin.recipe.unrecovered.to_json(),
        **_write_tensors(module, origin, tensors),
    }
    ties = aliases(module)
    facts["tied"] = {
        name: first for name, first in ties.items() if f"float:{first}" in tensors
    }
    facts["capture"] = dict(origin.facts)
    facts["architecture"] = architecture_of(module)
    save_file(tensors, folder / TENSORS)
    (folder / FACTS).write_text(json.dumps(facts, separators=(",", ":")))


def _write_tensors(
    module: nn.Module, origin: Origin, tensors: dict[str, Tensor]
) -> dict[str, Any]:
    """Add every tensor of a candidate to ``tensors``; return what reads them again."""
    rows = {
        "ops": _write_ops(origin, tensors),
        "maps": _write_maps(origin.factors, tensors),
    }
    _write_floats(module, tensors)
    return rows


class _Sizes(dict[str, Tensor]):
    """Tensors of which the shapes and types are kept, and no memory is."""

    def __setitem__(self, name: str, tensor: Tensor) -> None:
        super().__setitem__(name, tensor.to("meta"))


def bytes_by_op(
    module: nn.Module, origin: Origin, places: Mapping[str, str]
) -> dict[str, int]:
    """Return op -> bytes of its tensors in the file that :func:`save` writes.

    Args:
        module: The candidate's module.
        origin: What it was made from.
        places: Path of a module -> op.
    """
    tensors = _Sizes()
    _write_tensors(module, origin, tensors)
    ops = {*origin.parameters, *origin.factors}
    found: dict[str, int] = {}
    for key, tensor in tensors.items():
        kind, _, name = key.partition(":")
        if kind == "op":
            owner = next((part for part in _beginnings(name, ":") if part in ops), REST)
        else:
            parts = _beginnings(name, ".")
            owner = next((places[part] for part in parts if part in places), REST)
        found[owner] = found.get(owner, 0) + tensor.nbytes
    return found


def _beginnings(name: str, separator: str) -> Iterator[str]:
    """Yield what a name begins with, the longest first and '' last."""
    while name:
        name = name.rpartition(separator)[0]
        yield name


def _write_ops(origin: Origin, tensors: dict[str, Tensor]) -> dict[str, Any]:
    ops: dict[str, Any] = {}
    keys: dict[
        int, str
    ] = {}  # quantized weight, by identity -> the name that it is written under
    for name, decided in origin.parameters.items():
        row: dict[str, Any] = {
            "inputs": [write_params(p) for p in decided.inputs],
            "outputs": [write_params(p) for p in decided.outputs],
        }
        if decided.weight is not None:
            key = keys.setdefault(id(decided.weight), name)
            row["weight"] = write_weight(key, decided.weight, tensors) | {"of": key}
        for i, weight in enumerate(decided.further, 1):
            key = keys.setdefault(id(weight), f"{name}:{i}")
            row.setdefault("further", []).append(
                write_weight(key, weight, tensors) | {"of": key}
            )
        bias = origin.biases.get(name)
        if bias is not None:
            tensors[f"op:{name}:bias"] = plain(bias)
        ops[name] = row
    return ops


def _write_maps(factors: InputMaps, tensors: dict[str, Tensor]) -> dict[str, Any]:
    return {
        name: [
            write_map(f"op:{name}:map{i}", one, tensors) for i, one in enumerate(own)
        ]
        for name, own in factors.items()
    }


def _write_floats(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    written = set(_of_ops(module))
    for name, tensor in named_tensors(module).items():
        if name not in written:
            tensors[f"float:{name}"] = plain(tensor)


def _of_ops(root: nn.Module) -> Iterator[str]:
    """Yield the names of tensors that are written with their op; a layer may share others with the
    float model."""
    for path, module in root.named_modules():
        if isinstance(module, STAND_INS) or not type(module).__module__.startswith(
            "octavo."
        ):
            continue
        floats = getattr(module, "floats", ())
        for name in named_tensors(module):
            if name not in floats:
                yield f"{path}.{name}" if path else name


def read(folder: Path) -> Saved:
    """Read a folder.

    Raises:
        ModelError: If a file is missing, damaged or of another version.
    """
    try:
        raw = json.loads((folder / FACTS).read_text())
        with safe_open(folder / TENSORS, framework="pt") as file:
            # In memory of their own: kernels sum in an order that depends on where a tensor lies,
            # and these begin anywhere in the file.
            names = file.keys()
            tensors = {name: file.get_tensor(name).clone() for name in names}
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(
            f"{folder} is no saved torch candidate, or it is damaged: {error}"
        ) from error
    if raw.get("format") not in _READ:
        told = " and ".join(map(str, _READ))
        raise ModelError(
            f"{folder} has format {raw.get('format')!r}; this octavo reads formats {told}"
        )
    try:
        return _read(raw, tensors)
    except _DAMAGE as error:
        raise ModelError(
            f"{folder}: the tensors do not fit the recipe beside them ({error!r}); "
            "save the model again"
        ) from error


def _read(raw: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Saved:
    recipe = Recipe.from_json(raw["recipe"])
    weights: dict[str, QuantizedTensor] = {}
    parameters = {}
    for name, row in raw["ops"].items():
        parameters[name] = _read_op(name, recipe, row, tensors, weights)
    floats = {
        name.removeprefix("float:"): tensor
        for name, tensor in tensors.items()
        if name.startswith("float:")
    }
    factors = {}
    for name, rows in raw["maps"].items():
        keyed = enumerate(rows)
        factors[name] = tuple(
            read_map(f"op:{name}:map{i}", row, tensors) for i, row in keyed
        )
    return Saved(
        recipe=recipe,
        parameters=parameters,
        floats=floats,
        tied=raw["tied"],
        facts=raw["capture"],
        factors=factors,
        architecture=raw.get("architecture"),
    )


def _read_op(
    name: str,
    recipe: Recipe,
    row: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    weights: dict[str, QuantizedTensor],
) -> OpParameters:
    """Return what was decided for one op; a weight that was read for another op is that one's
    object."""
    rows = [row["weight"]] if "weight" in row else []
    rows += row.get("further", [])
    for held in rows:
        key = held["of"]
        if key not in weights:
            weights[key] = read_weight(key, held, tensors)
    found = [weights[held["of"]] for held in rows]
    return OpParameters(
        recipe[name],
        found[0] if found else None,
        inputs=tuple(read_params(p) for p in row["inputs"]),
        outputs=tuple(read_params(p) for p in row["outputs"]),
        bias=tensors.get(f"op:{name}:bias"),
        further=tuple(found[1:]),
    )
