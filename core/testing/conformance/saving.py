"""The promise that a candidate can be kept and sent elsewhere."""

from __future__ import annotations

from pathlib import Path

import cloudpickle

from octavo.core.contract.adapter import Candidate, Opened
from octavo.core.quantizing.realize import Realizer
from octavo.core.values.scheme import OpScheme
from octavo.core.values.space import TuningSpace

from .case import AdapterCase, check_close, outputs


class Saving:
    """Files without pickle, and pickles for other processes."""

    def test_save_and_load(
        self,
        case: AdapterCase,
        opened: Opened,
        space: TuningSpace,
        realizer: Realizer,
        tmp_path: Path,
    ) -> None:
        """A loaded candidate gives the saved one's outputs and ledger; no file is a pickle."""
        candidate = realizer.candidate(space.recipe(space.first()))
        folder = _saved(candidate, tmp_path / "quantized")
        for path in folder.rglob("*"):
            assert path.suffix not in (".pkl", ".pickle"), f"{path.name} is a pickle"
        loaded = case.adapter().load(folder, case.float_model)
        check_close(
            outputs(loaded, case.batches), outputs(candidate, case.batches), 1e-5, 1e-6
        )
        assert loaded.recipe == candidate.recipe
        assert _applied(loaded) == _applied(candidate)
        plain = _saved(opened.session.reference(), tmp_path / "float")
        if case.smaller:
            is_smaller = _bytes_in(folder) < _bytes_in(plain)
            assert is_smaller, (
                "everything quantized, and the saved files are not smaller"
            )

    def test_a_candidate_can_be_sent_to_another_process(
        self, case: AdapterCase, space: TuningSpace, realizer: Realizer
    ) -> None:
        """cloudpickle round trip: trials may run in child processes."""
        candidate = realizer.candidate(space.recipe(space.first()))
        again: Candidate = cloudpickle.loads(cloudpickle.dumps(candidate))
        check_close(
            outputs(again, case.batches), outputs(candidate, case.batches), 1e-6, 1e-7
        )


def _saved(candidate: Candidate, folder: Path) -> Path:
    folder.mkdir()
    candidate.save(folder)
    return folder


def _applied(candidate: Candidate) -> dict[str, OpScheme]:
    return {op: line.applied for op, line in candidate.ledger.items()}


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
