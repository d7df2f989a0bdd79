"""Saved candidates: one safetensors file and one JSON file; nothing in them can run code."""

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

from octavo.adapters.pytorch.capture.links import Factors
from octavo.adapters.pytorch.capture.standins.modules import STAND_INS
from octavo.adapters.pytorch.formats.architecture import architecture_of
from octavo.adapters.pytorch.modules.shared_copy import add_bias, aliases, named_tensors, set_tensor
from octavo.core.contract.adapter import OpParameters
from octavo.core.errors import ModelError, nearest
from octavo.core.numerics.affine import QuantParams
from octavo.core.numerics.channels import ChannelMap
from octavo.core.numerics.packing import pack, unpack
from octavo.core.numerics.tensor import QuantizedTensor
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import QuantSpec

from .candidate import TorchCandidate

TENSORS, FACTS = "model.safetensors", "model.json"
_FORMAT = 2


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
    floats: Mapping[str, torch.Tensor]
    tied: Mapping[str, str]
    facts: Mapping[str, Any]
    factors: Factors
    architecture: Mapping[str, Any] | None


def save(candidate: TorchCandidate, folder: Path) -> None:
    """Write a candidate. Sub-byte codes are packed; a weight that several ops share is written once."""
    tensors: dict[str, torch.Tensor] = {}
    ops: dict[str, Any] = {}
    weights: dict[int, str] = {}
    for name, decided in candidate.parameters.items():
        row: dict[str, Any] = {
            "inputs": [_params(p) for p in decided.inputs],
            "outputs": [_params(p) for p in decided.outputs],
        }
        if decided.weight is not None:
            key = weights.setdefault(id(decided.weight), name)
            row["weight"] = _write_weight(key, decided.weight, tensors) | {"of": key}
        for i, weight in enumerate(decided.further):
            key = weights.setdefault(id(weight), f"{name}:{i + 1}")
            row.setdefault("further", []).append(_write_weight(key, weight, tensors) | {"of": key})
        bias = candidate.biases.get(name)
        if bias is not None:
            tensors[f"op:{name}:bias"] = _plain(bias)
        ops[name] = row
    maps = {
        name: [_write_map(f"op:{name}:map{i}", one, tensors) for i, one in enumerate(own)]
        for name, own in candidate.factors.items()
    }
    written = set(_of_ops(candidate.module))
    for name, tensor in named_tensors(candidate.module).items():
        if name not in written:
            tensors[f"float:{name}"] = _plain(tensor)
    facts = {
        "format": _FORMAT,
        "recipe": candidate.recipe.to_json(),
        "ops": ops,
        "maps": maps,
        "tied": {k: v for k, v in aliases(candidate.module).items() if f"float:{v}" in tensors},
        "capture": candidate.facts,
        "architecture": architecture_of(candidate.module),
    }
    save_file(tensors, folder / TENSORS)
    (folder / FACTS).write_text(json.dumps(facts, separators=(",", ":")))


