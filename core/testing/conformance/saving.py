"""The promise that a candidate can be kept and sent elsewhere."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

import cloudpickle
import pytest

from octavo.core.contract.adapter import Candidate, Opened
from octavo.core.quantizing.realize import Realizer
from octavo.core.values.layers import REST
from octavo.core.values.ledger import Applied
from octavo.core.values.space import TuningSpace

from .case import AdapterCase, Arrays, arrays, check_close, check_equal, outputs
from .visible import Bench

_PICKLED = (".pkl", ".pickle", ".joblib", ".pt", ".pth")
_PICKLE_STARTS = tuple(b"\x80" + bytes([protocol]) for protocol in range(2, 6))
_OBJECTS = b"'descr': '|O'"
"""In the header of a .npy file whose elements are pickled."""


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
        before = outputs(candidate, case.batches)
        folder = _saved(candidate, tmp_path / "quantized")
        check_equal(outputs(candidate, case.batches), before)
        _check_no_pickle(folder)
        loaded = case.adapter().load(folder, case.float_model)
        _check_same(case, loaded, candidate, before)
        again = _saved(loaded, tmp_path / "again")
        _check_same(
            case, case.adapter().load(again, case.float_model), candidate, before
        )
        plain = _saved(opened.session.reference(), tmp_path / "float")
        if case.smaller:
            is_smaller = _bytes_in(folder) < _bytes_in(plain)
            assert is_smaller, (
                "everything quantized, and the saved files are not smaller"
            )

    def test_the_runtime_loads_it_alone(
        self,
        case: AdapterCase,
        space: TuningSpace,
        realizer: Realizer,
        tmp_path: Path,
    ) -> None:
        """What is saved runs without octavo, and gives the same outputs."""
        if case.loads_alone is None:
            pytest.skip("no AdapterCase.loads_alone")
        candidate = realizer.candidate(space.recipe(space.first()))
        run = case.loads_alone(_saved(candidate, tmp_path / "quantized"))
        got = [y for batch in case.batches for y in arrays(run(batch))]
        check_close(got, outputs(candidate, case.batches), 1e-4, 1e-5)

    def test_bytes_of_ops_are_in_the_files(self, bench: Bench, tmp_path: Path) -> None:
        """``bytes_by_op`` counts what was saved: no more than that, and no weight less."""
        recipe = bench.space.recipe(bench.space.first())
        decided = bench.realizer.parameters(recipe)
        candidate = bench.realizer.candidate(recipe)
        counted = candidate.bytes_by_op()
        if not counted:
            pytest.skip("the adapter does not count bytes by op")
        view = bench.opened.view
        unknown = set(counted) - set(view.by_name) - {REST}
        assert not unknown, f"bytes of {sorted(unknown)}, which the model does not have"
        held = _bytes_in(_saved(candidate, tmp_path / "quantized"))
        assert sum(counted.values()) <= held, (
            f"the ops have {sum(counted.values())} bytes, the files {held}"
        )
        for name, parameters in decided.items():
            op = view.by_name[name]
            spec = parameters.scheme.weight
            if spec is None or op.weight is None or op.weight.shared_with:
                continue
            least = op.weight.size * spec.bits // 8
            assert counted.get(name, 0) >= least, (
                f"{name}: {counted.get(name, 0)} bytes, where its codes alone take {least}"
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
        assert again.recipe == candidate.recipe
        assert _quantized(again) == _quantized(candidate)

    def test_a_twin_has_a_ledger_of_its_own(
        self, case: AdapterCase, space: TuningSpace, realizer: Realizer
    ) -> None:
        """``with_ledger`` gives the same model under other lines, and leaves this one alone."""
        candidate = realizer.candidate(space.recipe(space.first()))
        said = dict(candidate.ledger)
        name = next(iter(said))
        lines = {name: Applied(said[name].requested, said[name].applied, reason="why")}
        twin = candidate.with_ledger(lines)
        assert dict(twin.ledger) == lines
        assert dict(candidate.ledger) == said, "the candidate's own ledger was changed"
        assert twin.recipe == candidate.recipe
        check_equal(outputs(twin, case.batches), outputs(candidate, case.batches))


def _check_same(
    case: AdapterCase, loaded: Candidate, saved: Candidate, before: Arrays
) -> None:
    """A loaded candidate is the one that was saved: numbers, recipe and ledger."""
    check_close(outputs(loaded, case.batches), before, 1e-5, 1e-6)
    assert loaded.recipe == saved.recipe
    assert _quantized(loaded) == _quantized(saved)


def _saved(candidate: Candidate, folder: Path) -> Path:
    folder.mkdir()
    candidate.save(folder)
    return folder


def _check_no_pickle(folder: Path) -> None:
    """Whatever loads a pickle runs what stands in it."""
    for path in folder.rglob("*"):
        if path.is_file():
            assert path.suffix not in _PICKLED, f"{path.name} is a pickle"
            for name, start in _starts(path):
                is_pickle = start.startswith(_PICKLE_STARTS) or _OBJECTS in start
                assert not is_pickle, f"{path.name} holds a pickle: {name}"


def _starts(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the first bytes of a file, and of the files in an archive."""
    with path.open("rb") as file:
        yield path.name, file.read(128)
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                with archive.open(name) as member:
                    yield name, member.read(128)


def _quantized(candidate: Candidate) -> dict[str, Applied]:
    """Return the lines of ops that the recipe quantizes."""
    lines = candidate.ledger.items()
    return {op: line for op, line in lines if not line.requested.is_float}


def _bytes_in(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
