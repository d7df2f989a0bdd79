"""Named schemes: a recipe for the whole model without a search."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from octavo.core.contract.adapter import Opened
from octavo.core.contract.plugins import PluginHost
from octavo.core.errors import SchemeError
from octavo.core.system.log import remark
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import OpScheme
from octavo.core.values.space import TuningSpace

from .grammar.formats import format_of
from .grammar.named import NamedScheme, read_named
from .repairs import choice_that_runs, repairs_in


def preset_recipe(
    scheme: str | NamedScheme,
    space: TuningSpace,
    opened: Opened,
    host: PluginHost | None = None,
) -> Recipe:
    """Return the recipe of a named scheme: each op takes its first fitting choice, else float.

    Args:
        scheme: ``format[+method...]``, or what was read of it.
        space: Says what each op may take.
        opened: The model on its backend.
        host: Knows the methods; None takes those that are installed.

    Raises:
        ConfigError: If the text names nothing, or contradicts itself.
        SchemeError: If the backend can carry it out for no op of the model, or lacks what a
            transform of it needs.
    """
    if isinstance(scheme, str):
        scheme = read_named(scheme, host or PluginHost())
    chosen = {}
    unrepaired = ""
    for unit in space.tunable:
        fitting = scheme.choices(unit.type, unit.choices)
        if fitting:
            chosen[unit.name], why = choice_that_runs(opened, unit, fitting[0])
            unrepaired = unrepaired or why
    if unrepaired and not repairs_in(chosen.values()):
        raise SchemeError(
            f"scheme {str(scheme)!r}: {unrepaired}, and no op of this model takes one; leave "
            "low-rank out, or take a weight-only format"
        )
    if unrepaired:
        remark(f"{unrepaired}: quantized without", "quantizing")
    if scheme.format.mode != "float" and not _is_carried_out(chosen, space):
        raise SchemeError(_why_none(scheme, space, opened))
    made = space.recipe(chosen, scheme.transforms)
    return made.recovered(*scheme.recovery)


def _is_carried_out(chosen: Mapping[str, OpScheme], space: TuningSpace) -> bool:
    """Return whether any op takes a scheme: tables alone, which take the stored form of any integer
    format, are the scheme only of a model that has nothing else."""
    products = {unit.name for unit in space.tunable if unit.type != "embedding"}
    return not products.isdisjoint(chosen) if products else bool(chosen)


def _why_none(scheme: NamedScheme, space: TuningSpace, opened: Opened) -> str:
    """Say that no op of a model takes a scheme, and what its ops can take instead."""
    schemes = [s for unit in space.tunable for s in unit.choices]
    names = dict.fromkeys(format_of(s) for s in schemes if not s.is_float)
    formats = ", ".join(names)
    noted = "".join(f". Note: {note}" for note in opened.view.notes)
    return (
        f"{opened.name} can carry out {str(scheme)!r} for no op of this model"
        f"{_same_format(scheme, schemes)}{_simulated(scheme, opened)}. "
        f"It can: {formats or 'nothing here'}{noted}"
    )


def _same_format(scheme: NamedScheme, schemes: Iterable[OpScheme]) -> str:
    """Return what there is of a format whose options are what is missing."""
    name = scheme.format.name.partition("(")[0]
    alike = sorted({str(s) for s in schemes if format_of(s) == name})
    return f": of {name} there is {'; '.join(alike)}" if alike else ""


def _simulated(scheme: NamedScheme, opened: Opened) -> str:
    """Return what to do where a scheme is offered, but no kernel carries it out."""
    for op in opened.view.ops:
        scales = scheme.format.names_scales
        kernels = opened.capability.for_op(op, scales=scales)
        everything = opened.capability.for_op(op, simulated=True, scales=scales)
        if set(scheme.choices(op.type, everything)) - {
            *scheme.choices(op.type, kernels)
        }:
            rule = f'{{"simulated": True, "rules": [{{"scheme": "{scheme}"}}]}}'
            return (
                ": it has no kernel here and is only simulated, which a configuration with "
                f"simulated = true allows: {rule}, and quantize_model's simulated=True"
            )
    return ""


__all__ = ["preset_recipe"]
