"""Peak memory of a fresh process that loads and runs the model."""

from __future__ import annotations

import gc
import pickle
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from octavo.core.contract.objective import Objective, Subject
from octavo.core.errors import WorkerDied
from octavo.core.values.trial import Measurement


class Memory(Objective):
    """Peak resident bytes of a child process beyond what it held with the framework imported,
    before the model came.

    Measured in its own process, because a peak in this one would be that of the tuning run.
    """

    unit = "bytes"
    _float: float | None = None

    def measure(self, subject: Subject, reference: Subject) -> Measurement:
        """Return the peak and its share of the float model's, which is measured once."""
        if self._float is None:
            self._float = peak(reference)
        value = peak(subject)
        ratio = value / self._float if self._float else None
        return Measurement(value, value, value, self.unit, ratio)


def peak(subject: Subject) -> float:
    """Return the peak bytes of a child that unpickles the candidate and runs one batch.

    Raises:
        WorkerDied: If the child fails.
    """
    import cloudpickle

    # The module first, by name: importing its framework is not the model's memory.
    module = type(subject.candidate).__module__
    blob = cloudpickle.dumps((subject.candidate, subject.batch))
    with tempfile.TemporaryDirectory(prefix="octavo-") as folder:
        path = Path(folder) / "candidate.pkl"
        path.write_bytes(cloudpickle.dumps((module, blob)))
        command = [sys.executable, "-m", __name__, str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise WorkerDied(
            f"measuring memory: the child process ended with {done.returncode}: "
            f"{done.stderr.strip()[-500:]}"
        )
    return float(done.stdout.strip().splitlines()[-1])


def _child(path: str) -> int:
    from importlib import import_module

    module, blob = pickle.loads(Path(path).read_bytes())
    import_module(module)
    before = _resident(reset=True)
    candidate, batch = pickle.loads(blob)
    candidate.run(batch)
    return _resident(reset=False) - before


def _resident(*, reset: bool) -> int:
    """Peak resident bytes of this process; with ``reset`` the peak is first brought down to what is
    held now."""
    status = Path("/proc/self/status")
    if not status.exists():
        # No such counter beside Linux: the peak since the start is the best there is.
        # macOS counts it in bytes, the others in KiB.
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    if reset:
        gc.collect()
        # 5 brings the peak (VmHWM) down to what is resident now, see proc(5).
        Path("/proc/self/clear_refs").write_text("5")
    line = next(
        row for row in status.read_text().splitlines() if row.startswith("VmHWM:")
    )
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    sys.stdout.write(f"{_child(sys.argv[1])}\n")
