"""Weight algorithms that follow each other: which may, and how they are built."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from octavo.core.contract.algorithm import WeightAlgorithm
from octavo.core.errors import SchemeError
from octavo.core.values.scheme import OpScheme, PartChoice

if TYPE_CHECKING:
    from octavo.core.contract.plugins import PluginHost


def broken_link(
    chain: Sequence[PartChoice], host: PluginHost
) -> tuple[PartChoice, PartChoice, str] | None:
    """Return the first algorithm of a chain that cannot go on from the one before it.

    Args:
        chain: Weight algorithms in order.
        host: Knows their cards.

    Returns:
        (the one before, that one, the names of those that can go on); None for a whole chain.
    """
    for before, after in pairwise(chain):
        if host.part("algorithms", after.kind).refines:
            continue
        cards = host.parts("algorithms").items()
        able = sorted(name for name, card in cards if card.refines)
        return before, after, ", ".join(able)
    return None


def check_chain(scheme: OpScheme, host: PluginHost) -> None:
    """Refuse a chain in which an algorithm cannot go on from the one before it.

    Args:
        scheme: Names the algorithms.
        host: Knows their cards.

    Raises:
        SchemeError: If a card after the first does not say ``refines``; it names those that do.
    """
    found = broken_link(scheme.algorithms, host)
    if found is not None:
        before, after, able = found
        raise SchemeError(
            f"{scheme.rounding}: {after.kind} cannot go on from what {before.kind} made, it "
            f"chooses everything anew; put it first, or let one follow that can: {able}"
        )


def built_chain(scheme: OpScheme, host: PluginHost) -> list[WeightAlgorithm]:
    """Return a scheme's weight algorithms in order.

    Raises:
        ConfigError: If one is unknown, or its settings are.
    """
    built = []
    for choice in scheme.algorithms:
        settings = host.read("algorithms", choice.table())
        algorithm: WeightAlgorithm = host.part("algorithms", choice.kind).build(
            settings
        )
        built.append(algorithm)
    return built
