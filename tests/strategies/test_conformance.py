"""Every built-in strategy passes the conformance kit that strangers are given."""

import pytest

from octavo.core.contract.plugins import PluginHost
from octavo.core.testing.conformance import StrategyCase, StrategyConformance

HOST = PluginHost(third_party=False)
SETTINGS = [
    *(
        {"kind": name}
        for name in sorted(HOST.parts("strategies"))
        if name != "bayesian"
    ),
    *(
        {"kind": "bayesian", "sampler": sampler, "over": over}
        for sampler, over in [("tpe", "type"), ("random", "op"), ("nsgaii", "block")]
    ),
    {"kind": "random", "over": "type"},
]


class TestBuiltInStrategies(StrategyConformance):
    @pytest.fixture(params=SETTINGS, ids=lambda s: "-".join(map(str, s.values())))
    def case(self, request):
        config = HOST.read("strategies", request.param)
        return StrategyCase(
            HOST.part("strategies", config.kind),
            config,
            budgets={"bits": 12.0},
            limit=30,
        )


class TestGaussianProcess(StrategyConformance):
    """By itself and short: fitting the surrogate takes a while."""

    @pytest.fixture
    def case(self):
        pytest.importorskip("torch")
        config = HOST.read(
            "strategies", {"kind": "bayesian", "sampler": "gp", "startup": 4}
        )
        return StrategyCase(HOST.part("strategies", "bayesian"), config, limit=7)
