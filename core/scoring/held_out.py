"""Samples that the search never sees: a score is parted into one of the search's samples and one of
the held-out ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from octavo.core.errors import ConfigError

from .evaluation import Evaluation, check_scores
from .racing import SampleScore

CERTIFIED = 0.5
"""Share of the samples that is held out where a certificate is asked for and nobody said a share.
Both parts count: one chooses, the other proves."""


def split_samples(
    score: Any, share: float, seed: int, *, required: bool = True
) -> tuple[Any, Any]:
    """Hold a share of the samples out of the search.

    Args:
        score: A :class:`SampleScore`, or a function that returns an :class:`Evaluation` with scores
            of single samples.
        share: Of all samples, in (0, 1).
        seed: Of the draw.
        required: Whether a function that returns no such scores is refused, when it is called; else
            its score stays whole.

    Returns:
        Two scores: of the search, and of the confirmation.

    Raises:
        ConfigError: If a part would be empty.
    """
    if not isinstance(score, SampleScore):
        search_part = EvaluationPart(score, share, seed, False, required)
        return search_part, replace(search_part, held_out=True)
    search, held_out = _drawn(score.samples, share, seed)
    return _part(score, search), _part(score, held_out)


@dataclass(frozen=True)
class EvaluationPart:
    """The score over some of a function's samples. The function scores them all; the others are not
    looked at.

    Attributes:
        score: The user's function.
        share: Of its samples, what is held out.
        seed: Of the draw.
        held_out: Whether this is the held-out part.
        required: Whether a function without scores of single samples is refused.
    """

    score: Callable[[Any], Any]
    share: float
    seed: int
    held_out: bool
    required: bool

    def __call__(self, model: Any) -> Any:
        """Score a model on this part.

        Raises:
            ConfigError: If single samples are not scored, and that is required, or if the part is
                empty.
            EvaluationError: If the scores of the samples are not those of the value.
        """
        found = self.score(model)
        if not _is_a_mean(found):
            if self.required:
                raise ConfigError(
                    "holdout needs a score of single samples: wrap it in octavo.SampleScore, "
                    "return octavo.Evaluation(value, per_sample=...), or pass holdout_fn=, a score "
                    "over other data"
                )
            return found
        samples = check_scores(found).per_sample
        assert samples is not None
        search, held_out = _drawn(len(samples), self.share, self.seed)
        part = samples[held_out if self.held_out else search]
        mean = float(part.mean())
        if isinstance(found.value, Mapping):
            return Evaluation(dict.fromkeys(found.value, mean), part)
        return Evaluation(mean, part)


def _is_a_mean(found: Any) -> bool:
    """True for an evaluation of one number with the scores of single samples."""
    if not isinstance(found, Evaluation) or found.per_sample is None:
        return False
    return not isinstance(found.value, Mapping) or len(found.value) == 1


def _drawn(samples: int, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of the search and of the holdout, each in order."""
    count = round(samples * share)
    if not 0 < count < samples:
        raise ConfigError(
            f"a holdout of {share:g} of {samples} samples leaves one part empty; choose another "
            "share"
        )
    order = np.random.default_rng(seed).permutation(samples)
    return np.sort(order[count:]), np.sort(order[:count])


def _part(score: SampleScore, indices: np.ndarray) -> SampleScore:
    def of_part(model: Any, chosen: np.ndarray) -> Any:
        return score.score(model, indices[chosen])

    return SampleScore(of_part, len(indices), best=score.best)
