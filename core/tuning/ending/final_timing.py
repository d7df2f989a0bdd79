"""The last timing: the best few and the float model take turns, until their order is known.

Trials are timed minutes apart, each beside the float model. What lies between two of them may be
the machine's doing, so what is chosen by latency is timed side by side before it is handed back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

from octavo.core.contract.adapter import Candidate
from octavo.core.contract.objective import Subject, Turns
from octavo.core.errors import said
from octavo.core.scoring.choice import HARDLY, contenders
from octavo.core.scoring.objectives.latency import MOST
from octavo.core.system.load import OthersLoad
from octavo.core.tuning.baseline import unsteadiness
from octavo.core.tuning.bench import Bench
from octavo.core.tuning.progress import FINAL_TIMING
from octavo.core.values.budgets import explain, overruns
from octavo.core.values.trial import Measurement, Trial

FEW = 8
"""So many trials are timed again at most: each costs a turn in every round."""

TOGETHER = 2**31
"""Bytes that their models may take together, each as large as the float model: fewer are timed
again where that is more, and two at least."""

FEWEST = 7
"""Rounds, at least, while there is time: the second and the sixth of seven hold the median."""

TURNS_OF_A_TRIAL = 10
"""Turns in a trial's own timing: five rounds of the float model and the candidate."""

PASSES = 6
"""So often at most: a trial that falls back in the last timing may leave the lead to one that was
not in it."""

LEAST_SECONDS = 15.0
"""Seconds that a last timing may take however short the run was."""

PART = 0.1
"""And as a part of the run so far, where that is more: it must not cost what the search did."""

STEADY = 0.05
"""Half the interval of the best one's figure, as a part of it, at most: what a user is told."""

BUSY = 0.1
"""Part of the cores from which on it is told that others took it."""

FACT = "final"
"""Name of the record in the history, for a run that goes on from it."""


