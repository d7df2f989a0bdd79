"""PyTorch backend: any ``nn.Module``, real integer kernels, no compiler needed. This module imports
no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar, Literal

from octavo.core.contract.hookspecs import hookimpl
from octavo.core.contract.parts import AdapterPart, Part, PartConfig


class TorchConfig(PartConfig):
    """Settings of the PyTorch backend.

    Attributes:
        device: Where candidates run. ``auto`` takes the device that the model's tensors are on.
        capture: ``auto`` traces the model's graph and falls back to its modules where that fails;
            ``modules`` never traces.
        trust: Open ``.pt2`` files, which may run code of their author when they are read.
    """

    unsaved: ClassVar[frozenset[str]] = frozenset({"trust"})

    kind: Literal["torch"] = "torch"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    capture: Literal["auto", "modules"] = "auto"
    trust: bool = False


@hookimpl
def octavo_adapters() -> Iterable[AdapterPart[Any]]:
    """Offer the PyTorch backend."""
    return (
        AdapterPart(
            name="torch",
            target="octavo.adapters.pytorch.adapter:TorchAdapter",
            config=TorchConfig,
            summary="PyTorch modules: integer kernels on the CPU; int8, fp8 and 4-bit products on "
            "CUDA where they run",
            hint="Install it with: pip install 'octavo[torch]'",
            models=(
                "torch.nn.modules.module.Module",
                "torch.export.exported_program.ExportedProgram",
            ),
            suffixes=(".pt", ".pth", ".pt2"),
        ),
    )


class CompressedTensorsConfig(PartConfig):
    """A checkpoint of transformers in the compressed-tensors format."""

    kind: Literal["compressed-tensors"] = "compressed-tensors"


class GptqConfig(PartConfig):
    """A checkpoint of transformers in the GPTQ format."""

    kind: Literal["gptq"] = "gptq"


@hookimpl
def octavo_exporters() -> Iterable[Part[Any]]:
    """Offer the checkpoint formats of transformers."""
    hint = "Install what it needs with: pip install 'octavo[torch]' transformers"
    return (
        Part(
            "compressed-tensors",
            "octavo.adapters.pytorch.formats.compressed_tensors:export",
            CompressedTensorsConfig,
            "a checkpoint for transformers and vLLM: int8 with quantized inputs, packed weights "
            "of 2 to 8 bits",
            hint,
        ),
        Part(
            "gptq",
            "octavo.adapters.pytorch.formats.gptq:export",
            GptqConfig,
            "a checkpoint for gptqmodel, vLLM and transformers: weights of 2, 3, 4 or 8 bits",
            hint,
        ),
    )
