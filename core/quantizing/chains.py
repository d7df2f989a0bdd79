"""Weight algorithms that follow each other: which may, and how they are built."""

from __future__ import annotations

from typing import TYPE_CHECKING

from octavo.core.contract.algorithm import WeightAlgorithm
from octavo.core.errors import SchemeError
from octavo.core.values.scheme import OpScheme

if TYPE_CHECKING:
    from octavo.core.contract.plugins import PluginHost


def check_chain(scheme: OpScheme, host: PluginHost) -> None:
    """Refuse a chain in which an algorithm cannot go on from the one before it.

    Args:
        scheme: Names the algorithms.
        host: Knows their cards.

    Raises:
        SchemeError: If a card after the first does not say ``refines``; it names those that do.
    """
    for before, after in zip(scheme.algorithms, scheme.refined_by, strict=False):
        if host.part("algorithms", after.kind).refines:
            continue
        cards = host.parts("algorithms").items()
        able = sorted(name for name, card in cards if card.refines)
        raise SchemeError(
            f"{scheme.rounding}: {after.kind} cannot go on from what {before.kind} made, it "
            f"chooses everything anew; put it first, or let one follow that can: "
            f"{', '.join(able)}"
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
