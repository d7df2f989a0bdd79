"""What weights take in a NumPy file: the bytes that are believed, and the numbers that the formula
of quantization gives, in the backend and in the runner that is shipped."""

from __future__ import annotations

import json
import runpy
import zipfile
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo.adapters.numpy.adapter import NumpyAdapter, NumpyConfig
from octavo.adapters.numpy.candidate import NumpyCandidate
from octavo.adapters.numpy.files.archive import load_graph
from octavo.adapters.numpy.formats.standalone.export import RUNNER
from octavo.adapters.numpy.graph import Builder, Graph
from octavo.adapters.numpy.kernels.quantized.packed import code_table
from octavo.adapters.numpy.offers import OFFERS
from octavo.core.contract.adapter import OpParameters
from octavo.core.contract.algorithm import WeightContext
from octavo.core.errors import ModelError
from octavo.core.numerics.affine import QuantParams
from octavo.core.numerics.tensor import QuantizedTensor
from octavo.core.quantizing.algorithms import RtnConfig
from octavo.core.quantizing.algorithms.rtn import RoundToNearest
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import OpScheme, QuantSpec
from octavo.core.values.sizes import scheme_bytes

Array = Any
SHAPES = ((12, 96), (5, 70), (1, 32), (40, 64))
"""Rows and features: groups that are odd in number, short at the end, alone; rows that end within
a byte."""
IDS = np.array([0, 3, 0, 4])


def offered(kind: str) -> list[OpScheme]:
    """Every scheme of an op's type whose weight is stored, with every format of scales."""
    found = [scheme for offer in OFFERS[kind] for scheme in offer.schemes]
    return [scheme for scheme in found if scheme.mode == "weight_only"]


def rounded(weight: Array, spec: QuantSpec, axis: int = 0) -> QuantizedTensor:
    matrix = np.ascontiguousarray(np.moveaxis(weight, axis, 0))
    found = RoundToNearest(RtnConfig()).quantize(matrix, spec, WeightContext())
    codes = np.ascontiguousarray(np.moveaxis(np.asarray(found.codes), 0, axis))
    params = found.params
    return QuantizedTensor(
        codes,
        QuantParams(params.scale, params.zero_point, spec, axis),
        found.extra,
    )


def number_of(weight: QuantizedTensor, row: int, column: int) -> float:
    """scale * (code - zero point) of one weight, by plain arithmetic."""
    params = weight.params
    spec = params.spec
    group = column // (spec.group_size or column + 1)
    scale = np.asarray(params.scale, np.float32).reshape(weight.shape[0], -1)
    zero = np.asarray(params.zero_point).reshape(weight.shape[0], -1)
    code = np.asarray(weight.codes)[row, column]
    if spec.dtype.lstrip("u").startswith("int"):
        step = float(int(code) - int(zero[row, group]))
    else:
        step = float(code_table(spec.dtype)[code])
    return float(np.float32(step) * scale[row, group])


def linear(weight: Array) -> Graph:
    b = Builder()
    x = b.input("x", (None, weight.shape[1]))
    held = b.constant(weight, "w")
    return b.graph(b.Gemm(x, held, name="op", transB=1))


def table(weight: Array) -> Graph:
    b = Builder()
    held = b.constant(weight, "w")
    ids = b.input("ids", (None,), "int64")
    return b.graph(b.Gather(held, ids, name="op"))


def carried_out(graph: Graph, scheme: OpScheme, weight: QuantizedTensor) -> Any:
    session = NumpyAdapter(NumpyConfig()).open(graph)
    recipe = Recipe({"op": scheme}, backend="numpy")
    return session.apply(recipe, {"op": OpParameters(scheme, weight)})


def bytes_in_file(path: Path) -> int:
    """The bytes of all arrays that a file lists."""
    with np.load(path) as archive:
        rows = json.loads(archive["graph.json"])["arrays"]
    return sum(np.dtype(dtype).itemsize * prod(shape) for dtype, shape, _ in rows)


