"""What the user says of a tensor's spec: which values its fields may have."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, field_validator

from octavo.core.numerics.affine import is_integer
from octavo.core.values.scheme import Frozen, QuantSpec


def listed(raw: Any) -> Any:
    """Return a lone value as a list of one."""
    is_whole = raw is None or isinstance(raw, (list, tuple))
    return raw if is_whole else (raw,)


def or_one(item: Any, in_list: Any = None, *, or_none: bool = True) -> BeforeValidator:
    """Return what lets a setting be written as one item where it is a list of them.

    Args:
        item: What one is written as.
        in_list: What an item of the list is written as; None for the same.
        or_none: Whether the setting may be None.
    """
    written = item | list[in_list or item]  # type: ignore[misc]
    if or_none:
        written = written | None
    return BeforeValidator(listed, json_schema_input_type=written)


Names = Annotated[tuple[str, ...] | None, or_one(str)]
"""One name or several; None for any."""

Flags = Annotated[tuple[bool, ...] | None, or_one(bool)]


class SpecRule(Frozen):
    """Allowed values of a QuantSpec's fields; what is left out is free.

    Attributes:
        dtype: What a number is stored as: ``int8``, ``int4``, ``nf4``, ...
        granularity: What shares one scale: ``tensor``, ``channel``, ``token``, ``group:N``,
            ``block:RxC``.
        symmetric: Whether the zero point is 0.
        reduce_range: Whether one bit is given up, for processors whose 8-bit products saturate.
        scale_dtype: What scales are stored as: ``float16``, ``bfloat16``, ``uint8`` (codes over a
            second level), ``float32``. Where it is left out, what the backend stores them as.
    """

    dtype: Names = None
    granularity: Names = None
    symmetric: Flags = None
    reduce_range: Flags = None
    scale_dtype: Annotated[tuple[str | None, ...] | None, or_one(str)] = None

    @field_validator("scale_dtype")
    @classmethod
    def _float32_is_no_format_of_its_own(
        cls, value: tuple[str | None, ...] | None
    ) -> tuple[str | None, ...] | None:
        # A spec holds None for float32.
        if value is None:
            return None
        return tuple(None if name == "float32" else name for name in value)

    @property
    def names_scales(self) -> bool:
        """Whether it says what scales are stored as."""
        return self.scale_dtype is not None

    def admits(self, spec: QuantSpec) -> bool:
        """Return whether every field that this rule names is among the allowed ones."""
        # A reduced range is no offer of its own: whoever asks for it gets it of every 8-bit weight,
        # see variants().
        for field in type(self).model_fields.keys() - {"reduce_range"}:
            allowed = getattr(self, field)
            if allowed is not None and getattr(spec, field) not in allowed:
                return False
        return True

    def variants(self, spec: QuantSpec) -> tuple[QuantSpec, ...]:
        """Return the specs that this rule makes of an admitted 8-bit weight.

        Over the whole range, a reduced one, or both.
        """
        is_of_8_bits = spec.bits == 8 and is_integer(spec)
        if self.reduce_range is None or not is_of_8_bits:
            return (spec,)
        made = {False: spec, True: spec.reduced()}
        return tuple(made[wanted] for wanted in dict.fromkeys(self.reduce_range))
