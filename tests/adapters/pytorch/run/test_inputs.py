"""Whatever a module's forward takes: trees, plain values, other shapes in each batch, loaders with
labels."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import octavo
from octavo.core.errors import DataError
from octavo.core.values.calls import Call, parts

SCHEMES = ("int8-static", "int8-dynamic")
Pair = namedtuple("Pair", "x mask")


@dataclass
class Boxes:
    """A container of a user's own."""

    corners: Tensor
    scores: Tensor | None = None
    kind: str = "xyxy"


class Tree(nn.Module):
    """Nested mappings and lists."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(32, 8), nn.Linear(16, 8)

    def forward(self, batch: dict[str, Any]) -> Tensor:
        return self.a(batch["x"]["a"]) + self.b(batch["l"][0])


class Plain(nn.Module):
    """None, bool, int, float and str beside tensors, some by keyword only."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(32, 16), nn.Linear(16, 8)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        *,
        twice: bool = False,
        power: int = 1,
        scale: float = 1.0,
        act: str = "relu",
    ):
        h = getattr(torch, act)(self.a(x)) * scale
        if mask is not None:
            h = h * mask[..., None]
        h = h + h if twice else h
        return {"logits": self.b(h) ** power, "hidden": h, "none": None}


class Records(nn.Module):
    """A named tuple and a dataclass."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(32, 8), nn.Linear(4, 8)

    def forward(self, pair: Pair, boxes: Boxes) -> tuple[Tensor, Tensor]:
        assert isinstance(pair, Pair)
        assert isinstance(boxes, Boxes)
        assert boxes.kind == "xyxy"
        return self.a(pair.x * pair.mask), self.b(boxes.corners).relu()


class Images(nn.Module):
    """A list of images of any sizes, as detectors take them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(
        self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None
    ) -> Tensor:
        if not isinstance(images, list | tuple):
            raise TypeError(f"expected a list of images, got {type(images).__name__}")
        return self.b(
            torch.stack([self.a(i[None]).relu().mean((2, 3))[0] for i in images])
        )