@pytest.mark.parametrize("kind", ["linear", "embedding"])
def test_each_scheme_takes_what_is_believed_and_gives_what_the_formula_gives(
    kind: str, tmp_path: Path
) -> None:
    runner = runpy.run_path(str(RUNNER))["Model"]
    schemes = offered(kind)
    assert {s.weight.scale_dtype for s in schemes if s.weight} == {
        None, "float16", "bfloat16", "uint8",
    }  # fmt: skip
    for scheme, shape in product(schemes, SHAPES):
        spec = scheme.weight
        assert spec is not None
        array = np.random.default_rng(1).normal(size=shape).astype(np.float32)
        weight = rounded(array, spec)
        graph = linear(array) if kind == "linear" else table(array)
        candidate = carried_out(graph, scheme, weight)
        candidate.save(tmp_path)
        path = tmp_path / "model.npz"
        assert bytes_in_file(path) == scheme_bytes(scheme, shape), (scheme, shape)
        ids = IDS % shape[0]
        given = np.eye(shape[1], dtype=np.float32) if kind == "linear" else ids
        (got,) = candidate.run((given,))
        decoded = got.T if kind == "linear" else got
        rows = range(shape[0]) if kind == "linear" else ids
        for at, row in enumerate(rows):
            for column in (0, shape[1] // 2, shape[1] - 1):
                assert decoded[at, column] == number_of(weight, row, column), scheme
        np.testing.assert_array_equal(
            decoded, np.asarray(weight.dequantize())[list(rows)]
        )
        np.testing.assert_array_equal(runner(path)(given)[0], got)
        again = load_graph(path)[0]
        assert again.fingerprint() == candidate.graph.fingerprint()


def test_what_is_beside_the_codes_of_groups_of_32_by_default() -> None:
    for offer in (*OFFERS["linear"], *OFFERS["embedding"]):
        spec = offer.scheme.weight
        if spec is None or spec.group_size is None:
            continue
        bits = 8 * scheme_bytes(offer.scheme, (512, 512)) / 512**2
        assert bits - spec.bits <= 0.6


def test_scales_beyond_float16_are_stored_in_its_place() -> None:
    """Rows whose scales float16 would round to nothing keep them, in as many bytes."""
    spec = QuantSpec(dtype="int4", granularity="group:32", scale_dtype="float16")
    scheme = OpScheme(mode="weight_only", weight=spec)
    codes = np.ones((2, 32), np.int8)
    scale = np.array([[2.0**-60], [1.0]], np.float32)
    zero = np.zeros((2, 1), np.int32)
    weight = QuantizedTensor(codes, QuantParams(scale, zero, spec, 0))
    candidate: NumpyCandidate = carried_out(
        linear(np.ones((2, 32), np.float32)), scheme, weight
    )
    (got,) = candidate.run((np.eye(32, dtype=np.float32),))
    np.testing.assert_array_equal(got, np.broadcast_to(scale[:, 0], (32, 2)))
    held = sum(array.nbytes for array in candidate.graph.initializers.values())
    assert held == 2 * 16 + 2 * 2


def test_the_runner_knows_each_number_that_a_code_stands_for() -> None:
    by_dtype = runpy.run_path(str(RUNNER))["code_table"]
    dtypes = {s.weight.dtype for kind in OFFERS for s in offered(kind) if s.weight}
    assert dtypes >= {"int8", "int4", "uint4", "nf4", "fp8_e4m3fn", "int3", "int2"}
    for dtype in dtypes:
        bits = QuantSpec(dtype=dtype).bits
        np.testing.assert_array_equal(by_dtype(dtype, bits), code_table(dtype))


def test_the_runner_reads_files_of_format_1_and_refuses_newer_ones(
    tmp_path: Path,
) -> None:
    release = Path(__file__).parents[3] / "data" / "release-0.1.0"
    old = release / "numpy-int4-weight-only" / "model" / "model.npz"
    model = runpy.run_path(str(RUNNER))["Model"]
    rows = np.load(release / "inputs.npz")["x"]
    then = np.load(release / "outputs.npz")["numpy-int4-weight-only"]
    with np.load(old) as archive:
        text = archive["graph.json"]
        data = archive["data"]
    assert json.loads(text)["format"] == 1
    np.testing.assert_allclose(model(old)(rows)[0], then, rtol=1e-4, atol=1e-5)
    table = {**json.loads(text), "format": 3}
    newer = tmp_path / "model.npz"
    with zipfile.ZipFile(newer, "w") as archive:
        archive.writestr("graph.json", json.dumps(table))
        with archive.open("data.npy", "w") as entry:
            np.lib.format.write_array(entry, data)
    with pytest.raises(ValueError, match="format 3 is newer than this runner"):
        model(newer)
    with pytest.raises(ModelError, match="format 3; this octavo reads formats 1 to 2"):
        load_graph(newer)
