"""What a score function may return."""

import numpy as np
import pytest

from octavo.core.errors import EvaluationError
from octavo.core.scoring.evaluation import Evaluation, check_scores


@pytest.mark.parametrize(
    "good",
    [
        0.5,
        1,
        np.float32(0.5),
        np.int64(3),
        np.array(0.5),
        {"a": 0.5},
        Evaluation(0.5, [0, 1]),
    ],
)
def test_numbers_are_taken(good: object) -> None:
    assert all(type(v) is float for v in check_scores(good).metrics.values())


@pytest.mark.parametrize(
    "bad",
    [
        None,
        "0.5",
        True,
        np.True_,
        np.array(True),
        (0.5,),
        [0.5],
        np.array([0.5]),
        float("nan"),
        float("inf"),
        -float("inf"),
        np.float32("nan"),
        {},
        {"a": None},
        {"a": float("nan")},
        1j,
        Evaluation(float("nan")),
        Evaluation(0.5, [[1.0]]),
        Evaluation(0.5, [np.nan]),
    ],
)
def test_anything_else_is_refused(bad: object) -> None:
    with pytest.raises(EvaluationError):
        check_scores(bad)


def test_tensors_of_no_dimension_are_numbers() -> None:
    torch = pytest.importorskip("torch")
    assert check_scores(torch.tensor(0.25)).metrics == {"score": 0.25}
    with pytest.raises(EvaluationError, match="bool"):
        check_scores(torch.tensor(True))
    with pytest.raises(EvaluationError, match=r"shape \(1,\)"):
        check_scores(torch.tensor([0.25]))
    np.testing.assert_array_equal(
        check_scores(Evaluation(0.5, torch.tensor([0.0, 1.0]))).per_sample, [0.0, 1.0]
    )
