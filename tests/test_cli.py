"""The command line: from files to a tuned model without a line of Python."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import jsonschema
import numpy as np
import pytest

from octavo.cli import main
from octavo.cli.given.data import read_samples, split
from octavo.cli.given.metrics import METRICS, FileScore
from octavo.core.errors import ConfigError, DataError, UnsafeFile
from octavo.core.scoring.evaluation import Evaluation
from octavo.core.storage.history import read_history

ROOT = Path(__file__).resolve().parent.parent
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def octavo(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Command:
    """Run a command in an empty folder and return (exit code, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OCTAVO_HOME", str(tmp_path / "home"))

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(a) for a in arguments])
        shown = capsys.readouterr()
        return int(ended.value.code or 0), shown.out, shown.err

    return run


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A convolution and a linear layer as an ONNX file, weights from a fixed seed, with its labels
    in an .npz beside it."""
    import onnx
    import onnxruntime

    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("model with a space ü")
    graph = onnx.parser.parse_graph("""small (float[n, 1, 8, 8] image) => (float[n, 5] logits) {
        hidden = Conv<kernel_shape=[3, 3], strides=[1, 1]>(image, w0, b0)
        active = Relu(hidden)
        flat = Flatten(active)
        logits = Gemm<transB=1>(flat, w1, b1)
    }""")
    weights = {
        "w0": rng.normal(size=(8, 1, 3, 3)),
        "b0": rng.normal(size=8) * 0.1,
        "w1": rng.normal(size=(5, 288)) * 0.1,
        "b1": rng.normal(size=5) * 0.1,
    }
    graph.initializer.extend(
        onnx.numpy_helper.from_array(w.astype(np.float32), name)
        for name, w in weights.items()
    )
    path = folder / "small.onnx"
    onnx.save(
        onnx.helper.make_model(
            graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=10
        ),
        path,
    )
    images = rng.normal(size=(400, 1, 8, 8)).astype(np.float32)
    labels = (
        onnxruntime.InferenceSession(path).run(None, {"image": images})[0].argmax(1)
    )
    np.savez(folder / "small.npz", image=images, labels=labels)
    return path


# Reading samples


def test_samples_come_from_an_archive_or_a_folder(tmp_path: Path) -> None:
    x, y = np.arange(12.0).reshape(6, 2), np.arange(6)
    np.savez(tmp_path / "d.npz", image=x, labels=y)
    (tmp_path / "d").mkdir()
    np.save(tmp_path / "d" / "image.npy", x)
    np.save(tmp_path / "d" / "labels.npy", y)
    for path in (tmp_path / "d.npz", tmp_path / "d"):
        samples = read_samples(path)
        assert list(samples.inputs) == ["image"]
        np.testing.assert_array_equal(samples.inputs["image"], x)
        np.testing.assert_array_equal(samples.labels, y)


def test_one_input_goes_by_position_and_several_by_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "one.npz", image=np.zeros((3, 2)))
    np.savez(tmp_path / "two.npz", ids=np.zeros((3, 2)), mask=np.ones((3, 2)))
    assert [b[0].shape for b in read_samples(tmp_path / "one.npz").batches(2)] == [
        (2, 2),
        (1, 2),
    ]  # type: ignore[index]
    assert [sorted(b) for b in read_samples(tmp_path / "two.npz").batches(2)] == [
        ["ids", "mask"]
    ] * 2


@pytest.mark.parametrize(
    ("arrays", "labels", "said"),
    [
        ({"image": np.zeros((3, 2)), "labels": np.zeros(4)}, None, "labels 4"),
        (
            {"image": np.zeros((3, 2)), "labels": np.zeros(3)},
            "lables",
            "did you mean 'labels'",
        ),
        ({"labels": np.zeros(3)}, None, "no array of inputs"),
        ({"image": np.zeros((0, 2))}, None, "at least 1"),
        ({"image": np.float32(3)}, None, "at least 1"),
    ],
)
def test_samples_that_make_no_sense_are_refused_by_name(
    tmp_path: Path, arrays: dict[str, np.ndarray], labels: str | None, said: str
) -> None:
    np.savez(tmp_path / "d.npz", **arrays)
    with pytest.raises(DataError, match=re.escape(said)):
        read_samples(tmp_path / "d.npz", labels)


def test_pickled_arrays_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", image=np.array([{}], dtype=object))
    with pytest.raises(UnsafeFile, match="pickle"):
        read_samples(tmp_path / "d.npz")


def test_calibration_samples_are_not_scored(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", image=np.arange(100.0), labels=np.arange(100))
    calibration, scored = split(read_samples(tmp_path / "d.npz"), 10)
    kept, rest = set(calibration.inputs["image"]), set(scored.inputs["image"])
    assert len(kept) == 10
    assert kept | rest == set(range(100))
    assert not kept & rest
    assert {0.0, 99.0} <= kept, "spread over the whole file, which may be sorted"


# Scores


def score(
    name: str, outputs: np.ndarray, labels: np.ndarray | None
) -> tuple[float, np.ndarray]:
    from octavo.cli.given.data import Samples

    samples = Samples({"x": outputs}, labels, "here")
    scorer = FileScore(name, samples, 2, reference=lambda x: x)
    found = scorer(lambda x: x)
    assert isinstance(found, Evaluation)
    # Any samples in any order score as they do in the whole.
    order = np.random.default_rng(1).permutation(len(outputs))[: len(outputs) // 2 + 1]
    np.testing.assert_allclose(
        scorer.of(lambda x: x, order), np.asarray(found.per_sample)[order], atol=1e-12
    )
    assert isinstance(found.value, float)
    return found.value, np.asarray(found.per_sample)


def test_scores_are_those_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(3)
    logits, labels, targets = (
        rng.normal(size=(51, 10)),
        rng.integers(0, 10, 51),
        rng.normal(size=(51, 10)),
    )
    expected = {
        "accuracy": (labels, metrics.accuracy_score(labels, logits.argmax(1))),
        "top5": (
            labels,
            metrics.top_k_accuracy_score(labels, logits, k=5, labels=range(10)),
        ),
        "mse": (targets, metrics.mean_squared_error(targets, logits)),
        "mae": (targets, metrics.mean_absolute_error(targets, logits)),
        "cosine": (
            targets,
            np.mean(
                [
                    metrics.pairwise.cosine_similarity(a[None], b[None])[0, 0]
                    for a, b in zip(logits, targets, strict=True)
                ]
            ),
        ),
    }
    for name, (wanted, value) in expected.items():
        found, per_sample = score(name, logits, wanted)
        assert found == pytest.approx(value, abs=1e-12), name
        assert per_sample.shape == (51,), name
        assert per_sample.mean() == pytest.approx(found, abs=1e-12), name


def test_the_float_models_outputs_stand_in_for_labels() -> None:
    logits = np.random.default_rng(0).normal(size=(7, 3))
    assert score("cosine", logits, None)[0] == pytest.approx(1.0)
    assert score("agreement", logits, None)[0] == 1.0


def test_two_zero_vectors_are_alike() -> None:
    value, per_sample = score(
        "cosine", np.zeros((2, 3)), np.array([[0.0, 0, 0], [1, 0, 0]])
    )
    assert per_sample.tolist() == [1.0, 0.0]
    assert value == 0.5


def test_a_score_without_its_labels_is_refused() -> None:
    with pytest.raises(DataError, match="--labels"):
        score("accuracy", np.zeros((2, 3)), None)
    with pytest.raises(ConfigError, match="did you mean 'accuracy'"):
        score("acuracy", np.zeros((2, 3)), None)
    assert set(METRICS) == {"accuracy", "top5", "agreement", "cosine", "mse", "mae"}


# Commands that only look


def test_plugins_lists_every_part_and_what_was_left_out(octavo: Command) -> None:
    code, shown, _ = octavo("plugins", "--json", "--no-autoload")
    found = json.loads(shown)
    assert code == 0
    assert {"numpy", "onnx", "torch"} <= set(found["parts"]["adapters"])
    assert all(p["loaded"] for p in found["plugins"])
    assert "bayesian" in octavo("plugins")[1]


def test_schema_is_one_that_a_validator_takes(octavo: Command) -> None:
    code, shown, _ = octavo("schema")
    schema = json.loads(shown)
    assert code == 0
    assert {"strategy", "accuracy", "objective", "rules"} <= set(schema["properties"])
    jsonschema.Draft202012Validator.check_schema(schema)
    refs = set(re.findall(r'"\$ref": "#/\$defs/([^"]+)"', shown))
    assert refs <= set(schema["$defs"]), "every reference is there"
    settings = tomllib.loads((ROOT / "examples" / "digits.toml").read_text())
    jsonschema.validate(settings, schema)
    with pytest.raises(jsonschema.ValidationError, match="max_trial"):
        jsonschema.validate({**settings, "max_trial": 3}, schema)


def test_inspect_names_every_op_its_size_and_its_inputs(
    octavo: Command, model: Path
) -> None:
    code, shown, _ = octavo("inspect", model, "--json")
    found = json.loads(shown)
    assert code == 0
    assert [op["type"] for op in found["ops"] if op["parameters"]] == ["conv", "linear"]
    assert found["parameters"] == 8 * 9 + 5 * 288
    code, shown, _ = octavo("inspect", model)
    assert code == 0
    assert "1,512 weight elements" in shown
    other = json.loads(octavo("inspect", model, "--backend", "numpy", "--json")[1])
    assert other["parameters"] == found["parameters"], (
        "another backend reads the same file"
    )
    assert "image" in shown


def test_capabilities_say_what_runs_on_kernels(octavo: Command, model: Path) -> None:
    code, shown, _ = octavo("capabilities", model, "--json")
    (found,) = json.loads(shown)
    assert code == 0
    assert {"conv", "linear"} <= set(found["offers"])
    assert any(
        o["realization"] == "kernel" and o["scheme"].startswith("static")
        for o in found["offers"]["conv"]
    )
    assert "kernel" in octavo("capabilities", model)[1]


def test_capabilities_of_this_machine_need_no_model(octavo: Command) -> None:
    code, shown, _ = octavo("capabilities", "--json")
    found = {answer["backend"]: answer["offers"] for answer in json.loads(shown)}
    assert code == 0
    assert {"numpy", "onnx", "torch"} <= set(found)
    assert all(offers["linear"] for offers in found.values())


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("inspect", "nowhere.onnx"), 2, "nowhere.onnx does not exist"),
        (("quantize", "nowhere.onnx", "--scheme", "int8-dynamic"), 2, "does not exist"),
        (("history", "nowhere.db"), 2, "does not exist"),
        (("report", "nowhere"), 2, "nowhere does not exist"),
        (("inspect", "json:lods"), 2, "did you mean 'loads'"),
        (("inspect", "no_such_module:model"), 2, "No module named 'no_such_module'"),
        (("tune",), 2, "Missing argument"),
        (("tunee",), 2, "tune"),
    ],
)
def test_what_is_wrong_is_named(
    octavo: Command, arguments: tuple[str, ...], code: int, said: str
) -> None:
    found, shown, error = octavo(*arguments)
    assert found == code
    assert said in error
    assert shown == ""
    assert "Traceback" not in error


# Tuning


def tune(octavo: Command, model: Path, *more: object) -> tuple[int, str, str]:
    data = model.with_suffix(".npz")
    return octavo(
        "tune",
        model,
        "--data",
        data,
        "--metric",
        "accuracy",
        "--strategy",
        "basic",
        "--max-trials",
        "3",
        "--tolerance",
        "0.05",
        "--minimise",
        "size",
        "--minimise",
        "latency",
        *more,
    )


def test_a_model_file_is_tuned_saved_reported_and_loaded_again(
    octavo: Command, model: Path, tmp_path: Path
) -> None:
    import octavo as library

    code, shown, error = tune(octavo, model, "--output", "result")
    assert code == 0, error
    for figure in (
        "goal reached",
        "accuracy",
        "latency",
        "size",
        "float",
        "left in float",
        "again: ",
    ):
        assert figure in shown
    assert "trial 1 on onnx" in error
    assert "samples calibrate" in error
    assert (
        (tmp_path / "result" / "report.html").read_text().startswith("<!doctype html>")
    )

    arrays = np.load(model.with_suffix(".npz"))
    again = library.load("result")
    outputs = np.asarray(again(arrays["image"]))
    assert (outputs.argmax(1) == arrays["labels"]).mean() > 0.9

    # The other commands read what this one wrote.
    code, listed, _ = octavo("history", "result.db")
    assert code == 0
    assert "float model" in listed
    assert "passes" in listed
    assert json.loads(octavo("history", "result", "--json")[1]) == json.loads(
        octavo("history", "result.db", "--json")[1]
    )
    assert "as requested" in octavo("inspect", "result")[1]
    single = next((tmp_path / "result" / "model").glob("*.onnx"))
    assert "as requested" in octavo("inspect", single)[1], (
        "an .onnx file carries its recipe"
    )
    assert octavo("report", "result", "-o", "again.html")[0] == 0
    assert (tmp_path / "again.html").exists()


def test_a_second_run_on_the_same_history_goes_on_with_it(
    octavo: Command, model: Path
) -> None:
    assert tune(octavo, model, "--output", "result", "--no-report")[0] == 0
    first = read_history("result.db")[1]
    code, _, error = tune(octavo, model, "--output", "result", "--no-report")
    assert code == 0, error
    assert read_history("result.db")[1] == first, "nothing is run twice"
    code, _, error = tune(
        octavo, model, "--output", "result", "--no-report", "--no-resume"
    )
    assert code == 1
    assert "--resume" in error
    code, _, error = tune(octavo, model, "--output", "result", "--no-report", "--fresh")
    assert code == 0, error
    (aside,) = Path().glob("result-until-*.db")
    assert str(aside) in error
    assert read_history(aside)[1] == first
    assert read_history("result.db")[1] != first


def test_a_goal_that_cannot_be_reached_has_an_exit_code_of_its_own(
    octavo: Command, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "scores.py").write_text(
        "def worse(model):\n    worse.calls = getattr(worse, 'calls', 0) + 1\n    return 1.0 if "
        "worse.calls <= 2 else 0.1\n"
    )
    data = model.with_suffix(".npz")
    code, shown, _ = octavo(
        "tune",
        model,
        "--data",
        data,
        "--evaluate",
        "scores:worse",
        "--strategy",
        "basic",
        "--max-trials",
        "2",
        "--no-report",
        "--output",
        "missed",
    )
    assert code == 3
    assert "goal not reached" in shown
    assert (tmp_path / "missed" / "octavo.json").exists(), (
        "the closest is handed over all the same"
    )


def test_a_folder_of_something_else_is_not_overwritten(
    octavo: Command, model: Path, tmp_path: Path
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"cat")
    code, _, error = tune(octavo, model, "--output", "photos")
    assert code == 2
    assert "no octavo result" in error
    assert not (tmp_path / "photos.db").exists(), "refused before any work"


def test_quantize_applies_a_named_scheme(
    octavo: Command, model: Path, tmp_path: Path
) -> None:
    data = model.with_suffix(".npz")
    code, shown, error = octavo(
        "quantize", model, "--scheme", "int8-static", "--data", data, "-o", "small-int8"
    )
    assert code == 0, error
    quantized = json.loads((tmp_path / "small-int8" / "octavo.json").read_text())[
        "recipe"
    ]["ops"]
    weighted = {
        op["name"]
        for op in json.loads(octavo("inspect", model, "--json")[1])["ops"]
        if op["parameters"]
    }
    assert weighted <= set(quantized)
    assert all(name in shown for name in quantized)
    code, _, error = octavo("quantize", model, "--scheme", "int8-static")
    assert code == 2
    assert "--data" in error
    code, _, error = octavo(
        "quantize", model, "--scheme", "int9-static", "--data", data
    )
    assert code == 2
    assert "int8-static" in error


def test_quantize_takes_batches_of_a_python_object(
    octavo: Command, model: Path, tmp_path: Path
) -> None:
    data = str(model.with_suffix(".npz").absolute())
    (tmp_path / "my_batches.py").write_text(
        "import numpy as np, octavo\n"
        f"table = np.load({data!r})\n"
        "loader = [{'picture': table['image'][i : i + 8], 'label': i} for i in range(0, 32, 8)]\n"
        "batches = octavo.Batches(loader, inputs=lambda batch: batch['picture'])\n"
    )
    code, _, error = octavo(
        "quantize", model, "--data", "my_batches:batches", "-o", "by-object"
    )
    assert code == 0, error
    code, _, error = octavo(
        "quantize", model, "--data", "my_batches:loader", "-o", "by-loader"
    )
    assert code == 1
    assert "octavo.Batches" in error
    assert "picture" in error


def test_export_writes_a_runner_that_needs_numpy_only(
    octavo: Command, model: Path, tmp_path: Path
) -> None:
    data = model.with_suffix(".npz")
    assert (
        octavo(
            "quantize", model, "--backend", "numpy", "--data", data, "-o", "quantized"
        )[0]
        == 0
    )
    code, shown, error = octavo("export", "quantized", "--standalone", "-o", "alone")
    assert code == 0, error
    assert "run.py" in shown
    np.savez(tmp_path / "in.npz", image=np.load(data)["image"][:7])
    blocked = (
        "import sys\nfor name in ('octavo', 'onnx', 'torch', 'scipy', 'pydantic'): "
        "sys.modules[name] = None\n"
    )
    code_ = (
        f"{blocked}import runpy\nsys.argv = ['run.py', 'in.npz', "
        "'out.npz']\nrunpy.run_path('alone/run.py', run_name='__main__')"
    )
    subprocess.run([sys.executable, "-c", code_], cwd=tmp_path, check=True)
    import octavo as library

    expected = np.asarray(library.load("quantized")(np.load(data)["image"][:7]))
    np.testing.assert_allclose(
        np.load("out.npz")["logits"], expected, rtol=1e-4, atol=1e-5
    )

    code, _, error = octavo("export", "quantized", "--standalone", "-o", "alone")
    assert code == 2
    assert "not empty" in error
    assert octavo("export", "quantized", "-o", "elsewhere")[0] == 2
    assert octavo("quantize", model, "--data", data, "-o", "another")[0] == 0
    code, _, error = octavo("export", "another", "--standalone", "-o", "elsewhere")
    assert code == 1
    assert "numpy backend" in error
    assert not (tmp_path / "elsewhere").exists()


def test_sensitivity_ranks_units_and_keeps_its_scores(
    octavo: Command, model: Path, tmp_path: Path
) -> None:
    arguments = (
        "sensitivity",
        model,
        "--data",
        model.with_suffix(".npz"),
        "--save",
        "scores.json",
        "--json",
    )
    code, shown, error = octavo(*arguments)
    assert code == 0, error
    found = json.loads(shown)
    losses = [max(schemes.values()) for schemes in found.values()]
    assert losses == sorted(losses, reverse=True)
    assert all(0 < loss < 0.1 for loss in losses)
    kept = json.loads((tmp_path / "scores.json").read_text())
    # What was kept is what is shown the next time: a changed file shows.
    kept["scores"] = dict.fromkeys(kept["scores"], 0.5)
    (tmp_path / "scores.json").write_text(json.dumps(kept))
    again = json.loads(octavo(*arguments, "--plot", "plot.svg")[1])
    assert {value for schemes in again.values() for value in schemes.values()} == {0.5}
    plot = ElementTree.parse(tmp_path / "plot.svg")
    texts = {
        "".join(t.itertext()) for t in plot.iter("{http://www.w3.org/2000/svg}text")
    }
    assert set(found) <= texts


def test_an_interrupted_run_keeps_the_best_so_far(model: Path, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        "import time\ndef score(model):\n    time.sleep(0.3)\n    return 1.0\n"
    )
    command = [
        sys.executable,
        "-m",
        "octavo",
        "tune",
        str(model),
        "--data",
        str(model.with_suffix(".npz")),
        "--evaluate",
        "slow:score",
        "--strategy",
        "exhaustive",
        "--max-trials",
        "500",
        "-o",
        "cut",
        "--no-report",
    ]
    running = subprocess.Popen(
        command,
        cwd=tmp_path,
        env={**os.environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert running.stderr is not None
        seen = ""
        while "trial 2 on onnx" not in seen:
            line = running.stderr.readline()
            assert line, f"it ended before it was interrupted: {seen}"
            seen += line
        time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        shown, error = running.communicate(timeout=60)
    finally:
        running.kill()
    assert running.returncode == 130, error
    assert (tmp_path / "cut" / "octavo.json").exists()
    assert "again: " in shown
    assert len(read_history(tmp_path / "cut.db")[1]) >= 3, (
        "the float model and both trials"
    )
