"""The primitives on small networks, against integer arithmetic written out."""

import gc
import pickle
import weakref
from pathlib import Path

import cloudpickle
import ml_dtypes
import numpy as np
import pytest

import octavo
from octavo.adapters.numpy import NumpyConfig
from octavo.adapters.numpy.adapter import NumpyAdapter
from octavo.adapters.numpy.graph import Builder, Graph
from octavo.adapters.numpy.session import NumpySession
from octavo.core.contract.adapter import OpParameters
from octavo.core.errors import DataError, ModelError, NonFiniteWeight, SchemeError
from octavo.core.numerics.affine import (
    QuantParams,
    affine_params,
    dequantize,
    integer_range,
    quantize,
)
from octavo.core.numerics.tensor import QuantizedTensor
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import FLOAT, OpScheme, QuantSpec

RNG = np.random.default_rng(7)


def network() -> Graph:
    """Convolution, batch norm, ReLU, depthwise convolution, residual add, pooling, linear."""
    b = Builder()
    x = b.input("x", (None, 3, 9, 8))
    f = lambda *s: RNG.normal(0, 0.3, s).astype(np.float32)  # noqa: E731
    y = b.Conv(x, f(8, 3, 3, 3), pads=(1, 1, 1, 1), strides=(2, 2), name="first")
    y = b.BatchNormalization(y, np.abs(f(8)) + 0.5, f(8), f(8), np.abs(f(8)) + 0.5)
    y = b.Relu(y)
    z = b.Conv(y, f(8, 1, 3, 3), f(8), pads=(1, 1, 1, 1), group=8, name="depthwise")
    y = b.Add(y, z)
    y = b.Conv(y, f(6, 4, 1, 2), f(6), group=2, name="grouped")
    y = b.Flatten(b.GlobalAveragePool(y))
    return b.graph(b.Softmax(b.Gemm(y, f(6, 5), f(5), name="classifier"), axis=1))


def session(graph: Graph | None = None) -> NumpySession:
    return NumpyAdapter(NumpyConfig()).open(graph or network())


def _quantized(array: np.ndarray, spec: QuantSpec, axis: int) -> QuantizedTensor:
    if spec.granularity == "channel":
        others = tuple(i for i in range(array.ndim) if i != axis)
        params = affine_params(array.min(others), array.max(others), spec, axis)
    else:
        params = affine_params(array.min(), array.max(), spec)
    return QuantizedTensor(np.asarray(quantize(array, params)).astype(np.int8), params)


def parameters(
    s: NumpySession, scheme: OpScheme, batch: np.ndarray
) -> dict[str, OpParameters]:
    assert scheme.weight is not None
    assert scheme.input is not None
    seen: dict[str, np.ndarray] = {}
    view = s.describe()
    ops = [op for op in view.ops if op.weight]
    s.observe(
        [(batch,)],
        {op.inputs[0] for op in ops},
        lambda name, x: seen.update({name: np.array(x)}),
    )
    found = {}
    for op in ops:
        assert op.weight is not None
        weight = _quantized(
            s.tensor(op.weight.name), scheme.weight, op.weight.channel_axis
        )
        x = seen[op.inputs[0]]
        inputs: tuple[QuantParams | None, ...] = (
            (affine_params(x.min(), x.max(), scheme.input),)
            if scheme.mode == "static"
            else ()
        )
        found[op.name] = OpParameters(scheme, weight, inputs)
    return found


