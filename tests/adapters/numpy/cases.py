"""ONNX's node cases, loaded and read once for all tests of this folder."""

import re
import warnings
from functools import cache
from typing import Any

from onnx.backend.test.loader import load_model_tests

import octavo
from octavo.adapters.numpy.files.onnx_reader import from_onnx
from octavo.adapters.numpy.graph import Graph


@cache
def node_cases() -> tuple[tuple[Any, Graph], ...]:
    """Return (case, graph) of every case that the reader reads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = load_model_tests(kind="node")
    read = []
    for case in found:
        try:
            read.append((case, from_onnx(case.model)))
        except octavo.OctavoError:
            continue
    return tuple(read)


def matching(pattern: str, left_out: tuple[str, ...]) -> list[tuple[Any, Graph]]:
    """Return the cases whose names match a pattern and none of those left out."""
    wanted, unwanted = re.compile(pattern), re.compile("|".join(left_out))
    return [
        (case, graph)
        for case, graph in node_cases()
        if wanted.search(case.name) and not unwanted.search(case.name)
    ]
