"""Plain names that people type for a format or a method, and what each stands for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class Alias:
    """What a plain name stands for.

    Attributes:
        stands_for: A scheme, or a method.
        summary: What that is, in a line.
    """

    stands_for: str
    summary: str


FORMATS: Mapping[str, Alias] = MappingProxyType(
    {
        "static": Alias(
            "int8-static", "8-bit weights and inputs, ranges from calibration data"
        ),
        "dynamic": Alias(
            "int8-dynamic", "8-bit weights and inputs, ranges found at each call"
        ),
        "weight-only": Alias(
            "int8-weight-only", "8-bit weights, arithmetic in floating point"
        ),
        "int8": Alias("int8-static", "an integer of 8 bits by itself is static"),
        "int4": Alias("int4-weight-only", "fewer bits by themselves are weight-only"),
        "int3": Alias("int3-weight-only", "fewer bits by themselves are weight-only"),
        "int2": Alias("int2-weight-only", "fewer bits by themselves are weight-only"),
        "nf4": Alias("nf4-weight-only", "quantiles of a normal distribution (QLoRA)"),
        "qlora": Alias(
            "nf4-weight-only(scale_dtype=uint8)",
            "the base model of QLoRA: nf4, whose scales are quantized too",
        ),
        "mxfp4": Alias("mxfp4-weight-only", "microscaling: 4-bit floats in groups"),
        "mxfp6": Alias("mxfp6-weight-only", "microscaling: 6-bit floats in groups"),
        "mxfp8": Alias("mxfp8-weight-only", "microscaling: 8-bit floats in groups"),
        "mxint8": Alias("mxint8-weight-only", "microscaling: integers in groups"),
        "nvfp4": Alias("nvfp4-weight-only", "4-bit floats whose scales are fp8"),
        "fp8": Alias(
            "fp8-weight-only", "8-bit floats (e4m3); fp8-dynamic multiplies in them too"
        ),
        "fp16": Alias("float16", "weights and arithmetic of 16 bits"),
        "half": Alias("float16", "weights and arithmetic of 16 bits"),
        "bf16": Alias("bfloat16", "weights and arithmetic of 16 bits, float32's range"),
        "fp32": Alias("float", "nothing is quantized"),
    }
)
"""A format's plain name -> what it stands for.

Every integer format may also be written by its widths: ``w8a8-static``, ``w4a16``.
"""

METHODS: Mapping[str, Alias] = MappingProxyType(
    {
        "autoround-block": Alias(
            "reconstruction", "rounding learned for whole blocks (AutoRound)"
        ),
        "block-reconstruction": Alias(
            "reconstruction", "rounding learned for whole blocks"
        ),
        "distill": Alias("distillation", "scales and rounding learned from float"),
        "gamma-migration": Alias(
            "transform:outlier-suppression", "Outlier Suppression without its clipping"
        ),
        "eora": Alias(
            "low-rank", "thin factors that repair the error under the Gram matrix"
        ),
        "lqer": Alias(
            "low-rank(source=weights)", "thin factors that repair it without data"
        ),
        "l2qer": Alias(
            "low-rank(source=diagonal)", "the same, each input weighed by its size"
        ),
        "cle": Alias("equalization", "cross-layer equalization"),
    }
)
"""A method's plain name -> the method."""

BIAS_CORRECTION = "bias-correction"
"""The method that is no part of its own: a setting of the weight algorithm."""

BIAS_CORRECTION_SUMMARY = (
    "the mean error of outputs taken out of biases (Nagel et al. 2019)"
)

__all__ = ["BIAS_CORRECTION", "BIAS_CORRECTION_SUMMARY", "FORMATS", "METHODS", "Alias"]
