"""The strategy that docs/strategies.md shows does what the page says."""

import re
from pathlib import Path

from octavo.core.contract.parts import PartConfig
from octavo.core.contract.strategy import WAIT
from octavo.core.testing.simulator import simulate
from octavo.core.values.recipe import Recipe

PAGE = Path(__file__).resolve().parents[2] / "docs" / "strategies.md"


def test_a_search_written_as_a_generator():
    block = next(
        b
        for b in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
        if "class Halves" in b
    )
    found = {}
    exec(block, found)
    simulation = simulate(8, seed=0, pressure=0.1)
    strategy = found["Halves"](PartConfig(kind="halves"), simulation.problem())
    first, second = strategy.ask(), strategy.ask()
    assert isinstance(first, Recipe)
    assert isinstance(second, Recipe)
    assert strategy.ask() is WAIT
    strategy.tell(simulation.trial(2, second))
    assert strategy.ask() is WAIT
    strategy.tell(simulation.trial(1, first))
    assert strategy.ask() == simulation.space.recipe(simulation.space.first())


def test_the_page_names_every_strategy():
    from octavo.core.contract.plugins import PluginHost

    text = PAGE.read_text()
    assert all(
        f"`{name}`" in text
        for name in PluginHost(third_party=False).parts("strategies")
    )
