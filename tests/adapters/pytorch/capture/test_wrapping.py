"""However a module is wrapped: it is quantized as the module inside, or refused before any work
with the way out."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import octavo
from octavo.core.errors import DataError, ModelError, OctavoError

SCHEMES = ("int8-static", "int8-dynamic")


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8)).eval()


class Everything(nn.Module):
    """Most layers that a program calls operators for, one of them twice, one table tied to the
    head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm = (
            nn.Conv2d(3, 8, 3, stride=2, padding=1),
            nn.BatchNorm2d(8),
        )
        self.grouped = nn.Conv2d(8, 8, 3, groups=2, bias=False)
        self.up = nn.ConvTranspose2d(8, 8, 2)
        self.same = nn.Conv1d(8, 8, 3, padding="same")
        self.table, self.layer_norm = nn.Embedding(5, 8), nn.LayerNorm(8)
        self.twice, self.head = nn.Linear(8, 8), nn.Linear(8, 5, bias=False)
        self.head.weight = self.table.weight

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        h = self.norm(self.conv(x)).relu_()
        h = self.up(self.grouped(h) * 1.0)
        h = self.same(h.flatten(2)).mean(2)
        h = nn.functional.gelu(self.layer_norm(h + self.table(ids)))
        return self.head(self.twice(self.twice(h)))


def vectors() -> list[tuple[Tensor, ...]]:
    torch.manual_seed(1)
    return [(torch.randn(4, 32),) for _ in range(4)]


def images() -> list[tuple[Tensor, ...]]:
    torch.manual_seed(1)
    return [(torch.randn(2, 3, 12, 12), torch.tensor([i, 4 - i])) for i in range(4)]


def with_child_compiled() -> nn.Module:
    inner = net()
    inner[0] = torch.compile(inner[0])  # type: ignore[index, operator]
    return nn.Sequential(inner, torch.compile(nn.Linear(8, 8)))


def compiled_in_place() -> nn.Module:
    model = net()
    model.compile(backend="eager")
    return model


def compiled_forward() -> nn.Module:
    model = net()
    model.forward = torch.compile(model.forward, backend="eager")  # type: ignore[method-assign]
    model[0].forward = torch.compile(model[0].forward, backend="eager")  # type: ignore[index, union-attr, method-assign]
    return model


def patched_by_a_closure() -> nn.Module:
    model = net()
    old = model.forward
    model.forward = lambda input: old(input) * 2 + 1  # type: ignore[method-assign]
    return model


def patched_by_a_method() -> nn.Module:
    model = net()
    model.forward = types.MethodType(
        lambda self, x: self[2](self[0](x).relu() * 2), model
    )  # type: ignore[method-assign]
    return model


def patched_by_a_partial() -> nn.Module:
    model = net()
    model.forward = functools.partial(
        lambda m, old, x: old(x) + m[2](x), model, model.forward
    )  # type: ignore[method-assign]
    return model


