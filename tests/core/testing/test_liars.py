"""Backends that lie, each in one way: the kit must catch every one of them.

They are the tiny backend, honest but for one lie.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import octavo
from octavo.core.numerics.affine import (
    QuantParams,
    affine_params,
    dequantize,
    quantize,
)
from octavo.plugin import Applied, feed
from tests import tiny
from tests.core.testing.lying import fails
from tests.core.testing.test_conformance import case as honest_case
from tests.tiny import TinyAdapter, TinyCandidate, TinySession, backend

Lie = Callable[[pytest.MonkeyPatch], None]

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


def float_inputs_of_inner_dynamic(patch: pytest.MonkeyPatch) -> None:
    """Honest at the end of the model and where a layer is alone, where it can be seen."""
    honest = TinyCandidate._product

    def product(self, x, i):
        _, codes, scale, known = self.layers[i]
        if known is not None or i == len(self.chain.weights) - 1:
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


def scales_of_inputs(patch: pytest.MonkeyPatch) -> None:
    """The wrong axis; where a matrix is square, no shape shows it."""
    honest = TinyCandidate._product

    def product(self, x, i):
        _, codes, scale, _ = self.layers[i]
        is_square = np.ndim(scale) and codes.shape[0] == codes.shape[1]
        if not is_square:
            return honest(self, x, i)
        twin = self.with_ledger(self.ledger)
        mode, _, _, known = self.layers[i]
        whole = np.float32(np.max(scale))
        rounded = np.round(codes * scale / whole)
        twin.layers = {**self.layers, i: (mode, rounded, whole, known)}
        return honest(twin, x, i)

    patch.setattr(TinyCandidate, "_product", product)


def one_scale_for_all(patch: pytest.MonkeyPatch) -> None:
    _products_of(patch, lambda c, s, k: (c, np.full_like(s, np.max(s)), k))


def zero_point_ignored(patch: pytest.MonkeyPatch) -> None:
    def product(self, x, i):
        _, codes, scale, known = self.layers[i]
        params = (
            affine_params(x.min(), x.max(), backend._X)
            if known is None
            else QuantParams(known[0], known[1].astype(np.int32), backend._X)
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
    honest = TinySession.carry_out

    def carry_out(self, recipe, parameters):
        without = {name: replace(p, bias=None) for name, p in parameters.items()}
        return honest(self, recipe, without)

    patch.setattr(TinySession, "carry_out", carry_out)


def anything_is_carried_out(patch: pytest.MonkeyPatch) -> None:
    # As backends had it before the core looked: ``apply`` of one's own.
    patch.setattr(TinySession, "apply", TinySession.carry_out)


def later_applies_change_candidates(patch: pytest.MonkeyPatch) -> None:
    honest = TinySession.carry_out

    def carry_out(self, recipe, parameters):
        candidate = honest(self, recipe, parameters)
        layers = vars(self).setdefault("layers", {})  # one dictionary for all
        layers.clear()
        layers.update(candidate.layers)
        candidate.layers = layers
        return candidate

    patch.setattr(TinySession, "carry_out", carry_out)


# Lies about files


def pickles(patch: pytest.MonkeyPatch) -> None:
    honest = TinyCandidate.save

    def save(self, folder):
        honest(self, folder)
        (folder / "meta.bin").write_bytes(pickle.dumps(self.recipe.to_json()))

    patch.setattr(TinyCandidate, "save", save)


def pickled_arrays(patch: pytest.MonkeyPatch) -> None:
    honest = TinyCandidate.save

    def save(self, folder):
        honest(self, folder)
        np.savez(folder / "more.npz", more=np.array([{"a": 1}], object))

    patch.setattr(TinyCandidate, "save", save)


def loading_loses_a_scale(patch: pytest.MonkeyPatch) -> None:
    _loaded(patch, lambda c: {i: (m, q, s * 1.01, k) for i, (m, q, s, k) in c.items()})


def loading_forgets_known_ranges(patch: pytest.MonkeyPatch) -> None:
    _loaded(patch, lambda c: {i: (m, q, s, None) for i, (m, q, s, k) in c.items()})


def _loaded(patch: pytest.MonkeyPatch, change) -> None:
    honest = TinyAdapter.load

    def load(self, folder, model=None):
        candidate = honest(self, folder, model)
        candidate.layers = change(candidate.layers)
        return candidate

    patch.setattr(TinyAdapter, "load", load)


def loading_forgets_reasons(patch: pytest.MonkeyPatch) -> None:
    honest = TinyAdapter.load

    def load(self, folder, model=None):
        candidate = honest(self, folder, model)
        lines = {
            n: replace(a, realization="simulated") for n, a in candidate.ledger.items()
        }
        return candidate.with_ledger(lines)

    patch.setattr(TinyAdapter, "load", load)


def bytes_that_do_not_add_up(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        TinyCandidate, "bytes_by_op", lambda self: dict.fromkeys(self.ledger, 10**6)
    )


def bytes_of_scales_alone(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        TinyCandidate, "bytes_by_op", lambda self: dict.fromkeys(self.ledger, 4)
    )


def twins_share_their_ledger(patch: pytest.MonkeyPatch) -> None:
    def with_ledger(self, ledger, recipe=None):
        self.ledger = ledger
        return self

    patch.setattr(TinyCandidate, "with_ledger", with_ledger)


# Lies about calls


def any_batch_is_taken(patch: pytest.MonkeyPatch) -> None:
    def anything(batch, inputs):
        values = list(batch.values()) if isinstance(batch, Mapping) else list(batch)
        value = values[0] if values else np.zeros((1, 64))
        return {"x": np.asarray(value, np.float32)[..., :64]}

    patch.setattr(backend, "feed", anything)


def surplus_is_dropped(patch: pytest.MonkeyPatch) -> None:
    def some(batch, inputs):
        is_named = isinstance(batch, Mapping) and "x" in batch
        return feed({"x": batch["x"]} if is_named else batch, inputs)

    patch.setattr(backend, "feed", some)


def a_row_alone_fails(patch: pytest.MonkeyPatch) -> None:
    honest = TinyCandidate.run

    def run(self, batch):
        (y,) = honest(self, batch)
        with np.errstate(all="ignore"):
            return (y / (len(y) - 1),) if self.layers else (y,)

    patch.setattr(TinyCandidate, "run", run)


def rows_know_of_each_other(patch: pytest.MonkeyPatch) -> None:
    scale_of_inputs_ignored(patch)


def an_array_in_place_of_a_tuple(patch: pytest.MonkeyPatch) -> None:
    honest = TinyCandidate.run
    patch.setattr(TinyCandidate, "run", lambda self, batch: list(honest(self, batch)))


def writes_into_inputs(patch: pytest.MonkeyPatch) -> None:
    honest = TinyCandidate.run

    def run(self, batch):
        result = honest(self, batch)
        if isinstance(batch, tuple) and isinstance(batch[0], np.ndarray):
            batch[0][0, 0] += 1
        return result

    patch.setattr(TinyCandidate, "run", run)


def one_place_for_outputs(patch: pytest.MonkeyPatch) -> None:
    honest = TinyCandidate.run
    places: dict[tuple[int, ...], np.ndarray] = {}

    def run(self, batch):
        (y,) = honest(self, batch)
        place = places.setdefault(y.shape, y)
        place[:] = y
        return (place,)

    patch.setattr(TinyCandidate, "run", run)


def ledger_lists_too_little(patch: pytest.MonkeyPatch) -> None:
    honest = TinySession.carry_out

    def carry_out(self, recipe, parameters):
        candidate = honest(self, recipe, parameters)
        first = dict(list(candidate.ledger.items())[:1])
        return candidate.with_ledger(first)

    patch.setattr(TinySession, "carry_out", carry_out)


def native_is_the_float_model(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(TinyCandidate, "native", property(lambda self: self.chain))


# Lies that only a further fact of the case shows


def rounded_in_float(patch: pytest.MonkeyPatch) -> None:
    """All numbers are right, and none of them was computed in integers."""

    def product(self, x, i):
        _, codes, scale, known = self.layers[i]
        params = (
            affine_params(x.min(), x.max(), backend._X)
            if known is None
            else QuantParams(known[0], known[1].astype(np.int32), backend._X)
        )
        numbers = dequantize(quantize(x, params), params)
        return numbers @ (codes * np.reshape(scale, (-1, 1))).T.astype(np.float32)

    patch.setattr(TinyCandidate, "_product", product)


def seen(candidate, op: str) -> str:
    """A witness of the tiny backend: whether its codes are multiplied, whatever the ledger says."""
    layers = getattr(candidate, "layers", {})
    found = layers.get(int(op.split(".")[1]))
    return "" if found is not None else "the layer is multiplied in float"


def kernel_is_only_said(patch: pytest.MonkeyPatch) -> None:
    honest = TinySession.carry_out

    def carry_out(self, recipe, parameters):
        candidate = honest(self, recipe, parameters)
        candidate.layers = {}
        return candidate

    patch.setattr(TinySession, "carry_out", carry_out)


def last_op_is_lost(patch: pytest.MonkeyPatch) -> None:
    """The file is opened without the second layer's shift."""
    honest = TinyAdapter.open

    def open_(self, source, example=None):
        session = honest(self, source, example)
        biases = [*session.chain.biases[:-1], session.chain.biases[-1] * 0]
        session.chain = replace(session.chain, biases=biases)
        return session

    patch.setattr(TinyAdapter, "open", open_)


