"""What is measured on a candidate."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from octavo.core.contract.adapter import Candidate
from octavo.core.contract.objective import Subject, Turns
from octavo.core.errors import ConfigError, WorkerDied
from octavo.core.scoring import objectives
from octavo.core.scoring.objectives import energy, latency
from octavo.core.scoring.objectives.config import (
    EnergyConfig,
    LatencyConfig,
    MemoryConfig,
    SizeConfig,
    ThroughputConfig,
)
from octavo.core.scoring.objectives.latency import (
    FEWEST,
    MOST,
    Latency,
    Throughput,
    _median_interval,
)
from octavo.core.scoring.objectives.memory import Memory
from octavo.core.scoring.objectives.size import Size
from octavo.core.values.recipe import Recipe


class Sorts(Candidate):
    """Does a known amount of work and holds a known amount of memory."""

    def __init__(self, work: int, megabytes: int = 0) -> None:
        self.recipe, self.ledger, self.work, self.megabytes = (
            Recipe(),
            {},
            work,
            megabytes,
        )

    @property
    def native(self) -> object:
        return self

    def run(self, batch: object) -> tuple[np.ndarray, ...]:
        held = np.ones(self.megabytes * 2**17)
        return (np.sort(np.arange(self.work)[::-1]) + held.sum(),)

    def save(self, folder: Path) -> None:
        (folder / "a").write_bytes(b"x" * self.work)
        (folder / "deep").mkdir()
        (folder / "deep" / "b").write_bytes(b"y" * 10)


BATCH = (np.zeros((8, 2), np.float32),)


def subject(work: int, megabytes: int = 0) -> Subject:
    return Subject(Sorts(work, megabytes), BATCH)


def test_the_registry_offers_them_all() -> None:
    assert {p.name for p in objectives.octavo_objectives()} == {
        "latency",
        "throughput",
        "energy",
        "size",
        "memory",
    }


def test_size_is_the_sum_of_the_files_and_they_are_removed() -> None:
    mine, other = subject(990), subject(1990)
    found = Size(SizeConfig()).measure(mine, other)
    assert (found.value, found.ratio) == (1000.0, 0.5)
    folder = mine.folder
    mine.close()
    other.close()
    assert not folder.exists()


def test_turns_tell_a_slower_candidate_from_two_alike() -> None:
    config = LatencyConfig(block=0.004)
    reference = subject(40_000)
    alike, slower = subject(40_000), subject(400_000)
    asked: list[int] = []

    def enough(turns: Turns) -> bool:
        asked.append(len(turns.measured))
        return len(asked) == 3

    found = Latency(config).in_turns([alike, slower, alike], reference, enough)
    # Asked after the least number of rounds, then after each.
    assert found.rounds == FEWEST + 2
    assert asked == [3, 3, 3]
    first, second, third = (m.relative for m in found.measured)
    assert second.low > 2 * max(first.high, third.high)
    for measured in found.measured:
        assert measured.low <= measured.value <= measured.high
        assert measured.base * measured.ratio == pytest.approx(measured.value)
    rates = Throughput(ThroughputConfig(block=0.004)).in_turns(
        [alike, slower], reference, lambda _: True
    )
    fast, slow = rates.measured
    assert not fast.lower_is_better
    assert fast.relative.low > 2 * slow.relative.high


def test_turns_end_at_their_most() -> None:
    found = Latency(LatencyConfig(block=0.0001)).in_turns(
        [subject(10)], subject(10), lambda _: False
    )
    assert found.rounds == MOST


def test_the_interval_of_a_median_holds_it_as_often_as_it_says() -> None:
    # 5,000 samples of a lopsided distribution whose median is known: ln 2.
    draws = np.random.default_rng(0).exponential(size=(5000, 12))
    held = 0
    for row in draws:
        low, high = _median_interval(row)
        held += low <= np.log(2) <= high
    # With the fourth and the ninth of twelve: 1 - 2 P(fewer than 4 of 12) = 0.854.
    assert 0.835 <= held / 5000 <= 0.87


def test_what_slows_a_whole_round_is_no_noise_of_a_candidate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rounds up to five times as slow as others; two candidates 5 % apart, each steady to 1 %."""
    drawn = np.random.default_rng(0)
    own = {"float": 1.0, "fast": 0.40, "slow": 0.42}
    rounds = [drawn.uniform(1, 5)] * 3

    class Named(Sorts):
        def __init__(self, name: str) -> None:
            super().__init__(1)
            self.name = name

        def run(self, batch: object) -> tuple[np.ndarray, ...]:
            raise AssertionError("nothing is run here")

    def block(call: partial, seconds: float) -> float:
        name = call.func.__self__.name
        if name == "float":
            rounds[0] = drawn.uniform(1, 5)
        return rounds[0] * own[name] * drawn.normal(1, 0.01)

    monkeypatch.setattr(latency, "_block", block)
    subjects = [Subject(Named(name), BATCH) for name in ("fast", "slow")]
    reference = Subject(Named("float"), BATCH)
    turns = Latency(LatencyConfig()).in_turns(
        subjects, reference, lambda turns: turns.rounds == 9
    )
    fast, slow = (m.relative for m in turns.measured)
    assert not slow.ties(fast, 0.01)
    assert fast.value == pytest.approx(0.40, rel=0.02)
    assert slow.value == pytest.approx(0.42, rel=0.02)


