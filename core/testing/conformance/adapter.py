"""Whether an adapter keeps its promises."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest

from octavo.core.contract.adapter import Adapter, Batch, Candidate, Opened, Session
from octavo.core.contract.parts import AdapterPart, PartConfig
from octavo.core.contract.plugins import PluginHost
from octavo.core.contract.training import TRAINING, Training
from octavo.core.errors import DataError, SchemeError
from octavo.core.numerics.arrays import to_numpy
from octavo.core.numerics.channels import FEATURES, ChannelMap
from octavo.core.quantizing.realize import Realizer
from octavo.core.tuning.rules import build_space
from octavo.core.values.coverage import difference
from octavo.core.values.graph import Group, Op
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import OpScheme, QuantSpec
from octavo.core.values.space import TuningSpace, Unit


@dataclass(frozen=True)
class AdapterCase:
    """A model that exercises an adapter.

    Attributes:
        card: The adapter's card.
        model: A native model or a path. It must have at least one op that the adapter can quantize.
        batches: Inputs for calibration and for comparing outputs.
        config: The adapter's settings; None for the defaults.
        closeness: Least cosine similarity of quantized and float outputs, for 8 bits and more; an adapter's arithmetic
            is wrong long before it falls below 0.95.
        float_model: What ``Adapter.load`` needs beside the files, if anything.
        smaller: Whether quantizing everything must make the saved files smaller (false for models of a few bytes).
        ops_per_type: How many ops of each type try every offer.
    """

    card: AdapterPart[Any]
    model: Any
    batches: Sequence[Batch]
    config: PartConfig | None = None
    closeness: float = 0.95
    float_model: Any = None
    smaller: bool = True
    ops_per_type: int = 1
    host: PluginHost = field(default_factory=lambda: PluginHost(third_party=False))

    def adapter(self) -> Adapter:
        """Build the adapter."""
        return self.card.build(self.config)  # type: ignore[no-any-return]

    def open(self) -> Opened:
        """Open the model."""
        session = self.adapter().open(self.model, self.batches[0])
        return Opened(self.card.name, session, session.describe(), session.capability())

    def realizer(self, opened: Opened, space: TuningSpace) -> Realizer:
        """Return a calibrated realizer."""
        realizer = Realizer(opened, space, self.host)
        realizer.calibrate(self.batches)
        return realizer


def outputs(candidate: Candidate, batches: Sequence[Batch]) -> list[np.ndarray]:
    """Run every batch and return all outputs, float64."""
    return [
        np.asarray(to_numpy(y), dtype=np.float64) for batch in batches for y in candidate.run(batch)
    ]


def cosine(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> float:
    """Cosine similarity of two lists of arrays, taken as one vector each."""
    x, y = (np.concatenate([v.ravel() for v in vs]) for vs in (a, b))
    return float(x @ y / max(np.linalg.norm(x) * np.linalg.norm(y), 1e-30))


class AdapterConformance:
    """Subclass it and give the fixture ``case``."""

    @pytest.fixture(scope="class")
    @classmethod
    def case(cls) -> AdapterCase:
        """Return the case under test."""
        raise NotImplementedError("a subclass of AdapterConformance gives the fixture `case`")

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
    def realizer(cls, case: AdapterCase, opened: Opened, space: TuningSpace) -> Realizer:
        """A calibrated realizer over that space."""
        return case.realizer(opened, space)

    @pytest.fixture(scope="class")
    @classmethod
    def expected(cls, case: AdapterCase, opened: Opened) -> list[np.ndarray]:
        """The float model's outputs."""
        return outputs(opened.session.reference(), case.batches)

    def test_the_card_claims_the_model(self, case: AdapterCase) -> None:
        """``autotune`` finds the adapter by its card."""
        assert case.card.claims(case.model), (
            f"{case.card.name}: models {case.card.models} and suffixes {case.card.suffixes} do not cover the model"
        )

    def test_describe_is_the_same_every_time(self, case: AdapterCase, opened: Opened) -> None:
        """Names and structure do not depend on the process or on what was opened before."""
        again = case.open()
        assert again.view.digest == opened.view.digest
        assert [op.name for op in again.view.ops] == [op.name for op in opened.view.ops]
        assert again.session.fingerprint() == opened.session.fingerprint()

    def test_something_can_be_quantized(self, space: TuningSpace) -> None:
        """A case without a choice would test nothing."""
        assert space.tunable, "no op of the case's model has a scheme to choose"

    def test_what_features_declare_is_there(self, opened: Opened) -> None:
        """Each declared feature is a method that the backend brings; without one that learns there is no training."""
        session, features = opened.session, opened.capability.features
        for name in ("rescale", "gradients", "export"):
            declared = any(f == name or f.startswith(f"{name}:") for f in features)
            assert not declared or _brings(session, Session, name), f"feature {name!r} is missing"
        learned = sorted(features & TRAINING.keys())
        if not learned:
            with pytest.raises(SchemeError):
                session.training()
            return
        training = session.training()
        for feature in learned:
            for name in TRAINING[feature]:
                assert _brings(training, Training, name), f"feature {feature!r}: no {name}"

    def test_weights_are_what_describe_says(self, opened: Opened) -> None:
        """``tensor`` returns the described shape, with finite values."""
        for op in opened.view.ops:
            for one in op.weights:
                weight = to_numpy(opened.session.tensor(one.name))
                assert tuple(weight.shape) == one.shape, op.name
                assert np.isfinite(weight.astype(np.float64)).all(), op.name

    def test_all_float_is_the_float_model(
        self, case: AdapterCase, opened: Opened, expected: list[np.ndarray]
    ) -> None:
        """An empty recipe changes nothing but rounding (folding may reorder sums)."""
        plain = outputs(opened.session.apply(Recipe(backend=opened.name), {}), case.batches)
        for a, b in zip(plain, expected, strict=True):
            np.testing.assert_allclose(
                a, b, rtol=1e-3, atol=1e-4 * max(1.0, float(np.abs(b).max()))
            )

    def test_observe_reads_the_data_once(self, case: AdapterCase, opened: Opened) -> None:
        """One pass, every batch, every value."""
        taken = 0

        def once() -> Iterator[Batch]:
            nonlocal taken
            for batch in case.batches:
                taken += 1
                yield batch

        values = {v for op in opened.view.ops if not op.out_of_reach for v in op.inputs}
        seen: dict[str, int] = {}
        count = opened.session.observe(
            once(), values, lambda value, array: seen.__setitem__(value, seen.get(value, 0) + 1)
        )
        assert count == taken == len(case.batches)
        assert set(seen) == values
        assert all(n >= taken for n in seen.values())
        nothing: list[str] = []
        assert opened.session.observe(
            case.batches, (), lambda value, array: nothing.append(value)
        ) == len(case.batches)
        assert not nothing, "values were handed over that nobody asked for"

    def test_values_are_observed_a_few_at_a_time(self, case: AdapterCase, opened: Opened) -> None:
        """In execution order, in several calls: what one pass gives, up to rounding (a runtime may fuse otherwise what it is asked for less)."""
        values = list(
            dict.fromkeys(v for op in opened.view.ops if not op.out_of_reach for v in op.inputs)
        )
        whole: dict[str, list[np.ndarray]] = {v: [] for v in values}
        opened.session.observe(
            case.batches,
            values,
            lambda value, array: whole[value].append(np.array(to_numpy(array))),
        )
        watch = opened.session.watcher(case.batches, 2**28)
        half = len(values) // 2
        for some in filter(
            None, (values[: half // 2], values[half // 2 : half], values[half:], values[:1])
        ):
            parts: dict[str, list[np.ndarray]] = {v: [] for v in some}
            assert watch(some, partial(_keep_array, parts)) == len(case.batches)
            for value, arrays in parts.items():
                for a, b in zip(arrays, whole[value], strict=True):
                    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5, err_msg=value)

    def test_every_offer_is_carried_out(
        self,
        case: AdapterCase,
        opened: Opened,
        space: TuningSpace,
        realizer: Realizer,
        expected: list[np.ndarray],
    ) -> None:
        """Capability honesty: what is offered runs, the ledger says so, and the outputs are near the float model's."""
        for unit, scheme in self._trials(case, space):
            candidate = realizer.candidate(space.recipe({unit.name: scheme}))
            op = opened.view.by_name[unit.name]
            self._check_ledger(candidate, opened, op, scheme)
            got = outputs(candidate, case.batches)
            assert all(np.isfinite(y).all() for y in got), (
                f"{unit.name} as [{scheme}] gives outputs that are not finite"
            )
            if scheme.weight_bits >= 8:
                assert cosine(got, expected) >= case.closeness, (
                    f"{unit.name} as [{scheme}]: cosine {cosine(got, expected):.4f}"
                )

    def _trials(self, case: AdapterCase, space: TuningSpace) -> Iterator[tuple[Unit, OpScheme]]:
        for units in space.types.values():
            for unit in units[: case.ops_per_type]:
                for scheme in unit.choices[:-1]:
                    yield unit, scheme

    def _check_ledger(self, candidate: Candidate, opened: Opened, op: Op, scheme: OpScheme) -> None:
        line = candidate.ledger.get(op.name)
        assert line is not None, (
            f"the ledger has no line for {op.name!r}, which the recipe quantizes"
        )
        assert line.requested == scheme
        assert line.honoured, (
            f"{op.name} was asked for as [{scheme}], which the capability offers, and became [{line.applied}]: {line.reason}"
        )
        assert line.realization == opened.capability.realization(op, scheme), (
            f"{op.name} as [{scheme}]: the ledger and the capability disagree"
        )

    def test_what_is_not_offered_is_refused(self, opened: Opened, space: TuningSpace) -> None:
        """A scheme outside the capability is a SchemeError and not something else carried out silently."""
        op = opened.view.by_name[space.tunable[0].name]
        odd = OpScheme(
            mode="static",
            weight=QuantSpec(dtype="int5", granularity="group:7"),
            input=QuantSpec(dtype="int3", symmetric=False),
        )
        with pytest.raises(SchemeError):
            opened.capability.realization(op, odd)

    def test_everything_at_once(
        self, case: AdapterCase, space: TuningSpace, realizer: Realizer, expected: list[np.ndarray]
    ) -> None:
        """The first choice of every op, together."""
        candidate = realizer.candidate(space.recipe(space.first()))
        assert set(candidate.ledger) >= {op for u in space.tunable for op in u.ops}
        assert cosine(outputs(candidate, case.batches), expected) >= case.closeness

    def test_the_same_recipe_gives_the_same_outputs(
        self, case: AdapterCase, space: TuningSpace, realizer: Realizer
    ) -> None:
        """Determinism, bit for bit, and a weight is quantized once however often it is used."""
        recipe = space.recipe(space.first())
        first = outputs(realizer.candidate(recipe), case.batches)
        quantized = realizer.weights_quantized
        second = outputs(realizer.candidate(recipe), case.batches)
        assert realizer.weights_quantized == quantized
        for a, b in zip(first, second, strict=True):
            np.testing.assert_array_equal(a, b)

    def test_nothing_is_changed(
        self,
        case: AdapterCase,
        opened: Opened,
        space: TuningSpace,
        realizer: Realizer,
        expected: list[np.ndarray],
    ) -> None:
        """After applying and running candidates, the float model is what it was."""
        before = opened.session.fingerprint()
        outputs(realizer.candidate(space.recipe(space.first())), case.batches)
        assert opened.session.fingerprint() == before
        assert case.open().session.fingerprint() == before
        for a, b in zip(outputs(opened.session.reference(), case.batches), expected, strict=True):
            np.testing.assert_array_equal(a, b)

    def test_save_and_load(
        self,
        case: AdapterCase,
        opened: Opened,
        space: TuningSpace,
        realizer: Realizer,
        tmp_path: Path,
    ) -> None:
        """A loaded candidate gives the saved one's outputs and ledger; nothing on disk is a pickle."""
        candidate = realizer.candidate(space.recipe(space.first()))
        folder, plain = tmp_path / "quantized", tmp_path / "float"
        for target, model in ((folder, candidate), (plain, opened.session.reference())):
            target.mkdir()
            model.save(target)
        for path in folder.rglob("*"):
            assert path.suffix not in (".pkl", ".pickle"), f"{path.name} is a pickle"
        loaded = case.adapter().load(folder, case.float_model)
        for a, b in zip(
            outputs(loaded, case.batches), outputs(candidate, case.batches), strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
        assert loaded.recipe == candidate.recipe
        assert {op: line.applied for op, line in loaded.ledger.items()} == {
            op: line.applied for op, line in candidate.ledger.items()
        }
        if case.smaller:
            assert _bytes(folder) < _bytes(plain), (
                "everything quantized, and the saved files are not smaller"
            )

    def test_a_candidate_can_be_sent_to_another_process(
        self, case: AdapterCase, space: TuningSpace, realizer: Realizer
    ) -> None:
        """cloudpickle round trip: trials may run in child processes."""
        candidate = realizer.candidate(space.recipe(space.first()))
        again: Candidate = cloudpickle.loads(cloudpickle.dumps(candidate))
        for a, b in zip(
            outputs(again, case.batches), outputs(candidate, case.batches), strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)

    def test_every_weight_is_accounted_for(
        self, opened: Opened, space: TuningSpace, realizer: Realizer
    ) -> None:
        """What ops claim and what none claims is what the census counts, in a candidate and in the float model."""
        census = opened.session.census()
        if census is None:
            pytest.skip("the adapter takes no census of its own")
        assert len({weight.name for weight in census}) == len(census), (
            "the census counts a tensor twice"
        )
        assert all(weight.reason for weight in opened.view.unclaimed), (
            "an unclaimed weight without a reason"
        )
        candidate = realizer.candidate(space.recipe(space.first()))
        for model in (candidate, opened.session.reference()):
            coverage = realizer.coverage(model)
            assert difference(coverage, census) == ""
            assert coverage.quantized + coverage.kept == coverage.total
        assert realizer.coverage(candidate).quantized > 0
        assert coverage.quantized == 0, "the float model is said to be quantized"

    def test_wrong_inputs_are_a_data_error(
        self, opened: Opened, space: TuningSpace, realizer: Realizer
    ) -> None:
        """An unknown input name is refused with a typed error."""
        candidate = realizer.candidate(space.recipe(space.first()))
        with pytest.raises(DataError):
            candidate.run({"no such input": np.zeros((1, 1), np.float32)})

    @pytest.mark.parametrize(
        "carried",
        [("scale",), ("shift",), ("rotation",), ("scale", "shift", "rotation")],
        ids="+".join,
    )
    def test_rescale_keeps_the_function(
        self,
        case: AdapterCase,
        opened: Opened,
        expected: list[np.ndarray],
        carried: tuple[str, ...],
        tmp_path: Path,
    ) -> None:
        """If ``rescale`` is offered: random maps of all that a group takes leave the float outputs unchanged, saved and loaded too."""
        groups = [g for g in opened.view.groups if g.kind == "rescale" and set(carried) <= g.takes]
        if "rescale" not in opened.capability.features or not groups:
            pytest.skip(
                f"the adapter offers no rescale, or no group of the model takes {', '.join(carried)}"
            )
        maps = self._random_maps(opened, groups, carried)
        candidate = opened.session.rescale(maps).apply(Recipe(backend=opened.name), {})
        candidate.save(tmp_path)
        for runner in (candidate, case.adapter().load(tmp_path, case.float_model)):
            for a, b in zip(outputs(runner, case.batches), expected, strict=True):
                np.testing.assert_allclose(
                    a, b, rtol=1e-3, atol=2e-4 * max(1.0, float(np.abs(b).max()))
                )

    def test_rescales_follow_each_other(
        self, case: AdapterCase, opened: Opened, expected: list[np.ndarray]
    ) -> None:
        """A rescaled session can be rescaled again, whatever the first did."""
        groups = [g for g in opened.view.groups if g.kind == "rescale"]
        if "rescale" not in opened.capability.features or not groups:
            pytest.skip("the adapter offers no rescale, or the model has no group for it")
        session = opened.session
        for carried in ("rotation", "scale", "shift"):
            session = session.rescale(
                self._random_maps(opened, [g for g in groups if carried in g.takes], (carried,))
            )
        assert [op.name for op in session.describe().ops if op.name in opened.view.by_name] == list(
            opened.view.by_name
        )
        for a, b in zip(
            outputs(session.apply(Recipe(backend=opened.name), {}), case.batches),
            expected,
            strict=True,
        ):
            np.testing.assert_allclose(
                a, b, rtol=1e-3, atol=2e-4 * max(1.0, float(np.abs(b).max()))
            )

    def test_what_groups_do_not_take_is_refused(self, opened: Opened) -> None:
        """A shift or rotation is declared, by feature and by group, or it is a SchemeError."""
        for group in opened.view.groups:
            if group.kind == "rescale" and "rescale" in opened.capability.features:
                assert {FEATURES[kind] for kind in group.takes} <= opened.capability.features, (
                    group.name
                )
                assert group.online <= group.takes, group.name
                for kind in {"shift", "rotation"} - group.takes:
                    with pytest.raises(SchemeError):
                        opened.session.rescale(self._random_maps(opened, [group], (kind,)))

    def test_gradients_repeat_and_products_are_linear(
        self, case: AdapterCase, opened: Opened
    ) -> None:
        """If ``gradients`` is offered: an array for each batch and weight, the same for the same seed; H(2v) = 2 Hv, v . Hv >= 0."""
        names = list(
            dict.fromkeys(
                op.weight.name for op in opened.view.ops if op.weight and not op.out_of_reach
            )
        )
        if "gradients" not in opened.capability.features or not names:
            pytest.skip("the adapter offers no gradients, or the model has no weights")
        random, weights = (
            np.random.default_rng(0),
            {name: opened.session.tensor(name) for name in names},
        )
        along = {
            n: _like(random.normal(size=tuple(w.shape)).astype(np.float32), w)
            for n, w in weights.items()
        }

        def collect(**named: Any) -> dict[str, list[np.ndarray]]:
            found: dict[str, list[np.ndarray]] = {name: [] for name in names}
            count = opened.session.gradients(
                case.batches, names, lambda n, g: found[n].append(to_numpy(g).copy()), **named
            )
            assert count == len(case.batches)
            assert all(
                len(gs) == count and all(g.shape == tuple(weights[n].shape) for g in gs)
                for n, gs in found.items()
            )
            return found

        first, again = collect(seed=1), collect(seed=1)
        once, twice = collect(along=along), collect(along={n: 2 * v for n, v in along.items()})
        curved = 0.0
        for name in names:
            for a, b in zip(first[name], again[name], strict=True):
                np.testing.assert_array_equal(a, b)
            for a, b in zip(once[name], twice[name], strict=True):
                np.testing.assert_allclose(
                    2 * a, b, rtol=1e-3, atol=1e-5 * max(1.0, float(np.abs(b).max()))
                )
                curved += float((a * to_numpy(along[name])).sum())
        assert curved > 0

    def _random_maps(
        self, opened: Opened, groups: Sequence[Group], carried: Sequence[str]
    ) -> dict[str, ChannelMap]:
        random = np.random.default_rng(0)
        some = opened.session.tensor(next(op.weight.name for op in opened.view.ops if op.weight))
        found = {}
        for group in groups:
            scale, shift = (
                random.uniform(0.5, 2.0, group.channels).astype(np.float32) for _ in range(2)
            )
            found[group.name] = ChannelMap(
                _like(scale, some) if "scale" in carried else None,
                _like(shift - 1, some) if "shift" in carried else None,
                0 if "rotation" in carried else None,
            )
        return found


def _brings(offered: object, contract: type, name: str) -> bool:
    """Return whether a part has a method of its own in the place of the contract's, which refuses."""
    return getattr(type(offered), name) is not getattr(contract, name)


def _like(array: np.ndarray, other: Any) -> Any:
    """Return ``array`` in the array namespace and on the device of ``other``."""
    from array_api_compat import array_namespace, device

    return array_namespace(other).asarray(array, device=device(other))


def _bytes(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def _keep_array(parts: dict[str, list[np.ndarray]], value: str, array: Any) -> None:
    parts[value].append(np.array(to_numpy(array)))
