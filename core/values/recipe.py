"""A recipe: one point of the tuning space, as a value."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import Any

from octavo.core.errors import ConfigError, said

from .json_form import canonical_json
from .scheme import FLOAT, OpScheme, PartChoice, QuantSpec, in_order


@dataclass(frozen=True, eq=False)
class Recipe:
    """Which scheme each op gets, and which model-wide transforms run first.

    Ops that are not named stay float. Equal recipes have equal digests, and the digest is their
    hash.

    Attributes:
        schemes: Op name -> scheme. Float entries are dropped, so that "not named" and "float" are
            one recipe.
        transforms: Model-wide, function-preserving rescalings, in order (``smoothquant``, ...).
        backend: The adapter that carries it out: ``onnx``; with settings behind it where a search
            tells several of them apart: ``onnx(threads=1)``.
        recovery: What is learned from data after quantization, in order (``reconstruction``,
            ``distillation``, ``qat``; see :mod:`octavo.core.contract.recovery`). Left out of JSON
            and of the digest where it is empty.
    """

    schemes: Mapping[str, OpScheme] = field(default_factory=dict)
    transforms: tuple[PartChoice, ...] = ()
    backend: str = ""
    recovery: tuple[PartChoice, ...] = ()

    def __post_init__(self) -> None:
        in_order = sorted(self.schemes.items(), key=lambda item: item[0])
        kept = {name: scheme for name, scheme in in_order if not scheme.is_float}
        object.__setattr__(self, "schemes", MappingProxyType(kept))

    def __getitem__(self, op: str) -> OpScheme:
        return self.schemes.get(op, FLOAT)

    def __iter__(self) -> Iterator[str]:
        return iter(self.schemes)

    def __len__(self) -> int:
        return len(self.schemes)

    def __repr__(self) -> str:
        modes = Counter(scheme.mode for scheme in self.schemes.values())
        told = ", ".join(f"{count} {mode}" for mode, count in modes.most_common())
        transforms = f", {in_order(self.transforms)}" if self.transforms else ""
        learned = "".join(f", then {step}" for step in self.recovery)
        on = f" on {self.backend}" if self.backend else ""
        what = f"{told or 'float throughout'}{transforms}{learned}{on}"
        return f"Recipe({what}, {self.digest})"

    def __reduce__(self) -> tuple[Any, ...]:
        given = (dict(self.schemes), self.transforms, self.backend, self.recovery)
        return (Recipe, given)

    @property
    def adapter(self) -> str:
        """Name of the adapter, whatever its settings."""
        return adapter_of(self.backend)

    @cached_property
    def digest(self) -> str:
        """Content digest, 16 hex digits."""
        return hashlib.sha256(canonical_json(self.to_json()).encode()).hexdigest()[:16]

    def __hash__(self) -> int:
        return hash(self.digest)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Recipe) and self.digest == other.digest

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping. Ops with one scheme share one entry, so that recipes stay
        short."""
        table: dict[str, dict[str, Any]] = {}
        ops: dict[str, str] = {}
        for name, scheme in self.schemes.items():
            label = _label(scheme)
            if label not in table:
                table[label] = scheme.model_dump(exclude_defaults=True)
            ops[name] = label
        learned = [step.model_dump() for step in self.recovery]
        return {
            "backend": self.backend,
            "transforms": [t.model_dump() for t in self.transforms],
            # Recipes of before there was recovery keep their digests.
            **({"recovery": learned} if learned else {}),
            "schemes": table,
            "ops": ops,
        }

    def recovered(self, *steps: PartChoice) -> Recipe:
        """Return the same recipe with steps of recovery after those that it has.

        Args:
            *steps: In order.
        """
        recovery = (*self.recovery, *steps)
        return Recipe(self.schemes, self.transforms, self.backend, recovery)

    def without(self, ops: Container[str]) -> Recipe:
        """Return the same recipe with some ops in float."""
        left = {name: s for name, s in self.schemes.items() if name not in ops}
        if len(left) == len(self.schemes):
            return self
        return Recipe(left, self.transforms, self.backend, self.recovery)

    @cached_property
    def unrecovered(self) -> Recipe:
        """The same recipe without recovery: what post-training quantization makes of it."""
        if not self.recovery:
            return self
        return Recipe(self.schemes, self.transforms, self.backend)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Recipe:
        """Read what :meth:`to_json` wrote.

        Raises:
            ConfigError: If a field is missing or malformed.
        """
        try:
            table = {
                label: OpScheme.model_validate(s) for label, s in raw["schemes"].items()
            }
            schemes = {name: table[label] for name, label in raw["ops"].items()}
            transforms = tuple(
                PartChoice.model_validate(t) for t in raw.get("transforms", ())
            )
            backend = raw.get("backend", "")
            if not isinstance(backend, str):
                raise TypeError(f"a backend has a name, not {backend!r}")
            recovery = tuple(
                PartChoice.model_validate(step) for step in raw.get("recovery", ())
            )
            return cls(schemes, transforms, backend, recovery)
        except Exception as error:  # missing keys, and values of any other type
            raise ConfigError(
                f"not a recipe: {said(error)}; a recipe has backend, transforms, schemes and ops, "
                "as Recipe.to_json() writes them"
            ) from error


def adapter_of(backend: str) -> str:
    """Return the name of a backend's adapter: what stands before its settings."""
    return backend.partition("(")[0]


_LABELS: dict[OpScheme, str] = {}


def _label(scheme: OpScheme) -> str:
    # Computed for every op of every recipe; schemes are few, so their labels are kept.
    label = _LABELS.get(scheme)
    if label is None:
        content = canonical_json(scheme.model_dump())
        tail = hashlib.sha256(content.encode()).hexdigest()[:6]
        label = f"{_without_scale_dtypes(scheme)} #{tail}"
        _LABELS[scheme] = label
    return label


def _without_scale_dtypes(scheme: OpScheme) -> OpScheme:
    """Return a scheme as labels have always told it: a spec's text once left the dtype of its
    scales out, and a recipe's digest is made of its labels."""
    told = {}
    for name in ("weight", "input", "output"):
        spec: QuantSpec | None = getattr(scheme, name)
        if spec is not None and spec.scale_dtype is not None:
            told[name] = spec.model_copy(update={"scale_dtype": None})
    return scheme.variant(**told) if told else scheme
