"""How outputs are compared: any type, any length, and nothing hidden."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest

from octavo.core.results.output_differences import OutputDifference, Sums, output_row


def told(quantized: np.ndarray, reference: np.ndarray) -> OutputDifference:
    sums = Sums()
    sums.add(quantized, reference)
    return sums.told("y")


def test_a_tenth_of_noise_is_twenty_decibels() -> None:
    signal = np.ones(100, np.float32)
    noise = np.tile([0.1, -0.1], 50).astype(np.float32)
    found = told(signal + noise, signal)
    assert found.sqnr == pytest.approx(20, abs=1e-3)
    assert found.largest == pytest.approx(0.1, rel=1e-5)
    assert found.cosine == pytest.approx(1 / math.sqrt(1.01), rel=1e-5)


def test_labels_are_equal_or_not() -> None:
    for dtype in (np.int64, np.bool_, object):
        values = np.array([1, 0, 1, 1]).astype(dtype)
        found = told(values, np.array([1, 1, 1, 1]).astype(dtype))
        assert found.sqnr is None and found.equal == 0.75
    texts = told(np.array(["cat", "dog"]), np.array(["cat", "cat"]))
    assert texts.equal == 0.5
    assert "0.5 of the values equal" in output_row(texts, 1)[-1]


def test_a_model_that_breaks_is_not_hidden() -> None:
    found = told(np.array([np.nan, 1.0]), np.array([2.0, 1.0]))
    assert found.largest == math.inf
    assert found.sqnr == -math.inf
    assert "inf" in output_row(found, 1)[2]


def test_a_mask_of_infinities_is_no_difference() -> None:
    values = np.array([-np.inf, 1.0])
    assert told(values, values.copy()).sqnr == math.inf


def test_other_lengths_and_other_floats_are_compared() -> None:
    assert told(np.ones(3), np.ones(4)).equal == 0.75
    half = np.ones(4, ml_dtypes.bfloat16)
    assert told(half * 2, half).sqnr == pytest.approx(0.0)
    wave = np.array([1 + 1j, 2.0])
    assert told(wave, wave).sqnr == math.inf
