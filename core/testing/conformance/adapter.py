"""Whether an adapter keeps its promises: a class of tests over one case, from one per promise."""

from __future__ import annotations

import numpy as np
import pytest

from octavo.core.authoring.reference import KNOWN
from octavo.core.contract.adapter import Opened
from octavo.core.opening.spaces import build_space
from octavo.core.quantizing.realize import Realizer
from octavo.core.values.space import TuningSpace

from .calling import Calling
from .carrying_out import CarryingOut
from .case import AdapterCase as AdapterCase
from .case import outputs
from .computing import Computing
from .deciding import Deciding
from .declaring import Declaring
from .describing import Describing
from .gradients import Gradients
from .observing import Observing
from .opening import Opening
from .rescaling import Rescales
from .saving import Saving
from .visible import Bench, Visible, bench_of, visible_ops
from .witnessing import Witnessing


class AdapterConformance(
    Describing,
    Opening,
    Declaring,
    Observing,
    Calling,
    CarryingOut,
    Computing,
    Deciding,
    Witnessing,
    Saving,
    Rescales,
    Gradients,
):
    """Subclass it and give the fixture ``case``."""

    @pytest.fixture(scope="class")
    @classmethod
    def case(cls) -> AdapterCase:
        """Return the case under test."""
        raise NotImplementedError(
            "a subclass of AdapterConformance gives the fixture `case`"
        )

    @pytest.fixture(scope="class")
    @classmethod
    def opened(cls, case: AdapterCase) -> Opened:
        """The opened model."""
        return case.open()

    @pytest.fixture(scope="class")
    @classmethod
    def space(cls, opened: Opened) -> TuningSpace:
        """Everything that the adapter offers, simulated schemes included."""
        return build_space(opened, simulated=True)

    @pytest.fixture(scope="class")
    @classmethod
    def realizer(
        cls, case: AdapterCase, opened: Opened, space: TuningSpace
    ) -> Realizer:
        """A calibrated realizer over that space."""
        return case.realizer(opened, space)

    @pytest.fixture(scope="class")
    @classmethod
    def expected(cls, case: AdapterCase, opened: Opened) -> list[np.ndarray]:
        """The float model's outputs."""
        return outputs(opened.session.reference(), case.batches)

    @pytest.fixture(scope="class")
    @classmethod
    def bench(
        cls,
        case: AdapterCase,
        opened: Opened,
        space: TuningSpace,
        realizer: Realizer,
    ) -> Bench:
        """The case with all that is made of it."""
        return Bench(case, opened, space, realizer)

    @pytest.fixture(scope="class")
    @classmethod
    def seen_ops(cls, case: AdapterCase, bench: Bench) -> list[Visible]:
        """The case's ops whose result can be seen, and models of one op of each type."""
        found = list(visible_ops(bench))
        for kind in bench.space.types:
            one = case.of_one_op(kind) if kind in KNOWN else None
            if one is not None:
                found += visible_ops(bench_of(one))
        return found
