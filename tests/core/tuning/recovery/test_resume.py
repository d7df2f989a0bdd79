"""A run that is killed in the middle of a recovery goes on with it, and learns nothing twice."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from octavo.core.storage.history import read_history

pytest.importorskip("torch")
ROOT = Path(__file__).parents[4]

CHILD = """
import sys, time; sys.path.insert(0, sys.argv[1])
from tests import residual
import octavo
trained = 0
def train(model):
    global trained
    trained += 1
    print("training", trained, flush=True)
    if sys.argv[3] == str(trained):
        time.sleep(60)
    residual.fit(model, 80 if trained == 3 or sys.argv[4] == "good" else 1)
r = octavo.autotune(
    residual.network(), residual.accuracy, residual.batches(), strategy="basic", max_trials=2,
    storage=sys.argv[2], minimise="size", accuracy={"guard": False}, train_fn=train,
    budgets={"bits": 2.5}, tolerance=0.03, recover=["qat"],
    rules=[{**residual.TWO_BITS, "weight": {"dtype": ["uint2", "int2"]}}],
)
print("trials", *[f"{t.recipe.digest}:{t.metrics['score']:.5f}" for t in r.trials], flush=True)
print("result", r.goal_met, r.best.number, r.confirmed == r.best.metrics, flush=True)
"""


def child(storage: Path, hangs: int = 0, how: str = "good") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(CHILD)]
    given = [str(ROOT), str(storage), str(hangs), how]
    return subprocess.Popen([*command, *given], stdout=subprocess.PIPE, text=True)


def lines(run: subprocess.Popen[str]) -> list[str]:
    return [line.strip() for line in run.communicate()[0].splitlines()]


def test_killed_amid_a_recovery_it_goes_on_with_that_one(tmp_path: Path) -> None:
    whole = lines(child(tmp_path / "whole.db"))
    assert whole[:2] == ["training 1", "training 2"]
    assert whole[-1].startswith("result True")
    killed = child(tmp_path / "h.db", hangs=2)
    assert killed.stdout is not None
    while "training 2" not in killed.stdout.readline():
        pass
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert [t.number for t in read_history(tmp_path / "h.db")[1]] == [0, 1, 2, 3]
    # The first recovery is told; the one that was cut off is run; the winner is at hand.
    resumed = lines(child(tmp_path / "h.db"))
    assert resumed == ["training 1", *whole[2:]]
    # Without what lies beside the history the winner is learned again, and is the same model.
    shutil.rmtree(tmp_path / "h.db.recovered")
    assert lines(child(tmp_path / "h.db")) == ["training 1", *whole[2:]]
