"""What a plugin hands over: a description of a part, not the part."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar

from pydantic import model_validator

from octavo.core.errors import MissingFramework, PluginError
from octavo.core.values.settings import Checked

T = TypeVar("T")


class PartConfig(Checked):
    """Base of every part's settings.

    Each subclass adds ``kind: Literal["its-name"] = "its-name"``.

    Raises:
        ConfigError: If a setting is unknown or malformed.
    """

    unsaved: ClassVar[frozenset[str]] = frozenset()
    """Settings that a saved result neither keeps nor may set when it is loaded: a file must not
    grant itself trust."""

    kind: str

    def to_save(self) -> dict[str, Any]:
        """Return the settings that a saved result keeps, JSON-ready."""
        return self.model_dump(mode="json", exclude=set(self.unsaved))

    @model_validator(mode="after")
    def _counts_fit_a_machine(self) -> Self:
        for name, value in self:
            if isinstance(value, int) and not -(2**63) <= value < 2**63:
                raise ValueError(
                    f"{name} is larger than any count that a machine holds"
                )
        return self


@dataclass(frozen=True, slots=True)
class Part(Generic[T]):
    """One thing a plugin offers.

    Attributes:
        name: What configs call it.
        target: ``module:attribute``, so that listing parts imports no framework.
        config: Its settings.
        summary: One line for ``octavo plugins``.
        hint: How to install what it needs.
        needs: What an algorithm or transform asks of calibration: ``gram``, ``channel_range``,
            ``gradients``, ...
        format: Of a method that is named in a scheme (``int8-static+smoothquant``): the format that
            its bare name stands for; empty where a format must be written before it.
        modes: The modes of schemes that it makes sense in (``static``, ``weight_only``); empty for
            all that its family fits.
        brings: The calibrator that its paper pairs it with: a scheme that names the method takes
            it, where no other calibrator is named and ranges are found in calibration.
        rounds: Of a weight algorithm: a regular expression of the dtypes that it can round
            (``u?int.*``); empty for all.
        refines: A weight algorithm that can go on from what another one made
            (:attr:`~octavo.core.contract.algorithm.WeightContext.start`).
    """

    name: str
    target: str
    config: type[PartConfig]
    summary: str
    hint: str = ""
    needs: frozenset[str] = frozenset()
    format: str = ""
    modes: frozenset[str] = frozenset()
    brings: str = ""
    refines: bool = False
    rounds: str = ""

    def can_round(self, dtype: str) -> bool:
        """Return whether a weight algorithm can round to a dtype, or to a word for one (int4)."""
        return not self.rounds or re.fullmatch(self.rounds, dtype) is not None

    def load(self) -> Callable[..., T]:
        """Import the target.

        Raises:
            MissingFramework: If an import fails; the message holds the install hint.
            PluginError: If the module has no such attribute.
        """
        module, _, attribute = self.target.partition(":")
        try:
            loaded = import_module(module)
        except ImportError as error:
            raise MissingFramework(
                f"{self.name!r} cannot be loaded: {error}. {self.hint}".strip()
            ) from error
        try:
            found: Callable[..., T] = getattr(loaded, attribute)
        except AttributeError as error:
            raise PluginError(
                f"{self.name!r} points to {self.target!r}, but {module} has no {attribute!r}; "
                "correct the card's target"
            ) from error
        return found

    def build(
        self, settings: PartConfig | None = None, *arguments: Any, **named: Any
    ) -> T:
        """Load the target and call it.

        Args:
            settings: The target's first argument; None for the defaults of :attr:`config`.
            *arguments: What else it takes (a strategy its problem).
            **named: The same by name.

        Raises:
            MissingFramework: If an import fails.
            PluginError: If the module has no such attribute.
        """
        if settings is None:
            settings = self.config.model_validate({"kind": self.name})
        return self.load()(settings, *arguments, **named)


@dataclass(frozen=True, slots=True)
class AdapterPart(Part[T]):
    """An adapter also says which models are its own, without importing anything.

    Attributes:
        models: Class paths (``torch.nn.modules.module.Module``) of native models, each in the
            module that defines the class; any base class counts.
        suffixes: File suffixes it opens (``.onnx``). Two backends may take one suffix or class:
            the user names one, else the plugin that is loaded first opens it, and that is told.
        accepts: Interchange formats it opens, another adapter's ``export`` or a user's own file
            (``onnx``: a path that ends in ``.onnx``).
        files: What belongs to a model's file beside it, as glob patterns in its folder: ``{name}``
            is the file's name and ``{stem}`` the same without suffix (``{stem}.bin``). With it a
            model that cannot fit in memory is refused before it is read. Of a folder, all does.
        holds: Names of files; a folder that holds one of them is a model of this adapter.
    """

    models: tuple[str, ...] = field(default=())
    suffixes: tuple[str, ...] = field(default=())
    accepts: tuple[str, ...] = field(default=())
    files: tuple[str, ...] = field(default=())
    holds: tuple[str, ...] = field(default=())

    def claims(self, model: object) -> bool:
        """True for an instance of one of :attr:`models`, a path with one of :attr:`suffixes`, or a
        folder with one of the files of :attr:`holds`."""
        is_path = isinstance(model, str) or hasattr(model, "__fspath__")
        if is_path:
            path = str(model)
            is_folder = any(Path(path, name).is_file() for name in self.holds)
            return is_folder or path.endswith(self.suffixes)
        bases = {
            f"{base.__module__}.{base.__qualname__}" for base in type(model).__mro__
        }
        return not bases.isdisjoint(self.models)
