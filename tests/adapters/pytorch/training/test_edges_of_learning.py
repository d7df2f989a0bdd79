"""Learning at its edges: which state is kept, whose predictions are the goal, what is passed on."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from octavo.adapters.pytorch.qlayers.weight_only import WeightOnlyLinear
from octavo.adapters.pytorch.training import (
    block_descent,
    distillation,
    door,
    low_rank_files,
)
from octavo.adapters.pytorch.training.block_calls import BlockCall, block_calls
from octavo.adapters.pytorch.training.block_descent import (
    Task,
    _signed,
    _steps,
    descend,
    drawn,
)
from octavo.adapters.pytorch.training.learned_linear import LearnedLinear, learnable
from octavo.adapters.pytorch.training.low_rank_results import updates_of
from octavo.adapters.pytorch.training.reconstruction import reconstruct
from octavo.adapters.pytorch.training.signed_rounding import SignedLinear
from octavo.adapters.pytorch.training.trained_layer import (
    TrainedLayer,
    _static_input,
    positive_levels,
)
from octavo.core.contract.training import Distillation, LowRank, Reconstruction
from octavo.core.errors import ConfigError, SchemeError
from octavo.core.numerics.affine import QuantParams
from octavo.core.numerics.tensor import QuantizedTensor
from octavo.core.values.scheme import QuantSpec

INT4 = QuantSpec(dtype="int4", granularity="channel")


def task_of(*targets: float) -> Task:
    calls = [BlockCall((None,), {}, 0)] * len(targets)
    hidden = [torch.ones(2, 3, 1)] * len(targets)
    return Task(calls, hidden, [value * torch.ones(2, 3, 1) for value in targets])


class Gain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.gain


# Descent of a block


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("half", [False, True])
def test_states_are_judged_over_what_they_cost_as_they_are_learned(
    half: bool, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    block = Gain()
    asked: list[Any] = []
    steps: list[Any] = []

    def errors(given: Any, *, half: bool = False) -> list[float]:
        assert given is block
        asked.append(half)
        return [5.0, 7.0] if half else [4.0, 6.0]

    outputs = iter([("new", 9.0), ("new", 10.0), ("old", 10.0)])
    task: Any = SimpleNamespace(
        errors=errors, device="cpu", outputs=lambda given: next(outputs)
    )
    monkeypatch.setattr(
        block_descent, "multiplies_in_half", lambda d: fast and d == "cpu"
    )
    monkeypatch.setattr(block_descent, "_steps", lambda *given: steps.append(given))
    settings = Reconstruction(half=half)
    modules: Any = [block]
    assert descend(block, modules, task, settings) == "new"
    costs = [5.0, 7.0] if half and fast else [4.0, 6.0]
    assert asked == ([False, True] if half and fast else [False])
    assert steps[0][:4] == (block, modules, task, settings)
    assert steps[0][4]._costs == costs
    # Of equal errors the start is kept.
    assert descend(block, modules, task, settings) == "old"


def test_without_layers_or_steps_a_block_stays() -> None:
    asked: list[Any] = []
    task: Any = SimpleNamespace(outputs=lambda b: asked.append(b) or ("outputs", 1.0))
    block = Gain()
    nothing: Any = []
    some: Any = [block]
    assert descend(block, nothing, task, Reconstruction()) == "outputs"
    assert descend(block, some, task, Reconstruction(iterations=0)) == "outputs"
    assert asked == [block, block]


def test_a_step_takes_the_mean_over_its_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    block, task = Gain(), task_of(1.0, 1.0)
    slopes: list[float] = []

    def mover(modules: Any, settings: Any) -> Any:
        return lambda share: slopes.append(float(block.gain.grad or 0))

    monkeypatch.setattr(block_descent, "_mover", mover)
    best: Any = SimpleNamespace(take=lambda chosen, cost: None)
    settings = Reconstruction(iterations=1, rows=4, half=False)
    _steps(block, [], task, settings, best)
    # Two slopes of 2 (2 - 1) over 6 elements, over a power of 6.
    assert slopes == pytest.approx([2.0])
    # No call is taken twice in a step, however many rows are asked for.
    order = drawn(task, Reconstruction(rows=100))
    assert [sorted(next(order)) for _ in range(3)] == [[0, 1]] * 3


@pytest.mark.parametrize(
    ("rate", "scale_rate"), [(None, None), (0.5, 0.3), (0.1, None)]
)
def test_signed_steps_are_of_both_rates(rate: Any, scale_rate: Any) -> None:
    layer = SignedLinear.__new__(SignedLinear)
    nn.Module.__init__(layer)
    taken: list[tuple[float, float]] = []
    layer.__dict__["step"] = lambda *rates: taken.append(rates)
    settings = Reconstruction(iterations=8, rate=rate, scale_rate=scale_rate)
    _signed([layer], settings)(0.5)
    first = rate or 1 / 8
    assert taken == [(first / 2, (scale_rate or first) / 2)]


class Scaled(nn.Module):
    def forward(self, hidden: Any, scale: Any = 1.0) -> Any:
        return hidden * scale


class Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Scaled(), Scaled()

    def forward(self, x: Any, *, scale: Any) -> Any:
        return self.second(self.first(x, scale))


def test_batches_by_name_reach_the_blocks() -> None:
    x = torch.ones(1, 2, 2)
    found = block_calls(Chain(), ["first", "second"], [((x,), {"scale": 3.0})])
    assert found["first"].calls[0].args == (None, 3.0)
    assert found["second"].follows and not found["first"].follows


def test_what_has_no_block_is_not_reconstructed() -> None:
    with pytest.raises(SchemeError) as raised:
        reconstruct(nn.Identity(), {}, {}, [], Reconstruction())
    assert str(raised.value) == (
        "there is no repeated block with an integer weight-only linear layer to reconstruct"
    )


# Distillation


def test_the_float_model_teaches_where_nobody_else_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root, other = nn.Linear(1, 1), nn.Linear(1, 1)
    given: list[Any] = []
    monkeypatch.setattr(distillation, "learnable", lambda *of: {"a": 1})
    monkeypatch.setattr(distillation, "install_learned", lambda *of: {})
    monkeypatch.setattr(distillation, "_Goal", lambda *of: given.append(of))
    monkeypatch.setattr(distillation, "_descend", lambda *of: False)
    layers: Any = {"a": SimpleNamespace(path="a")}
    parameters: Any = {"a": 1, "b": 2}
    batches: Any = ["batch"]
    settings = Distillation(rate=0.1)
    for teacher in (None, other):
        found = distillation.distill(
            root, layers, parameters, batches, settings, teacher
        )
        # Where nothing was better, all stays.
        assert found == parameters and found is not parameters
    assert [of[0] for of in given] == [root, other]
    assert all(of[1] is not root and of[2:] == (["batch"], settings) for of in given)


def test_predictions_are_the_logits_where_a_result_names_them() -> None:
    owner: Any = SimpleNamespace(
        _device="cpu", _settings=Distillation(temperature=2.0, half=False)
    )
    logits = torch.tensor([[1.0, 3.0]])
    named = SimpleNamespace(loss=torch.zeros(1), logits=logits)
    expected = torch.log_softmax(logits / 2, -1)
    call: Any = ((), {})
    for result in (named, (logits, torch.zeros(1))):
        model: Any = lambda result=result: result  # noqa: E731
        found = distillation._Goal._log_odds(owner, model, call, half=False)
        torch.testing.assert_close(found, expected)


def test_of_equal_losses_distillation_keeps_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    value = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([value], lr=1.0)
    monkeypatch.setattr(distillation, "_optimizer", lambda *given: optimizer)
    goal: Any = SimpleNamespace(
        learned=[0], loss=lambda index, half: value.sum(), verdict=lambda: 3.0
    )
    assert distillation._descend(goal, [], Distillation(steps=2)) is False


# Learned layers


def test_learned_layers_own_their_scales_and_leave_repairs_out() -> None:
    weight = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    scale = weight.abs().amax(1) / 7
    zero = torch.ones(4)
    codes = torch.zeros(4, 6, dtype=torch.int8)
    matrix = torch.full((4, 6), 0.5)
    repair: Any = SimpleNamespace(matrix=lambda: matrix)
    params = QuantParams(scale.half(), zero, INT4, 0)
    start = QuantizedTensor(codes, params, None, repair)
    layer = LearnedLinear(weight, None, start, transposed=False)
    torch.testing.assert_close(layer.weight, weight - matrix)
    assert layer.start_scale.dtype == layer.start_zero.dtype == torch.float32
    start = QuantizedTensor(codes, QuantParams(scale, zero, INT4, 0))
    layer = LearnedLinear(weight, None, start, transposed=False)
    assert layer.start_scale.data_ptr() != scale.data_ptr()
    assert layer.start_zero.data_ptr() != zero.data_ptr()


def test_a_weight_of_two_ops_is_not_learned() -> None:
    op = SimpleNamespace(type="linear")
    layer: Any = SimpleNamespace(op=op, norm="", functional=False)
    weight = SimpleNamespace(params=SimpleNamespace(spec=INT4), extra=None)
    scheme = SimpleNamespace(mode="weight_only")
    own: Any = SimpleNamespace(weight=weight, scheme=scheme)
    alone: Any = SimpleNamespace(weight=SimpleNamespace(**vars(weight)), scheme=scheme)
    layers = dict.fromkeys("abc", layer)
    found = learnable(layers, {"a": own, "b": own, "c": alone})
    assert list(found) == ["c"]


# Trained layers


def test_levels_above_zero() -> None:
    for dtype, symmetric, expected in (
        ("int4", True, 7),
        ("uint4", False, 15),
        ("uint4", True, 7),
        ("int4", False, 7),
    ):
        assert positive_levels(QuantSpec(dtype=dtype, symmetric=symmetric)) == expected


def test_gradients_of_an_inputs_step_count_its_features() -> None:
    spec = QuantSpec(dtype="int4")
    looked: list[Any] = []
    step = nn.Parameter(torch.tensor(0.5))
    owner: Any = SimpleNamespace(
        dynamic=False,
        input_scale=step,
        input_zero=torch.zeros(()),
        looks=True,
        _look=lambda *given: looked.append(given),
    )
    x = torch.tensor([[0.6, -0.9, 9.0]])
    out = TrainedLayer._quantized_input(owner, x, spec)
    torch.testing.assert_close(out.detach(), torch.tensor([[0.5, -1.0, 3.5]]))
    assert torch.equal(looked[0][0], x) and looked[0][1] is spec
    out.sum().backward()
    # round(v / s) - v / s inside, and the end of the range beyond it; 3 features, 7 levels.
    slope = (1 - 1.2) + (-2 + 1.8) + 7
    assert float(step.grad or 0) == pytest.approx(slope * (3 * 7) ** -0.5)


def test_what_was_learned_of_inputs_is_the_first() -> None:
    spec = QuantSpec(dtype="uint8", symmetric=False)
    first, second, third = (
        QuantParams(torch.tensor(value), torch.tensor(0), spec) for value in (1.0, 2, 3)
    )
    owner: Any = SimpleNamespace(input_scale=torch.tensor(-0.25))
    start: Any = SimpleNamespace(inputs=(first, second, third))
    found = TrainedLayer._learned_inputs(owner, start)
    assert found[0] is not None and float(found[0].scale) == 0.25
    assert found[1:] == (second, third)
    for mode, inputs, expected in (
        ("static", (first,), first),
        ("static", (), None),
        ("dynamic", (first,), None),
    ):
        given: Any = SimpleNamespace(scheme=SimpleNamespace(mode=mode), inputs=inputs)
        assert _static_input(given) is expected


def test_steps_of_zeros_begin_at_one() -> None:
    owner: Any = SimpleNamespace(
        spec=INT4,
        weight=torch.tensor([[1.0, -3.0], [0.0, 0.0]]),
        step=nn.Parameter(torch.ones(2)),
        _mean_by_step=lambda sizes: sizes.mean(1),
    )
    TrainedLayer.start_as_paper(owner)
    assert owner.step.tolist() == pytest.approx([2 * 2 / 7**0.5, 1.0])


# Updates


def test_updates_of_another_shape_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    name = "base_model.model.a.lora_x.lora_A.weight"
    tensors = {name: torch.ones(2, 3), name.replace("_A", "_B"): torch.ones(4, 2)}
    settings = {"r": 2, "lora_alpha": 3.0}
    monkeypatch.setattr(low_rank_files, "_read", lambda folder: (settings, tensors))
    asked: list[Any] = []
    monkeypatch.setattr(
        low_rank_files, "add_low_rank", lambda *of: asked.append(of) or nn.Identity()
    )
    layer = SimpleNamespace(
        down=nn.Parameter(torch.zeros(2, 3)), up=nn.Parameter(torch.zeros(4, 2))
    )
    monkeypatch.setattr(low_rank_files, "own_updates", lambda r: {"a.lora_x": layer})
    candidate: Any = "candidate"
    low_rank_files.load_updates(candidate, tmp_path)
    assert asked[0][1].ops == ("a.lora_x",)
    assert layer.down.all() and not layer.down.requires_grad
    low_rank_files.load_updates(candidate, tmp_path, is_trainable=True)
    assert layer.down.requires_grad and layer.up.requires_grad
    layer.down = nn.Parameter(torch.zeros(2, 5))
    with pytest.raises(ConfigError) as raised:
        low_rank_files.load_updates(candidate, tmp_path)
    assert str(raised.value) == (
        f"{tmp_path}: {name} has the shape (2, 3), the model's layer takes (2, 5)"
    )


class OfPeft(nn.Module):
    """As peft's model holds a base."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.peft_config: dict[str, Any] = {}
        self.base_model = nn.ModuleDict({"model": nn.ModuleDict({"fc": layer})})
        self.base_model.model = self.base_model["model"]
        self.saved: list[str] = []

    def save_pretrained(self, folder: str) -> None:
        self.saved.append(folder)


