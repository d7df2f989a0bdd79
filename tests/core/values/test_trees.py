"""Nested containers of arrays and plain values."""

from __future__ import annotations

from collections import OrderedDict, UserDict, defaultdict, namedtuple
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest

from octavo.core.errors import DataError
from octavo.core.values.trees import leaves, mapped

Pair = namedtuple("Pair", "left right")
A, B = np.arange(3), np.arange(4.0)


@dataclass(frozen=True)
class Frozen:
    x: Any
    scale: float = 2.0
    made: list = field(default_factory=list, init=False)


@dataclass
class Counting:
    """Its __post_init__ must not run again when it is rebuilt."""

    x: Any

    def __post_init__(self) -> None:
        self.x = [self.x]


@dataclass(slots=True)
class Slotted:
    x: Any


class Encoding(UserDict):
    """As a tokenizer's: it carries more than its items, and iterates over something else."""

    def __init__(self, data: dict, encodings: str) -> None:
        super().__init__(data)
        self.encodings = encodings


def test_every_leaf_has_the_path_that_leads_to_it() -> None:
    tree = {
        "b": {"x": A, 3: None},
        "l": [B, (True, "s")],
        "p": Pair(A, 1.5),
        "f": Frozen(B),
    }
    paths = [path for path, _ in leaves(tree, "in")]
    assert paths == [
        "in.b.x",
        "in.b[3]",
        "in.l[0]",
        "in.l[1][0]",
        "in.l[1][1]",
        "in.p.left",
        "in.p.right",
        "in.f.x",
        "in.f.scale",
    ]


@pytest.mark.parametrize(
    "tree",
    [
        {"a": A, "b": [B]},
        OrderedDict(a=A),
        defaultdict(list, a=A),
        UserDict(a=A),
        (A, [B, None]),
        Pair(A, B),
        Frozen(A),
        Counting(A),
        Slotted(A),
        A,
    ],
)
def test_a_tree_is_rebuilt_of_the_same_containers(tree: Any) -> None:
    doubled = mapped(
        tree, lambda leaf: leaf * 2 if isinstance(leaf, np.ndarray) else leaf
    )
    assert type(doubled) is type(tree)
    for (path, new), (same, old) in zip(leaves(doubled), leaves(tree), strict=True):
        assert path == same
        assert (
            np.array_equal(new, old * 2) if isinstance(old, np.ndarray) else new == old
        )


def test_what_a_mapping_carries_beside_its_items_stays() -> None:
    old = Encoding({"ids": A}, "words")
    new = mapped(old, lambda leaf: leaf + 1)
    assert new.encodings == "words"
    assert np.array_equal(new["ids"], A + 1)
    assert np.array_equal(old["ids"], A)


def test_what_does_not_change_is_not_copied() -> None:
    kept = [A, MappingProxyType({"x": B})]
    assert mapped(kept, lambda leaf: leaf) is kept
    assert (
        mapped(
            {"k": kept, "n": "old"},
            lambda leaf: "new" if isinstance(leaf, str) else leaf,
        )["k"]
        is kept
    )
    assert mapped(MappingProxyType({"x": 1}), lambda leaf: 2) == {"x": 2}


def test_a_container_that_holds_itself_is_refused() -> None:
    tree: list = [A]
    tree.append(tree)
    with pytest.raises(DataError, match="itself"):
        list(leaves(tree, "b"))
