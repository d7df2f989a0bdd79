"""How a tensor and how an operation is quantized.

These are values: frozen, hashable, and JSON both ways. They name no framework.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Literal, Self

from pydantic import (
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from .settings import Checked

Mode = Literal["float", "cast", "weight_only", "dynamic", "static"]
Scalar = str | int | float | bool | None

_GRANULARITY = re.compile(
    r"tensor|channel|token|group:[1-9]\d*|block:[1-9]\d*x[1-9]\d*"
)
_BITS = re.compile(r"(?:u?int|mxint|nf)(\d+)")
_NAMED_BITS = {
    "fp4": 4,
    "fp6": 6,
    "bfloat16": 16,
    "float16": 16,
    "float32": 32,
    "nvfp4": 4,
}


class Frozen(Checked):
    """Base of frozen, hashable values that refuse unknown fields."""


class PartChoice(Frozen):
    """A plugin part by name, with its settings: ``"rtn"`` or ``{"kind": "gptq", "damping": 0.01}``.

    Only the settings that were given are kept, so that equal choices are equal values.
    """

    kind: str
    options: tuple[tuple[str, Scalar], ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _from_text_or_table(cls, raw: Any) -> Any:
        if isinstance(raw, str):
            return {"kind": raw}
        if isinstance(raw, dict) and "kind" in raw and "options" not in raw:
            options = [(name, value) for name, value in raw.items() if name != "kind"]
            options.sort(key=lambda option: str(option[0]))
            return {"kind": raw["kind"], "options": tuple(options)}
        return raw

    @model_serializer
    def _to_text_or_table(self) -> str | dict[str, Scalar]:
        return self.table() if self.options else self.kind

    def table(self) -> dict[str, Scalar]:
        """Return the settings with ``kind``, as the part's config class takes them."""
        return {"kind": self.kind, **dict(self.options)}

    def __str__(self) -> str:
        inner = ",".join(f"{k}={v}" for k, v in self.options)
        return f"{self.kind}({inner})" if inner else self.kind


class QuantSpec(Frozen):
    """How one tensor is quantized.

    Attributes:
        dtype: An integer, float or block format by name: ``int8``, ``uint8``, ``int4``, ``nf4``,
            ``fp8_e4m3fn``, ...
        symmetric: Zero point 0 (signed) or mid-range (unsigned); otherwise the range's ends are
            used.
        granularity: What shares one scale: ``tensor``, ``channel`` (the output channel of a
            weight), ``token`` (each row of an activation), ``group:N`` (N neighbours along the
            reduced axis), ``block:RxC``.
        reduce_range: Give up one bit, for processors whose 8-bit products saturate in 16 bits (no
            VNNI).
        scale_dtype: Format of the scales themselves: ``float16``, ``bfloat16``, ``uint8`` (codes
            over a second level), ...; None for float32, also where that is written out. Weights are
            rounded with the scales as they are stored. Where float16 does not reach, all scales of
            a weight are bfloat16, which are as wide.
    """

    dtype: str
    symmetric: bool = True
    granularity: str = "tensor"
    reduce_range: bool = False
    scale_dtype: str | None = None

    @field_validator("granularity")
    @classmethod
    def _known_granularity(cls, value: str) -> str:
        if not _GRANULARITY.fullmatch(value):
            raise ValueError(
                f"granularity {value!r} is not one of tensor, channel, token, group:N, block:RxC"
            )
        return value

    @field_validator("scale_dtype")
    @classmethod
    def _one_word_for_float32(cls, value: str | None) -> str | None:
        # Equal specs are equal values, with one digest.
        return None if value == "float32" else value

    @property
    def bits(self) -> int:
        """Bits per stored value, scales left out."""
        if found := _BITS.match(self.dtype):
            return int(found[1])
        if found := re.match(r"(?:mx)?fp(\d+)", self.dtype):
            return int(found[1])
        return _NAMED_BITS[self.dtype]

    def reduced(self) -> QuantSpec:
        """Return the same spec with one bit given up."""
        return self.model_copy(update={"reduce_range": True})

    def whole(self) -> QuantSpec:
        """Return the same spec over the whole range of its dtype."""
        return (
            self.model_copy(update={"reduce_range": False})
            if self.reduce_range
            else self
        )

    @property
    def group_size(self) -> int | None:
        """N of ``group:N``, else None."""
        return (
            int(self.granularity[6:]) if self.granularity.startswith("group:") else None
        )

    def __str__(self) -> str:
        zero = "" if self.symmetric else "-asym"
        reduced = "-7bit" if self.reduce_range else ""
        scales = f"/scale:{self.scale_dtype}" if self.scale_dtype else ""
        return f"{self.dtype}{zero}/{self.granularity}{reduced}{scales}"