def test_updates_of_pefts_model_are_found_and_saved(tmp_path: Path) -> None:
    layer: Any = nn.Module()
    layer.lora_A = nn.ModuleDict({"a": nn.Linear(3, 2, bias=False)})
    layer.lora_B = nn.ModuleDict({"a": nn.Linear(2, 4, bias=False)})
    layer.scaling, layer.active_adapters = {"a": 2.0}, ["a"]
    model = OfPeft(layer)
    (path,), (update,) = zip(*updates_of(model).items(), strict=True)
    assert path == "fc"
    torch.testing.assert_close(update.down, layer.lora_A["a"].weight.detach())
    torch.testing.assert_close(update.up, 2 * layer.lora_B["a"].weight.detach())
    nothing: Any = None
    door.TorchTraining.save_low_rank(nothing, model, tmp_path)
    assert model.saved == [str(tmp_path)]


def test_pefts_model_goes_over_a_base_by_names(monkeypatch: pytest.MonkeyPatch) -> None:
    peft = pytest.importorskip("peft")
    from octavo.adapters.pytorch.training import peft_layers

    root = nn.ModuleDict({"fc": nn.Linear(2, 2), "out": nn.Identity()})
    given: list[Any] = []

    def get(base: nn.Module, settings: Any) -> str:
        # It asks for a parameter.
        names = [name for name, _ in base.named_parameters()]
        given.append((base, settings.target_modules, names))
        return "model"

    monkeypatch.setattr(peft_layers, "_base", lambda _: (root, {"fc": root["fc"]}))
    monkeypatch.setattr(peft_layers.peft, "get_peft_model", get)
    monkeypatch.setattr(door, "_torch_candidate", lambda candidate: candidate)
    candidate: Any = "candidate"
    nothing: Any = None
    add = door.TorchTraining.add_low_rank
    assert add(nothing, candidate, peft.LoraConfig(r=2)) == "model"
    asked = peft.LoraConfig(r=2, target_modules=["out"])
    assert peft_layers.peft_model(candidate, asked) == "model"
    assert [(of[0] is root, set(of[1])) for of in given] == [
        (True, {"fc"}),
        (True, {"out"}),
    ]
    assert all("_octavo_device" in of[2] for of in given)
    assert "_octavo_device" not in dict(root.named_parameters())
    with pytest.raises(SchemeError) as raised:
        peft_layers.LoraWeightOnly.merge(nothing)
    assert str(raised.value) == (
        "the base's weight is stored in few bits and takes no update: octavo.merge_adapters "
        "returns a float model that computes the same, to keep or to quantize that; "
        "octavo.convert keeps the updates beside the base"
    )


