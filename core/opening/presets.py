"""Named schemes: a recipe for the whole model without a search."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from octavo.core.contract.adapter import Opened
from octavo.core.errors import ConfigError, SchemeError, nearest
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import OpScheme
from octavo.core.values.space import TuningSpace


def _is(mode: str, *dtypes: str) -> Callable[[OpScheme], bool]:
    """Return a test of a scheme: of that mode, and its codes of one of those dtypes."""

    def check(scheme: OpScheme) -> bool:
        # A scheme without a weight (of an op that has none) is told by its input.
        spec = scheme.weight or scheme.input
        return scheme.mode == mode and spec is not None and spec.dtype in dtypes

    return check


PRESETS: Mapping[str, Callable[[OpScheme], bool]] = MappingProxyType(
    {
        "int8-static": _is("static", "int8", "uint8"),
        "int8-dynamic": _is("dynamic", "int8", "uint8"),
        "int8-weight-only": _is("weight_only", "int8", "uint8"),
        "int4-weight-only": _is("weight_only", "int4", "uint4"),
        "int3-weight-only": _is("weight_only", "int3", "uint3"),
        "int2-weight-only": _is("weight_only", "int2", "uint2"),
        "nf4-weight-only": _is("weight_only", "nf4"),
        "fp8-weight-only": _is("weight_only", "fp8_e4m3fn"),
        "fp8-dynamic": _is("dynamic", "fp8_e4m3fn"),
        "bfloat16": _is("cast", "bfloat16"),
        "float16": _is("cast", "float16"),
    }
)
"""Name -> which scheme of an op's choices it takes: the first that fits.

An embedding's 8 bits are always weight-only.
"""


def preset_recipe(name: str, space: TuningSpace, opened: Opened) -> Recipe:
    """Return the recipe of a named scheme: each op takes its first fitting choice, else float.

    Raises:
        ConfigError: If the name is unknown.
        SchemeError: If the backend can carry it out for no op of the model.
    """
    if name not in PRESETS:
        raise ConfigError(f"no scheme called {name!r}{nearest(name, PRESETS)}")
    fits = PRESETS[name]
    chosen = {}
    for unit in space.tunable:
        fitting = [s for s in unit.choices if fits(s)]
        if unit.type == "embedding" and name.startswith("int8-"):
            # A table has no activation to quantize: its 8 bits are weight-only.
            fitting += [s for s in unit.choices if PRESETS["int8-weight-only"](s)]
        if fitting:
            chosen[unit.name] = fitting[0]
    if not chosen:
        raise SchemeError(
            f"{opened.name} can carry out {name!r} for no op of this model. "
            f"It can: {_offered(space, opened)}"
        )
    return space.recipe(chosen)


def _offered(space: TuningSpace, opened: Opened) -> str:
    """Say what a model's ops can take instead, and what was noted of the model."""
    offered = sorted({str(s) for u in space.tunable for s in u.choices})
    noted = "".join(f". Note: {note}" for note in opened.view.notes)
    return f"{'; '.join(offered) or 'nothing here'}{noted}"
