"""The float model on held-out data, and what it takes to certify a winner there."""

from __future__ import annotations

from octavo.core.scoring.certifying import Certifying, certifying
from octavo.core.scoring.noise import FEWEST

from .bench import Bench
from .fingerprint import another_score


def measure_held_out(bench: Bench) -> None:
    """Score the float model on the held-out data, as often as the score's noise asks for.

    Raises:
        EvaluationError: If the score of that data fails on the float model.
        ConfigError: If the criterion makes no sense at that score.
    """
    if bench.held_out is not None:
        runs = FEWEST if bench.yardstick.noise else 1
        bench.held_out.measure(bench.reference.candidate, runs)


def check_held_out(bench: Bench) -> None:
    """Compare the float model's score on held-out data with that of the run before.

    Raises:
        StoreError: If the run that goes on has other held-out data than before.
    """
    if bench.held_out is None:
        return
    now = bench.held_out.baseline
    before = bench.history.keep("held_out", dict(now))
    score = bench.held_out.score
    why = another_score(before, now, lambda: score(bench.reference.candidate).metrics)
    if why:
        raise bench.history.refuse_resume(
            f"the float model's score on held-out data is another: {why}"
        )


def prepare_certificate(bench: Bench, *, optional: bool) -> Certifying | None:
    """Score the float model on the held-out data, and make ready to certify winners there.

    Args:
        bench: The run's.
        optional: Whether the samples were parted for the certificate alone: a score without single
            samples then stays whole.

    Returns:
        What certifies; None where no confidence is asked for.

    Raises:
        EvaluationError: If the score of the held-out data fails on the float model.
        ConfigError: If the criterion makes no sense at that score, or the range of a sample's score
            must be said.
    """
    is_asked_for = getattr(bench.criterion.config, "confidence", None) is not None
    if is_asked_for and bench.yardstick.scores is None:
        # The history holds the float model's score, but not those of its single samples.
        bench.yardstick.scores = bench.scoring.full(bench.reference.candidate)
    scores = bench.yardstick.scores
    if optional and scores is not None and scores.per_sample is None:
        bench.held_out = None
    measure_held_out(bench)
    if not is_asked_for or scores is None:
        return None
    held_out = bench.held_out.scores if bench.held_out is not None else None
    found = certifying(bench.criterion, bench.yardstick.baseline, scores, held_out)
    if found is not None and found.why:
        bench.tell(f"nothing can be certified: {found.why}")
    elif found is not None:
        bench.yardstick.foreseen = found.foreseen
    return found
