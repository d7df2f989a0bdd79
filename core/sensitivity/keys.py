"""What scores are kept by: a kind, a name, and the settings that it was asked under."""

from __future__ import annotations

from octavo.core.values.json_form import canonical_json
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import OpScheme, PartChoice


def key_of(
    kind: str, name: str, scheme: OpScheme | None, transforms: tuple[PartChoice, ...]
) -> str:
    """Return the key of one score; without a scheme, that of what all schemes share."""
    scheme_fields = None
    if scheme is not None:
        scheme_fields = scheme.model_dump(exclude_defaults=True)
    transform_fields = [transform.model_dump() for transform in transforms]
    settings = canonical_json([scheme_fields, transform_fields])
    return f"{kind} {name} {settings}"


def recipe_key(metric: str, recipe: Recipe) -> str:
    """Return the key of a whole recipe's distance, as outputs are compared by one metric."""
    return f"recipe/{metric} {recipe.digest}"
