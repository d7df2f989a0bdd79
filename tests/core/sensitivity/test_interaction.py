"""How losses of units meet in a whole recipe, and which of two changes hurts predictions more."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from octavo.core.contract.output_metric import OutputMetric
from octavo.core.sensitivity.interaction import Around, interaction
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import FLOAT, OpScheme, PartChoice, QuantSpec
from octavo.core.values.space import TuningSpace, Unit

W4 = OpScheme(mode="weight_only", weight=QuantSpec(dtype="int4"))
W8 = OpScheme(mode="weight_only", weight=QuantSpec(dtype="int8"))
SPACE = TuningSpace(
    "numpy", tuple(Unit(n, "linear", (n,), (W4, W8, FLOAT)) for n in "abc")
)
LOSSES = {W4: 4.0, W8: 1.0, FLOAT: 0.0}


class Coupled:
    """Losses add up, but that a and b together cost three times their sum."""

    def distances(self, recipes: Sequence[Recipe]) -> Sequence[float]:
        found = []
        for recipe in recipes:
            losses = {name: LOSSES[recipe[name]] for name in "abc"}
            both = losses["a"] + losses["b"] if losses["a"] * losses["b"] else 0.0
            found.append(sum(losses.values()) + 2 * both)
        return found

    def under(self, transforms: tuple[PartChoice, ...]):
        def ask(kind: str, pairs: Sequence[tuple[str, OpScheme]]) -> list[float]:
            assert kind == "auto"
            return [LOSSES[scheme] for _, scheme in pairs]

        return ask


def test_interaction_is_the_whole_over_the_sum_of_the_parts() -> None:
    service = Coupled()
    apart = Recipe({"a": W4, "c": W8}, (), "numpy")
    together = Recipe({"a": W4, "b": W8}, (), "numpy")
    assert interaction(service, SPACE, apart) == 1.0
    assert interaction(service, SPACE, together) == 3.0
    assert interaction(service, SPACE, Recipe({}, (), "numpy")) == 1.0


def test_losses_around_a_recipe_are_its_changes() -> None:
    around = Around(Coupled(), SPACE, Recipe({"a": W4, "b": W8}, (), "numpy"))
    asked = [("a", W4), ("a", W8), ("b", W8), ("c", W4), ("c", FLOAT)]
    # 15 with both; 1 without a; 4 without b; c adds what it is.
    assert around("auto", asked) == [14.0, 5.0, 11.0, 4.0, 0.0]


@pytest.mark.parametrize("seed", range(3))
def test_the_fisher_metric_ranks_what_the_plain_distance_ranks_wrongly(seed) -> None:
    random = np.random.default_rng(seed)
    # Two columns hold nearly all probability; the other ten none.
    own = np.concatenate(
        [random.normal(0, 1, (64, 2)), random.normal(-12, 1, (64, 10))], axis=1
    ).astype(np.float32)
    loud, quiet = own.copy(), own.copy()
    loud[:, 2:] += random.normal(0, 1, (64, 10)).astype(np.float32)
    quiet[:, 0] += 0.2
    shifted = own + random.normal(0, 3, (64, 1)).astype(np.float32)
    by = OutputMetric(("kl",), (None,), (1,), (64.0,), ())
    assert np.square(loud - own).sum() > 10 * np.square(quiet - own).sum()
    assert by.losses(0, loud, own, 0) < by.losses(0, quiet, own, 0) / 10
    # What all columns share is seen by no softmax.
    assert by.losses(0, shifted, own, 0) < 1e-6
