"""Export to the GPTQ checkpoint format, which gptqmodel, vLLM, exllama and (through optimum) transformers read.

For a layer with weight (outputs, inputs) of b bits in groups of g inputs, as AutoGPTQ laid it down:

========== ========= ================================ =================================================================
tensor     dtype     shape                            what
========== ========= ================================ =================================================================
qweight    int32     (inputs * b / 32, outputs)       codes, packed along the inputs, the first one lowest
qzeros     int32     (inputs / g, outputs * b / 32)   zero points less one (``gptq``) or as they are (``gptq_v2``), packed along the outputs
scales     float16   (inputs / g, outputs)
g_idx      int32     (inputs,)                        the group of each input
========== ========= ================================ =================================================================

value = scales * (code - zero point). GPT-2's Conv1D, which stores (inputs, outputs), is laid down as the linear layer that it is: readers put
the same quantized layer in its place. Groups are neighbouring inputs here, whatever order GPTQ went through them in.
"""

from __future__ import annotations

import json
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from octavo.adapters.pytorch.modules.kinds import is_transposed_linear
from octavo.core.contract.adapter import OpParameters

from .checkpoint import Checkpoint, IntegerMatrix, words

Tensor = torch.Tensor
_WIDTHS = (2, 3, 4, 8)


def export(result: Any, folder: Path) -> None:
    """Write a checkpoint with ``quantization_config`` in ``config.json`` and the same as ``quantize_config.json``.

    Zero points of 0 have no form in the first version of the format (they would wrap around): then, and only then, the file says
    ``gptq_v2``.

    Args:
        result: A result, a quantized model or a candidate of the torch backend: a model of transformers.
        folder: Made where it is missing.

    Raises:
        SchemeError: If an op's scheme has no place in the format; the message names the op and the remedy.
    """
    file = Checkpoint.of(result, "gptq")
    for tied in file.ties():
        name = next(n for n in tied if n in file.candidate.parameters)
        others = ", ".join(repr(n) for n in tied if n != name)
        file.refuse(
            name,
            f"its weight is tied to that of {others}, and readers look for quantized layers inside the repeated blocks only",
        )
    weights = {
        name: _weight(file, name, parameters)
        for name, parameters in file.candidate.parameters.items()
    }
    block, inner = _blocks(file)
    first = next(iter(weights))
    for name, weight in weights.items():
        if _layout(weight) != _layout(weights[first]):
            why = f"a file has one layout, and it is {_said(weight)} where {first!r} is {_said(weights[first])}"
            file.refuse(name, why, "give all ops one weight dtype and granularity with a rule")
    second = any(bool((w.zero_point == 0).any()) for w in weights.values())
    tensors = file.floats()
    for name, weight in weights.items():
        tensors.update(
            {
                f"{name}.{key}": tensor
                for key, tensor in _tensors(file, name, weight, 0 if second else 1).items()
            }
        )
    bits, group, symmetric = _layout(weights[first])
    configuration = {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": group or -1,
        "sym": symmetric,
        "desc_act": False,
        "lm_head": False,
        "checkpoint_format": "gptq_v2" if second else "gptq",
        "block_name_to_quantize": block,
        "modules_in_block_to_quantize": [inner],
        "meta": {"quantizer": [f"octavo:{version('octavo')}"]},
    }
    file.write(folder, tensors, configuration)
    (folder / "quantize_config.json").write_text(json.dumps(configuration, indent=2))


def _layout(weight: IntegerMatrix) -> tuple[int, int | None, bool]:
    return weight.bits, weight.group, weight.symmetric


def _said(weight: IntegerMatrix) -> str:
    return f"{weight.bits} bits, {f'group:{weight.group}' if weight.group else 'channel'}, {'' if weight.symmetric else 'a'}symmetric"


def _weight(file: Checkpoint, name: str, parameters: OpParameters) -> IntegerMatrix:
    module = file.module(name)
    if module is None:
        why = "it is one slice of a mixture's parameter, and readers look for layers of their own"
        file.refuse(
            name, why, "export compressed-tensors, which holds experts one by one, or keep it float"
        )
    if not isinstance(module, nn.Linear) and not is_transposed_linear(module):
        file.refuse(
            name,
            f"readers take nn.Linear layers and GPT-2's Conv1D, and this is a {type(module).__name__}",
        )
    weight = file.weight(name, parameters)
    if parameters.scheme.mode != "weight_only":
        file.refuse(
            name,
            "the format is weight-only, and this op's input is quantized too",
            "use a weight_only scheme, or export compressed-tensors",
        )
    outputs, inputs = weight.codes.shape
    if weight.bits not in _WIDTHS:
        file.refuse(
            name,
            f"widths are {', '.join(map(str, _WIDTHS))} bits, and it has {weight.bits}",
            "use one of those widths",
        )
    if weight.scale.shape[0] != outputs:
        file.refuse(
            name,
            "each output has scales of its own in the file",
            "use channel or group:N granularity",
        )
    if outputs % 32 or inputs % 32:
        file.refuse(
            name,
            f"its shape {outputs} x {inputs} does not fill 32-bit words of readers, which take multiples of 32",
        )
    return weight


def _blocks(file: Checkpoint) -> tuple[str, list[str]]:
    """Return the list of blocks that holds every op, and the names of the quantized layers in each block.

    Raises:
        SchemeError: If an op lies outside, or a block has other layers quantized than the next: readers go by these names alone.
    """
    found: dict[str, tuple[str, str, str]] = {}
    for name in file.candidate.parameters:
        match = re.fullmatch(r"(.+?)\.(\d+)\.(.+)", name)
        if match is None:
            file.refuse(
                name,
                "readers look for quantized layers inside the repeated blocks only, and it lies outside",
            )
        found[name] = (match[1], match[2], match[3])
    block = next(iter(found.values()))[0]
    inner = sorted({rest for _, _, rest in found.values()})
    for name, (own, _, _) in found.items():
        if own != block:
            file.refuse(
                name,
                f"readers look for quantized layers in one list of blocks, {block!r}, and it lies in {own!r}",
            )
    for path, module in file.empty.named_modules():
        linear = isinstance(module, nn.Linear) or is_transposed_linear(module)
        if (
            linear
            and path.startswith(f"{block}.")
            and path not in found
            and path.endswith(tuple(inner))
        ):
            same = next(name for name, (_, _, rest) in found.items() if path.endswith(rest))
            file.refuse(
                same,
                f"{path!r} is float, and readers take the same layers of every block",
                "quantize both, or neither",
            )
    return block, inner


def _tensors(file: Checkpoint, name: str, weight: IntegerMatrix, less: int) -> dict[str, Tensor]:
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
