"""What others took of the processor: measured with processes that really burn it."""

import os
import subprocess
import sys
import time

import pytest

from octavo.core.system import load as load_module
from octavo.core.system.load import OthersLoad, usable_cpus

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="only Linux counts per process"
)

SPAN = 0.8

BURN = """
import sys, time
ends = time.monotonic() + float(sys.argv[1])
while time.monotonic() < ends:
    pass
"""

ORPHANS = """
import subprocess, sys
command = [sys.executable, "-c", sys.argv[1], "30"]
quiet = dict(stdin=-3, stdout=-3, stderr=-3, start_new_session=True)
print(*(subprocess.Popen(command, **quiet).pid for _ in range(int(sys.argv[2]))))
"""

TOLERANCE = 0.15
"""Cores; the kernel counts in hundredths of a second, and reading takes its time."""


def seconds_of(pid):
    """Return the processor seconds of a process so far."""
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_children_of_this_process_are_not_others():
    # As many as there are cores: what they had, nobody else can have had.
    count = len(usable_cpus())
    command = [sys.executable, "-c", BURN, str(SPAN)]
    with OthersLoad() as load:
        burning = [subprocess.Popen(command) for _ in range(count)]
        time.sleep(SPAN / 2)
        alive = sum(seconds_of(process.pid) for process in burning)
        for process in burning:
            process.wait()
    assert alive > 0
    used = os.times()
    assert used.children_user > 0
    assert load.cores == count
    assert load.cores_taken is not None
    assert load.cores_taken * load.seconds + alive < (
        count * load.seconds + TOLERANCE * load.seconds
    )


def test_processes_of_others_are_counted():
    count = len(usable_cpus())
    told = subprocess.run(
        [sys.executable, "-c", ORPHANS, BURN, str(count)],
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
    )
    pids = [int(pid) for pid in told.stdout.split()]
    try:
        before = sum(map(seconds_of, pids))
        with OthersLoad() as load:
            time.sleep(SPAN)
        burnt = sum(map(seconds_of, pids)) - before
    finally:
        for pid in pids:
            os.kill(pid, 9)
    assert burnt > 0
    assert load.cores_taken is not None
    assert load.share == load.cores_taken / load.cores
    assert load.cores_taken > burnt / load.seconds - TOLERANCE
    assert load.cores_taken <= load.cores


def test_a_span_too_short_to_be_told_says_nothing():
    with OthersLoad() as load:
        pass
    assert load.cores_taken is None
    assert load.share is None
    assert load.load_average == pytest.approx(os.getloadavg()[0], abs=1)


def test_a_system_that_does_not_count_says_nothing(monkeypatch, tmp_path):
    (tmp_path / "stat").write_text("cpu  0 0 0 0 0 0 0 0 0 0\n")
    monkeypatch.setattr(load_module, "_PROC", tmp_path)
    with OthersLoad() as load:
        time.sleep(0.25)
    assert load.cores_taken is None


def test_a_quota_leaves_cores_that_others_may_have(monkeypatch):
    """With one core's time on many cores, others may have all the rest."""
    monkeypatch.setattr(load_module, "cpu_quota", lambda: 0.5)
    load = OthersLoad()
    assert load.cores == 0.5
    count = len(usable_cpus())

    def taken(cores):
        return load._taken(
            load_module._Sample(0.0, 10.0, 1.0),
            load_module._Sample(1.0, 10.0 + cores, 1.0),
        )

    assert taken(count - 0.5) == 0
    assert taken(count - 0.25) == pytest.approx(0.25)
    assert taken(count) == pytest.approx(0.5)


def test_only_cores_of_this_process_count():
    mine = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(mine)})
        assert OthersLoad().cores == 1
    finally:
        os.sched_setaffinity(0, mine)
