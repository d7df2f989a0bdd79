"""A script without a ``__main__`` guard runs trials in a child process: the child does not start
the script again."""

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import numpy as np

import octavo
from octavo.adapters.numpy.graph import Builder

print("the script starts")
draw = np.random.default_rng(0)
b = Builder()
x = b.input("x", (None, 8))
weight = draw.standard_normal((8, 8)).astype(np.float32)
graph = b.graph(b.Gemm(b.Relu(b.Gemm(x, weight)), np.eye(8, dtype=np.float32)))
batch = draw.standard_normal((16, 8)).astype(np.float32)
expected = np.maximum(batch @ graph.initializers[graph.nodes[0].inputs[1]], 0)


class Mine(Exception):
    pass


def score(model):
    with open("calls", "a") as file:  # each call may meet a fresh process
        file.write("x")
    if FAILS and open("calls").read() > "xx":
        raise Mine("of the script's own")
    return 1 - float(np.abs(model(batch) - expected).mean())


result = octavo.autotune(
    graph, score, [batch], executor="process", max_trials=2, tolerance=0.5, confirm=False,
    minimise="size", storage="history.db",
)
states = [t.state for t in result.trials]
print("goal met:", result.goal_met, "states:", states, result.trials[0].error)
"""


def run(folder: Path, text: str) -> str:
    path = folder / "tune.py"
    path.write_text(text)
    done = subprocess.run(
        [sys.executable, str(path)],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_a_script_without_a_guard_is_not_started_again(tmp_path: Path) -> None:
    said = run(tmp_path, SCRIPT.replace("FAILS", "False"))
    assert said.count("the script starts") == 1
    assert "goal met: True" in said


def test_an_error_of_the_scripts_own_class_comes_back_as_that_trials_error(
    tmp_path: Path,
) -> None:
    said = run(tmp_path, SCRIPT.replace("FAILS", "True"))
    assert said.count("the script starts") == 1
    assert "'failed'" in said
    assert "of the script's own" in said
