"""Figures as they are read: one pair from one measurement, samples and intervals."""

from __future__ import annotations

from pathlib import Path

import pytest

from octavo.core.report import text
from octavo.core.report.loading_code import loading_code
from octavo.core.values.recipe import Recipe
from octavo.core.values.sampling import sampling_of
from octavo.core.values.trial import Measurement, Trial


@pytest.mark.parametrize(
    ("milliseconds", "told"),
    [
        (0.0853, "85.3 µs"),
        (0.09996, "0.1 ms"),
        (1.52, "1.52 ms"),
        (999.4, "999 ms"),
        (999.6, "1 s"),
        (1050, "1.05 s"),
        (0, "0 ms"),
    ],
)
def test_times_have_the_unit_that_people_use(milliseconds: float, told: str) -> None:
    assert text.latency(milliseconds) == told


def test_a_pair_is_of_one_measurement() -> None:
    found = Measurement(16.4, 15.0, 18.0, "ms", ratio=0.471)
    assert text.pair(found) == "16.4 ms of 34.8 ms (0.471)"
    assert text.base(found) == "34.8 ms"
    assert text.measured(found, spread=True) == "16.4 ms [15, 18]"
    assert text.pair(Measurement(16.4, 15.0, 18.0, "ms")) == "16.4 ms"


def test_a_spread_over_two_units_says_both() -> None:
    found = Measurement(0.11, 0.09, 0.12, "ms")
    assert text.measured(found, spread=True) == "0.11 ms [90 µs, 0.12 ms]"


def test_sizes_round_into_the_next_unit() -> None:
    assert text.size(999_999) == "1 MB"
    assert text.size(222_786) == "223 kB"


def scored(rights: int, count: int = 719) -> Trial:
    sampling = sampling_of([1.0] * rights + [0.0] * (count - rights))
    return Trial(
        1, Recipe({}), metrics={"acc": rights / count}, sampling={"acc": sampling}
    )


def test_a_score_says_its_samples_and_interval() -> None:
    assert text.scored(scored(711), "acc") == "0.98887 of 719 samples [0.978, 0.994]"
    assert text.scored(Trial(1, Recipe({}), metrics={"acc": 0.5}), "acc") == "0.5"
    assert text.scored(None, "acc") == "-"


def test_a_difference_is_counted_in_samples() -> None:
    assert text.difference(scored(711), scored(712), "acc") == "one of 719 samples"
    assert text.difference(scored(711), scored(718), "acc") == "7 of 719 samples"
    assert text.difference(scored(711), scored(711), "acc") == "none of 719 samples"
    assert text.difference(scored(711), scored(500, 720), "acc") == ""


def test_code_names_inputs_so_that_python_takes_them() -> None:
    inputs = [("a.b", "float32", (None, 3)), ("a_b", "int64", None), ("model", "f", ())]
    code = loading_code("onnx", Path("out"), inputs)
    compile(code, "shown", "exec")
    assert "'a.b': a_b," in code.replace("}", ",")
    assert "'a_b': a_b_1" in code and "'model': x_model" in code
    assert "a_b: float32 [n, 3]" in code


def test_long_paths_are_broken_into_lines_of_code_and_never_inside() -> None:
    place = Path("a" * 40) / ("b" * 40)
    for backend in ("torch", "numpy", "onnx"):
        code = loading_code(backend, place, [("x", "float32", None)])
        compile(code, "shown", "exec")
        assert str(place) in code
