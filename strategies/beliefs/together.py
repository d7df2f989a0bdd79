"""Whether the losses of units add up in a whole recipe, and what follows where they do not."""

from __future__ import annotations

import logging
import math

from octavo.core.contract.strategy import Problem, RecipeSensitivity
from octavo.core.system.log import remark

from .allocation import Allocation
from .limits import Limits

ADDS_UP = 0.2
"""Share by which a whole recipe may differ from the sum of its parts: on a small Llama the sum was
within 4 %."""


def checked_together(
    problem: Problem, service: RecipeSensitivity, taken: Allocation, limits: Limits
) -> Allocation:
    """Return the allocation, or one of losses taken again around its solution.

    Where the solution, measured as a whole, differs from the sum of its units' losses by more than
    :data:`ADDS_UP`, the losses are taken again as changes of it, and the new solution is kept if
    its outputs are nearer to the float model's. Where that takes longer than it is worth, it is
    told and left.

    Args:
        problem: Says what sensitivities are worth.
        service: Measures whole recipes.
        taken: Losses of units by themselves.
        limits: What the solution keeps.
    """
    recipe = taken.recipe(taken.least(limits))
    # Only the preferred kind's losses are in the unit of whole recipes' distances.
    if not len(recipe) or taken.kind not in ("auto", service.preferred):
        return taken
    ratio = service.interaction(recipe)
    if not math.isfinite(ratio) or abs(ratio - 1.0) <= ADDS_UP:
        return taken
    told = f"the recipe within the budget loses {ratio:.2g} times the sum of its parts"
    price = taken.price_around(service)
    worth = problem.worth()
    if worth is not None and price > worth:
        remark(
            f"{told}; to take sensitivities again around it is not worth {price} runs of a batch",
            "tuning",
            logging.INFO,
        )
        return taken
    remark(
        f"{told}: sensitivities are taken again around it ({price} runs of a batch)",
        "tuning",
        logging.INFO,
    )
    again = taken.around(service, recipe)
    changed = again.recipe(again.least(limits))
    if changed.digest == recipe.digest:
        return taken
    before, after = service.distances([recipe, changed])
    return again if after < before else taken
