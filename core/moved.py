"""Where modules were before they had rooms: the import paths that earlier documentation names keep
working.

New code imports from :mod:`octavo.plugin`, or from a module's own room.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

_CORE = "octavo.core."

ROOMS = {
    "adapter": "contract.adapter",
    "algorithms": "quantizing.algorithms",
    "algorithms.base": "contract.algorithm",
    "batches": "calibration.batches",
    "calibrators": "calibration.calibrators",
    "calibrators.base": "contract.calibrator",
    "calls": "values.calls",
    "capability": "values.capability",
    "channels": "numerics.channels",
    "config": "opening.config",
    "conformance": "testing.conformance",
    "criteria": "scoring.criteria",
    "criteria.base": "contract.criterion",
    "evaluation": "scoring.evaluation",
    "graph": "values.graph",
    "hookspecs": "contract.hookspecs",
    "objectives": "scoring.objectives",
    "objectives.base": "contract.objective",
    "parts": "contract.parts",
    "plugins": "contract.plugins",
    "recipe": "values.recipe",
    "result": "results.result",
    "run": "tuning.run",
    "scheme": "values.scheme",
    "simulator": "testing.simulator",
    "space": "values.space",
    "statistics": "calibration.statistics",
    "strategy": "contract.strategy",
    "transforms": "quantizing.transforms",
    "trial": "values.trial",
}
"""Earlier path -> today's, both below ``octavo.core``."""


class _Alias(Loader):
    """Gives out a module of another name: both names are one module, so its classes are
    the same."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._spec: ModuleSpec | None = None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return the module itself."""
        __import__(self._target)
        module = sys.modules[self._target]
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Run nothing: the module has run under its own name."""
        # The import system has just given the module the alias's spec; it is known by its own.
        module.__spec__ = self._spec


def room(name: str) -> str:
    """Return today's path of a module below ``octavo.core`` that is asked for by an earlier one; ''
    if it never moved."""
    inside = ""
    path = name
    while path not in ROOMS:
        path, _, last = path.rpartition(".")
        if not path:
            return ""
        inside = f".{last}{inside}"
    return ROOMS[path] + inside


class _Moved(MetaPathFinder):
    """Finds modules by their earlier paths."""

    def find_spec(
        self,
        name: str,
        path: Sequence[str] | None = None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        """Return the alias of a module that moved, else None: the other finders look for it."""
        if not name.startswith(_CORE):
            return None
        today = room(name.removeprefix(_CORE))
        found = find_spec(_CORE + today) if today else None
        if found is None:
            return None
        is_package = found.submodule_search_locations is not None
        return ModuleSpec(name, _Alias(_CORE + today), is_package=is_package)


def keep_earlier_paths() -> None:
    """Make the earlier paths importable; asked again, it changes nothing.

    The finder goes first: behind the others, a module inside a package that moved would be found in
    the package's folder and run a second time, under the earlier name.
    """
    if not any(isinstance(finder, _Moved) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Moved())
