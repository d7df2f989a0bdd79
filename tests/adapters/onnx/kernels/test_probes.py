"""Probes tell what the runtime cannot do from what octavo wrote wrongly."""

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir
import pytest

from octavo.adapters.onnx import OnnxConfig
from octavo.adapters.onnx.kernels import probing
from octavo.core.errors import AdapterFault
from octavo.core.values.scheme import OpScheme, QuantSpec

DYNAMIC = OpScheme(
    mode="dynamic",
    weight=QuantSpec(dtype="int8", granularity="channel"),
    input=QuantSpec(dtype="uint8", symmetric=False),
)


def test_a_scheme_without_a_kernel_is_not_offered_and_nobody_is_warned(
    recwarn: pytest.WarningsRecorder,
) -> None:
    bfloat16 = OpScheme(mode="cast", weight=QuantSpec(dtype="bfloat16"))
    assert probing.Probe.of("conv", OnnxConfig(threads=1)).ask(bfloat16) is None
    assert not recwarn.list


def test_a_model_written_wrongly_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    written = probing.emit

    def wrongly(model: ir.Model, sites: Any, parameters: Mapping[str, Any]) -> Any:
        made, emitted = written(model, sites, parameters)
        (node,) = [n for n in made.graph if n.name == "probe"]
        node.attributes["no_such_attribute"] = ir.AttrInt64("no_such_attribute", 1)
        return made, emitted

    probe = probing.Probe.of("linear", OnnxConfig(threads=1))
    assert probe.ask(DYNAMIC) is not None
    monkeypatch.setattr(probing, "emit", wrongly)
    with pytest.warns(AdapterFault, match="written wrongly"):
        assert probe.ask(DYNAMIC) is None


def test_an_exception_of_octavo_itself_is_raised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*_: Any) -> Any:
        raise RuntimeError("a fault in the writer")

    probe = probing.Probe.of("linear", OnnxConfig(threads=1))
    monkeypatch.setattr(probing, "emit", fails)
    with pytest.raises(RuntimeError, match="a fault in the writer"):
        probe.ask(DYNAMIC)
