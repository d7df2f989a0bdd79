"""A decoder that keeps its keys and values between calls: its weights and its cache in 8 bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

ov = pytest.importorskip("openvino")

import openvino.opset13 as ops  # noqa: E402
from openvino.op import util  # noqa: E402

import octavo  # noqa: E402

HEADS, WIDTH = 2, 64
FULL = HEADS * WIDTH
FLOAT = {"KV_CACHE_PRECISION": "f32", "INFERENCE_PRECISION_HINT": "f32"}


def decoder() -> Any:
    """Return an attention whose cache is a state, as exporters of decoders write it."""
    x = ops.parameter([-1, -1, FULL], np.float32, name="x")
    beam = ops.parameter([-1], np.int32, name="beam_idx")
    x.output(0).set_names({"x"})
    beam.output(0).set_names({"beam_idx"})
    random = np.random.default_rng(0)
    sinks = []

    def linear(value: Any, name: str) -> Any:
        weight = random.standard_normal((FULL, FULL)).astype(np.float32) / 8
        made = ops.matmul(value, ops.constant(weight), False, True)
        made.set_friendly_name(name)
        return made

    def heads(value: Any) -> Any:
        parts = ops.reshape(value, np.array([0, 0, HEADS, WIDTH]), True)
        return ops.transpose(parts, np.array([0, 2, 1, 3]))

    def kept(value: Any, name: str) -> Any:
        info = util.VariableInfo()
        info.data_shape = ov.PartialShape([-1, HEADS, -1, WIDTH])
        info.data_type = ov.Type.f32
        info.variable_id = name
        state = util.Variable(info)
        rows = ops.gather(ops.shape_of(x), ops.constant(np.array([0])), ops.constant(0))
        sizes = [ops.constant(np.array([n])) for n in (HEADS, 0, WIDTH)]
        nothing = ops.concat([rows, *sizes], 0)
        past = ops.read_value(
            ops.broadcast(ops.constant(np.float32(0)), nothing), state
        )
        chosen = ops.gather(past, beam, ops.constant(0))
        whole = ops.concat([chosen, value], 2)
        sinks.append(ops.assign(whole, state))
        return whole

    query = heads(linear(x, "q"))
    keys = kept(heads(linear(x, "k")), "past.keys")
    values = kept(heads(linear(x, "v")), "past.values")
    mixed = ops.scaled_dot_product_attention(query, keys, values, causal=False)
    turned = ops.transpose(mixed, np.array([0, 2, 1, 3]))
    y = linear(ops.reshape(turned, np.array([0, 0, FULL]), True), "o")
    return ov.Model([ops.result(y)], sinks, [x, beam], "decoder")


def batches() -> list[dict[str, np.ndarray]]:
    """Return a prompt of eight tokens, and two tokens after it."""
    random = np.random.default_rng(1)
    beam = np.zeros(1, np.int32)
    return [
        {"x": random.standard_normal((1, n, FULL)).astype(np.float32), "beam_idx": beam}
        for n in (8, 1, 1)
    ]


def decoded(source: Any, **settings: str) -> list[np.ndarray]:
    """Return the outputs of plain OpenVINO, call by call, with the state kept between them."""
    request = ov.Core().compile_model(source, "CPU", settings).create_infer_request()
    outputs = []
    for batch in batches():
        request.infer(batch)
        outputs.append(np.array(request.get_output_tensor(0).data))
    return outputs


def quantized(folder: Path, kv_cache: str) -> octavo.Quantized:
    made = octavo.quantize_model(
        decoder(),
        "int8-weight-only",
        batches()[:1],
        backend={"kind": "openvino", "kv_cache": kv_cache},
    )
    made.save(folder)
    return made


def test_a_decoder_keeps_weights_and_cache_in_8_bits(tmp_path: Path) -> None:
    exact = decoded(decoder(), **FLOAT)
    found = {}
    for held in ("float32", "uint8"):
        made = quantized(tmp_path / held, held)
        lines = [made.ledger[name] for name in ("q", "k", "v", "o")]
        assert all(line.realization == "kernel" for line in lines)
        # The cache's type travels in the file: a plain load keeps it.
        file = tmp_path / held / "model" / "model.xml"
        found[held] = decoded(file, INFERENCE_PRECISION_HINT="f32")
    for outputs in found.values():
        for y, wanted in zip(outputs, exact, strict=True):
            assert np.abs(y - wanted).max() < 0.05 * np.abs(wanted).max()
    # A prompt is computed from what it brings; only what is read back was in 8 bits.
    prompt, *later = zip(found["float32"], found["uint8"], strict=True)
    np.testing.assert_array_equal(*prompt)
    for plain, rounded in later:
        apart = np.abs(plain - rounded).max() / np.abs(plain).max()
        assert 1e-4 < apart < 0.05


def test_each_batch_begins_without_a_past(tmp_path: Path) -> None:
    made = quantized(tmp_path, "uint8")
    prompt, token, _ = batches()
    alone = made.candidate.run(token)[0]
    made.candidate.run(prompt)
    np.testing.assert_array_equal(made.candidate.run(token)[0], alone)
