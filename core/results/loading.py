"""A saved result, read again: its manifest, and its model on the backend that made it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ConfigDict, Field

from octavo.core.contract.adapter import Candidate
from octavo.core.errors import (
    ConfigError,
    DeviceError,
    ModelError,
    OctavoError,
    raised_as,
)
from octavo.core.scoring.evaluation import ArrayModel
from octavo.core.system.textfiles import absolute, read_table
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import Frozen
from octavo.core.values.settings import checked

from .saving import FORMAT, MANIFEST, MODEL

if TYPE_CHECKING:
    from octavo.core.contract.plugins import PluginHost

_AGAIN = "save the result again"


class _Head(Frozen):
    """What every manifest holds; that of a run holds more."""

    model_config = ConfigDict(extra="ignore")

    format: int
    octavo: str
    backend: str
    recipe: dict[str, Any]
    made: str
    environment: dict[str, str]
    backend_settings: dict[str, Any] = Field(default_factory=dict)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read a saved result's manifest.

    Raises:
        ConfigError: If the folder holds none, or a newer octavo wrote it.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise ConfigError(
            f"{folder} holds no {MANIFEST}; give a folder that result.save() wrote"
        )
    manifest = read_table(path, remedy=_AGAIN)
    head = checked(_Head, manifest, f"{path} is damaged, {_AGAIN}")
    if head.format > FORMAT:
        raise ConfigError(
            f"{path} was written by a newer octavo (format {head.format}, "
            f"this one reads {FORMAT}); upgrade octavo"
        )
    return manifest


def load_candidate(
    folder: str | Path,
    model: Any = None,
    *,
    backend: Mapping[str, Any] | None = None,
    host: PluginHost | None = None,
) -> Candidate:
    """Load a saved result as its backend's candidate.

    Args:
        folder: What ``save`` wrote; or the model's own file where it is one (``.onnx``).
        model: The float model (or a factory of one) for backends whose files do not hold the
            architecture (torch).
        backend: Settings of its backend (``threads``, ``device``, ``providers``, ...) in place of
            those that it was saved with.
        host: Plugins; None loads the default ones.

    Raises:
        ConfigError: If the folder is no result, or its backend has no such setting.
        DeviceError: If it was made on a device that is not here; ``backend={"device": ...}`` names
            another.
        UnknownPart: If its backend is not loaded; MissingFramework if it is not installed.
    """
    from octavo.core.contract.plugins import PluginHost

    folder = absolute(folder, "a saved result")
    host = host or PluginHost()
    recorded: Mapping[str, Any] = {}
    made_by: Recipe | None = None
    if folder.is_file():
        name, place = _backend_of_file(folder, host), folder
    else:
        manifest = read_manifest(folder)
        name, place = manifest["backend"], folder / MODEL
        with raised_as(ConfigError, f"{folder / MANIFEST} is damaged", _AGAIN):
            recorded = _recorded(manifest)
            made_by = Recipe.from_json(manifest["recipe"])
    card = host.part("adapters", name)
    # A result of another version may hold settings that this one does not have.
    known = card.config.model_fields.keys() - card.config.unsaved
    kept = {k: v for k, v in recorded.items() if k in known}
    adapter = card.build(
        host.read("adapters", {**kept, **(backend or {}), "kind": name})
    )
    elsewhere = f"or load it elsewhere: octavo.load({str(folder)!r}, backend={{'device': 'cpu'}})"
    damaged = f"{folder} is damaged, or does not belong to the given model"
    with with_remedy(DeviceError, elsewhere), raised_as(ModelError, damaged, _AGAIN):
        candidate: Candidate = adapter.load(place, model)
    if made_by is not None and made_by.unrecovered == candidate.recipe:
        # The model's own file does not say what was learned.
        return candidate.with_ledger(candidate.ledger, made_by)
    return candidate


def load_model(
    folder: str | Path,
    model: Any = None,
    *,
    backend: Mapping[str, Any] | None = None,
    arrays: bool | None = None,
    host: PluginHost | None = None,
) -> Any:
    """Load a saved result as the kind of object that its :attr:`Quantized.model` was.

    Args:
        folder: As for :func:`load_candidate`, which says what is raised.
        model: Likewise.
        backend: Likewise.
        arrays: Whether it takes and returns arrays whatever the backend
            (:class:`~octavo.ArrayModel`), or is the backend's own model; None does as the run did:
            arrays after a search over several backends.
        host: Plugins.
    """
    candidate = load_candidate(folder, model, backend=backend, host=host)
    place = absolute(folder, "a saved result")
    if arrays is None and place.is_dir():
        # Older results do not say it, and were loaded as the backend's own model.
        arrays = bool(read_manifest(place).get("arrays", False))
    return ArrayModel(candidate) if arrays else candidate.native


def _backend_of_file(path: Path, host: PluginHost) -> str:
    """Return the first backend that loads a file by itself.

    Raises:
        ConfigError: If there is none.
    """
    for card in host.adapters().values():
        if card.claims(path):
            return card.name
    raise ConfigError(
        f"no backend loads a file called {path.name}; give the folder that result.save() wrote"
    )


def _recorded(manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the backend's settings that a result was made with.

    Older ones keep them in the run's configuration only.
    """
    if "backend_settings" in manifest:
        return dict(manifest["backend_settings"])
    for asked in manifest.get("config", {}).get("backends") or ():
        if isinstance(asked, Mapping) and asked.get("kind") == manifest["backend"]:
            return asked
    return {}


@contextmanager
def with_remedy(family: type[OctavoError], remedy: str) -> Iterator[None]:
    """Add a way out to errors of a family."""
    try:
        yield
    except family as error:
        raise type(error)(f"{error}; {remedy}") from error
