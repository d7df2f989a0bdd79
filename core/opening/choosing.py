"""Which backend a model belongs to, by the cards alone: nothing is imported for it."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from octavo.core.contract.adapter import Adapter
from octavo.core.contract.parts import AdapterPart
from octavo.core.contract.plugins import PluginHost
from octavo.core.errors import ModelError
from octavo.core.system.log import remark
from octavo.core.system.textfiles import absolute

from .mistaken_models import remedy

HELD = 1.3
"""Times a model's file, what is held at once: the float weights and the quantized ones."""

GIB = 2**30

Card = AdapterPart[Adapter]


def find_adapter(model: Any, host: PluginHost, named: Sequence[str] = ()) -> Card:
    """Return the card of the backend that opens a model.

    It is the first of those that the caller names and that claim the model; where all that are
    named read its file by themselves, the first of them, so that nothing else need be installed;
    else the first that claims it, or reads its file, in the order in which plugins are loaded. A
    choice that nobody made is told.

    Args:
        model: A native model, or a path.
        host: Knows the cards.
        named: Backends that the caller names.

    Raises:
        ModelError: If none takes it, a path does not exist, or its files cannot fit in memory.
    """
    if isinstance(model, (str, Path)) and not absolute(model, "a model").exists():
        raise ModelError(f"{model} does not exist")
    card = _chosen(model, host, named)
    check_memory(model, host=host)
    return card


def _chosen(model: Any, host: PluginHost, named: Sequence[str]) -> Card:
    cards = host.adapters()
    takers = [card for card in cards.values() if card.claims(model)]
    asked = [cards[name] for name in dict.fromkeys(named)]
    for card in asked:
        if card in takers:
            return card
    if asked and all(reads(card, model) for card in asked):
        return asked[0]
    takers = takers or [card for card in cards.values() if reads(card, model)]
    if not takers:
        raise ModelError(
            f"no backend takes a {kind_of(model)}{_way_out(model, host)}. For another framework, "
            "install its plugin (octavo plugins)"
        )
    if len(takers) > 1:
        _tell(model, takers)
    return takers[0]


def _tell(model: Any, takers: Sequence[Card]) -> None:
    first, *others = (card.name for card in takers)
    other = ", ".join(others)
    verb = "takes" if len(others) == 1 else "take"
    remark(
        f"the {kind_of(model)} is opened by {first}; {other} {verb} it too: name the backend "
        f"(backends=[{others[0]!r}]) for another",
        "tuning",
    )


def reads(card: Card, model: Any) -> bool:
    """Return whether a backend opens a model by itself, though it may be another's own format.

    It is a path with one of the card's own suffixes, or of an interchange format that it accepts.
    """
    if not isinstance(model, (str, Path)):
        return card.claims(model)
    return card.claims(model) or Path(model).suffix.lstrip(".") in card.accepts


def kind_of(model: Any) -> str:
    """Return what a model is, in words: its file's name, or its class."""
    if isinstance(model, (str, Path)):
        return f"file {Path(model).name!r}"
    return f"{type(model).__module__}.{type(model).__qualname__}"


def _way_out(model: Any, host: PluginHost) -> str:
    """Return what to pass instead of what no backend takes, and what there is to pass."""
    cards = host.adapters().values()

    def is_claimed(other: Any) -> bool:
        return any(card.claims(other) for card in cards)

    instead = remedy(model, is_claimed)
    takes = []
    for card in cards:
        kinds = ", ".join((*card.models, *card.suffixes))
        takes.append(f"{card.name}: {kinds}")
    return f"{instead}. There are: {'; '.join(takes)}"


def check_memory(
    model: Any, available: int | None = None, *, host: PluginHost | None = None
) -> None:
    """Refuse a model whose files cannot fit.

    The float weights and the quantized ones are held at once.

    Args:
        model: A path, or anything else (which is in memory already).
        available: Bytes; None asks the system.
        host: Knows the cards, which say what belongs to a file; None loads the default ones.

    Raises:
        ModelError: If the file and what belongs to it are larger than the memory that is free.
    """
    if not isinstance(model, (str, Path)):
        return
    path = Path(model)
    cards = (host or PluginHost()).adapters().values()
    stored = {file: file.stat().st_size for file in _files(path, cards)}
    needed = int(HELD * sum(stored.values()))
    free = _available_memory() if available is None else available
    if free is not None and needed > free:
        raise ModelError(
            f"{path} needs about {needed / GIB:.1f} GiB to be quantized, and {free / GIB:.1f} GiB "
            "of memory are free; run it on a larger machine, or quantize it in parts"
        )


def _files(path: Path, cards: Iterable[Card]) -> Iterator[Path]:
    """Yield a model's file and what its backends' cards say belongs to it; all of a folder."""
    if not path.is_file():
        yield from (file for file in path.rglob("*") if file.is_file())
        return
    yield path
    for card in cards:
        if not card.claims(path):
            continue
        for pattern in card.files:
            named = pattern.format(
                name=glob.escape(path.name), stem=glob.escape(path.stem)
            )
            yield from (file for file in path.parent.glob(named) if file.is_file())


def _available_memory() -> int | None:
    try:
        rows = dict(
            line.split(":") for line in Path("/proc/meminfo").read_text().splitlines()
        )
        return int(rows["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None


__all__ = ["check_memory", "find_adapter", "kind_of", "reads"]