SCHEMES = [
    offer.scheme
    for offer in NumpyAdapter(NumpyConfig()).open(network()).capability().offers["conv"]
    if offer.scheme.input
]


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_an_integer_op_computes_the_product_of_the_dequantized_codes(
    scheme: OpScheme,
) -> None:
    """One op at a time: real arithmetic on dequantized codes, in float64, is the reference."""
    s = session()
    batch = RNG.normal(0, 1, (3, 3, 9, 8)).astype(np.float32)
    given = parameters(s, scheme, batch)
    for name in given:
        op = s.describe().by_name[name]
        value = op.inputs[0]
        assert op.weight is not None
        weight = given[name].weight
        assert weight is not None
        candidate = s.apply(
            Recipe({name: scheme}, backend="numpy"), {name: given[name]}
        )
        seen: dict[str, np.ndarray] = {}
        watch = dict.fromkeys(
            [value, op.outputs[0]],
            lambda n, x, seen=seen: seen.update({n: np.array(x)}),
        )
        candidate.program.run([batch], watch)
        x = seen[value]
        assert scheme.input is not None
        params = (
            given[name].inputs[0]
            if scheme.mode == "static"
            else affine_params(x.min(), x.max(), scheme.input)
        )
        assert params is not None
        codes = np.clip(
            np.rint(x / params.scale) + params.zero_point, *integer_range(scheme.input)
        )
        real = (codes - params.zero_point).astype(np.float64) * float(params.scale)
        graph = s.graph
        node = next(n for n in graph.nodes if n.name == name)
        changed = graph.with_(
            nodes=(node,),
            initializers={
                **graph.initializers,
                op.weight.name: np.asarray(
                    dequantize(weight.codes, weight.params)
                ).astype(np.float64),
            },
            inputs=(type(graph.inputs[0])(value, None, "float64"),),
            outputs=op.outputs,
        )
        from octavo.adapters.numpy.run.kernels import Kernels
        from octavo.adapters.numpy.run.program import Program

        expected = Program(changed, Kernels(1 << 22)).run([real])[0]
        got = seen[op.outputs[0]]
        assert got.dtype == np.float32
        assert np.allclose(got, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("scheme", [SCHEMES[0], SCHEMES[-1]], ids=str)
def test_quantizing_everything_stays_near_float_and_is_in_the_ledger(
    scheme: OpScheme,
) -> None:
    s = session()
    batch = RNG.normal(0, 1, (4, 3, 9, 8)).astype(np.float32)
    given = parameters(s, scheme, batch)
    candidate = s.apply(Recipe(dict.fromkeys(given, scheme), backend="numpy"), given)
    assert {n: line.applied for n, line in candidate.ledger.items()} == dict.fromkeys(
        given, scheme
    )
    assert all(
        line.realization == "kernel" and line.honoured
        for line in candidate.ledger.values()
    )
    float_result, result = s.reference().run((batch,))[0], candidate.run((batch,))[0]
    assert np.abs(float_result - result).max() < 0.05
    assert not any(n.op in ("Conv", "Gemm") for n in candidate.graph.nodes)


def test_recurrent_layers_say_why_they_stay_float() -> None:
    b = Builder()
    x = b.input("x", (5, 2, 4))
    y = b.LSTM(
        x,
        RNG.normal(0, 0.3, (1, 32, 4)).astype(np.float32),
        RNG.normal(0, 0.3, (1, 32, 8)).astype(np.float32),
        hidden_size=8,
        name="cell",
    )
    s = session(b.graph(y))
    assert s.capability().for_op(s.describe().by_name["cell"]) == (FLOAT,)
    assert (
        "no integer kernel"
        in s.apply(Recipe(backend="numpy"), {}).ledger["cell"].reason
    )


def test_save_and_load_give_the_same_bits(tmp_path: Path) -> None:
    s = session()
    batch = RNG.normal(0, 1, (2, 3, 9, 8)).astype(np.float32)
    given = parameters(s, SCHEMES[2], batch)
    candidate = s.apply(
        Recipe(dict.fromkeys(given, SCHEMES[2]), backend="numpy"), given
    )
    candidate.save(tmp_path)
    loaded = NumpyAdapter(NumpyConfig()).load(tmp_path)
    assert np.array_equal(loaded.run((batch,))[0], candidate.run((batch,))[0])
    assert loaded.recipe == candidate.recipe
    assert loaded.ledger == candidate.ledger
    assert loaded.fingerprint() == candidate.fingerprint()
    again = tmp_path / "again"
    again.mkdir()
    loaded.save(again)
    assert (again / "model.npz").read_bytes() == (tmp_path / "model.npz").read_bytes()


def test_a_candidate_is_picklable_and_callable() -> None:
    s = session()
    batch = RNG.normal(0, 1, (2, 3, 9, 8)).astype(np.float32)
    candidate = s.reference()
    twin = pickle.loads(cloudpickle.dumps(candidate))
    assert np.array_equal(twin.native(batch), candidate.native(x=batch))


def test_rescaling_keeps_the_function() -> None:
    b = Builder()
    x = b.input("x", (None, 3, 6, 6))
    f = lambda *s: RNG.normal(0, 0.3, s).astype(np.float32)  # noqa: E731
    y = b.Relu(b.Conv(x, f(8, 3, 3, 3), f(8), name="a"))
    y = b.Relu(b.Conv(y, f(8, 1, 3, 3), f(8), group=8, name="b"))
    y = b.Relu(b.Conv(y, f(6, 4, 1, 1), f(6), group=2, name="c"))
    y = b.Flatten(y)
    y = b.LayerNormalization(
        b.Relu(b.Gemm(y, f(24, 12), f(12), name="d")), f(12), f(12), name="norm"
    )
    graph = b.graph(b.Gemm(y, f(12, 4), name="e"))
    s = session(graph)
    groups = {g.producer: g for g in s.describe().groups}
    assert set(groups) == {"a", "b", "norm"}
    factors = {
        g.name: RNG.uniform(0.2, 5, g.channels).astype(np.float32)
        for g in groups.values()
    }
    batch = RNG.normal(0, 1, (2, 3, 6, 6)).astype(np.float32)
    before, after = (
        s.reference().run((batch,))[0],
        s.rescale(factors).reference().run((batch,))[0],
    )
    assert np.allclose(before, after, rtol=1e-4, atol=1e-5)
    with pytest.raises(SchemeError, match="positive factors"):
        s.rescale({groups["a"].name: -factors[groups["a"].name]})


def test_wrong_batches_are_refused_with_expected_against_got() -> None:
    candidate = session().reference()
    with pytest.raises(
        DataError, match=r"takes shape \(any, 3, 9, 8\), got \(2, 3, 9, 9\)"
    ):
        candidate.run((np.zeros((2, 3, 9, 9), np.float32),))
    with pytest.raises(DataError, match=r"'y', which is no input.*expected x"):
        candidate.run({"y": np.zeros((2, 3, 9, 8), np.float32)})
    with pytest.raises(DataError, match="holds 2 arrays, the model takes 1: x"):
        candidate.run((np.zeros(1), np.zeros(1)))


def test_a_weight_with_nan_is_refused_by_name() -> None:
    b = Builder()
    graph = b.graph(
        b.Gemm(
            b.input("x", (None, 2)), np.full((2, 2), np.nan, np.float32), name="layer"
        )
    )
    with pytest.raises(NonFiniteWeight, match=r"layer\.weight"):
        octavo.quantize_model(
            graph, "int8-static", calibration=[(np.ones((1, 2), np.float32),)]
        )


def test_a_graph_that_reads_an_unknown_value_is_refused() -> None:
    b = Builder()
    b.input("x", (None, 2))
    with pytest.raises(ModelError, match="reads value 'y'"):
        b.graph(b.Relu("y"))


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    session().reference().save(tmp_path)
    path = tmp_path / "model.npz"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ModelError, match="no NumPy graph"):
        NumpyAdapter(NumpyConfig()).load(tmp_path)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("mode", ["static", "dynamic", "weight_only"])