def unreadable_alone(folder: Path):
    """A runtime that knows only float chains."""
    found = np.load(folder / "chain.npz")
    weights = [found[f"w{i}"] for i in range(4)]
    biases = [found[f"b{i}"] for i in range(4)]
    chain = replace(tiny.chain(), weights=weights, biases=biases)
    return lambda batch: chain(batch[0])


def test_a_float_backend_with_a_witness_is_caught(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = replace(honest_case(), witness=seen)
    assert fails("test_kernels_are_witnessed", case) == ""
    assert fails("test_integer_products_leave_nothing", case) == "skipped"
    kernel_is_only_said(monkeypatch)
    assert "the witness" in fails("test_kernels_are_witnessed", case)


def test_a_witness_who_always_agrees_is_caught() -> None:
    case = replace(honest_case(), witness=lambda candidate, op: "")
    assert "in the float model" in fails("test_kernels_are_witnessed", case)


def test_a_lost_op_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    chain = tiny.chain()
    case = replace(honest_case(), source=lambda batch: chain(batch[0]))
    assert fails("test_the_float_model_is_its_source", case) == ""
    last_op_is_lost(monkeypatch)
    assert fails("test_the_float_model_is_its_source", case)


def test_an_op_that_is_lost_in_a_file_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "chain.onnx"
    honest = TinyAdapter.open
    kept = [1.0]

    def open_(self, source, example=None):
        if source != file:
            return honest(self, source, example)
        chain = tiny.chain()
        chain.biases[-1] = chain.biases[-1] * np.float32(kept[0])
        return honest(self, chain, example)

    monkeypatch.setattr(TinyAdapter, "open", open_)
    card = replace(honest_case().card, accepts=("onnx",))
    case = replace(
        honest_case(), card=card, opens=file, source=lambda x: tiny.chain()(x[0])
    )
    assert fails("test_an_interchange_file_is_the_same_model", case) == ""
    kept[0] = 0.0
    assert fails("test_an_interchange_file_is_the_same_model", case)


def test_a_file_that_the_card_does_not_take_is_caught(tmp_path: Path) -> None:
    case = replace(honest_case(), opens=tmp_path / "chain.onnx")
    found = fails("test_an_interchange_file_is_the_same_model", case)
    assert "neither claims nor accepts" in found


def test_a_result_that_the_runtime_cannot_load_alone_is_caught() -> None:
    case = replace(honest_case(), loads_alone=unreadable_alone)
    assert "KeyError" in fails("test_the_runtime_loads_it_alone", case)


def test_odd_batches_of_the_case_are_run(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.zeros((1, 64), np.float32)
    case = replace(honest_case(), odd=[(x,)])
    assert fails("test_unusual_batches_run", case) == ""
    a_row_alone_fails(monkeypatch)
    assert "finite" in fails("test_unusual_batches_run", case)


CAUGHT = (
    (float_products, "test_inputs_keep_to_their_range", "scale of its input"),
    (float_products, "test_numbers_are_those_of_the_rounded_op", "from what rounding"),
    (float_weights, "test_numbers_are_those_of_the_rounded_op", "from what rounding"),
    (float_inputs_of_dynamic, "test_numbers_are_those_of_the_rounded_op", "dynamic"),
    (
        float_inputs_of_inner_dynamic,
        "test_inner_products_are_those_of_rounding",
        "dynamic",
    ),
    (permuted_scales, "test_scales_belong_to_their_channels", "not those of"),
    (scales_of_inputs, "test_numbers_are_those_of_the_rounded_op", "from what"),
    (one_scale_for_all, "test_scales_belong_to_their_channels", "not those of"),
    (zero_point_ignored, "test_zero_points_of_inputs_are_used", "zero point"),
    (scale_of_inputs_ignored, "test_inputs_keep_to_their_range", "scale of its input"),
    (bias_ignored, "test_a_corrected_bias_is_used", "changes nothing"),
    (anything_is_carried_out, "test_what_is_not_offered_is_refused", "not offered"),
    (rounded_in_float, "test_integer_products_leave_nothing", "no integer kernel"),
    (pickles, "test_save_and_load", "holds a pickle"),
    (pickled_arrays, "test_save_and_load", "holds a pickle"),
    (loading_loses_a_scale, "test_save_and_load", ""),
    (loading_forgets_known_ranges, "test_save_and_load", ""),
    (loading_forgets_reasons, "test_save_and_load", ""),
    (bytes_that_do_not_add_up, "test_bytes_of_ops_are_in_the_files", "the files"),
    (bytes_of_scales_alone, "test_bytes_of_ops_are_in_the_files", "codes alone"),
    (twins_share_their_ledger, "test_a_twin_has_a_ledger_of_its_own", "own ledger"),
    (any_batch_is_taken, "test_wrong_inputs_are_a_data_error", "a batch with"),
    (surplus_is_dropped, "test_wrong_inputs_are_a_data_error", "beside the others"),
    (a_row_alone_fails, "test_unusual_batches_run", "finite"),
    (rows_know_of_each_other, "test_one_row_is_what_it_was_among_others", ""),
    (an_array_in_place_of_a_tuple, "test_outputs_come_in_their_order", "tuple"),
    (writes_into_inputs, "test_batches_are_read_by_name", "writes into"),
    (one_place_for_outputs, "test_outputs_are_kept_by_later_calls", "overwritten"),
    (ledger_lists_too_little, "test_everything_at_once", "no line for"),
    (native_is_the_float_model, "test_native_gives_what_run_gives", ""),
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
    assert fails(name, honest_case()) in ("", "skipped")
    lie(monkeypatch)
    found = fails(name, honest_case())
    assert found and said in found


def test_a_candidate_may_compute_its_ledger(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody assigns ``recipe`` and ``ledger`` from outside: they may be properties."""

    class Computed(TinyCandidate):
        def __init__(self, chain, recipe, layers, lines=None) -> None:
            self.chain, self._recipe, self.layers = chain, recipe, dict(layers)
            self._lines = lines

        @property
        def recipe(self):
            return self._recipe

        @property
        def ledger(self):
            made = {n: Applied(self._recipe[n], self._recipe[n]) for n in self._recipe}
            return made if self._lines is None else self._lines

        def with_ledger(self, ledger, recipe=None):
            kept = self._recipe if recipe is None else recipe
            return Computed(self.chain, kept, self.layers, ledger)

    monkeypatch.setattr(backend, "TinyCandidate", Computed)
    for name in ("test_save_and_load", "test_everything_at_once"):
        assert fails(name, honest_case()) == ""
    found = octavo.quantize_model(
        tiny.chain(),
        "int8-static+bias-correction",
        [(batch,) for batch in tiny.calibration()],
        host=tiny.host(),
    )
    assert isinstance(found.candidate, Computed)
