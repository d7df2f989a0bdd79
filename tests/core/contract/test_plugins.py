"""The plugin seam: strangers, broken plugins, clashes, policy."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from importlib.metadata import Distribution, EntryPoint, EntryPoints
from typing import Any, Literal

import pytest

from octavo.core.contract import plugins as seam
from octavo.core.contract.hookspecs import hookimpl
from octavo.core.contract.parts import AdapterPart, Part, PartConfig
from octavo.core.contract.plugins import KINDS, PluginHost
from octavo.core.errors import (
    ConfigError,
    DuplicatePart,
    MissingFramework,
    PluginError,
    UnknownPart,
)


class MineConfig(PartConfig):
    kind: Literal["mine"] = "mine"
    depth: int = 1


CARD: Part[Any] = Part(
    "mine", "octavo.core.values.recipe:Recipe", MineConfig, "a stranger's search"
)


def module(name: str, **attributes: Any) -> types.ModuleType:
    made = types.ModuleType(name)
    for key, value in attributes.items():
        setattr(made, key, value)
    return made


def strategies(*cards: Any) -> Callable[[], Any]:
    @hookimpl
    def octavo_strategies() -> Any:
        return cards

    return octavo_strategies


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Pretend that distributions are installed, each with one entry point."""
    found: list[EntryPoint] = []

    class Fake(Distribution):
        def __init__(self, name: str) -> None:
            self._name = name

        def read_text(self, filename: str) -> str | None:
            return (
                f"Name: {self._name}\nVersion: 1.0\n"
                if filename == "METADATA"
                else None
            )

        def locate_file(self, path: Any) -> Any:
            return path

    def add(
        name: str, plugin: types.ModuleType | None, distribution: str | None = None
    ) -> None:
        target = f"stranger_{name}_{len(found)}"
        if plugin is not None:
            monkeypatch.setitem(sys.modules, target, plugin)
        found.append(
            EntryPoint(name, target, "octavo")._for(Fake(distribution or name))
        )  # type: ignore[attr-defined]

    monkeypatch.setattr(
        seam,
        "entry_points",
        lambda group: EntryPoints(found) if group == "octavo" else EntryPoints(),
    )
    return add


