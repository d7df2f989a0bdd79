"""A run that is killed in the middle of a recovery goes on with it, and learns nothing twice."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import octavo
from octavo.core.storage.history import read_history

torch = pytest.importorskip("torch")
from tests import residual  # noqa: E402

ROOT = Path(__file__).parents[4]

CHILD = """
import sys
from pathlib import Path
from tests.core.tuning.recovery.test_resume import run
def hang(number):
    print("training", number, flush=True)
    if number == 2:
        sys.stdin.read()  # until the parent ends: it never writes
run(Path(sys.argv[1]), hang)
"""


def run(storage: Path, begins: Callable[[int], None]) -> octavo.Result:
    """Tune with a recovery by training.

    Args:
        storage: The history.
        begins: Told the number of each training of this process, before it begins.
    """
    trained = 0

    def train(model: Any) -> None:
        nonlocal trained
        trained += 1
        begins(trained)
        residual.fit(model, 80)

    return octavo.autotune(
        residual.network(), residual.accuracy, residual.batches(), strategy="basic",
        max_trials=2, storage=storage, minimise="size", accuracy={"guard": False},
        train_fn=train, budgets={"code_bits": 2.5}, tolerance=0.03, recover=["qat"],
        rules=[{**residual.TWO_BITS, "weight": {"dtype": ["uint2", "int2"]}}],
    )  # fmt: skip


def found(result: octavo.Result) -> tuple[Any, ...]:
    """What two runs of one history must agree in."""
    trials = [(t.recipe.digest, t.metrics["score"]) for t in result.trials]
    return trials, result.goal_met, result.best.number, result.confirmed


def killed_in_its_second_training(storage: Path) -> None:
    """Let another process run, and kill it there."""
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(storage)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert child.stdout is not None
    told = [child.stdout.readline() for _ in range(2)]
    child.send_signal(signal.SIGKILL)
    child.communicate()
    assert told == ["training 1\n", "training 2\n"]


def test_killed_amid_a_recovery_it_goes_on_with_that_one(tmp_path: Path) -> None:
    trained: list[int] = []
    whole = run(tmp_path / "whole.db", trained.append)
    assert trained == [1, 2]
    assert whole.goal_met
    assert whole.confirmed == whole.best.metrics
    storage = tmp_path / "h.db"
    killed_in_its_second_training(storage)
    assert [t.number for t in read_history(storage)[1]] == [0, 1, 2, 3]
    # The first recovery is told; the one that was cut off is run; the winner is at hand.
    trained.clear()
    resumed = run(storage, trained.append)
    assert trained == [1]
    assert found(resumed) == found(whole)
    # Without what lies beside the history the winner is learned again, and is the same model.
    shutil.rmtree(tmp_path / "h.db.recovered")
    trained.clear()
    again = run(storage, trained.append)
    assert trained == [1]
    assert found(again) == found(whole)
