"""What results show: a run over three backends, a miss, models without a search, old results."""

from __future__ import annotations

import json
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest

import octavo
from octavo.core.errors import ConfigError, DataError, MissingFramework
from octavo.core.report import report_data, text
from octavo.core.report.next_steps import next_steps
from octavo.core.report.summary import comparison, summary
from octavo.core.report.tables import TextTable, plain
from octavo.core.report.trial_tables import backends, trials_table
from octavo.core.results.result import read_manifest
from octavo.core.values.trial import Measurement

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

RELEASE = Path(__file__).parents[2] / "data" / "release-0.1.0"
X = np.random.default_rng(0).normal(size=(64, 1, 8, 8)).astype(np.float32)
BATCHES = [torch.from_numpy(X[i : i + 16]) for i in range(0, 64, 16)]


def network() -> Any:
    torch.manual_seed(0)
    nn = torch.nn
    layers = (nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(8 * 64, 10)).eval()


with torch.no_grad():
    TRUTH = network()(torch.from_numpy(X)).numpy().argmax(1)


def score(model: Any) -> octavo.Evaluation:
    right = (np.asarray(model(X)).argmax(1) == TRUTH).astype(np.float64)
    return octavo.Evaluation({"accuracy": float(right.mean())}, right)


def tuned(folder: Path, **settings: Any) -> octavo.Result:
    return octavo.autotune(
        network(),
        score,
        BATCHES,
        storage=folder / "history.db",
        arrays=True,
        **settings,
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("results")


@pytest.fixture(scope="module")
def result(place: Path) -> octavo.Result:
    found = tuned(
        place, backends=["torch", "onnx", "numpy"], max_trials=6, tolerance=0.1
    )
    found.save(place / "saved")
    return found


@pytest.fixture(scope="module")
def missed(place: Path) -> octavo.Result:
    """A run that cannot reach its goal: weights of 3 bits, no loss at all."""
    folder = place / "missed"
    folder.mkdir()
    narrow = {"mode": "static", "weight": {"dtype": ["int3"]}}
    settings = {"rules": [narrow], "strategy": "basic", "backends": ["torch"]}
    return tuned(folder, max_trials=2, tolerance=0.0, config=settings)


@pytest.fixture(scope="module")
def quantized(place: Path) -> octavo.Quantized:
    found = octavo.quantize_model(network(), "int8-static", BATCHES, backend="onnx")
    found.save(place / "quantized")
    return found


def tables_of(result: octavo.Result) -> Iterator[TextTable]:
    data = report_data(result.facts())
    yield comparison(data)
    of_backends = backends(data)
    assert of_backends is not None
    yield of_backends
    yield trials_table("trials", (result.baseline, *result.trials))


UNITS = {"ms": 1.0, "µs": 1e-3, "s": 1e3, "B": 1.0, "kB": 1e3, "MB": 1e6}


def number(cell: str) -> tuple[float, float]:
    """A shown figure and half a step of its last digit."""
    found = re.fullmatch(r"([\d.]+)(?: (\w+))?", cell)
    assert found is not None, cell
    digits = len(found[1].partition(".")[2])
    scale = UNITS[found[2]] if found[2] else 1.0
    # Three digits are shown, and zeros at the end are not.
    value = float(found[1])
    step = max(10.0**-digits if digits else 0.0, value * 1e-3)
    return value * scale, 0.51 * step * scale


def agrees(value: str, base: str, ratio: str) -> bool:
    (v, dv), (b, db), (r, dr) = number(value), number(base), number(ratio)
    return abs(b * r - v) <= dv + db * r + dr * b


def latency_rows(table: TextTable) -> Iterator[tuple[str, str, str]]:
    """Yield what each row shows: the figure, float's of the same rounds, the ratio."""
    at = {name: index for index, name in enumerate(table.columns)}
    rows = [[cell.plain for cell in row] for row in table.rows]
    if "float" in at:
        yield from ((row[2], row[1], row[3]) for row in rows if row[0] == "latency")
        return
    # One figure of float's that is every row's stands in the heading.
    heading = next(
        name for name in at if re.fullmatch(r"latency( \(float .*\))?", name)
    )
    shared = re.search(r"\(float (.*)\)", heading)
    for row in rows:
        base = shared[1] if shared else row[at["float latency"]]
        if row[at[heading]] != "-":
            yield row[at[heading]], base, row[at["latency ratio"]]


def test_ratio_times_float_is_the_value_in_every_table(result: octavo.Result) -> None:
    counts = []
    for table in tables_of(result):
        shown = list(latency_rows(table))
        for figure, base, ratio in shown:
            assert agrees(figure, base, ratio), (figure, base, ratio)
        counts.append(len(shown))
    measured = [t for t in result.trials if "latency" in t.objectives]
    searched = {t.recipe.backend for t in measured}
    assert len(measured) >= 3
    # The comparison; the best of each backend; the float model and each trial.
    assert counts == [1, len(searched), 1 + len(measured)]


def test_a_pair_in_words_agrees_with_itself(result: octavo.Result) -> None:
    for trial in result.trials:
        told = text.pair(trial.objectives["latency"])
        found = re.fullmatch(r"(.+) of (.+) \((.+)\)", told)
        assert found is not None
        assert agrees(found[1], found[2], found[3])


def test_a_result_reads_in_about_ten_lines(result: octavo.Result) -> None:
    told = repr(result)
    assert len(told.splitlines()) <= 12
    assert len(told) < 1500
    assert "goal reached" in told
    assert "of 64 samples [" in told
    assert text.pair(result.best.objectives["latency"]) in told
    assert str(result.best.number) in told
    assert "model.onnx" in told or "model.npz" in told or "safetensors" in told


def test_what_a_result_holds_reads_shortly(
    result: octavo.Result, quantized: octavo.Quantized
) -> None:
    assert len(repr(result.best).splitlines()) <= 2
    assert len(repr(quantized).splitlines()) <= 7
    members = (
        result.best.recipe,
        result.coverage,
        result.views,
        result.trials,
        result.pareto,
        result.config,
        result.ledger,
        quantized.origin,
        quantized.candidate,
        quantized,
    )
    assert max(len(repr(member)) for member in members) < 9000


def test_the_ledger_is_a_mapping_that_prints_as_a_table(result: octavo.Result) -> None:
    ledger = result.ledger
    assert isinstance(ledger, Mapping)
    assert ledger == dict(result.candidate.ledger)
    assert pickle.loads(pickle.dumps(ledger)) == ledger
    assert pickle.loads(pickle.dumps(ledger)).types == ledger.types
    assert json.loads(json.dumps({op: line.to_json() for op, line in ledger.items()}))
    assert all(op in repr(ledger) for op in ledger)
    assert "conv" in plain(ledger.by_type())


def test_trials_are_a_tuple_that_prints_as_a_table(result: octavo.Result) -> None:
    assert isinstance(result.trials, tuple)
    assert result.trials == tuple(result.trials)
    assert "ratio" in repr(result.trials)
    assert "passes" in repr(result.trials)


def test_trials_frame_has_pairs_of_figures(result: octavo.Result) -> None:
    pytest.importorskip("pandas")
    frame = result.trials_frame()
    assert list(frame.number) == [0, *(trial.number for trial in result.trials)]
    product = frame.float_latency_ms * frame.latency_ratio
    assert np.allclose(product, frame.latency_ms)
    assert {"accuracy", "accuracy_low", "size_bytes", "recipe", "passed"} <= set(frame)
    assert frame.filter(like="ops_").sum(axis=1).iloc[1:].gt(0).all()


def test_without_pandas_the_remedy_is_named(
    result: octavo.Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingFramework, match="pip install pandas"):
        result.trials_frame()


def test_the_best_of_a_backend(result: octavo.Result) -> None:
    best = result.best_of("onnx")
    assert best is not None and best.recipe.backend == "onnx" and best.passed
    with pytest.raises(ConfigError, match="onnx"):
        result.best_of("onx")


class Tags(HTMLParser):
    """Counts tags, and holds that each one is closed in its order."""

    VOID = ("br", "circle", "line", "polyline")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.seen.append(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def test_notebooks_show_cards_and_the_front(
    result: octavo.Result, missed: octavo.Result, quantized: octavo.Quantized
) -> None:
    for shown in (result, missed, quantized, result.ledger, result.trials):
        tags = Tags()
        tags.feed(shown._repr_html_())
        assert not tags.open
        assert "script" not in tags.seen
    tags = Tags()
    tags.feed(result._repr_html_())
    assert tags.seen.count("circle") >= len(result.trials)


def test_names_of_ops_are_escaped_in_html(result: octavo.Result) -> None:
    facts = result.facts()
    facts["goal"] = "<img src=x onerror=alert(1)>"
    from octavo.core.report.cards import result_html

    data = report_data(facts)
    assert "<img" not in result_html(data, next_steps(data))


def test_a_miss_says_what_to_try_next(missed: octavo.Result) -> None:
    assert not missed.goal_met
    data = report_data(missed.facts())
    steps = next_steps(data)
    settings = [step.toml for step in steps.steps if step.toml]
    assert any("tolerance" in toml for toml in settings)
    assert any("int8" in toml for toml in settings)
    printed = missed.summary(80)
    assert all(step.what in " ".join(printed.split()) for step in steps.steps)


def test_what_to_try_is_a_configuration_that_works(
    missed: octavo.Result, tmp_path: Path
) -> None:
    steps = next_steps(report_data(missed.facts())).steps
    settings = [step for step in steps if step.toml]
    for number, step in enumerate(settings):
        path = tmp_path / f"{number}.toml"
        path.write_text(step.toml)
        config = octavo.TuningConfig.read(path)
        octavo.quantize_model(network(), config, BATCHES)
    looser = next(s.toml for s in steps if "tolerance" in s.toml)
    tolerance = float(looser.split("=")[1])
    best = missed.best.metrics["accuracy"]
    assert missed.baseline.metrics["accuracy"] * (1 - tolerance) <= best


def test_what_costs_most_is_named(missed: octavo.Result) -> None:
    facts = missed.facts()
    facts["layers"] = {
        "0": {"sensitivity": 0.5, "kind": "output_distance"},
        "3": {"sensitivity": 2.0, "kind": "output_distance"},
    }
    steps = next_steps(report_data(facts))
    assert steps.costly[0].name == "3"
    assert 'ops = ["3"' in steps.steps[0].toml
    assert "output distance" in plain(summary(report_data(facts)), 80)


def test_a_result_that_is_slower_than_float_says_so(result: octavo.Result) -> None:
    facts = result.facts()
    slow = Measurement(20.0, 19.0, 21.0, "ms", 2.0)
    facts["best"]["objectives"]["latency"] = slow.to_row()
    warnings = next_steps(report_data(facts)).warnings
    assert "slower" in warnings[0] and "20 ms of 10 ms (2)" in warnings[0]


@pytest.mark.parametrize("backend", ["torch", "onnx", "numpy"])
def test_the_code_that_is_shown_loads_the_model_and_runs_it(
    backend: str, place: Path, tmp_path: Path
) -> None:
    found = octavo.quantize_model(network(), "int8-static", BATCHES, backend=backend)
    found.save(tmp_path / "a result")
    expected = np.asarray(found.candidate.run((X[:4],))[0])
    printed = found.summary()
    code = printed.partition("to load it and run it:\n")[2]
    code = "\n".join(line.removeprefix("    ") for line in code.splitlines())
    assert "input" in code
    prelude = f"import numpy as np\ninput = np.load({str(tmp_path / 'x.npy')!r})\n"
    if backend == "torch":
        prelude += (
            "import torch\nfrom torch import nn\ninput = torch.from_numpy(input)\n"
            "float_model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(),"
            " nn.Flatten(), nn.Linear(512, 10)).eval()\n"
        )
    np.save(tmp_path / "x.npy", X[:4])
    ending = (
        "\nouts = outputs[0] if isinstance(outputs, (list, tuple)) else outputs"
        f"\nnp.save({str(tmp_path / 'y.npy')!r},"
        " getattr(outs, 'detach', lambda: outs)())\n"
    )
    subprocess.run([sys.executable, "-c", prelude + code + ending], check=True)
    assert np.allclose(np.load(tmp_path / "y.npy"), expected, atol=1e-4)


def test_quantized_is_compared_with_float(quantized: octavo.Quantized) -> None:
    found = quantized.compare(score=score)
    assert found.samples == 64
    assert found.size.value == sum(
        f.stat().st_size for f in (quantized.saved / "model").iterdir()
    )
    assert found.latency is not None and found.latency.base is not None
    (output,) = found.outputs
    reference = quantized.origin.reference.run((X,))[0]
    difference = quantized.candidate.run((X,))[0] - reference
    assert output.largest == pytest.approx(np.abs(difference).max(), rel=1e-4)
    expected = 10 * np.log10((reference**2).sum() / (difference**2).sum())
    assert output.sqnr == pytest.approx(expected, rel=1e-4)
    assert found.scores["accuracy"].float_value == 1.0
    assert found.scores["accuracy"].sampling.count == 64
    json.dumps(found.to_json())
    assert "SQNR" in repr(found) and "of 64 samples" in repr(found)


def test_float_against_itself_has_no_difference() -> None:
    found = octavo.quantize_model(
        network(), octavo.Recipe({}, backend="numpy"), BATCHES, backend="numpy"
    )
    compared = found.compare(measure=False)
    assert compared.latency is None and not compared.warnings
    assert compared.outputs[0].sqnr == float("inf")
    assert "no difference" in repr(compared)


def test_comparing_needs_data_and_the_float_model(
    quantized: octavo.Quantized,
) -> None:
    without = octavo.quantize_model(network(), "int8-weight-only")
    with pytest.raises(DataError, match=r"compare\(data\)"):
        without.compare()
    assert without.compare(BATCHES[:1], measure=False).samples == 16
    travelled = pickle.loads(cloudpickle.dumps(quantized))
    with pytest.raises(ConfigError, match="float model is not known"):
        travelled.compare()


@pytest.mark.parametrize("name", ["numpy", "onnx", "torch"])
@pytest.mark.parametrize("width", [60, 80, 200])
def test_old_results_render(name: str, width: int) -> None:
    folder = RELEASE / name
    printed = plain(summary(report_data(read_manifest(folder)), folder), width)
    assert f"{name}/model/model." in printed.replace("\n", "")
    steps = next_steps(report_data(read_manifest(folder)), folder)
    assert steps.file is not None and "octavo.load" in steps.code
    compile(steps.code, "shown", "exec")


def test_a_float_model_carries_no_codes() -> None:
    float_model = octavo.Recipe({}, backend="onnx")
    found = octavo.quantize_model(network(), float_model, BATCHES, backend="onnx")
    assert not any(line.carries_codes for line in found.ledger.values())
    reference = found.origin.reference.ledger
    assert {line.reason for line in reference.values()} != set()
    assert not any("carries" in line.reason for line in reference.values())


@pytest.mark.parametrize("width", [12, 30, 80])
def test_summaries_fit_any_width(
    width: int, result: octavo.Result, missed: octavo.Result
) -> None:
    for found in (result, missed):
        printed = found.summary(width)
        assert found.goal.split()[0] in printed


def test_results_travel(result: octavo.Result) -> None:
    travelled = pickle.loads(cloudpickle.dumps(result))
    assert travelled.trials == result.trials
    assert repr(travelled.trials) == repr(result.trials)