def test_listing_imports_no_framework_and_covers_every_kind() -> None:
    import subprocess

    code = (
        "import sys, octavo; from octavo.core.contract.plugins import *; h = "
        "PluginHost(third_party=False); print(*[len(h.parts(k)) for k in KINDS]);"
        "assert not {'torch', 'onnx', 'onnxruntime', 'onnx_ir', 'sklearn'} & set(sys.modules), "
        "sys.modules.keys()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    counts = dict(zip(KINDS, map(int, done.stdout.split()), strict=True))
    assert counts["adapters"] == 5
    assert counts["strategies"] >= 3


def test_claims_without_import() -> None:
    cards = PluginHost(third_party=False).adapters()
    base = type("Module", (), {"__module__": "torch.nn.modules.module"})
    assert cards["torch"].claims(type("Net", (base,), {})())
    assert not cards["onnx"].claims(type("Net", (base,), {})())
    assert cards["onnx"].claims("somewhere/model.onnx")
    assert not cards["torch"].claims("somewhere/model.onnx")


def test_a_missing_framework_says_what_to_install() -> None:
    gone: Part[Any] = Part(
        "gone",
        "octavo_no_such_module:Thing",
        MineConfig,
        "",
        hint="pip install 'octavo[gone]'",
    )
    with pytest.raises(MissingFramework, match=r"octavo\[gone\]"):
        gone.load()
    with pytest.raises(PluginError, match="has no 'Nothing'"):
        Part("odd", "octavo.core.values.recipe:Nothing", MineConfig, "").load()


def test_a_stranger_takes_part(installed: Callable[..., None]) -> None:
    installed("mine", module("m", octavo_strategies=strategies(CARD)))
    host = PluginHost()
    assert host.read("strategies", {"kind": "mine", "depth": 3}) == MineConfig(depth=3)
    assert "mine" in str(host.schema("strategies"))
    with pytest.raises(ConfigError, match="'depth'"):
        host.read("strategies", {"kind": "mine", "dept": 3})


@pytest.mark.parametrize("how", ["argument", "environment", "table"])
def test_autoload_can_be_turned_off(
    installed: Callable[..., None], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    installed("mine", module("m", octavo_strategies=strategies(CARD)))
    table = None
    if how == "environment":
        monkeypatch.setenv("OCTAVO_NO_AUTOLOAD", "1")
    if how == "table":
        table = {"builtin": {}, "policy": {"entry_points": False}}
    assert "mine" not in PluginHost(table, third_party=how != "argument").parts(
        "strategies"
    )


def test_allow_and_deny(installed: Callable[..., None]) -> None:
    installed("mine", module("m", octavo_strategies=strategies(CARD)))
    assert "mine" not in PluginHost(deny=["mine"]).parts("strategies")
    assert "mine" not in PluginHost(allow=["other"]).parts("strategies")
    assert "mine" in PluginHost(allow=["mine"]).parts("strategies")
    host = PluginHost(deny=["strategies"])
    assert set(host.parts("strategies")) == {"mine"}
    assert {i.name: i.reason for i in host.plugins()}[
        "strategies"
    ] == "denied by the policy"


@pytest.mark.parametrize("fault", ["import", "signature", "unknown hook"])
def test_a_broken_plugin_is_left_out_with_the_reason_and_the_others_stay(
    installed: Callable[..., None], fault: str, logged: pytest.LogCaptureFixture
) -> None:
    @hookimpl
    def octavo_strategies(surprise: int) -> Any:
        return (CARD,)

    @hookimpl
    def octavo_stratgies() -> Any:
        return (CARD,)

    broken = {
        "import": None,
        "signature": module("m", octavo_strategies=octavo_strategies),
        "unknown hook": module("m", octavo_stratgies=octavo_stratgies),
    }[fault]
    installed("broken", broken)
    installed("mine", module("m", octavo_strategies=strategies(CARD)))
    host = PluginHost()
    assert "'broken'" in logged.text
    assert "mine" in host.parts("strategies")
    assert "basic" in host.parts("strategies")
    (info,) = (i for i in host.plugins() if i.name == "broken")
    assert not info.loaded
    assert info.reason


def test_a_hook_that_raises_does_not_take_the_others_down(
    installed: Callable[..., None], logged: pytest.LogCaptureFixture
) -> None:
    @hookimpl
    def octavo_strategies() -> Any:
        raise ZeroDivisionError("in a stranger's hook")

    heard = []

    @hookimpl
    def octavo_trial_finished(trial: Any) -> None:
        heard.append(trial)

    @hookimpl(specname="octavo_trial_finished")
    def noisy(trial: Any) -> None:
        raise OSError("logger's disk is full")

    installed("angry", module("a", octavo_strategies=octavo_strategies, noisy=noisy))
    installed(
        "mine",
        module(
            "m",
            octavo_strategies=strategies(CARD),
            octavo_trial_finished=octavo_trial_finished,
        ),
    )
    host = PluginHost()
    assert "mine" in host.parts("strategies")
    assert "ZeroDivisionError" in logged.text
    host.notify("octavo_trial_finished", trial="the trial")
    assert "disk is full" in logged.text
    assert heard == ["the trial"]
    assert any("raised" in i.reason for i in host.plugins() if i.name == "angry")


def test_one_plugin_name_twice_is_an_error(installed: Callable[..., None]) -> None:
    installed("mine", module("m", octavo_strategies=strategies(CARD)), "first")
    installed("mine", module("n"), "second")
    with pytest.raises(DuplicatePart, match=r"first 1\.0.*second 1\.0"):
        PluginHost()


def test_a_builtin_name_cannot_be_taken(installed: Callable[..., None]) -> None:
    installed("numpy", module("m"))
    with pytest.raises(DuplicatePart, match="octavo itself"):
        PluginHost()


def test_one_part_name_twice_is_an_error(installed: Callable[..., None]) -> None:
    installed(
        "mine",
        module("m", octavo_strategies=strategies(Part("basic", "a:b", MineConfig, ""))),
    )
    with pytest.raises(DuplicatePart, match="'basic' is offered twice"):
        PluginHost().parts("strategies")


def test_what_is_no_card_is_named(
    installed: Callable[..., None], logged: pytest.LogCaptureFixture
) -> None:
    installed("mine", module("m", octavo_strategies=strategies("basic", CARD)))
    host = PluginHost()
    assert "mine" in host.parts("strategies")
    assert "must be a Part" in logged.text


def test_unknown_parts_come_with_the_nearest_names_and_what_was_left_out(
    installed: Callable[..., None], logged: pytest.LogCaptureFixture
) -> None:
    installed("gone", None)
    host = PluginHost()
    assert "left out" in logged.text
    with pytest.raises(UnknownPart, match="'torch'"):
        host.part("adapters", "tourch")
    with pytest.raises(UnknownPart, match="was left out"):
        host.part("adapters", "gone")
    assert isinstance(host.part("adapters", "torch"), AdapterPart)
