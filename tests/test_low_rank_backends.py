"""Low-rank repairs on three backends: the same numbers, the bytes that were foreseen, saved and
loaded again."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")

import octavo  # noqa: E402
from octavo.adapters.numpy.formats.standalone.export import export  # noqa: E402
from octavo.core.errors import ConfigError, SchemeError  # noqa: E402
from octavo.core.values.recipe import Recipe  # noqa: E402
from octavo.core.values.scheme import OpScheme, PartChoice, QuantSpec  # noqa: E402
from octavo.core.values.space import Unit  # noqa: E402

BACKENDS = ("torch", "onnx", "numpy")
RANK = 5
WEIGHT = QuantSpec(dtype="uint4", granularity="group:32", symmetric=False)
PLAIN = OpScheme(mode="weight_only", weight=WEIGHT)
HALF = PartChoice(kind="low_rank", options=(("rank", RANK),))
WHOLE = PartChoice(kind="low_rank", options=(("dtype", "float32"), ("rank", 999)))
OPS = {"table": (50, 64), "first": (33, 64), "second": (17, 64)}


class Net(torch.nn.Module):
    """A table and two linear layers, the second without a bias.

    Odd numbers of rows keep torch's 4-bit kernel, which rounds its inputs, out of the comparison.
    """

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(50, 64)
        self.first = torch.nn.Linear(64, 33)
        self.second = torch.nn.Linear(64, 17, bias=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.table(ids)
        return torch.cat([self.first(x), self.second(torch.relu(x))], -1)


@pytest.fixture(scope="module")
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module")
def ids() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.integers(0, 50, (4, 7)) for _ in range(3)]


def lines(quantized: Any) -> dict[str, Any]:
    """What became of the ops that are quantized."""
    ledger = quantized.ledger.items()
    return {op: line for op, line in ledger if not line.applied.is_float}


@pytest.fixture(scope="module")
def made(net: Net, ids: list[np.ndarray]) -> dict[tuple[str, str], Any]:
    """(backend, how) -> what quantize_model makes."""
    chains = {"plain": (), "half": (HALF,), "whole": (WHOLE,)}
    found = {}
    rule = {"mode": "weight_only", "weight": WEIGHT.model_dump()}
    for backend in BACKENDS:
        start = octavo.quantize_model(net, {"rules": [rule]}, ids, backend=backend)
        for how, chain in chains.items():
            scheme = PLAIN.variant(refined_by=chain)
            recipe = Recipe(dict.fromkeys(lines(start), scheme), (), backend)
            found[backend, how] = octavo.quantize_model(
                net, recipe, ids, backend=backend
            )
    return found


def answer(quantized: Any, batch: np.ndarray) -> np.ndarray:
    return np.asarray(quantized.candidate.run((batch,))[0])


def float_answer(net: Net, batch: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return np.asarray(net(torch.from_numpy(batch)).numpy())


@pytest.mark.parametrize("how", ["half", "whole"])
def test_backends_compute_the_same(
    made: dict[tuple[str, str], Any], ids: list[np.ndarray], how: str
) -> None:
    wanted = answer(made["torch", how], ids[0])
    for backend in BACKENDS:
        np.testing.assert_allclose(
            answer(made[backend, how], ids[0]), wanted, atol=2e-4 * abs(wanted).max()
        )


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_repair_brings_the_output_nearer_and_a_whole_one_gives_it_back(
    made: dict[tuple[str, str], Any], net: Net, ids: list[np.ndarray], backend: str
) -> None:
    wanted = float_answer(net, ids[0])

    def off(how: str) -> float:
        distance = np.linalg.norm(answer(made[backend, how], ids[0]) - wanted)
        return float(distance / np.linalg.norm(wanted))

    assert off("half") < 0.9 * off("plain")
    assert off("whole") < 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("how", ["half", "whole"])
def test_foreseen_bytes_are_those_that_are_saved(
    made: dict[tuple[str, str], Any], backend: str, how: str, tmp_path: Path
) -> None:
    plain, repaired = made[backend, "plain"], made[backend, how]
    before, after = (m.candidate.bytes_by_op() for m in (plain, repaired))
    foreseen = {}
    for op, line in lines(repaired).items():
        shape = next(shape for name, shape in OPS.items() if name in op)
        unit = Unit(op, "linear", (op,), (), matrices=(shape,))
        own = unit.weight_bytes(line.applied) - unit.weight_bytes(PLAIN)
        width = 2 if how == "half" else 4
        rank = min(RANK if how != "whole" else 999, *shape)
        assert own == rank * sum(shape) * width
        foreseen[op] = own
        assert after[op] - before[op] == own
    sizes = []
    for quantized, name in ((plain, "plain"), (repaired, "repaired")):
        quantized.save(tmp_path / name)
        files = (tmp_path / name / "model").iterdir()
        sizes.append(sum(f.stat().st_size for f in files))
    # Beside the factors a file holds their names.
    assert 0 <= sizes[1] - sizes[0] - sum(foreseen.values()) < 4500


@pytest.mark.parametrize("backend", BACKENDS)
def test_saved_and_loaded_it_computes_the_same(
    made: dict[tuple[str, str], Any],
    net: Net,
    ids: list[np.ndarray],
    backend: str,
    tmp_path: Path,
) -> None:
    quantized = made[backend, "half"]
    assert {line.realization for line in lines(quantized).values()} == {"kernel"}
    shown = [str(line.applied) for line in lines(quantized).values()]
    assert all(f"low_rank(rank={RANK})" in line for line in shown)
    folder = tmp_path / "saved"
    quantized.save(folder)
    loaded = octavo.load(folder, model=net)
    given: Any = torch.from_numpy(ids[0]) if backend == "torch" else ids[0]
    with torch.no_grad():
        again = np.asarray(loaded(given))
    np.testing.assert_allclose(again, answer(quantized, ids[0]), rtol=1e-6, atol=1e-6)


def test_the_runner_that_users_ship_computes_the_same(
    made: dict[tuple[str, str], Any], ids: list[np.ndarray], tmp_path: Path
) -> None:
    quantized = made["numpy", "half"]
    export(quantized, tmp_path)
    runner = runpy.run_path(str(tmp_path / "run.py"))
    result = runner["Model"](tmp_path / "model.npz")(ids[0])
    first = result[0] if isinstance(result, list | tuple) else result
    np.testing.assert_allclose(first, answer(quantized, ids[0]), atol=1e-5)


# What cannot carry one


class Mixed(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(32, 32, 1)
        self.head = torch.nn.Linear(32, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(self.conv(x).mean((2, 3)))
        return result


def test_an_op_that_takes_no_repair_is_quantized_without_and_says_so() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 32, 5, 5)
    weight = {**WEIGHT.model_dump(), "scale_dtype": "float32"}
    rule = {"mode": "weight_only", "weight": weight, "algorithm": "rtn"}
    mixed = Mixed().eval()
    with_repair = {"rules": [{**rule, "algorithm": {"kind": "low_rank", "rank": 2}}]}
    quantized = octavo.quantize_model(mixed, with_repair, [x])
    assert quantized.ledger["conv"].applied == PLAIN
    assert "no low-rank repair for a weight_only conv" in str(
        quantized.ledger["conv"].reason
    )
    assert "low_rank" in str(quantized.ledger["head"].applied)
    assert any("no low-rank repair" in note for note in quantized.notes)


def test_by_name_after_another_algorithm_and_alone() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 32, 5, 5)
    mixed = Mixed().eval()
    for text, chain in (
        ("int2-weight-only+gptq+low-rank(rank=2)", "gptq -> low_rank(rank=2)"),
        ("eora(rank=2)", "low_rank(rank=2)"),
        ("lqer", "low_rank(source=weights)"),
        ("int3-weight-only+l2qer", "low_rank(source=diagonal)"),
    ):
        made = octavo.quantize_model(mixed, text, [x])
        assert str(made.ledger["head"].applied).endswith(f" {chain}")
        assert "low_rank" not in str(made.ledger["conv"].applied)
    with pytest.raises(SchemeError, match="no op of this model takes one"):
        octavo.quantize_model(mixed, "int8-dynamic+low-rank", [x], backend="numpy")
    with pytest.raises(SchemeError, match="put it last"):
        octavo.quantize_model(mixed, "int2-weight-only+low-rank+gptq", [x])
    with pytest.raises(ConfigError, match="rank"):
        octavo.quantize_model(mixed, "int4-weight-only+low-rank(rank=0)", [x])


def test_where_nothing_takes_a_repair_it_is_an_error_before_any_work() -> None:
    x = torch.randn(4, 32, 5, 5)
    only_conv = Mixed().eval().conv
    rule = {"mode": "weight_only", "algorithm": "low_rank"}
    with pytest.raises(ConfigError, match="low_rank repairs no op"):
        octavo.quantize_model(only_conv, {"rules": [rule]}, [x])
    scheme = PLAIN.variant(refined_by=(HALF,))
    named = Recipe({"conv": scheme}, (), "torch")
    with pytest.raises(SchemeError, match=r"'conv'.*leave low_rank out"):
        octavo.quantize_model(Mixed().eval(), named, [x])


def test_no_data_is_needed_where_weights_alone_say_it(net: Net) -> None:
    chain = PartChoice(kind="low_rank", options=(("source", "weights"),))
    scheme = PLAIN.variant(refined_by=(chain,))
    recipe = Recipe({"first": scheme}, (), "torch")
    made = octavo.quantize_model(net, recipe)
    assert "low_rank" in str(made.ledger["first"].applied)