@pytest.mark.parametrize("has_peft", [False, True])
def test_a_library_holds_the_updates(
    has_peft: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("peft")
    from octavo.adapters.pytorch.training import peft_layers, qlora

    monkeypatch.setattr(door, "_has_peft", lambda: has_peft)
    monkeypatch.setattr(peft_layers, "peft_by_settings", lambda *of: ("peft", *of))
    root = nn.Identity()
    monkeypatch.setattr(qlora, "add_low_rank", lambda *of: root)
    candidate: Any = SimpleNamespace(module=nn.Identity())
    for library, by_peft in (("auto", has_peft), ("octavo", False), ("peft", True)):
        settings = LowRank(library=library)
        found = door._with_updates(candidate, settings)
        assert found == (("peft", candidate, settings) if by_peft else root)
    single: Any = SimpleNamespace(module=WeightOnlyLinear.__new__(WeightOnlyLinear))
    assert door._with_updates(single, LowRank(library="auto")) is root
    with pytest.raises(ConfigError) as raised:
        door._with_updates(candidate, LowRank(library="other"))
    assert str(raised.value) == "library is one of auto, octavo, peft, not 'other'"
    with pytest.raises(SchemeError) as lacking:
        updates_of(nn.Linear(2, 2))
    assert str(lacking.value) == (
        "the model has no low-rank updates: octavo.qlora adds them"
    )


def test_rows_of_a_call_are_its_sequences() -> None:
    for shape, rows in (((5, 3, 2), 5), ((5, 2), 1), ((5,), 1)):
        task = Task([BlockCall((None,), {}, 0)], [torch.ones(shape)], [])
        assert task.rows(0) == rows
