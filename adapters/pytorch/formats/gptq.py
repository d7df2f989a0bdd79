"""Export to the GPTQ checkpoint format.

gptqmodel, vLLM, exllama and (through optimum) transformers read it. For a layer with weight
(outputs, inputs) of b bits in groups of g inputs, as AutoGPTQ laid it down:

========= ======= ============================== =================================================
tensor    dtype   shape                          what
========= ======= ============================== =================================================
qweight   int32   (inputs * b / 32, outputs)     codes, packed along the inputs, the first lowest
qzeros    int32   (inputs / g, outputs * b / 32) zero points less one (``gptq``) or as they are
                                                 (``gptq_v2``), packed along the outputs
scales    float16 (inputs / g, outputs)
g_idx     int32   (inputs,)                      the group of each input
========= ======= ============================== =================================================

value = scales * (code - zero point). GPT-2's Conv1D, which stores (inputs, outputs), is laid down
as the linear layer that it is: readers put the same quantized layer in its place. Groups are
neighbouring inputs here, whatever order GPTQ went through them in.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from octavo.adapters.pytorch.modules.kinds import is_transposed_linear
from octavo.core.contract.adapter import OpParameters

from .checkpoint import Checkpoint
from .integer_matrix import IntegerMatrix, words

Tensor = torch.Tensor
# Kernels of readers take these widths, and shapes that fill words of 32 bits.
_WIDTHS = (2, 3, 4, 8)
_WORD = 32


def export(result: Any, folder: Path) -> None:
    """Write a checkpoint with ``quantization_config`` in ``config.json``.

    The same is written as ``quantize_config.json``. Zero points of 0 have no form in the first
    version of the format (they would wrap around): then, and only then, the file says ``gptq_v2``.

    Args:
        result: A result, a quantized model or a candidate of the torch backend: a model of
            transformers.
        folder: Made where it is missing.

    Raises:
        SchemeError: If an op's scheme has no place in the format; the message names the op and the
            remedy.
    """
    file = Checkpoint.of(result, "gptq")
    _refuse_ties(file)
    weights = {
        name: _weight(file, name, parameters)
        for name, parameters in file.candidate.parameters.items()
    }
    block, inner = _blocks(file)
    _refuse_other_layouts(file, weights)
    # Codes are unsigned: a zero point of 0 less one would become the largest code.
    is_second = any(bool((w.zero_point == 0).any()) for w in weights.values())
    tensors = file.floats()
    for name, weight in weights.items():
        own = _tensors(file, name, weight, less=0 if is_second else 1)
        tensors |= {f"{name}.{key}": tensor for key, tensor in own.items()}
    bits, group, symmetric = _layout(next(iter(weights.values())))
    configuration = {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": group or -1,
        "sym": symmetric,
        "desc_act": False,
        "lm_head": False,
        "checkpoint_format": "gptq_v2" if is_second else "gptq",
        "block_name_to_quantize": block,
        "modules_in_block_to_quantize": [inner],
        "meta": {"quantizer": [f"octavo:{version('octavo')}"]},
    }
    file.write(folder, tensors, configuration)
    (folder / "quantize_config.json").write_text(json.dumps(configuration, indent=2))


def _refuse_ties(file: Checkpoint) -> None:
    for tied in file.ties():
        name = next(n for n in tied if n in file.candidate.parameters)
        others = ", ".join(repr(n) for n in tied if n != name)
        file.refuse(
            name,
            f"its weight is tied to that of {others}, and readers look for quantized layers inside "
            "the repeated blocks only",
        )


def _refuse_other_layouts(
    file: Checkpoint, weights: Mapping[str, IntegerMatrix]
) -> None:
    """Refuse ops that are laid out otherwise than the first one."""
    first, layout = next((name, _layout(weight)) for name, weight in weights.items())
    for name, weight in weights.items():
        if _layout(weight) != layout:
            own, other = _said(weight), _said(weights[first])
            why = f"a file has one layout, and it is {own} where {first!r} is {other}"
            file.refuse(
                name, why, "give all ops one weight dtype and granularity with a rule"
            )


def _layout(weight: IntegerMatrix) -> tuple[int, int | None, bool]:
    return weight.bits, weight.group, weight.symmetric


def _said(weight: IntegerMatrix) -> str:
    granularity = f"group:{weight.group}" if weight.group else "channel"
    symmetry = "symmetric" if weight.symmetric else "asymmetric"
    return f"{weight.bits} bits, {granularity}, {symmetry}"


def _weight(file: Checkpoint, name: str, parameters: OpParameters) -> IntegerMatrix:
    """Return an op's weight as the format takes it.

    Raises:
        SchemeError: If it does not.
    """
    _check_layer(file, name)
    weight = file.weight(name, parameters)
    if parameters.scheme.mode != "weight_only":
        why = "the format is weight-only, and this op's input is quantized too"
        file.refuse(name, why, "use a weight_only scheme, or export compressed-tensors")
    outputs, inputs = weight.codes.shape
    if weight.bits not in _WIDTHS:
        widths = ", ".join(map(str, _WIDTHS))
        why = f"widths are {widths} bits, and it has {weight.bits}"
        file.refuse(name, why, "use one of those widths")
    if weight.scale.shape[0] != outputs:
        why = "each output has scales of its own in the file"
        file.refuse(name, why, "use channel or group:N granularity")
    if outputs % _WORD or inputs % _WORD:
        file.refuse(
            name,
            f"its shape {outputs} x {inputs} does not fill 32-bit words of readers, "
            "which take multiples of 32",
        )
    return weight


def _check_layer(file: Checkpoint, name: str) -> None:
    module = file.module(name)
    if module is None:
        file.refuse(
            name,
            "it is one slice of a mixture's parameter, and readers look for layers of their own",
            "export compressed-tensors, which holds experts one by one, or keep it float",
        )
    if not _is_linear(module):
        kind = type(module).__name__
        why = f"readers take nn.Linear layers and GPT-2's Conv1D, and this is a {kind}"
        file.refuse(name, why)


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or is_transposed_linear(module)


def _blocks(file: Checkpoint) -> tuple[str, list[str]]:
    """Return where readers look for quantized layers.

    Returns:
        The list of blocks that holds every op, and the names of the quantized layers in each block.

    Raises:
        SchemeError: If an op lies outside, or a block has other layers quantized than the next:
            readers go by these names alone.
    """
    lists: dict[str, str] = {}
    leaves: dict[str, str] = {}
    for name in file.candidate.parameters:
        match = re.fullmatch(r"(.+?)\.(\d+)\.(.+)", name)
        if match is None:
            file.refuse(
                name,
                "readers look for quantized layers inside the repeated blocks only, "
                "and it lies outside",
            )
        lists[name] = match[1]
        leaves[name] = match[3]
    block = next(iter(lists.values()))
    for name, own in lists.items():
        if own != block:
            file.refuse(
                name,
                f"readers look for quantized layers in one list of blocks, {block!r}, "
                f"and it lies in {own!r}",
            )
    _refuse_float_siblings(file, block, leaves)
    return block, sorted(set(leaves.values()))


def _refuse_float_siblings(
    file: Checkpoint, block: str, leaves: Mapping[str, str]
) -> None:
    """Refuse an op whose like in another block is float.

    Args:
        file: What is written.
        block: The list of blocks.
        leaves: Op -> its name within a block.
    """
    inner = tuple(leaves.values())
    # Readers go by the names within a block alone, and would look for quantized tensors there.
    for path, module in file.empty.named_modules():
        is_float = path.startswith(f"{block}.") and path not in leaves
        if not (is_float and path.endswith(inner) and _is_linear(module)):
            continue
        same = next(name for name, leaf in leaves.items() if path.endswith(leaf))
        why = f"{path!r} is float, and readers take the same layers of every block"
        file.refuse(same, why, "quantize both, or neither")


def _tensors(
    file: Checkpoint, name: str, weight: IntegerMatrix, less: int
) -> dict[str, Tensor]:
    """Return an op's tensors.

    Args:
        file: What is written.
        name: The op.
        weight: Its weight.
        less: What is taken off the zero points.
    """
    inputs = weight.codes.shape[1]
    scales = weight.scale.to(torch.float16)
    if not bool(torch.isfinite(scales).all() and (scales > 0).all()):
        file.refuse(
            name,
            "a scale of it is out of float16's range",
            "export compressed-tensors, which keeps float32 scales",
        )
    return {
        "qweight": words(weight.codes, weight.bits).t(),
        "qzeros": words(weight.zero_point.t().contiguous() - less, weight.bits),
        "scales": scales.t(),
        "g_idx": torch.arange(inputs, dtype=torch.int32) // (weight.group or inputs),
    }