def _of_ops(root: nn.Module) -> Iterator[str]:
    """Yield the names of tensors that are written with their op; a layer may share others with the float model."""
    for path, module in root.named_modules():
        if type(module).__module__.startswith("octavo.") and not isinstance(module, STAND_INS):
            floats = getattr(module, "floats", ())
            yield from (
                f"{path}.{name}" if path else name
                for name in named_tensors(module)
                if name not in floats
            )


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of its own memory, in C order: safetensors writes memory as it lies."""
    return tensor.detach().cpu().contiguous().clone()


def _write_map(key: str, change: ChannelMap, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    arrays = {"scale": change.scale, "shift": change.shift}
    tensors.update(
        {f"{key}:{name}": _plain(array) for name, array in arrays.items() if array is not None}
    )
    return {"rotation": change.rotation}


def _read_map(key: str, row: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> ChannelMap:
    return ChannelMap(tensors.get(f"{key}:scale"), tensors.get(f"{key}:shift"), row["rotation"])


def _params(params: QuantParams | None) -> Any:
    if params is None:
        return None
    spec = params.spec.model_dump(exclude_defaults=True)
    return {"scale": float(params.scale), "zero_point": int(params.zero_point), "spec": spec}


def _write_weight(
    key: str, weight: QuantizedTensor, tensors: dict[str, torch.Tensor]
) -> dict[str, Any]:
    params, spec = weight.params, weight.params.spec
    row: dict[str, Any] = {
        "spec": spec.model_dump(exclude_defaults=True),
        "axis": params.axis,
        "shape": list(weight.shape),
    }
    codes = weight.codes
    if spec.bits < 8:
        row |= {"packed": spec.bits, "dtype": str(codes.dtype).removeprefix("torch.")}
        codes = pack(codes, spec.bits)
    tensors[f"op:{key}:codes"] = _plain(codes)
    tensors[f"op:{key}:scale"] = _plain(_narrowest(params.scale, spec))
    if bool((params.zero_point != 0).any()):
        # A zero point is a code, so a byte holds it wherever a byte holds the codes.
        byte = torch.uint8 if spec.dtype.startswith("u") else torch.int8
        tensors[f"op:{key}:zero_point"] = _plain(
            params.zero_point.to(byte) if spec.bits <= 8 else params.zero_point
        )
    for extra, value in (weight.extra or {}).items():
        tensors[f"op:{key}:extra:{extra}"] = _plain(torch.as_tensor(value))
    return row


def _narrowest(scale: torch.Tensor, spec: QuantSpec) -> torch.Tensor:
    """Return scales in the format that the spec names for them, where that holds them exactly."""
    name = "e8m0" if spec.dtype.startswith("mx") else spec.scale_dtype
    dtype = {
        "e8m0": torch.float8_e8m0fnu,
        "float16": torch.float16,
        "bfloat16": torch.bfloat16,
    }.get(name or "")
    if dtype is not None and torch.equal(scale.to(dtype).to(torch.float32), scale):
        return scale.to(dtype)
    return scale


def read(folder: Path) -> Saved:
    """Read a folder.

    Raises:
        ModelError: If a file is missing, damaged or of another version.
    """
    try:
        raw = json.loads((folder / FACTS).read_text())
        with safe_open(folder / TENSORS, framework="pt") as file:
            # In memory of their own: kernels sum in an order that depends on where a tensor lies, and these begin anywhere in the file.
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118 - the file is no mapping
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(
            f"{folder} is no saved torch candidate, or it is damaged: {error}"
        ) from error
    if raw.get("format") != _FORMAT:
        raise ModelError(
            f"{folder} has format {raw.get('format')!r}; this octavo reads format {_FORMAT}"
        )
    try:
        recipe = Recipe.from_json(raw["recipe"])
        weights: dict[str, QuantizedTensor] = {}
        parameters = {
            name: _op(name, recipe, row, tensors, weights) for name, row in raw["ops"].items()
        }
        floats = {k.removeprefix("float:"): v for k, v in tensors.items() if k.startswith("float:")}
        maps = {
            name: tuple(_read_map(f"op:{name}:map{i}", r, tensors) for i, r in enumerate(rows))
            for name, rows in raw["maps"].items()
        }
        return Saved(
            recipe, parameters, floats, raw["tied"], raw["capture"], maps, raw.get("architecture")
        )
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ModelError(
            f"{folder}: the tensors do not fit the recipe beside them ({error!r}); save the model again"
        ) from error


def _op(
    name: str,
    recipe: Recipe,
    row: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    weights: dict[str, QuantizedTensor],
) -> OpParameters:
    found = []
    for held in (*([row["weight"]] if "weight" in row else []), *row.get("further", [])):
        if held["of"] not in weights:
            weights[held["of"]] = _read_weight(held["of"], held, tensors)
        found.append(weights[held["of"]])
    inputs, outputs = (tuple(_read_params(p) for p in row[k]) for k in ("inputs", "outputs"))
    weight = found[0] if found else None
    return OpParameters(
        recipe[name], weight, inputs, outputs, tensors.get(f"op:{name}:bias"), tuple(found[1:])
    )


def _read_params(raw: Any) -> QuantParams | None:
    if raw is None:
        return None
    spec = QuantSpec.model_validate(raw["spec"])
    return QuantParams(
        torch.tensor(raw["scale"]), torch.tensor(raw["zero_point"], dtype=torch.int32), spec
    )


def _read_weight(
    key: str, row: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]
) -> QuantizedTensor:
    spec = QuantSpec.model_validate(row["spec"])
    codes = tensors[f"op:{key}:codes"]
    if "packed" in row:
        signed = row["dtype"] == "int8"
        codes = unpack(codes, row["packed"], row["shape"][-1], signed=signed).to(
            getattr(torch, row["dtype"])
        )
    _check_codes(key, codes, spec)
    scale = tensors[f"op:{key}:scale"].to(torch.float32)
    stored = tensors.get(f"op:{key}:zero_point")
    zero_point = (
        torch.zeros_like(scale, dtype=torch.int32) if stored is None else stored.to(torch.int32)
    )
    prefix = f"op:{key}:extra:"
    extra = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    return QuantizedTensor(
        codes.reshape(row["shape"]),
        QuantParams(scale, zero_point, spec, row["axis"]),
        extra or None,
    )


def _check_codes(key: str, codes: torch.Tensor, spec: QuantSpec) -> None:
    """Refuse codes of another type than their format has: kernels would refuse them later, in the first forward.

    Raises:
        ModelError: If the file was changed.
    """
    integers = {"int": torch.int8, "uin": torch.uint8}
    wanted = integers.get(spec.dtype[:3]) if spec.bits <= 8 else None
    if (
        (wanted is not None and codes.dtype != wanted)
        or codes.dtype is torch.bool
        or codes.dtype.is_complex
    ):
        raise ModelError(
            f"the codes of {key!r} are {codes.dtype}, which {spec.dtype} is not; the file is damaged: save the model again"
        )


def restore(root: nn.Module, saved: Saved, device: torch.device) -> None:
    """Put the saved float tensors into a skeleton, tied as they were.

    Raises:
        ModelError: If the module is not the one that was saved.
    """
    first, known = aliases(root), named_tensors(root)
    for name, tensor in saved.floats.items():
        own = first.get(name, name)
        if own not in known and add_bias(root, own, tensor.to(device)):
            continue
        if own not in known and isinstance(root.__dict__.get(own), torch.Tensor):
            root.__dict__[own] = tensor.to(
                device
            )  # a constant that tracing made of the model's own code
            continue
        if own not in known:
            raise ModelError(
                f"the saved model has a tensor {name!r}, which the given module lacks{nearest(name, known)}"
            )
        if known[own].shape != tensor.shape:
            raise ModelError(
                f"tensor {name!r} has shape {tuple(tensor.shape)} in the files and {tuple(known[own].shape)} in the given module"
            )
        set_tensor(root, own, tensor.to(device))
    for further, name in saved.tied.items():
        owner, _, leaf = further.rpartition(".")
        source, _, source_leaf = name.rpartition(".")
        module, original = root.get_submodule(owner), root.get_submodule(source)
        table = module._parameters if leaf in module._parameters else module._buffers
        table[leaf] = getattr(original, source_leaf)