def test_a_model_of_half_precision_keeps_its_type(dtype: str, mode: str) -> None:
    kind = (
        np.dtype(getattr(ml_dtypes, dtype)) if dtype == "bfloat16" else np.dtype(dtype)
    )
    b = Builder()
    x = b.input("x", (None, 16), dtype)
    y = b.Relu(
        b.Gemm(
            x,
            RNG.normal(0, 0.3, (16, 8)).astype(kind),
            RNG.normal(0, 0.3, 8).astype(kind),
            name="a",
        )
    )
    model = b.graph(b.Gemm(y, RNG.normal(0, 0.3, (8, 4)).astype(kind), name="b"))
    # Converted where the model takes bfloat16.
    batch = RNG.normal(0, 1, (32, 16)).astype(np.float16)
    scheme = {
        "static": "int8-static",
        "dynamic": "int8-dynamic",
        "weight_only": "int8-weight-only",
    }[mode]
    candidate = octavo.quantize_model(model, scheme, [(batch,)]).candidate
    got, expected = (
        candidate.run((batch,))[0],
        session(model).reference().run((batch,))[0],
    )
    assert got.dtype == expected.dtype == kind
    np.testing.assert_allclose(
        got.astype(np.float32), expected.astype(np.float32), atol=0.06
    )


def test_what_a_candidate_packed_goes_when_it_goes() -> None:
    s = session()
    batch = RNG.normal(0, 1, (2, 3, 9, 8)).astype(np.float32)
    given = parameters(s, SCHEMES[0], batch)
    candidate = s.apply(
        Recipe(dict.fromkeys(given, SCHEMES[0]), backend="numpy"), given
    )
    candidate.run((batch,))
    codes = [
        weakref.ref(a)
        for n, a in candidate.graph.initializers.items()
        if n.endswith(".codes")
    ]
    again = s.apply(candidate.recipe, given)
    assert all(
        again.graph.initializers[n] is a
        for n, a in candidate.graph.initializers.items()
        if n.endswith(".codes")
    )
    del candidate, again, given
    gc.collect()
    assert codes
    assert not any(ref() is not None for ref in codes)