def in_order(parts: Iterable[PartChoice]) -> str:
    """Return parts that follow each other as they are written: ``smoothquant -> hadamard``."""
    return " -> ".join(map(str, parts))


RTN = PartChoice(kind="rtn")
MINMAX = PartChoice(kind="minmax")


class OpScheme(Frozen):
    """How one operation is carried out. ``float`` is a scheme too.

    Attributes:
        mode: ``float``; ``cast`` (weight and arithmetic in bf16/fp16); ``weight_only`` (arithmetic
            in float); ``dynamic`` (activation ranges found at run time); ``static`` (found in
            calibration).
        weight: Spec of the weight; None for ops without one.
        input: Spec of every activation input; None where inputs stay float.
        output: Spec of the output; None leaves it to the consumer.
        algorithm: How the weight is rounded.
        calibrator: How observed activations become a range.
        refined_by: Weight algorithms that go on from the result of ``algorithm``, in order.
    """

    mode: Mode = "float"
    weight: QuantSpec | None = None
    input: QuantSpec | None = None
    output: QuantSpec | None = None
    algorithm: PartChoice = RTN
    calibrator: PartChoice = MINMAX
    refined_by: tuple[PartChoice, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.mode == "float" and (self.weight or self.input or self.output):
            raise ValueError(
                "a float scheme quantizes nothing: leave weight, input and output out"
            )
        if self.mode == "weight_only" and self.input is not None:
            raise ValueError(
                "a weight_only scheme keeps its input in float: leave input out or use mode "
                "dynamic or static"
            )
        if self.mode in ("dynamic", "static") and self.input is None:
            raise ValueError(f"a {self.mode} scheme needs an input spec")
        if (
            self.mode == "static"
            and self.input is not None
            and self.input.granularity == "token"
        ):
            raise ValueError("token granularity is found at run time: use mode dynamic")
        if self.refined_by and self.weight is None:
            raise ValueError(
                "refined_by says how the weight's rounding goes on: give a weight"
            )
        return self

    @model_serializer(mode="wrap")
    def _without_an_empty_chain(
        self, handler: SerializerFunctionWrapHandler
    ) -> dict[str, Any]:
        found: dict[str, Any] = handler(self)
        # A scheme of one algorithm is written, and has the digest, that it had before chains.
        if not found.get("refined_by"):
            found.pop("refined_by", None)
        return found

    @property
    def is_float(self) -> bool:
        """True if nothing is quantized."""
        return self.mode == "float"

    @property
    def algorithms(self) -> tuple[PartChoice, ...]:
        """All weight algorithms in order: each goes on from what the one before it made."""
        return (self.algorithm, *self.refined_by)

    @property
    def rounding(self) -> str:
        """The weight algorithms as they are written: ``gptq``, ``awq -> gptq``."""
        return in_order(self.algorithms)

    @property
    def weight_bits(self) -> int:
        """Bits per weight value; 32 where the weight stays float."""
        return self.weight.bits if self.weight else 32

    def variant(self, **changes: Any) -> OpScheme:
        """Return a copy with some fields changed, validated again."""
        own = {name: getattr(self, name) for name in type(self).model_fields}
        return OpScheme.model_validate({**own, **changes})

    def __str__(self) -> str:
        if self.is_float:
            return "float"
        parts: list[str] = [self.mode]
        for tag, spec in (("w", self.weight), ("x", self.input), ("y", self.output)):
            if spec:
                parts.append(f"{tag}:{spec}")
        if self.algorithms != (RTN,):
            parts.append(self.rounding)
        if self.calibrator != MINMAX and self.mode == "static":
            parts.append(str(self.calibrator))
        return " ".join(parts)


FLOAT = OpScheme()
