"""Backends that lie, each in one way: the kit must catch every one of them.

They are the tiny backend, honest but for one lie.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from octavo_tiny.backend import TinyCandidate, TinySession

from octavo.core.numerics.affine import QuantParams, quantize
from octavo.core.testing.conformance import AdapterCase, AdapterConformance
from tests.core.testing.test_conformance import case as honest_case

Lie = Callable[[pytest.MonkeyPatch], None]

FIXTURES = (
    "case", "opened", "space", "realizer", "expected", "bench", "seen_ops",
)  # fmt: skip


def fails(name: str, case: AdapterCase, **extra: object) -> str:
    """Run one test of the kit on a case, and return what it says; '' where it passes."""
    made: dict[str, object] = {"case": case, **extra}
    for fixture in FIXTURES[1:]:
        build = inspect.unwrap(getattr(AdapterConformance, fixture))
        made[fixture] = _called(build, made, AdapterConformance)
    try:
        _called(getattr(AdapterConformance, name), made, AdapterConformance())
    except (AssertionError, pytest.fail.Exception) as error:
        return str(error) or "an assertion"
    return ""


def _called(function, made, first):
    function = getattr(function, "_fixture_function", function)
    function = getattr(function, "__func__", function)
    names = list(inspect.signature(function).parameters)[1:]
    return function(first, *(made[name] for name in names))


# Lies about numbers


def float_products(patch: pytest.MonkeyPatch) -> None:
    def product(self, x, i):
        _, codes, scale, _ = self.layers[i]
        return x @ (codes * np.reshape(scale, (-1, 1))).T.astype(np.float32)

    patch.setattr(TinyCandidate, "_product", product)


def float_weights(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        TinyCandidate, "_product", lambda self, x, i: x @ self.chain.weights[i].T
    )


def float_inputs_of_dynamic(patch: pytest.MonkeyPatch) -> None:
    honest = TinyCandidate._product

    def product(self, x, i):
        _, codes, scale, known = self.layers[i]
        if known is not None:
            return honest(self, x, i)
        return x @ (codes * np.reshape(scale, (-1, 1))).T.astype(np.float32)

    patch.setattr(TinyCandidate, "_product", product)


def _products_of(patch: pytest.MonkeyPatch, change) -> None:
    """Let products be computed of a changed (codes, scale, known)."""
    honest = TinyCandidate._product

    def product(self, x, i):
        layers = dict(self.layers)
        mode, codes, scale, known = layers[i]
        layers[i] = (mode, *change(codes, scale, known))
        twin = self.with_ledger(self.ledger)
        twin.layers = layers
        return honest(twin, x, i)

    patch.setattr(TinyCandidate, "_product", product)


def permuted_scales(patch: pytest.MonkeyPatch) -> None:
    _products_of(patch, lambda c, s, k: (c, s[::-1] if np.ndim(s) else s, k))


def one_scale_for_all(patch: pytest.MonkeyPatch) -> None:
    _products_of(patch, lambda c, s, k: (c, np.full_like(s, np.max(s)), k))


def zero_point_ignored(patch: pytest.MonkeyPatch) -> None:
    def product(self, x, i):
        _, codes, scale, known = self.layers[i]
        from octavo_tiny.backend import _X

        from octavo.plugin import affine_params

        params = (
            affine_params(x.min(), x.max(), _X)
            if known is None
            else QuantParams(known[0], known[1].astype(np.int32), _X)
        )
        q = quantize(x, params)
        return (q @ codes.T.astype(np.int32)).astype(np.float32) * (
            params.scale * scale
        )

    patch.setattr(TinyCandidate, "_product", product)


def scale_of_inputs_ignored(patch: pytest.MonkeyPatch) -> None:
    # Ranges are found at run time though they were decided.
    _products_of(patch, lambda c, s, k: (c, s, None))


def bias_ignored(patch: pytest.MonkeyPatch) -> None:
    honest = TinySession.apply

    def apply(self, recipe, parameters):
        without = {name: replace(p, bias=None) for name, p in parameters.items()}
        return honest(self, recipe, without)

    patch.setattr(TinySession, "apply", apply)


def anything_is_carried_out(patch: pytest.MonkeyPatch) -> None:
    honest = TinySession.capability
    wide = replace(honest(None), offers={"linear": _Everything(honest(None))})

    def apply(self, recipe, parameters, apply=TinySession.apply):
        self.capability = lambda: wide
        try:
            return apply(self, recipe, parameters)
        finally:
            del self.capability

    patch.setattr(TinySession, "apply", apply)


class _Everything(tuple):
    """Offers that take any scheme."""

    def __new__(cls, capability):
        return super().__new__(cls, capability.offers["linear"])

    def __iter__(self):
        return (_Taken(offer.scheme) for offer in super().__iter__())


class _Taken:
    def __init__(self, scheme):
        self.scheme = scheme
        self.realization = "kernel"
        self.repairs = True

    def takes(self, scheme):
        return True

    def refusal_of(self, op):
        return ""


def later_applies_change_candidates(patch: pytest.MonkeyPatch) -> None:
    honest = TinySession.apply

    def apply(self, recipe, parameters):
        candidate = honest(self, recipe, parameters)
        layers = vars(self).setdefault("layers", {})  # one dictionary for all
        layers.clear()
        layers.update(candidate.layers)
        candidate.layers = layers
        return candidate

    patch.setattr(TinySession, "apply", apply)


CAUGHT = (
    (float_products, "test_inputs_keep_to_their_range", "scale of its input"),
    (float_products, "test_numbers_are_those_of_the_rounded_op", "from what rounding"),
    (float_weights, "test_numbers_are_those_of_the_rounded_op", "from what rounding"),
    (float_inputs_of_dynamic, "test_numbers_are_those_of_the_rounded_op", "dynamic"),
    (permuted_scales, "test_scales_belong_to_their_channels", "not those of"),
    (one_scale_for_all, "test_scales_belong_to_their_channels", "not those of"),
    (zero_point_ignored, "test_zero_points_of_inputs_are_used", "zero point"),
    (scale_of_inputs_ignored, "test_inputs_keep_to_their_range", "scale of its input"),
    (bias_ignored, "test_a_corrected_bias_is_used", "changes nothing"),
    (anything_is_carried_out, "test_what_is_not_offered_is_refused", "not offered"),
    (
        later_applies_change_candidates,
        "test_a_candidate_is_not_changed_by_the_next",
        "",
    ),
)  # fmt: skip


@pytest.mark.parametrize(
    ("lie", "name", "said"), CAUGHT, ids=[f"{lie.__name__}" for lie, _, _ in CAUGHT]
)
def test_a_lie_is_caught(
    monkeypatch: pytest.MonkeyPatch, lie: Lie, name: str, said: str
) -> None:
    assert fails(name, honest_case()) == ""
    lie(monkeypatch)
    found = fails(name, honest_case())
    assert found and said in found
