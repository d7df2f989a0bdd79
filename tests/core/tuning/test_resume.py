"""A resumed run is the same run: what would mix two runs' trials is refused, and the message names
it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import octavo
from octavo.core.errors import StoreError
from octavo.core.storage.history import StudyHistory, read_history
from octavo.core.tuning.fingerprint import another_score
from tests import tiny


def right(model: Any, top: int = 1, count: int = 400) -> np.ndarray:
    x, y = tiny.digits()
    best = np.argsort(model(x[1200 : 1200 + count]), axis=1)[:, -top:]
    return (best == y[1200 : 1200 + count, None]).any(1).astype(np.float64)


def top(k: int, count: int = 400) -> Callable[[Any], float]:
    return lambda model: float(right(model, k, count).mean())


def sampled(count: int = 400, best: float | None = 1.0) -> octavo.SampleScore:
    return octavo.SampleScore(
        lambda model, indices: right(model, 1, count)[indices], count, best=best
    )


def tune(
    storage: Path, score: Any, calibration: Any = None, **settings: Any
) -> octavo.Result:
    settings = {
        "strategy": "basic",
        "max_trials": 1,
        "minimise": "size",
        "confirm": False,
        "host": tiny.host(),
        **settings,
    }
    return octavo.autotune(
        tiny.chain(),
        score,
        tiny.calibration() if calibration is None else calibration,
        storage=storage,
        **settings,
    )


def test_another_score_is_refused_with_both_figures(tmp_path: Path) -> None:
    store = tmp_path / "h.db"
    first = tune(store, top(1))
    was, now = first.baseline.metrics["score"], top(5)(tiny.chain())
    with pytest.raises(
        StoreError, match=f"score was {was:.6g} then, and is {now:.6g} now"
    ) as caught:
        tune(store, top(5))
    assert "study=" in str(caught.value)
    assert "resume=False" in str(caught.value)
    assert tune(store, top(1)).trials == first.trials
    # What the message says helps does.
    assert tune(store, top(5), study="top 5").goal_met


def test_labels_that_were_corrected_between_two_runs_are_noticed(
    tmp_path: Path,
) -> None:
    x, y = tiny.digits()
    wrong = np.where(np.arange(400) % 10 == 0, 9 - y[1200:1600], y[1200:1600])

    def score(labels: np.ndarray) -> Callable[[Any], float]:
        return lambda model: float((model(x[1200:1600]).argmax(1) == labels).mean())

    tune(tmp_path / "h.db", score(wrong))
    with pytest.raises(StoreError, match="the float model's score is another"):
        tune(tmp_path / "h.db", score(y[1200:1600]))


@pytest.mark.parametrize("best", [1.0, None])
def test_other_samples_are_refused_even_at_the_same_score(
    tmp_path: Path, best: float | None
) -> None:
    ones = [
        octavo.SampleScore(
            lambda model, indices: np.ones(len(indices)), count, best=best
        )
        for count in (897, 50)
    ]
    tune(tmp_path / "h.db", ones[0])
    with pytest.raises(StoreError, match=r"another samples .*897 then, 50 now"):
        tune(tmp_path / "h.db", ones[1])


def test_per_sample_scores_of_another_length_are_refused(tmp_path: Path) -> None:
    def score(count: int) -> Callable[[Any], octavo.Evaluation]:
        return lambda model: octavo.Evaluation(0.9, np.full(count, 0.9))

    tune(tmp_path / "h.db", score(100))
    with pytest.raises(StoreError, match="over 100 samples then, and is over 90 now"):
        tune(tmp_path / "h.db", score(90))


def test_a_part_of_the_samples_is_scored_again_where_single_ones_can_be(
    tmp_path: Path,
) -> None:
    asked: list[int] = []

    def counted(model: Any, indices: np.ndarray) -> np.ndarray:
        asked.append(len(indices))
        return right(model)[indices]

    score = octavo.SampleScore(counted, 400, best=None)
    tune(tmp_path / "h.db", score)
    asked.clear()
    tune(tmp_path / "h.db", score)
    assert asked == [64]


def test_noise_alone_is_no_other_score(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def noisy(model: Any) -> float:
        return float(right(model)[rng.choice(400, 200, replace=False)].mean())

    for _ in range(4):
        tune(tmp_path / "h.db", noisy, accuracy={"tolerance": 0.1, "noise_runs": 1})


@pytest.mark.parametrize(
    ("then", "draws", "alike"),
    [
        (0.90, [0.90], True),
        (0.90, [0.90000001], True),
        (0.90, [0.91, 0.91, 0.91, 0.91], False),
        (0.90, [0.91, 0.905, 0.912, 0.903], True),
        (0.90, [0.99, 0.985, 0.992, 0.988], False),
        (0.90, [0.8995, 0.8995, 0.8995, 0.8995], False),
    ],
)
def test_what_counts_as_the_same_score(
    then: float, draws: list[float], alike: bool
) -> None:
    rest = iter(draws[1:])
    assert (
        another_score({"a": then}, {"a": draws[0]}, lambda: {"a": next(rest)}) == ""
    ) is alike


def test_other_names_of_metrics_are_another_score() -> None:
    assert "it gave a then, and gives b now" in another_score(
        {"a": 1.0}, {"b": 1.0}, dict
    )


@pytest.mark.parametrize(
    ("first", "then", "said"),
    [
        ({"holdout": 0.0}, {"holdout": 0.5}, "another holdout"),
        (
            {"holdout": 0.5, "seed": 0},
            {"holdout": 0.5, "seed": 1},
            "another holdout .*seed: 0 then, 1 now",
        ),
        (
            {"minimise": [{"kind": "latency", "batch_size": 1, "block": 0.001}]},
            {"minimise": [{"kind": "latency", "batch_size": 64, "block": 0.001}]},
            "another objectives .*latency.batch_size: 1 then, 64 now",
        ),
        (
            {"racing": {"error": 0.05}},
            {"racing": {"error": 0.2}},
            r"another racing .*error: 0\.05 then, 0\.2 now",
        ),
        (
            {"tolerance": 0.01},
            {"tolerance": 0.02},
            r"another goal .*tolerance: 0\.01 then, 0\.02 now",
        ),
        (
            {"rules": [{"ops": ["layer.0"], "keep": "float"}]},
            {"rules": []},
            "another space .*rules: ",
        ),
    ],
)
def test_a_setting_that_differs_is_named_with_both_values(
    tmp_path: Path, first: Any, then: Any, said: str
) -> None:
    tune(tmp_path / "h.db", sampled(), **first)
    with pytest.raises(StoreError, match=said):
        tune(tmp_path / "h.db", sampled(), **then)


def test_a_strategy_of_other_transforms_is_named(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Linear(64, 24), torch.nn.ReLU(), torch.nn.Linear(24, 10)
    ).eval()
    x = torch.from_numpy(tiny.digits()[0][:128])
    reference = net(x).argmax(1)

    def score(model: Any) -> float:
        return float(
            (model(x) == net(x)).float().mean()
            + (model(x).argmax(1) == reference).float().mean()
        )

    settings: dict[str, Any] = {
        "minimise": "size",
        "max_trials": 1,
        "confirm": False,
        "storage": tmp_path / "h.db",
    }
    octavo.autotune(net, score, [x], strategy="auto", **settings)
    with pytest.raises(
        StoreError, match=r'another space .*the strategy: "auto" then, "basic" now'
    ):
        octavo.autotune(net, score, [x], strategy="basic", **settings)
    octavo.autotune(
        net, score, [x], strategy="basic", study="plain", transforms=[], **settings
    )


def test_a_shuffled_loader_is_recognised(tmp_path: Path) -> None:
    tune(tmp_path / "h.db", top(1))
    with pytest.raises(StoreError, match=r"another data .*shuffle=False"):
        tune(tmp_path / "h.db", top(1), tiny.calibration()[::-1])


def test_later_batches_of_a_factory_are_compared(tmp_path: Path) -> None:
    batches = tiny.calibration()

    def factory(kept: list[np.ndarray]) -> Callable[[], Iterator[np.ndarray]]:
        def make() -> Iterator[np.ndarray]:
            yield from kept

        return make

    first = tune(tmp_path / "h.db", top(1), factory(batches))
    assert tune(tmp_path / "h.db", top(1), factory(batches)).trials == first.trials
    with pytest.raises(
        StoreError, match=r"another batches .*later calibration batches"
    ):
        tune(tmp_path / "h.db", top(1), factory([batches[0], *batches[2:]]))


def test_the_held_out_score_must_be_the_same(tmp_path: Path) -> None:
    tune(tmp_path / "h.db", top(1), holdout_fn=top(1, 100))
    with pytest.raises(StoreError, match="score on held-out data is another"):
        tune(tmp_path / "h.db", top(1), holdout_fn=top(5, 100))


def test_another_processor_or_version_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from octavo.core.tuning import fingerprint

    tune(tmp_path / "h.db", top(1))
    tune(tmp_path / "timed.db", top(1), minimise=[{"kind": "latency", "block": 0.001}])
    known = fingerprint._cpu()
    monkeypatch.setattr(fingerprint, "_cpu", lambda: {**known, "name": "Another CPU"})
    # The name of the processor matters to times alone.
    tune(tmp_path / "h.db", top(1))
    with pytest.raises(
        StoreError, match=r"another machine .*processor: .* then, \"Another CPU\" now"
    ):
        tune(
            tmp_path / "timed.db",
            top(1),
            minimise=[{"kind": "latency", "block": 0.001}],
        )
    monkeypatch.setattr(
        fingerprint, "_cpu", lambda: {**known, "flags": "avx2 avx512_vnni amx_int8"}
    )
    with pytest.raises(StoreError, match=r"another machine .*instructions: "):
        tune(tmp_path / "h.db", top(1))
    monkeypatch.undo()
    monkeypatch.setattr(fingerprint, "version", lambda name: "99.0")
    with pytest.raises(
        StoreError, match=r"another versions .*octavo: .* then, \"99\.0\" now"
    ):
        tune(tmp_path / "h.db", top(1))


def test_a_store_of_an_older_octavo_is_read_with_a_note(tmp_path: Path) -> None:
    first = tune(tmp_path / "h.db", top(1))
    old = ("model", "data", "space", "goal")
    _, _, attributes = read_history(tmp_path / "h.db")
    prints = attributes["octavo:fingerprint"]
    # As that one wrote it: four keys, and nothing of samples, settings or batches.
    history = StudyHistory(tmp_path / "h.db", fingerprint=prints)
    history._storage.set_study_user_attr(
        history._study, "octavo:fingerprint", {k: prints[k] for k in old}
    )
    history._storage.set_study_user_attr(history._study, "octavo:settings", {})
    history._storage.set_study_user_attr(history._study, "octavo:samples", None)
    history.close()
    again = tune(tmp_path / "h.db", top(1))
    unsaid = (
        "objectives, holdout, samples, racing, versions, machine, baseline, backends"
    )
    assert f"older octavo, which did not record {unsaid}" in " ".join(again.remarks)
    assert again.trials == first.trials
    # From now on they are compared.
    with pytest.raises(StoreError, match="another holdout"):
        tune(tmp_path / "h.db", sampled(), holdout=0.3)


def test_half_a_run_goes_on_as_the_whole_one_would(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"strategy": "random", "seed": 3}
    whole = tune(tmp_path / "whole.db", top(1), max_trials=6, **settings)
    tune(tmp_path / "h.db", top(1), max_trials=3, **settings)
    halves = tune(tmp_path / "h.db", top(1), max_trials=6, **settings)
    assert [t.recipe for t in halves.trials] == [t.recipe for t in whole.trials]
    assert [t.metrics for t in halves.trials] == [t.metrics for t in whole.trials]
    assert len(set(itertools.chain(t.recipe.digest for t in halves.trials))) == 6
