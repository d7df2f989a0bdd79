"""Short names of schemes: ``w8a8 per channel`` for what is written out in full elsewhere.

The widths of weight and activation come first, then how the activation's range is found, then what
shares a scale. What most schemes have goes without saying (a signed symmetric weight, an unsigned
8-bit activation, rounding to the nearest code); whatever differs from that is said after a comma.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from octavo.core.values.ledger import Applied
from octavo.core.values.scheme import MINMAX, RTN, OpScheme, QuantSpec

CARRIES_CODES = "carries codes"
"""What is said of an op that moves integer codes: it is neither quantized nor left in float."""

_SHARED = {"tensor": "per tensor", "channel": "per channel", "token": "per token"}

_FORMATS = {
    "bfloat16": "bf16",
    "float16": "fp16",
    "float32": "fp32",
    "fp8_e4m3fn": "fp8",  # the usual one of the two
    "fp8_e5m2": "fp8-e5m2",
}
"""Floating formats by the names that people use; others are short already."""


def short(scheme: OpScheme) -> str:
    """Return a scheme in a few words: ``w8a8 per channel``, ``w8a8 dynamic per token``, ``w4 g32``,
    ``bf16``, ``float``.

    Args:
        scheme: Any scheme. Two that differ in something rare may read alike: :func:`distinct` names
            those of one table apart.
    """
    if scheme.is_float:
        return "float"
    words = [_widths(scheme)]
    # A product in fp16 is told by its format; one of codes by how its input's range is found.
    if scheme.mode == "dynamic":
        words.append("dynamic")
    if scheme.mode == "weight_only" and _is_float_format(scheme.weight):
        words.append("weight")
    words += _granularity(scheme)
    return ", ".join([" ".join(words), *_unusual(scheme)])


def ran(line: Applied) -> str:
    """Return what runs by a line of the ledger, in a few words."""
    return CARRIES_CODES if line.carries_codes else short(running(line))


def running(line: Applied) -> OpScheme:
    """Return the scheme that runs, as it was asked for where that is what runs: of a weight whose
    range is reduced the remark tells."""
    return line.requested if line.honoured else line.applied


def distinct(schemes: Iterable[OpScheme]) -> dict[OpScheme, str]:
    """Return short names of the schemes of one table; no two of them read alike.

    Args:
        schemes: In the order of the table; repeated ones count once.
    """
    names = {scheme: short(scheme) for scheme in schemes}
    more: tuple[Callable[[OpScheme], str], ...] = (_output, _calibrator, str)
    for tell in more:
        names = _told_apart(names, tell)
    return _numbered(names)


def legend(schemes: Iterable[OpScheme]) -> list[tuple[str, str]]:
    """Return (short name, written out) for each scheme but float, in the order of the table."""
    names = distinct(schemes)
    return [(name, str(s)) for s, name in names.items() if not s.is_float]


def _told_apart(
    names: Mapping[OpScheme, str], tell: Callable[[OpScheme], str]
) -> dict[OpScheme, str]:
    """Add a detail to names that stand for more than one scheme."""
    used = Counter(names.values())
    told = {}
    for scheme, name in names.items():
        detail = tell(scheme) if used[name] > 1 else ""
        told[scheme] = f"{name}, {detail}" if detail else name
    return told


def _numbered(names: Mapping[OpScheme, str]) -> dict[OpScheme, str]:
    """Number what still reads alike, after the first."""
    seen: Counter[str] = Counter()
    told = {}
    for scheme, name in names.items():
        seen[name] += 1
        told[scheme] = name if seen[name] == 1 else f"{name} ({seen[name]})"
    return told


def _widths(scheme: OpScheme) -> str:
    """Return the widths: ``w8a8``, ``w4``, ``a8`` of an op without a weight, ``fp8``."""
    weight = scheme.weight
    inputs = scheme.input
    if _is_float_format(weight) and (inputs is None or _same_format(weight, inputs)):
        return _format(weight)
    return _width("w", weight) + _width("a", inputs)


def _width(letter: str, spec: QuantSpec | None) -> str:
    if spec is None:
        return ""
    is_integer = spec.dtype.startswith(("int", "uint"))
    return f"{letter}{spec.bits}" if is_integer else f"{letter}-{_format(spec)}"


def _is_float_format(spec: QuantSpec | None) -> bool:
    """True if a tensor is stored in a floating or a block format."""
    return spec is not None and not spec.dtype.startswith(("int", "uint"))


def _same_format(one: QuantSpec | None, other: QuantSpec | None) -> bool:
    return one is not None and other is not None and one.dtype == other.dtype


def _format(spec: QuantSpec | None) -> str:
    return "" if spec is None else _FORMATS.get(spec.dtype, spec.dtype)


def _granularity(scheme: OpScheme) -> list[str]:
    """Return what shares a scale, of the weight or else of the input."""
    if scheme.mode == "cast":
        return []
    if scheme.weight is not None:
        return [_shares(scheme.weight)]
    is_usual = scheme.input is None or scheme.input.granularity == "tensor"
    return [] if is_usual else [_shares(scheme.input)]


def _shares(spec: QuantSpec | None) -> str:
    """Return what shares a scale: ``per channel``, ``g32``, ``block 16x16``."""
    if spec is None:
        return ""
    if spec.group_size is not None:
        return f"g{spec.group_size}"
    found = _SHARED.get(spec.granularity)
    return found or spec.granularity.replace(":", " ")


def _unusual(scheme: OpScheme) -> list[str]:
    """Return what a reader would not expect of a scheme."""
    told = [*_of_weight(scheme), *_of_input(scheme)]
    if scheme.algorithms != (RTN,):
        told.append(scheme.rounding)
    if scheme.mode == "static" and scheme.calibrator != MINMAX:
        told.append(str(scheme.calibrator))
    return told


def _of_weight(scheme: OpScheme) -> list[str]:
    weight = scheme.weight
    if weight is None:
        return []
    told = []
    is_plain = weight.symmetric and not weight.dtype.startswith("uint")
    if not is_plain:
        told.append(f"{_codes(weight)} weight")
    if weight.reduce_range:
        told.append(f"{weight.bits - 1} of {weight.bits} bits used")
    if weight.scale_dtype:
        told.append(f"scales in {weight.scale_dtype}")
    return told


def _of_input(scheme: OpScheme) -> list[str]:
    """Return how the input's codes and scales differ from the usual."""
    inputs = scheme.input
    if inputs is None:
        return []
    told = []
    shared = "" if scheme.weight is None else scheme.weight.granularity
    # With the weight's own groups, or one scale for all, the input needs no word.
    is_told_already = scheme.weight is None or inputs.granularity in ("tensor", shared)
    shares = "" if is_told_already else _shares(inputs)
    is_unusual = not _is_float_format(inputs) and not _is_usual_input(inputs)
    codes = _codes(inputs) if is_unusual else ""
    if codes or shares:
        told.append(" ".join(filter(None, (codes, "input", shares))))
    if inputs.scale_dtype:
        told.append(f"input scales in {inputs.scale_dtype}")
    return told


def _is_usual_input(spec: QuantSpec) -> bool:
    """True of unsigned codes of one scale with a zero point, and of signed ones of a row."""
    if spec.granularity == "tensor":
        return spec.dtype == "uint8" and not spec.symmetric
    return spec.dtype == "int8" and spec.symmetric


def _codes(spec: QuantSpec) -> str:
    """Return a type of codes: unsigned with its zero point in the middle is not what is expected,
    nor is signed with one."""
    is_unsigned = spec.dtype.startswith("uint")
    if is_unsigned == (not spec.symmetric):
        return spec.dtype
    return f"{spec.dtype} symmetric" if spec.symmetric else f"{spec.dtype} asymmetric"


def _output(scheme: OpScheme) -> str:
    """Return how the output is quantized, where the op does that and not the next one."""
    output = scheme.output
    if output is None:
        return ""
    return "quantized output" if output == scheme.input else f"output {output}"


def _calibrator(scheme: OpScheme) -> str:
    """Return the calibrator even where it decides nothing."""
    return "" if scheme.calibrator == MINMAX else str(scheme.calibrator)
