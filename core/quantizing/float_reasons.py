"""Why an op runs in float."""

from __future__ import annotations

from collections.abc import Mapping

from octavo.core.contract.adapter import Opened
from octavo.core.errors import PluginError
from octavo.core.values.graph import Op
from octavo.core.values.recipe import Recipe


def why_fixed(op: Op, opened: Opened) -> str:
    """Return why an op stays float whatever the recipe."""
    if op.out_of_reach:
        return op.out_of_reach
    offers = opened.capability.offers.get(op.type, ())
    if not offers:
        return f"{opened.name} has no low-precision kernel for {op.type}"
    if len(opened.capability.for_op(op)) > 1:
        return "kept in float by the rules, or by an op that decides with it"
    asked = (offer.refuses(op) for offer in offers if offer.refuses is not None)
    refusals = dict.fromkeys(filter(None, asked))
    if refusals:
        return "; ".join(refusals)
    return f"{opened.name} only simulates schemes for {op.type} (simulated = true admits them)"


def why_float(op: Op, opened: Opened) -> str:
    """Return why an op runs in float whose line of the ledger does not say so."""
    if not op.out_of_reach and len(opened.capability.for_op(op)) > 1:
        return "the recipe keeps it in float"
    return why_fixed(op, opened)


def why_neighbours_refuse(opened: Opened, recipe: Recipe) -> dict[str, str]:
    """Return op -> why it runs in float though a recipe quantizes it: its neighbours' schemes.

    What is refused may refuse others in its turn: the backend is asked again, of the recipe without
    them, until nothing more is.

    Raises:
        PluginError: If the backend's answer is no mapping of ops to reasons.
    """
    found: dict[str, str] = {}
    left = recipe
    while refused := _refused(opened, left):
        found.update(refused)
        left = recipe.without(found)
    return found


def _refused(opened: Opened, recipe: Recipe) -> dict[str, str]:
    if not len(recipe):
        return {}
    told = opened.session.outcome(recipe)
    if not isinstance(told, Mapping):
        raise PluginError(
            f"{opened.name}: outcome() must return a mapping of ops to reasons, "
            f"not {type(told).__name__}"
        )
    for name, why in told.items():
        is_known = name in opened.view.by_name
        if not is_known or not isinstance(why, str) or not why:
            raise PluginError(
                f"{opened.name}: outcome() says {why!r} of {name!r}; it must give a reason in "
                "words, of an op of this model"
            )
    # Of ops that stay float anyway there is nothing to refuse.
    return {name: told[name] for name in recipe if name in told}
