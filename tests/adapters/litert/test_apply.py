"""A recipe in the file: what is coded, what stays float, and where these meet."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert")

from ai_edge_litert import schema_py_generated as fb
from ai_edge_litert.interpreter import Interpreter

from octavo.adapters.litert import LitertConfig
from octavo.adapters.litert.adapter import LitertAdapter
from octavo.adapters.litert.graph import Graph
from octavo.adapters.litert.session import LitertSession
from octavo.plugin import (
    OpParameters,
    OpScheme,
    QuantSpec,
    Recipe,
    one_op_parameters,
)
from tests.adapters.litert import models
from tests.adapters.litert.builder import RELU, RELU6, Builder
from tests.adapters.litert.running import (
    FIXED,
    PLAIN,
    STATIC,
    W8,
    File,
    opened,
    quantized,
)

RNG = np.random.default_rng(0)
A16 = QuantSpec(dtype="int16")
WIDE = OpScheme(mode="static", weight=W8, input=A16, output=A16)
SCHEMES = {"conv": STATIC, "linear": STATIC, "avg_pool": FIXED, "softmax": FIXED}


def _random(*shape: int) -> np.ndarray:
    return RNG.normal(size=shape).astype(np.float32)


def _everything(session: LitertSession) -> dict[str, OpScheme]:
    """Return an int8 scheme for each op that takes one."""
    found = {}
    for op in session.describe().ops:
        scheme = SCHEMES.get(op.type, PLAIN)
        offered = session.capability().for_op(op)
        if scheme in offered:
            found[op.name] = scheme
    return found


def test_precisions_meet_at_the_edges_alone() -> None:
    session = opened(models.cnn())
    schemes = _everything(session)
    assert len(schemes) == 9
    candidate = quantized(session, schemes)
    codes = File(candidate.model).codes
    assert codes[0] == "QUANTIZE"
    # The probabilities are float's: no integers come to a softmax behind a linear op.
    assert codes[-2:] == ["DEQUANTIZE", "SOFTMAX"]
    # One rescales an input of the concatenation, whose inputs have one scale.
    assert codes.count("QUANTIZE") == 1 and codes.count("DEQUANTIZE") == 1
    assert candidate.ledger["max"].realization == "codes"


def test_who_reads_in_float_reads_what_float_wrote() -> None:
    """Codes made for one reader are not handed to another, nor to what moves values to it."""
    b = Builder()
    x = b.input((-1, 16))
    a = b.dense(x, _random(16, 16), None, "coded")
    moved = b.reshape(x, (-1, 4, 4), "moved")
    session = opened(b.bytes(a, b.op("TANH", [moved], (-1, 4, 4), "tanh")))
    given = _random(3, 16)
    exact = session.reference().run((given,))
    got = quantized(session, {"coded": STATIC}).run((given,))
    assert not np.array_equal(got[0], exact[0])
    np.testing.assert_array_equal(got[1], exact[1])


def test_codes_of_8_and_16_bits_meet() -> None:
    session = opened(models.mlp())
    candidate = quantized(session, {"first": STATIC, "second": WIDE, "last": STATIC})
    codes = File(candidate.model).codes
    fully = "FULLY_CONNECTED"
    between = ["DEQUANTIZE", "QUANTIZE"]
    wanted = ["QUANTIZE", fully, *between, fully, *between, fully, "DEQUANTIZE"]
    assert codes == wanted
    given = _random(5, 24) / 2
    exact = session.reference().run((given,))[0]
    (got,) = candidate.run((given,))
    assert np.linalg.norm(got - exact) < 0.1 * np.linalg.norm(exact)


def test_a_shape_is_read_of_codes() -> None:
    b = Builder()
    x = b.input((-1, 4, 4, 8))
    y = b.conv(x, _random(8, 1, 1, 8), _random(8), "conv", RELU)
    sizes = b.op("SHAPE", [y], (4,), "sizes", "ShapeOptions", "int32", outType=2)
    session = opened(b.bytes(b.pool("MAX", y, 2, "pool"), sizes))
    candidate = quantized(session, {"conv": STATIC})
    wanted = ["QUANTIZE", "CONV_2D", "SHAPE", "MAX_POOL_2D", "DEQUANTIZE"]
    assert File(candidate.model).codes == wanted
    np.testing.assert_array_equal(
        candidate.run((_random(3, 4, 4, 8),))[1], [3, 4, 4, 8]
    )


def _clipped_at_six() -> LitertSession:
    b = Builder()
    x = b.input((1, 4, 4, 8))
    weight = np.eye(8, dtype=np.float32).reshape(8, 1, 1, 8)
    return opened(b.bytes(b.conv(x, weight, np.zeros(8, np.float32), "y", RELU6)))


def test_a_limit_that_no_code_reaches_is_left_out() -> None:
    """A 6 over a scale of 1e-12 is no 32-bit number, and the kernel refuses it."""
    given = np.linspace(-8, 8, 128, dtype=np.float32).reshape(1, 4, 4, 8)
    # XNNPACK, which takes int8, does not ask; the built-in kernels of 16 bits do.
    tiny = quantized(_clipped_at_six(), {"y": WIDE}, -1e-9, 1e-9)
    assert 7e-10 < tiny.run((given * 1e-10,))[0].max() < 9e-10
    plain = quantized(_clipped_at_six(), {"y": STATIC}, -8.0, 8.0)
    np.testing.assert_allclose(plain.run((given,))[0], given.clip(0, 6), atol=0.1)


def test_inputs_of_a_concatenation_have_its_scale() -> None:
    """Also where those who write them had others: their codes are rescaled for it."""
    b = Builder()
    x = b.input((1, 4, 4, 8))
    identity = np.eye(8, dtype=np.float32).reshape(8, 1, 1, 8)
    halves = [
        b.conv(x, identity * size, np.zeros(8, np.float32), name)
        for name, size in (("small", 0.1), ("large", 2.0))
    ]
    y = b.op(
        "CONCATENATION", halves, (1, 4, 4, 16), "y", "ConcatenationOptions", axis=3
    )
    session = opened(b.bytes(y))
    ops = session.describe().by_name
    ranges = {"small": 0.5, "large": 8.0, "y": 8.0}
    schemes = {"small": STATIC, "large": STATIC, "y": PLAIN}
    parameters = {
        name: one_op_parameters(ops[name], schemes[name], session.tensor, -high, high)
        for name, high in ranges.items()
    }
    candidate = session.apply(Recipe(schemes), parameters)
    file = File(candidate.native.model)
    assert file.codes.count("DEQUANTIZE") == 1
    node = file.node("CONCATENATION")
    held = [file.held(i) for i in (*node.inputs, *node.outputs)]
    assert len({(h.scale[0], h.zero[0]) for h in held}) == 1
    given = np.linspace(-0.5, 0.5, 128, dtype=np.float32).reshape(1, 4, 4, 8)
    wanted = np.concatenate([given * 0.1, given * 2.0], axis=3)
    np.testing.assert_allclose(candidate.run((given,))[0], wanted, atol=0.2)


def _of_a_shared_weight() -> bytes:
    b = Builder()
    x = b.input((-1, 64))
    weight = b.const(_random(64, 64), "shared")
    for name in ("one", "two"):
        x = b.op(
            "FULLY_CONNECTED", [x, weight], (-1, 64), name, "FullyConnectedOptions"
        )
    signature = fb.SignatureDefT()
    signature.signatureKey = b"serving_default"
    ends = (fb.TensorMapT(), fb.TensorMapT())
    ends[0].name, ends[0].tensorIndex = b"pixels", 0
    ends[1].name, ends[1].tensorIndex = b"scores", x
    signature.inputs, signature.outputs = [ends[0]], [ends[1]]
    b.model.signatureDefs = [signature]
    return b.bytes(x)


def test_a_shared_weight_is_stored_once_and_nothing_else_is_left() -> None:
    model = _of_a_shared_weight()
    session = opened(model)
    assert [group.kind for group in session.describe().groups] == ["scheme"]
    ops = session.describe().by_name
    weight = ops["one"].weight
    assert weight is not None and weight.shared_with == ("two",)
    given = one_op_parameters(ops["one"], STATIC, session.tensor)
    parameters: dict[str, OpParameters] = {"one": given, "two": given}
    candidate = session.apply(Recipe(dict.fromkeys(parameters, STATIC)), parameters)
    size = len(candidate.native.model)
    assert 64 * 64 < size < 64 * 64 + 3000 < len(model)


def test_signatures_go_on_naming_the_ends(tmp_path: Path) -> None:
    session = opened(_of_a_shared_weight())
    assert session.describe().inputs[0].name == "pixels"
    quantized(session, {"one": STATIC}).write(tmp_path)
    interpreter = Interpreter(model_path=str(tmp_path / "model.tflite"))
    given = _random(1, 64)
    named = interpreter.get_signature_runner()(pixels=given)["scores"]
    np.testing.assert_allclose(
        named, quantized(session, {"one": STATIC}).run({"pixels": given})[0], rtol=1e-5
    )


def _settings() -> Iterator[LitertConfig]:
    yield LitertConfig()
    yield LitertConfig(ports="codes")


def test_the_edge_may_be_in_codes(tmp_path: Path) -> None:
    """The file then takes and returns int8; octavo feeds it floats as before."""
    graph = Graph.from_bytes(models.mlp())
    schemes = dict.fromkeys(("first", "second", "last"), STATIC)
    given = _random(4, 24)
    found = []
    for config in _settings():
        candidate = quantized(LitertSession(graph, config), schemes)
        found.append(candidate.run((given,))[0])
        folder = tmp_path / config.ports
        folder.mkdir()
        candidate.save(folder)
        loaded = LitertAdapter(config).load(folder)
        np.testing.assert_array_equal(loaded.run((given,))[0], found[-1])
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)
    interpreter = Interpreter(model_path=str(tmp_path / "codes" / "model.tflite"))
    assert interpreter.get_input_details()[0]["dtype"] is np.int8
    assert interpreter.get_output_details()[0]["dtype"] is np.int8
    assert (
        File((tmp_path / "codes" / "model.tflite").read_bytes()).codes
        == ["FULLY_CONNECTED"] * 3
    )