@dataclass
class FinalTiming:
    """Times the best few of a search again, and lets that count.

    Attributes:
        bench: What the run works with.
        candidate: Makes a trial's model.
        record: What was found, JSON-ready; empty before.
    """

    bench: Bench
    candidate: Callable[[Trial], Candidate]
    record: dict[str, Any] = field(default_factory=dict)
    _ends: float = 0.0
    _doubts: str = ""

    def __post_init__(self) -> None:
        self.record = dict(self.bench.history.fact(FACT) or {})

    def settle(self) -> None:
        """Time until the leading trial is one that was timed side by side with the next ones.

        Nothing is done where no objective varies from one timing to the next, or no time is left.
        """
        bench = self.bench
        name = self._timed_objective()
        if not name or self._untimed_leader() is None:
            return
        if bench.clock.lacks_time_for("the last timing of the best few"):
            return
        spent = time.perf_counter() - bench.clock.began
        self._ends = time.perf_counter() + max(LEAST_SECONDS, PART * spent)
        try:
            with bench.phases.within(FINAL_TIMING):
                self._time_leaders(name)
        except Exception as error:
            # The figures of the search stand; what runs badly here was measured there.
            bench.tell(f"the last timing of the best few failed: {said(error)}")
            return
        left = self._untimed_leader()
        if left is not None:
            bench.tell(
                f"trial {left.number} leads by the search's figures: there was no time to time it "
                "again"
            )
        if self._doubts:
            bench.tell(self._doubts)

    def _time_leaders(self, name: str) -> None:
        """Time the leader with the best few, and again where another one leads after it."""
        for _ in range(PASSES):
            leader = self._untimed_leader()
            if leader is None or self._is_past_the_limit():
                return
            self._time(name, leader)

    def _untimed_leader(self) -> Trial | None:
        """Return the leading trial where it was not timed side by side; else None."""
        leader = self.bench.leader()
        if leader is None or leader.number in self.bench.history.timed:
            return None
        return leader

    def _timed_objective(self) -> str:
        """Return the first objective whose figures vary; '' where there is none."""
        for name, objective in self.bench.objectives.items():
            if objective.varies:
                return name
        return ""

    def _time(self, name: str, leader: Trial) -> None:
        bench = self.bench
        most = min(FEW, max(2, TOGETHER // max(1, bench.reference.bytes)))
        if self._is_late():
            most = 2
        likely = contenders(bench.history.trials, tuple(bench.objectives), name, most)
        # What ties may be decided by accuracy: the leader need not be among the fastest few.
        others = [trial for trial in likely if trial.number != leader.number]
        few = [leader, *others[: most - 1]]
        # The float model against itself shows what a difference of nothing looks like here.
        models = [bench.baseline, *few]
        with ExitStack() as stack:
            subjects = [self._subject(trial, stack) for trial in models]
            load = stack.enter_context(OthersLoad())
            turns = bench.objectives[name].in_turns(
                subjects, bench.reference, self._enough
            )
        if turns is None:
            return
        for trial, measured in zip(models, turns.measured, strict=True):
            self._keep(trial, name, measured)
        self._tell(name, few, turns, load)

    def _subject(self, trial: Trial, stack: ExitStack) -> Subject:
        bench = self.bench
        if trial.number == 0:
            return bench.reference
        backend = bench.backends[trial.recipe.backend]
        subject = Subject(self.candidate(trial), backend.data.first())
        stack.callback(subject.close)
        return subject

    def _enough(self, turns: Turns) -> bool:
        """Return whether each trial is known to tie with the fastest or to be behind it, or time
        is up."""
        if self._is_late():
            return True
        shares = [found.relative for found in turns.measured[1:]]
        return turns.rounds >= FEWEST and is_settled(shares)

    def _is_late(self) -> bool:
        return time.perf_counter() > self._ends or self._is_past_the_limit()

    def _is_past_the_limit(self) -> bool:
        """Return whether the run's time limit leaves time for the confirmation alone."""
        clock = self.bench.clock
        return clock.left <= clock.reserve - expected_seconds(self.bench)

    def _keep(self, trial: Trial, name: str, measured: Measurement) -> None:
        """Let a figure take the place of the search's, here and for runs that go on from it."""
        bench = self.bench
        again = replace(trial, objectives={**trial.objectives, name: measured})
        bench.history.retime(again)
        if trial.number == 0:
            bench.scored = again
            return
        space = bench.backends[trial.recipe.backend].space
        applied = {op: line.applied for op, line in trial.ledger.items()}
        over = overruns(bench.budgets, space, applied, again.objectives)
        if over:
            why = f"when it was timed again: {explain(over, bench.budgets)}"
            bench.refuse(again, why)

    def _tell(
        self, name: str, few: Sequence[Trial], turns: Turns, load: OthersLoad
    ) -> None:
        shares = [found.relative for found in turns.measured[1:]]
        fastest = min(shares, key=lambda share: share.cost)
        each = zip(few, shares, strict=True)
        tied = [trial.number for trial, share in each if share.ties(fastest, HARDLY)]
        record = {
            "objective": name,
            "rounds": turns.rounds,
            "trials": [trial.number for trial in few],
            "ties": tied if len(tied) > 1 else [],
            "decided": is_settled(shares),
            "load": {
                "cores": load.cores,
                "cores_taken_by_others": load.cores_taken,
                "load_average": load.load_average,
            },
        }
        self.record = {**record, "said": _sentence(record)}
        self.bench.history.put(FACT, self.record)
        unsteady = unsteadiness({name: turns.measured[0]})
        doubts = filter(None, (_undecided(record), _busy(load) or unsteady))
        self._doubts = "; ".join(doubts)


def expected_seconds(bench: Bench) -> float:
    """Return what the last timing is believed to take, from what timing the float model took.

    At most :data:`PART` of the run's time limit: where a turn is dear, trials come first.
    """
    if not any(objective.varies for objective in bench.objectives.values()):
        return 0.0
    # Trials of one search are often too alike to be told apart before the last round.
    one_turn = bench.baseline.seconds.get("measure", 0.0) / TURNS_OF_A_TRIAL
    expected = min(LEAST_SECONDS, one_turn * (FEW + 2) * MOST)
    limit = bench.clock.limit
    return expected if limit is None else min(expected, PART * limit)


def _sentence(record: Mapping[str, Any]) -> str:
    """Say what the last timing was of, and what came out."""
    numbers = record["trials"]
    what = f"trial {numbers[0]}" if len(numbers) == 1 else f"trials {listed(numbers)}"
    told = f"{what} and the float model were timed again in turns, {record['rounds']} rounds"
    if not record["ties"]:
        return told
    return f"{told}; {listed(record['ties'])} tie in {record['objective']}"


def _undecided(record: Mapping[str, Any]) -> str:
    """Say that the order stayed open; '' where it is known."""
    if record["decided"] or not record["ties"]:
        return ""
    return (
        f"trials {listed(record['ties'])} could not be told apart in {record['objective']} in "
        f"{record['rounds']} rounds and count as ties"
    )


def _busy(load: OthersLoad) -> str:
    """Say that others used this machine meanwhile; '' where they did not, or if it is unknown."""
    taken = load.cores_taken
    if taken is None or taken < BUSY * load.cores:
        return ""
    return (
        f"other processes took {taken:.1f} of the {load.cores:g} cores while the best few were "
        "timed: latencies hold for a machine as busy as that; tune on an idle one"
    )


def listed(numbers: Sequence[int]) -> str:
    """Return numbers as a sentence lists them: ``1, 4 and 9``."""
    *first, last = map(str, numbers)
    return f"{', '.join(first)} and {last}" if first else last


def is_settled(shares: Sequence[Measurement]) -> bool:
    """Return whether the order of some trials is known.

    The best is known well enough, and each other one either lies behind it beyond both intervals
    and :data:`HARDLY`, or both are known so well that they are seen to tie.

    Args:
        shares: Of the float model's figure, with the interval of each.
    """
    best = min(shares, key=lambda share: share.cost)
    if not _is_known_within(STEADY, best):
        return False
    others = [share for share in shares if share is not best]
    return all(_is_told_from(best, share) for share in others)


def _is_told_from(best: Measurement, share: Measurement) -> bool:
    is_behind = not share.ties(best, HARDLY)
    is_a_tie = _is_known_within(HARDLY, share) and _is_known_within(HARDLY, best)
    return is_behind or is_a_tie


def _is_known_within(part: float, share: Measurement) -> bool:
    """Return whether an interval reaches no further than a part of the figure to either side."""
    half = (share.high - share.low) / 2
    return half <= part * abs(share.value)
