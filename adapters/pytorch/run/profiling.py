"""Where the time of a call goes: the modules of ops are timed by hooks for a while."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from octavo.core.contract.attribution import by_op


def profile(
    root: nn.Module,
    call: Callable[[], object],
    places: Mapping[str, str],
    device: torch.device,
    seconds: float,
) -> dict[str, float]:
    """Return op -> milliseconds of a call; what no module of an op does is the rest.

    Args:
        root: The model.
        call: Calls it.
        places: Path of a module -> op.
        device: Where it runs.
        seconds: About how long the calls may take together.
    """
    calls: list[dict[str, float]] = []
    whole: list[float] = []
    watch = _Stopwatch(device)
    call()
    with _timed(root, places, watch):
        end = time.perf_counter() + seconds
        while not calls or time.perf_counter() < end:
            watch.taken = {}
            start = time.perf_counter()
            call()
            whole.append((time.perf_counter() - start) * 1e3)
            calls.append(watch.taken)
    return by_op(calls, whole)


class _Stopwatch:
    """Sums the milliseconds of each op; a module inside another's counts for itself alone."""

    def __init__(self, device: torch.device) -> None:
        self.taken: dict[str, float] = {}
        self._is_asynchronous = device.type != "cpu"
        # Begin of each module that is running, and what those inside it have taken.
        self._running: list[list[float]] = []

    def start(self, *_: Any) -> None:
        """Begin with a module."""
        self._wait()
        self._running.append([time.perf_counter(), 0.0])

    def stop(self, op: str) -> None:
        """End with the module that began last."""
        self._wait()
        start, inside = self._running.pop()
        taken = time.perf_counter() - start
        self.taken[op] = self.taken.get(op, 0.0) + (taken - inside) * 1e3
        if self._running:
            self._running[-1][1] += taken

    def _wait(self) -> None:
        # Accelerators are given work and are not waited for; whose it was, nobody could say later.
        if self._is_asynchronous:
            torch.accelerator.synchronize()


@contextmanager
def _timed(
    root: nn.Module, places: Mapping[str, str], watch: _Stopwatch
) -> Iterator[None]:
    """Let a watch time the modules at these paths."""
    handles = []
    try:
        # A module that is registered under several names is listed once.
        for path, module in root.named_modules():
            op = places.get(path)
            if op is None:
                continue

            def stop(*_: Any, op: str = op) -> None:
                watch.stop(op)

            # Hooks that the model has are part of what its op costs.
            before = module.register_forward_pre_hook(watch.start, prepend=True)
            handles += [before, module.register_forward_hook(stop)]
        yield
    finally:
        for handle in handles:
            handle.remove()
