"""Which backend opens a model: said where nobody chose, and nothing imported to find out."""

from __future__ import annotations

import logging
import tomllib
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import octavo
from octavo.core.contract.hookspecs import hookimpl
from octavo.core.contract.parts import AdapterPart, PartConfig
from octavo.core.contract.plugins import PluginHost
from octavo.core.errors import ModelError
from octavo.core.opening.choosing import check_memory, find_adapter
from tests import tiny


def card(name: str, **named: Any) -> AdapterPart[Any]:
    config = type(
        "Config", (PartConfig,), {"__annotations__": {"kind": str}, "kind": name}
    )
    return AdapterPart(name, "no_such_module:Nothing", config, "a runtime", **named)


def host_of(*cards: AdapterPart[Any], monkeypatch: pytest.MonkeyPatch) -> PluginHost:
    """Plugins of octavo without those of other distributions, and one with these cards."""
    import sys

    module = ModuleType("octavo_of_this_test")
    module.octavo_adapters = hookimpl(lambda: cards)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    table = tomllib.loads(files("octavo").joinpath("plugins.toml").read_text())
    table["builtin"]["of_this_test"] = {"module": module.__name__}
    return PluginHost(table, third_party=False)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Callable[..., PluginHost]:
    return lambda *cards: host_of(*cards, monkeypatch=monkeypatch)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "m.both"
    found.write_bytes(b"")
    return found


def test_of_two_that_take_a_suffix_the_first_opens_it_and_that_is_said(
    host: Callable[..., PluginHost], path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    two = host(card("one", suffixes=(".both",)), card("two", suffixes=(".both",)))
    with caplog.at_level(logging.WARNING, "octavo"):
        assert find_adapter(path, two).name == "one"
        assert find_adapter(str(path), two).name == "one"
    said = caplog.messages[0]
    assert "'m.both' is opened by one; two takes it too" in said
    assert "backends=['two']" in said


@pytest.mark.parametrize("named", ["one", "two"])
def test_whoever_names_a_backend_decides_and_needs_no_telling(
    named: str,
    host: Callable[..., PluginHost],
    path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    two = host(card("one", suffixes=(".both",)), card("two", suffixes=(".both",)))
    assert find_adapter(path, two, (named,)).name == named
    assert not caplog.messages


def test_two_may_take_one_class(
    host: Callable[..., PluginHost], caplog: pytest.LogCaptureFixture
) -> None:
    chain = f"{tiny.Chain.__module__}.{tiny.Chain.__qualname__}"
    two = host(card("one", models=(chain,)), card("two", models=(chain,)))
    assert find_adapter(tiny.chain(), two).name == "one"
    assert "two takes it too" in caplog.messages[0]
    assert find_adapter(tiny.chain(), two, ("two",)).name == "two"


def test_the_choice_stands_in_the_result(
    host: Callable[..., PluginHost], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tiny.host().adapters()["tiny"]
    plugins = host(own, replace(own, name="tiny2"))
    found = octavo.quantize_model(
        tiny.chain(), "int8-static", tiny.calibration(), host=plugins
    )
    assert found.candidate.recipe.backend == "tiny"
    assert any("opened by tiny; tiny2 takes it too" in note for note in found.notes)
    with octavo.prepare(
        tiny.chain(),
        tiny.accuracy,
        tiny.calibration(),
        storage=tmp_path / "h.db",
        minimise="size",
        strategy="basic",
        host=plugins,
    ) as run:
        result = run.finish()
    assert any("opened by tiny; tiny2 takes it too" in text for text in result.remarks)


def test_a_reader_that_is_named_alone_opens_the_file_by_itself(
    host: Callable[..., PluginHost], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = tmp_path / "m.onnx"
    model.write_bytes(b"")
    plugins = host(card("reader", accepts=("onnx",)), card("stranger"))
    assert find_adapter(model, plugins).name == "onnx"
    assert find_adapter(model, plugins, ("reader",)).name == "reader"
    # Of several that all read it, the one that is named first; its owner where that is named.
    assert find_adapter(model, plugins, ("reader", "numpy")).name == "reader"
    assert find_adapter(model, plugins, ("reader", "onnx")).name == "onnx"
    # One that does not read it needs what its owner exports.
    assert find_adapter(model, plugins, ("reader", "stranger")).name == "onnx"
    assert not caplog.messages


def test_what_belongs_to_a_file_is_said_by_the_cards(
    host: Callable[..., PluginHost], tmp_path: Path
) -> None:
    model, weights = tmp_path / "cnn[1].net", tmp_path / "cnn[1].bin"
    others = tmp_path / "cnn1.bin", tmp_path / "else.bin"
    for file in (model, weights, *others):
        with file.open("wb") as opened:
            opened.truncate(2**20)
    plain = host(card("mine", suffixes=(".net",)))
    check_memory(model, available=3 * 2**19, host=plain)
    knows = host(card("mine", suffixes=(".net",), files=("{stem}.bin", "{name}.more")))
    check_memory(model, available=3 * 2**20, host=knows)
    with pytest.raises(ModelError, match=r"cnn\[1\]\.net needs about .* are free"):
        check_memory(model, available=2 * 2**20, host=knows)


def test_a_folder_is_all_that_it_holds(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    with (tmp_path / "deep" / "weights").open("wb") as opened:
        opened.truncate(2**20)
    with pytest.raises(ModelError, match="of memory are free"):
        check_memory(tmp_path, available=2**20)
