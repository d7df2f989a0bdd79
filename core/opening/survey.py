"""What each format would make of a model: how many ops take it, by what, at what size.

Nothing is quantized for that: the backend's offers, the model's ops and sizes of weights say it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from octavo.core.contract.adapter import Opened
from octavo.core.contract.plugins import PluginHost
from octavo.core.values.graph import Op
from octavo.core.values.scheme import OpScheme
from octavo.core.values.space import TuningSpace, Unit

from .grammar import aliases
from .grammar.formats import FLOAT_FORMAT, USUAL, Format, format_of
from .grammar.named import read_named
from .spaces import build_space


@dataclass(frozen=True, slots=True)
class FormatLine:
    """What one format would make of a model.

    Attributes:
        name: The format.
        aliases: Plain names that stand for it.
        ops: How many ops a backend can quantize in any way.
        kernels: How many of them a low-precision kernel would carry out.
        simulated: How many could only be simulated (``simulated = true``).
        left: Why others stay in float -> how many.
        share: Bytes of weights as a share of float32's; None where the model has none.
        needs_data: Whether it needs calibration data.
    """

    name: str
    aliases: tuple[str, ...]
    ops: int
    kernels: int
    simulated: int
    left: Mapping[str, int] = field(default_factory=dict)
    share: float | None = None
    needs_data: bool = False


def survey(opened: Opened, host: PluginHost) -> tuple[FormatLine, ...]:
    """Return a line for each usual format, and for each further one that the backend offers.

    Args:
        opened: The model on its backend.
        host: The plugins.
    """
    kernels, everything = build_space(opened), build_space(opened, simulated=True)
    schemes = [s for unit in everything.tunable for s in unit.choices]
    names = dict.fromkeys((*USUAL, *map(format_of, schemes)))
    return tuple(_line(name, opened, kernels, everything, host) for name in names)


def _line(
    name: str,
    opened: Opened,
    kernels: TuningSpace,
    everything: TuningSpace,
    host: PluginHost,
) -> FormatLine:
    named = read_named(name, host)
    taken: dict[str, OpScheme] = {}
    by_kernel = 0
    for unit in everything.tunable:
        real = named.choices(unit.type, kernels.by_name[unit.name].choices)
        any_way = real or named.choices(unit.type, unit.choices)
        if any_way and not any_way[0].is_float:
            taken[unit.name] = any_way[0]
            by_kernel += len(unit.ops) if real else 0
    units = [unit for unit in everything.tunable if unit.name in taken]
    rest = [unit for unit in everything.tunable if unit.name not in taken]
    left = Counter(_why_left(rest, opened, named.format))
    return FormatLine(
        name,
        tuple(_aliases_of(name)),
        sum(len(unit.ops) for unit in everything.tunable),
        by_kernel,
        sum(len(unit.ops) for unit in units) - by_kernel,
        left if named.format != FLOAT_FORMAT else {},
        _share(everything, taken),
        named.needs_data,
    )


def _share(space: TuningSpace, taken: Mapping[str, OpScheme]) -> float | None:
    base = space.weight_bytes(space.recipe({}))
    return space.weight_bytes(space.recipe(taken)) / base if base else None


def _aliases_of(name: str) -> Iterator[str]:
    for alias, found in aliases.FORMATS.items():
        if found.stands_for == name:
            yield alias


def _why_left(units: list[Unit], opened: Opened, wanted: Format) -> Iterator[str]:
    """Yield why each op of some units cannot take a format."""
    for unit in units:
        for name in unit.ops:
            yield _why(opened.view.by_name[name], opened, wanted)


def _why(op: Op, opened: Opened, wanted: Format) -> str:
    offers = opened.capability.offers.get(op.type, ())
    fitting = [o for o in offers if wanted.choices(op.type, (o.scheme,))]
    if not fitting:
        return f"{opened.name} offers it for no {op.type}"
    # Of several that are refused for like reasons, the one that is tried first tells enough.
    told = next(filter(None, (offer.refusal_of(op) for offer in fitting)), "")
    return f"{op.type}: {told or 'an op that decides with it cannot take it'}"


__all__ = ["FormatLine", "survey"]
