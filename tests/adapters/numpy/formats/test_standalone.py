"""The exported runner: another implementation, on NumPy alone, that must agree with the backend."""

import runpy
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import octavo
from octavo.adapters.numpy.candidate import NumpyCandidate
from octavo.adapters.numpy.files.archive import save_graph
from octavo.adapters.numpy.formats.standalone.export import RUNNER, export, refusals
from octavo.adapters.numpy.graph import Builder
from octavo.adapters.numpy.prepare.rewrites import optimised
from octavo.adapters.numpy.run.kernels import Kernels
from octavo.core.contract.plugins import PluginHost
from octavo.core.errors import SchemeError
from octavo.core.values.recipe import Recipe
from tests.adapters.numpy.cases import matching
from tests.adapters.numpy.run import test_left_out
from tests.adapters.numpy.test_conformance import (
    convolutional,
    images,
    tokens,
    transformer,
)

LEFT_OUT = (
    "bernoulli", "dropout", "string",  # random, training, no numbers
    "max_empty_set", "min_empty_set",  # NumPy has no maximum of nothing
    "swiglu_float16_expanded",  # rounded at each step of half precision
)  # fmt: skip
HOST = PluginHost(third_party=False)


def test_the_runner_is_short_and_imports_numpy_only() -> None:
    text = RUNNER.read_text()
    assert len(text.splitlines()) < 1000
    assert {
        line.split()[1]
        for line in text.splitlines()
        if line.startswith(("import ", "from "))
    } == {"json", "math", "sys", "numpy"}


@pytest.mark.parametrize(
    "scheme",
    ["float", "int8-static", "int8-dynamic", "int8-weight-only", "int4-weight-only"],
)
@pytest.mark.parametrize(
    ("model", "data"), [(convolutional, images), (transformer, tokens)]
)
def test_the_runner_gives_what_the_backend_gives(
    scheme: str, model: Any, data: Any, tmp_path: Path
) -> None:
    batches = data()
    if scheme == "float":
        candidate: Any = HOST.adapters()["numpy"].build().open(model()).reference()
    elif (model, scheme) == (convolutional, "int4-weight-only"):
        pytest.skip("convolutions take no 4-bit weights")
    else:
        candidate = octavo.quantize_model(model(), scheme, batches, host=HOST).candidate
    export(candidate, tmp_path)
    run = runpy.run_path(str(tmp_path / "run.py"))["Model"](tmp_path / "model.npz")
    for batch in batches:
        for got, expected in zip(run(*batch), candidate.run(batch), strict=True):
            assert got.dtype == expected.dtype
            np.testing.assert_allclose(
                got, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max()
            )


@pytest.mark.filterwarnings("ignore")
def test_the_runner_passes_onnx_s_cases_for_its_operators(tmp_path: Path) -> None:
    model_of = runpy.run_path(str(RUNNER))["Model"]
    passed = 0
    for case, read in matching("", LEFT_OUT):
        graph = optimised(read)
        if not graph.nodes or refusals(graph):
            continue
        save_graph(graph, tmp_path / "model.npz")
        model = model_of(tmp_path / "model.npz")
        for inputs, outputs in case.data_sets:
            arrays, expected = (
                [
                    numpy_helper.to_array(v) if isinstance(v, onnx.TensorProto) else v
                    for v in vs
                ]
                for vs in (inputs, outputs)
            )
            if any(np.asarray(a).dtype.isbuiltin != 1 for a in (*arrays, *expected)):
                continue
            for got, want in zip(model(*arrays), expected, strict=False):
                assert got.dtype == np.asarray(want).dtype, case.name
                np.testing.assert_allclose(
                    got,
                    want,
                    rtol=max(case.rtol, 1e-3),
                    atol=max(case.atol, 1e-6),
                    err_msg=case.name,
                )
            passed += 1
    assert passed > 700


def test_a_result_that_is_left_out_is_no_later_input(tmp_path: Path) -> None:
    source = tmp_path / "left_out.onnx"
    onnx.save(test_left_out.graph(), source)
    candidate = HOST.adapters()["numpy"].build().open(source).reference()
    assert any("" in node.outputs for node in candidate.graph.nodes)
    export(candidate, tmp_path)
    run = runpy.run_path(str(tmp_path / "run.py"))["Model"](tmp_path / "model.npz")
    (got,) = run(test_left_out.ROWS)
    np.testing.assert_allclose(got, test_left_out.expected(), rtol=1e-5)


def test_what_the_runner_lacks_is_refused_by_name(tmp_path: Path) -> None:
    b = Builder()
    graph = b.graph(b.node("Det", b.input("x", (2, 2))))
    with pytest.raises(SchemeError, match="Det"):
        export(
            NumpyCandidate(graph, Recipe({}, backend="numpy"), {}, Kernels(1 << 20)),
            tmp_path,
        )


@pytest.mark.slow
def test_it_runs_in_an_environment_with_numpy_alone(tmp_path: Path) -> None:
    """A fresh virtual environment that sees NumPy's folder and no other package."""
    candidate = octavo.quantize_model(
        convolutional(), "int8-static", images(), host=HOST
    ).candidate
    export(candidate, tmp_path / "model")
    venv.create(tmp_path / "env", with_pip=False, symlinks=True)
    python = tmp_path / "env" / "bin" / "python"
    site = subprocess.run(
        [python, "-c", "import site; print(site.getsitepackages()[0])"],
        capture_output=True,
        text=True,
        check=True,
    )
    for package in (
        Path(np.__file__).parent,
        Path(np.__file__).parent.parent / "numpy.libs",
    ):
        if package.exists():
            (Path(site.stdout.strip()) / package.name).symlink_to(package)
    batch = images()[0]
    np.savez(tmp_path / "in.npz", x=batch[0])
    assert (
        subprocess.run(
            [python, "-c", "import onnx"], capture_output=True, check=False
        ).returncode
        != 0
    )
    subprocess.run(
        [
            python,
            tmp_path / "model" / "run.py",
            tmp_path / "in.npz",
            tmp_path / "out.npz",
        ],
        check=True,
        cwd=tmp_path,
    )
    with np.load(tmp_path / "out.npz") as out:
        np.testing.assert_allclose(
            next(iter(out.values())), candidate.run(batch)[0], rtol=1e-4, atol=1e-6
        )


def test_a_saved_result_loads_without_any_framework(tmp_path: Path) -> None:
    quantized = octavo.quantize_model(
        convolutional(), "int8-static", images(), host=HOST
    )
    quantized.save(tmp_path / "result")
    np.save(tmp_path / "x.npy", images()[0][0])
    script = f"""
import sys
for name in ("torch", "onnx", "onnx_ir", "onnxruntime", "sklearn", "transformers"):
    sys.modules[name] = None
import numpy as np, octavo
y = octavo.load(r"{tmp_path / "result"}")(np.load(r"{tmp_path / "x.npy"}"))
np.save(r"{tmp_path / "y.npy"}", y)
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path)
    np.testing.assert_array_equal(
        np.load(tmp_path / "y.npy"), quantized.candidate.run(images()[0])[0]
    )