class Optional(nn.Module):
    """An optional second argument that labels would run as."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(32, 8)

    def forward(self, x: Tensor, weights: Tensor | None = None) -> Tensor:
        y: Tensor = self.a(x)
        return y if weights is None else y * weights[:, None]


def rand(*shape: int) -> Tensor:
    return torch.randn(*shape)


def boxes(count: int) -> Boxes:
    return Boxes(rand(count, 4))


CASES: dict[str, tuple[Any, Any]] = {
    "tree": (
        Tree,
        lambda i: (
            {"x": {"a": rand(3 + i, 32)}, "l": [rand(3 + i, 16), None, "name"]},
        ),
    ),
    "plain by keyword": (
        Plain,
        lambda i: {
            "x": rand(2 + i, 5, 32),
            "mask": None,
            "twice": True,
            "power": 1,
            "scale": 0.5,
            "act": "tanh",
        },
    ),
    "plain in both ways": (
        Plain,
        lambda i: Call(rand(2, 5 + i, 32), torch.ones(2, 5 + i), twice=bool(i % 2)),
    ),
    "records": (
        Records,
        lambda i: (Pair(rand(4, 32), torch.ones(4, 32)), boxes(2 + 3 * i)),
    ),
    "records by name": (
        Records,
        lambda i: {
            "pair": Pair(rand(4, 32), torch.ones(4, 32)),
            "boxes": boxes(2 + 3 * i),
        },
    ),
    "images": (Images, lambda i: ([rand(3, 8 + i, 9), rand(3, 7, 6 + 2 * i)],)),
    "arrays in a tree": (
        Tree,
        lambda i: ({"x": {"a": rand(3, 32).numpy()}, "l": [rand(3, 16).numpy()]},),
    ),
}


def run(model: nn.Module, batch: Any) -> Tensor:
    from octavo.adapters.pytorch.run.batches import tensors_in, to_call

    args, kwargs = to_call(batch, model, torch.device("cpu"))
    with torch.no_grad():
        return torch.cat([t.flatten() for t in tensors_in(model(*args, **kwargs))])


def follows(found: Tensor, expected: Tensor, least: float = 0.98) -> bool:
    return (
        float(
            torch.nn.functional.cosine_similarity(
                found.double(), expected.double(), dim=0
            )
        )
        > least
    )


def fresh(case: str) -> tuple[nn.Module, list[Any]]:
    torch.manual_seed(0)
    make, batch = CASES[case]
    return make().eval(), [batch(i) for i in range(4)]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("case", CASES)
def test_the_quantized_model_takes_what_the_model_takes(
    case: str, scheme: str, tmp_path: Path
) -> None:
    model, batches = fresh(case)
    quantized = octavo.quantize_model(model, scheme, calibration=batches)
    assert {line.applied.mode for line in quantized.ledger.values()} == {
        scheme.removeprefix("int8-")
    }
    again = octavo.load(quantized.save(tmp_path / "saved"), model=CASES[case][0])
    for batch in batches[:2]:
        expected = run(model, batch)
        assert follows(run(quantized.model, batch), expected)
        assert torch.equal(run(again, batch), run(quantized.model, batch))
        outputs = quantized.candidate.run(batch)
        assert follows(
            torch.cat([torch.from_numpy(y).flatten() for y in outputs]), expected
        )


def test_a_search_over_trees() -> None:
    model, batches = fresh("plain in both ways")
    want = [run(model, b) for b in batches]

    def score(candidate: nn.Module) -> float:
        return min(
            float(nn.functional.cosine_similarity(run(candidate, b), w, dim=0))
            for b, w in zip(batches, want, strict=True)
        )

    result = octavo.autotune(
        model,
        score,
        batches,
        max_trials=3,
        tolerance=0.02,
        minimise=("latency",),
        seed=0,
    )
    assert result.goal_met
    assert score(result.model) > 0.98


@pytest.mark.parametrize("length", [(5, 9, 7, 12), (12, 5, 1, 3)])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_sequences_of_any_length(scheme: str, length: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval()
    batches = [(rand(2, t, 32),) for t in length]
    quantized = octavo.quantize_model(model, scheme, calibration=batches)
    for batch in batches:
        assert follows(run(quantized.model, batch), run(model, batch))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_images_of_any_size(scheme: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3),
        nn.AdaptiveAvgPool2d(1),
    )
    model.eval()
    batches = [(rand(1 + i, 3, 9 + 4 * i, 16 - i),) for i in range(4)]
    quantized = octavo.quantize_model(model, scheme, calibration=batches)
    for batch in batches:
        assert follows(run(quantized.model, batch), run(model, batch))


# Labels


def classifier() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8)).eval()


def test_a_loader_with_labels_says_once_what_it_drops() -> None:
    model = classifier()
    data = torch.utils.data.TensorDataset(rand(32, 32), torch.randint(0, 8, (32,)))
    quantized = octavo.quantize_model(
        model,
        "int8-static",
        calibration=torch.utils.data.DataLoader(data, batch_size=8),
    )
    assert sum("labels?" in note for note in quantized.notes) == 1
    x = rand(5, 32)
    assert follows(run(quantized.model, (x,)), run(model, (x,)))


class Labelled(torch.utils.data.Dataset[Any]):
    """Samples as mappings, with labels and names that no model takes."""

    def __len__(self) -> int:
        return 16

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {
            "input": torch.full((32,), 0.1 * index),
            "label": index % 8,
            "path": f"{index}.png",
        }


def test_a_loader_of_mappings_says_which_keys_it_drops() -> None:
    quantized = octavo.quantize_model(
        classifier(),
        "int8-static",
        calibration=torch.utils.data.DataLoader(Labelled(), batch_size=4),
    )
    assert any("label, path" in note for note in quantized.notes)


def test_pairs_of_inputs_and_labels() -> None:
    torch.manual_seed(0)
    model = Records()
    loader = [
        ((Pair(rand(4, 32), torch.ones(4, 32)), boxes(3)), torch.zeros(4))
        for _ in range(3)
    ]
    quantized = octavo.quantize_model(model, "int8-static", calibration=loader)
    assert follows(run(quantized.model, loader[0][0]), run(model.eval(), loader[0][0]))


def test_labels_that_would_run_as_an_optional_argument_are_refused_with_the_remedy() -> (
    None
):
    torch.manual_seed(0)
    model, loader = (
        Optional(),
        [(rand(4, 32), torch.tensor([0, 3, 1, 2])) for _ in range(3)],
    )
    with pytest.raises(DataError, match=r"'weights' or labels.*octavo\.Batches"):
        octavo.quantize_model(model, "int8-static", calibration=loader)
    for pick in (
        lambda b: b[0],
        lambda b: {"x": b[0]},
        lambda b: octavo.Call(b[0], weights=None),
    ):
        quantized = octavo.quantize_model(
            model, "int8-static", calibration=octavo.Batches(loader, inputs=pick)
        )
        assert not any("left out" in note for note in quantized.notes)
        assert follows(
            run(quantized.model, loader[0][:1]), run(model.eval(), loader[0][:1])
        )


def test_a_list_of_images_with_targets() -> None:
    model, batches = fresh("images")
    loader = [(images, [{"boxes": rand(2, 4)}]) for (images,) in batches]
    quantized = octavo.quantize_model(model, "int8-static", calibration=loader)
    assert follows(run(quantized.model, batches[1]), run(model, batches[1]))
    alone = octavo.quantize_model(
        model, "int8-static", calibration=[images for (images,) in batches]
    )
    assert follows(run(alone.model, batches[1]), run(model, batches[1]))


# Faults


@pytest.mark.parametrize(("bad", "message"), [
    ({"x": {"a": torch.full((3, 32), torch.nan)}, "l": [torch.zeros(3, 16)]}, r"batch 1, input "
                                                                              r"'batch\.x\.a' "
                                                                              r"holds NaN"),
    ({"x": {"a": torch.zeros(3, 32)}, "l": [torch.full((3, 16), torch.inf)]}, r"batch 1, input "
                                                                              r"'batch\.l\[0\]' "
                                                                              r"holds NaN or Inf"),
    ({"x": {"a": torch.zeros(3, 32)}, "l": [object()]}, r"batch 1, input 'batch\.l\[0\]': object "
                                                        r"is no array"),
    ({"x": {"a": torch.zeros(3, 31)}, "l": [torch.zeros(3, 16)]}, r"batch 1 .*does not run on the "
                                                                  r"float model"),
    ({"x": {}, "l": []}, r"batch 1 .*does not run on the float model"),
])  # fmt: skip
def test_what_is_wrong_with_a_batch_is_said_with_its_number_and_path(
    bad: Any, message: str
) -> None:
    model, batches = fresh("tree")
    with pytest.raises(DataError, match=message):
        octavo.quantize_model(model, "int8-static", calibration=[batches[0], (bad,)])


def test_a_first_batch_that_does_not_run_is_a_typed_error() -> None:
    with pytest.raises(DataError, match=r"does not run on the first batch"):
        octavo.quantize_model(classifier(), "int8-static", calibration=[rand(4, 31)])


# Over several backends: a tree is given to an exported file as its arrays


def test_an_export_takes_the_arrays_of_a_tree() -> None:
    pytest.importorskip("onnxruntime")
    model, batches = fresh("tree")
    batches = [({"x": {"a": rand(4, 32)}, "l": [rand(4, 16)]},) for _ in range(3)]
    want = [run(model, b) for b in batches]

    def score(candidate: octavo.ArrayModel) -> float:
        found = [
            torch.from_numpy(np.asarray(candidate(*parts(b)[0]))).flatten()
            for b in batches
        ]
        return min(
            float(nn.functional.cosine_similarity(f, w, dim=0))
            for f, w in zip(found, want, strict=True)
        )

    result = octavo.autotune(
        model,
        score,
        batches,
        backends=["torch", "onnx"],
        max_trials=4,
        tolerance=0.02,
        stop="budget",
    )
    tried = {trial.recipe.backend for trial in result.trials if trial.metrics}
    assert tried == {"torch", "onnx"}
    assert result.goal_met


def test_plain_values_are_constants_of_an_export() -> None:
    pytest.importorskip("onnxruntime")
    model, _ = fresh("plain by keyword")
    batches = [{"x": rand(2, 5, 32), "twice": flag} for flag in (False, True)]
    with pytest.raises(DataError, match=r"'twice' is True .* a constant"):
        octavo.quantize_model(
            model, "int8-dynamic", calibration=batches, backend="onnx"
        )
    same = [{"x": rand(2, 5, 32), "twice": True} for _ in range(2)]
    quantized = octavo.quantize_model(
        model, "int8-dynamic", calibration=same, backend="onnx"
    )
    assert follows(
        torch.cat(
            [torch.from_numpy(y).flatten() for y in quantized.candidate.run(same[0])]
        ),
        run(model, same[0]),
    )
