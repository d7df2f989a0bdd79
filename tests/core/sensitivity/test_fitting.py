"""Which distance fits: by what is asked, by the graph, and by the outputs."""

from __future__ import annotations

import numpy as np
import pytest

from octavo.core.sensitivity.fitting import fitted, told
from octavo.core.values.graph import InputInfo, ModelView, Op, Weight

RANDOM = np.random.default_rng(0)
TOKENS = (
    InputInfo("ids", (None, 5), "int64"),
    InputInfo("attention_mask", None, "int64"),
)
FLOATS = (InputInfo("x", (None, 8)),)


def view(
    *ops: Op, inputs: tuple[InputInfo, ...] = FLOATS, outputs: tuple[str, ...] = ("y",)
):
    return ModelView(ops, inputs=inputs, outputs=outputs)


def embedding(rows: int, width: int) -> Op:
    return Op("embed", "embedding", outputs=("e",), weight=Weight("w", (rows, width)))


def head(columns: int) -> Op:
    return Op("head", "linear", ("h",), ("y",), weight=Weight("h", (columns, 16)))


CONV = Op("conv", "conv", ("x",), ("h",), weight=Weight("c", (8, 3, 3, 3)))


def softmax(y: np.ndarray) -> np.ndarray:
    powers = np.exp(y)
    return powers / powers.sum(axis=-1, keepdims=True)


def noise(*shape: int) -> np.ndarray:
    return RANDOM.normal(size=shape).astype(np.float32)


def unit(y: np.ndarray) -> np.ndarray:
    return y / np.linalg.norm(y, axis=-1, keepdims=True)


def centred(y: np.ndarray) -> np.ndarray:
    return y - 0.9 * y.mean(axis=1, keepdims=True)


WORDS = view(embedding(50, 16), head(50), inputs=TOKENS)
ENCODER = view(embedding(50, 16), inputs=TOKENS)
DENSE = view(head(6))


@pytest.mark.parametrize(
    ("model", "output", "expected"),
    [
        (WORDS, noise(4, 5, 50), "kl"),
        (ENCODER, noise(4, 5, 16), "cosine"),
        (ENCODER, noise(4, 16), "cosine"),
        (ENCODER, noise(4, 3), "kl"),
        (ENCODER, noise(4, 1), "variance"),
        (DENSE, softmax(noise(16, 6)), "probabilities"),
        (DENSE, unit(noise(16, 6)), "cosine"),
        (DENSE, centred(noise(64, 6)), "kl"),
        (DENSE, noise(64, 6), "variance"),
        (DENSE, noise(64, 1), "variance"),
        (DENSE, noise(64), "variance"),
        (view(CONV, head(10)), noise(16, 10), "kl"),
        (view(CONV, head(3)), noise(16, 3) * [1, 100, 1e4], "variance"),
        (view(CONV), noise(16, 8), "kl"),
        (view(CONV), noise(16, 32), "cosine"),
        (view(CONV), noise(2, 8, 4, 4), "variance"),
        (view(outputs=("logits",)), noise(16, 4), "kl"),
        (view(outputs=("sentence_embedding",)), noise(16, 4), "cosine"),
    ],
)
def test_the_metric_fits_what_the_model_puts_out(model, output, expected) -> None:
    batches = [(np.zeros((len(output), 8), np.float32),)]
    assert fitted(model, batches, [(output,)], "auto").kinds == (expected,)


def test_a_setting_says_otherwise_and_one_line_says_which() -> None:
    y = noise(64, 6)
    batches = [(y,)]
    for asked in ("kl", "cosine", "variance"):
        found = fitted(DENSE, batches, [(y,)], asked)
        assert found.kinds == (asked,)
        assert "as asked" in told(found, asked)
    # Probabilities stay such under "kl", and one number has no prediction and no angle.
    assert fitted(DENSE, batches, [(softmax(y),)], "kl").kinds == ("probabilities",)
    assert fitted(DENSE, batches, [(y[:, :1],)], "kl").kinds == ("variance",)
    line = told(fitted(DENSE, batches, [(y,)], "auto"), "auto")
    assert "variance" in line
    assert "output_metric" in line


def test_what_a_language_model_hands_on_beside_its_words_is_not_compared() -> None:
    words, cache = noise(4, 5, 50), noise(4, 2, 5, 8)
    found = fitted(WORDS, [(np.zeros((4, 5), int),)], [(words, cache)], "auto")
    assert found.kinds == ("kl", "none")
    # A detector's boxes and classes both count, and integers are no outputs to compare.
    outputs = (softmax(noise(8, 6)), np.zeros(8, int), noise(8, 4))
    found = fitted(DENSE, [(noise(8, 8),)], [outputs], "auto")
    assert found.kinds == ("probabilities", "variance")
    assert found.weight(0) == found.weight(1) == 1 / 16


def test_masks_are_found_among_the_inputs_and_rows_are_counted() -> None:
    mask = np.array([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1]])
    ids = np.zeros((2, 5), int)
    named = {"ids": ids, "attention_mask": mask}
    for batch in (named, (ids, mask)):
        found = fitted(WORDS, [batch], [(noise(2, 5, 50),)], "auto")
        assert found.rows == (7.0,)
        assert np.array_equal(found.masks[0], mask != 0)
    assert fitted(WORDS, [(ids,)], [(noise(2, 5, 50),)], "auto").masks == (None,)


def test_a_channel_that_hardly_changes_does_not_outweigh_the_others() -> None:
    y = noise(100, 2)
    y[:, 1] = 5.0 + 1e-7 * y[:, 1]
    found = fitted(DENSE, [(y,)], [(y,)], "variance")
    assert found.spreads[0] == pytest.approx([y[:, 0].var(), 25e-6], rel=1e-3)
    # A few rows have no variance of their own.
    few = fitted(DENSE, [(y[:2],)], [(y[:2],)], "variance").spreads[0]
    assert few == pytest.approx([y[:2].var()] * 2, rel=1e-4)