def test_twenty_times_the_work_is_several_times_slower() -> None:
    fast, slow = subject(100_000), subject(2_000_000)
    latency = Latency(LatencyConfig(batch_size=3)).measure(slow, fast)
    assert latency.ratio is not None
    assert latency.ratio > 4
    assert latency.low <= latency.value <= latency.high
    more = Throughput(ThroughputConfig()).measure(slow, fast)
    assert more.ratio is not None
    assert more.ratio < 1 / 4
    assert not more.lower_is_better
    assert more.cost == -more.value


def test_peak_memory_is_that_of_a_process_of_its_own() -> None:
    found = Memory(MemoryConfig()).measure(subject(10, 200), subject(10, 100))
    assert 180 * 2**20 < found.value < 320 * 2**20
    assert found.ratio is not None
    assert found.ratio > 1.4


def test_a_child_that_fails_says_why() -> None:
    broken = subject(10)
    broken.candidate.work = "not a number"  # type: ignore[attr-defined]
    with pytest.raises(WorkerDied, match="TypeError"):
        Memory(MemoryConfig()).measure(broken, subject(10))


def test_energy_from_a_counter_that_wraps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files of a powercap zone, with a counter that another thread drives as the
    kernel does."""
    import threading
    import time

    zone = tmp_path / "intel-rapl:0"
    zone.mkdir()
    (zone / "max_energy_range_uj").write_text("1000000\n")
    (zone / "energy_uj").write_text("0\n")
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    stop = threading.Event()

    def drive() -> None:
        start = time.perf_counter()
        while not stop.is_set():
            fresh = zone / "fresh"
            # 5 watts; wraps every 0.2 s.
            fresh.write_text(
                f"{int((time.perf_counter() - start) * 5e6) % 1_000_000}\n"
            )
            fresh.replace(zone / "energy_uj")
            time.sleep(0.001)

    thread = threading.Thread(target=drive)
    thread.start()
    try:
        while (zone / "energy_uj").read_text() == "0\n":
            time.sleep(0.001)
        objective = energy.Energy(EnergyConfig(block=0.1))
        objective.check()
        found = objective.measure(subject(200_000), subject(200_000))
    finally:
        stop.set()
        thread.join()
    assert found.value > 0
    assert found.ratio is not None
    assert 0.2 < found.ratio < 5


def test_energy_without_a_counter_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(energy, "POWERCAP", tmp_path)
    with pytest.raises(ConfigError, match="no energy counter"):
        energy.Energy(EnergyConfig()).check()