class Decorated(nn.Module):
    """A forward behind functools.wraps, and arguments that a trainer's base class asks for."""

    @staticmethod
    def _doubling(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        @functools.wraps(forward)
        def inner(*args: Any, **kwargs: Any) -> Tensor:
            return forward(*args, **kwargs) * 2

        return inner

    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    @_doubling
    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y: Tensor = self.net(x)
        return y

    def training_step(self, batch: Any, index: int) -> None: ...


def with_device_hooks() -> nn.Module:
    hooks = pytest.importorskip("accelerate.hooks")
    model = net()
    for module in model.modules():
        hooks.add_hook_to_module(
            module, hooks.AlignDevicesHook(execution_device="cpu", io_same_device=True)
        )
    return model


def dispatched() -> nn.Module:
    accelerate = pytest.importorskip("accelerate")
    model: nn.Module = accelerate.dispatch_model(
        net(), device_map={"": "cpu"}, force_hooks=True
    )
    return model


def with_adapters() -> nn.Module:
    peft = pytest.importorskip("peft")
    model: nn.Module = peft.get_peft_model(
        net(), peft.LoraConfig(target_modules=["0", "2"], r=4, init_lora_weights=False)
    )
    return model


WRAPPED: dict[str, Callable[[], Any]] = {
    "compiled": lambda: torch.compile(net()),
    "compiled inside": with_child_compiled,
    "compiled in place": compiled_in_place,
    "compiled forward": compiled_forward,
    "parallel": lambda: nn.DataParallel(net()),
    "parallel inside": lambda: nn.Sequential(nn.DataParallel(net()), nn.Linear(8, 4)),
    "parallel and compiled": lambda: torch.compile(nn.DataParallel(net())),
    "symbolic trace": lambda: torch.fx.symbolic_trace(net()),
    "exported": lambda: torch.export.export(net(), vectors()[0]),
    "exported module": lambda: torch.export.export(net(), vectors()[0]).module(),
    "exported for any batch": lambda: torch.export.export(
        net(), vectors()[0], dynamic_shapes=({0: torch.export.Dim("b")},)
    ),
    "exported inside": lambda: nn.Sequential(
        torch.export.export(net(), vectors()[0]).module(), nn.Linear(8, 8)
    ),
    "closure": patched_by_a_closure,
    "method": patched_by_a_method,
    "partial": patched_by_a_partial,
    "decorated": Decorated,
    "device hooks": with_device_hooks,
    "dispatched": dispatched,
    "adapters": with_adapters,
}


def run(model: Any, batch: tuple[Tensor, ...]) -> Tensor:
    if isinstance(model, torch.export.ExportedProgram):
        model = model.module()
    if isinstance(model, torch._dynamo.eval_frame.OptimizedModule):
        model = model._orig_mod  # compiling takes long and changes nothing here
        return run(model, batch)
    with torch.no_grad():
        y: Tensor = model(*batch)
    return y.flatten().double()


def follows(found: Tensor, expected: Tensor) -> bool:
    """Close in direction and in size: a wrapper's factor must not be lost."""
    return float((found - expected).norm() / expected.norm()) < 0.05


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", WRAPPED)
def test_the_module_inside_is_quantized(name: str, scheme: str, tmp_path: Path) -> None:
    model, batches = WRAPPED[name](), vectors()
    quantized = octavo.quantize_model(model, scheme, calibration=batches)
    assert quantized.coverage is not None
    assert quantized.coverage.quantized == quantized.coverage.total > 1000
    for batch in batches[2:]:
        assert follows(run(quantized.model, batch), run(model, batch))
    again = octavo.load(quantized.save(tmp_path / "saved"), model=WRAPPED[name]())
    assert torch.equal(run(again, batches[0]), run(quantized.model, batches[0]))


def test_the_result_may_be_compiled_again() -> None:
    model, (batch, *_) = torch.compile(net()), vectors()
    quantized = octavo.quantize_model(model, "int8-static", calibration=vectors())
    assert not isinstance(quantized.model, torch._dynamo.eval_frame.OptimizedModule)
    again = torch.compile(quantized.model, backend="aot_eager")
    with torch.no_grad():
        assert torch.allclose(again(*batch), quantized.model(*batch), atol=1e-5)


def test_a_saved_result_of_a_wrapped_module_loads_into_the_bare_one(
    tmp_path: Path,
) -> None:
    batch = vectors()[0]
    quantized = octavo.quantize_model(
        torch.compile(net()), "int8-static", calibration=vectors()
    )
    assert torch.equal(
        run(octavo.load(quantized.save(tmp_path / "saved"), model=net), batch),
        run(quantized.model, batch),
    )


@pytest.fixture
def process_group() -> Iterator[None]:
    distributed = torch.distributed
    if not distributed.is_available() or not distributed.is_gloo_available():
        pytest.skip("this build of torch has no gloo")
    distributed.init_process_group(
        "gloo", store=distributed.HashStore(), rank=0, world_size=1
    )
    yield
    distributed.destroy_process_group()


def test_distributed_data_parallel(process_group: None) -> None:
    model = nn.parallel.DistributedDataParallel(net())
    quantized = octavo.quantize_model(model, "int8-static", calibration=vectors())
    assert set(quantized.ledger) == {"0", "2"}
    assert follows(run(quantized.model, vectors()[3]), run(model.module, vectors()[3]))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("dynamic", [False, True])
def test_layers_of_an_exported_program(
    scheme: str, dynamic: bool, tmp_path: Path
) -> None:
    model, batches = Everything().eval(), images()
    batch = torch.export.Dim("batch")
    shapes = {"x": {0: batch}, "ids": {0: batch}} if dynamic else None
    program = torch.export.export(model, batches[0], dynamic_shapes=shapes)
    quantized = octavo.quantize_model(program, scheme, calibration=batches)
    eager = octavo.quantize_model(model, scheme, calibration=batches)
    assert quantized.coverage is not None
    assert eager.coverage is not None
    assert quantized.coverage.total == eager.coverage.total
    assert quantized.coverage.quantized >= 0.9 * quantized.coverage.total
    for given in batches:
        assert follows(run(quantized.model, given), run(model, given))
    again = octavo.load(quantized.save(tmp_path / "saved"), model=program)
    assert torch.equal(run(again, batches[1]), run(quantized.model, batches[1]))
    if dynamic:
        more = (torch.randn(5, 3, 12, 12), torch.tensor([0, 1, 2, 3, 4]))
        assert follows(run(quantized.model, more), run(model, more))


def test_a_batch_that_a_program_was_not_exported_for_is_a_typed_error() -> None:
    program = torch.export.export(net(), vectors()[0])
    with pytest.raises(DataError, match=r"batch 1 .*does not run"):
        octavo.quantize_model(
            program, "int8-static", calibration=[*vectors()[:1], (torch.randn(3, 32),)]
        )


# What changes a layer itself


def hooked_by_the_user() -> nn.Module:
    hooks = pytest.importorskip("accelerate.hooks")

    class Tripled(hooks.ModelHook):  # type: ignore[misc, name-defined]
        def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            return (args[0] * 3 + 1,), kwargs

    model = net()
    hooks.add_hook_to_module(model[0], Tripled())  # type: ignore[index]
    return model


def patched_layer() -> nn.Module:
    model = net()
    old = model[0].forward  # type: ignore[index, union-attr]
    model[0].forward = lambda x: old(x) * 2 + 1  # type: ignore[index, union-attr, method-assign, operator]
    return model


def scripted_inside() -> nn.Module:
    return nn.Sequential(
        nn.Linear(32, 32),
        torch.jit.script(nn.Sequential(nn.Linear(32, 32), nn.Dropout(0.5))),
        nn.Linear(32, 8),
    )


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(
    ("make", "why"),
    [
        (hooked_by_the_user, "its forward was replaced"),
        (patched_layer, "its forward was replaced"),
        (scripted_inside, "RecursiveScriptModule"),
    ],
)
def test_a_layer_that_computes_something_else_stays_float_and_says_so(
    make: Callable[[], nn.Module], why: str, scheme: str
) -> None:
    model, batch = make(), vectors()[0]
    quantized = octavo.quantize_model(model, scheme, calibration=vectors())
    assert quantized.coverage is not None
    assert any(why in row.reason for row in quantized.coverage.rows)
    assert follows(run(quantized.model, batch), run(model.eval(), batch))


def test_the_model_that_was_given_is_not_changed() -> None:
    for make in (compiled_in_place, with_device_hooks, patched_layer, scripted_inside):
        model = make().train()
        before = {
            path: dict(module.__dict__)
            for path, module in model.named_modules()
            if not isinstance(module, torch.jit.ScriptModule)
        }
        octavo.quantize_model(model, "int8-dynamic", calibration=vectors())
        after = dict(model.named_modules())
        assert all(m.training for m in after.values())
        for path, kept in before.items():
            assert all(after[path].__dict__[k] is v for k, v in kept.items())


# Refusals


class Pipeline:
    """Keeps a model, as pipelines, trainers and engines do."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __call__(self, text: str) -> None: ...


class Silent(nn.Module):
    """No forward."""


@pytest.mark.parametrize(("make", "message"), [
    (lambda: torch.jit.script(net()), "Python module that it was made of"),
    (lambda: torch.jit.trace(net(), vectors()[0]), "Python module that it was made of"),
    (lambda: nn.DataParallel(torch.jit.script(net())), "Python module that it was made of"),
    (lambda: Pipeline(net()), r"pass its \.model"),
    (lambda: net().forward, "pass the Sequential whose method"),
    (lambda: lambda x: x, "is a function: pass the model"),
    (lambda: torch.compile(lambda x: x), "is a function: pass the model"),
    (lambda: torch.compile(torch.compile(net())), "is a function: pass the model"),
    (lambda: nn.Linear, "is a class: pass an object of Linear"),
    (lambda: net().state_dict(), "parameters of a model and no model"),
    (lambda: torch.optim.SGD(net().parameters(), 0.1), "no backend takes a torch.optim"),
    (lambda: nn.ModuleList([nn.Linear(2, 2)]), "has no forward"),
    (Silent, "defines no forward"),
    (lambda: None, "no backend takes"),
])  # fmt: skip
def test_what_is_no_module_is_refused_with_the_way_out(
    make: Callable[[], Any], message: str
) -> None:
    with pytest.raises(OctavoError, match=message) as caught:
        octavo.quantize_model(make(), "int8-dynamic", calibration=vectors())
    assert isinstance(caught.value, ModelError)
