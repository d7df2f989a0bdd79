"""The promise, where an adapter makes it, that other channels compute the same function."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from octavo.core.contract.adapter import Opened
from octavo.core.errors import SchemeError
from octavo.core.numerics.channels import RESCALE_FEATURES, ChannelMap
from octavo.core.values.graph import Group
from octavo.core.values.recipe import Recipe

from .case import AdapterCase, Arrays, check_close_to_largest, like, outputs

ROUNDING = 2e-4
"""Share of the largest output by which a rescaled model may be off: its sums have other terms."""


class Rescales:
    """``Session.rescale``."""

    @pytest.mark.parametrize(
        "carried",
        [("scale",), ("shift",), ("rotation",), ("scale", "shift", "rotation")],
        ids="+".join,
    )
    def test_rescale_keeps_the_function(
        self,
        case: AdapterCase,
        opened: Opened,
        expected: Arrays,
        carried: tuple[str, ...],
        tmp_path: Path,
    ) -> None:
        """Random maps leave the float outputs unchanged, saved and loaded too."""
        groups = [group for group in _groups(opened) if set(carried) <= group.takes]
        if not groups:
            pytest.skip(
                "the adapter offers no rescale, or no group of the model takes "
                f"{', '.join(carried)}"
            )
        rescaled = opened.session.rescale(_random_maps(opened, groups, carried))
        candidate = rescaled.apply(Recipe(backend=opened.name), {})
        candidate.save(tmp_path)
        for model in (candidate, case.adapter().load(tmp_path, case.float_model)):
            check_close_to_largest(outputs(model, case.batches), expected, ROUNDING)

    def test_rescales_follow_each_other(
        self, case: AdapterCase, opened: Opened, expected: Arrays
    ) -> None:
        """A rescaled session can be rescaled again, whatever the first did."""
        groups = _groups(opened)
        if not groups:
            pytest.skip(
                "the adapter offers no rescale, or the model has no group for it"
            )
        session = opened.session
        for kind in ("rotation", "scale", "shift"):
            takers = [group for group in groups if kind in group.takes]
            session = session.rescale(_random_maps(opened, takers, (kind,)))
        names = list(opened.view.by_name)
        # A rescaled model may gain ops of its own.
        assert [op.name for op in session.describe().ops if op.name in names] == names
        candidate = session.apply(Recipe(backend=opened.name), {})
        check_close_to_largest(outputs(candidate, case.batches), expected, ROUNDING)

    def test_what_groups_do_not_take_is_refused(self, opened: Opened) -> None:
        """A shift or rotation is declared, by feature and by group, or it is a SchemeError."""
        for group in _groups(opened):
            declared = {RESCALE_FEATURES[kind] for kind in group.takes}
            assert declared <= opened.capability.features, group.name
            assert group.online <= group.takes, group.name
            for kind in {"shift", "rotation"} - group.takes:
                with pytest.raises(SchemeError):
                    opened.session.rescale(_random_maps(opened, [group], (kind,)))


def _groups(opened: Opened) -> list[Group]:
    """Return the groups that can be rescaled; none where the adapter does not offer it."""
    if "rescale" not in opened.capability.features:
        return []
    return [group for group in opened.view.groups if group.kind == "rescale"]


def _random_maps(
    opened: Opened, groups: Sequence[Group], carried: Sequence[str]
) -> dict[str, ChannelMap]:
    random = np.random.default_rng(0)
    # Maps are arrays of the adapter's own kind.
    weight = next(op.weight for op in opened.view.ops if op.weight)
    native = opened.session.tensor(weight.name)
    maps = {}
    for group in groups:
        scale = random.uniform(0.5, 2.0, group.channels).astype(np.float32)
        shift = random.uniform(0.5, 2.0, group.channels).astype(np.float32) - 1
        maps[group.name] = ChannelMap(
            like(scale, native) if "scale" in carried else None,
            like(shift, native) if "shift" in carried else None,
            0 if "rotation" in carried else None,
        )
    return maps
