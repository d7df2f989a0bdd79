"""Pieces of work on the processor's cores.

NumPy releases the interpreter's lock inside its loops and inside BLAS, so threads share one
operator's rows. BLAS itself is held to one thread meanwhile: its own threads wait for each other at
every product, which costs more than it gives for the sizes met here, and anything else that runs on
the machine stalls them all. Pieces are handed out one by one, so a slow core gets fewer.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np

from octavo.adapters.numpy.graph import Array

_FLAVOURS = (
    ("scipy_openblas", "64_"),
    ("scipy_openblas", ""),
    ("openblas", "64_"),
    ("openblas", ""),
)
"""Prefix and suffix of OpenBLAS's symbols: NumPy's wheels rename them, distributions do not."""


class _Control(NamedTuple):
    """Sets and reads the number of BLAS threads."""

    put: Callable[[int], Any]
    get: Callable[[], int]


def _library() -> ctypes.CDLL | None:
    """Return NumPy's own extension module.

    Looking a symbol up in it also searches the libraries that it is linked with.
    """
    try:
        return ctypes.CDLL(
            import_module("numpy._core._multiarray_umath").__file__ or ""
        )
    except (ImportError, OSError):
        return None


def _blas() -> _Control | None:
    """Return the control of the OpenBLAS that NumPy is linked with, or None for another BLAS."""
    library = _library()
    for prefix, suffix in _FLAVOURS:
        put = getattr(library, f"{prefix}_set_num_threads{suffix}", None)
        get = getattr(library, f"{prefix}_get_num_threads{suffix}", None)
        if put is not None and get is not None:
            return _Control(put, get)
    return None


def blas_kernels() -> str:
    """Return the processor family whose kernels OpenBLAS chose ('' for another BLAS).

    OpenBLAS takes its AVX2 kernels on processors that it does not know. Where that processor has
    AVX-512, setting the environment variable ``OPENBLAS_CORETYPE=SkylakeX`` before NumPy is
    imported about doubles the speed of products.
    """
    for prefix, suffix in _FLAVOURS:
        function = getattr(_library(), f"{prefix}_get_corename{suffix}", None)
        if function is not None:
            function.restype = ctypes.c_char_p
            return str(function().decode())
    return ""


class _Pool(NamedTuple):
    """The helper threads, of how many threads with the caller's own, and whose they are."""

    process: int
    threads: int
    executor: ThreadPoolExecutor


_control = _blas()
_lock = threading.Lock()
_depth = 0
_before = 1
_local = threading.local()
_pool: _Pool | None = None


def available() -> int:
    """Return how many cores this process may use; 1 where BLAS cannot be held to one thread."""
    if _control is None:
        return 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Hold BLAS to one thread; nested and concurrent uses count, the last one out restores it."""
    global _depth, _before
    if _control is None:
        yield
        return
    with _lock:
        if _depth == 0:
            _before = _control.get()
            _control.put(1)
        _depth += 1
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if _depth == 0:
                _control.put(_before)


def spread(count: int, work: Callable[[int], object], threads: int) -> None:
    """Call ``work(i)`` for i in range(count), on up to ``threads`` threads.

    An exception in any piece is raised here.
    """
    helpers = min(threads, count) - 1
    if helpers < 1 or getattr(_local, "inside", False):
        for i in range(count):
            work(i)
        return
    ticket = itertools.count()  # next() on it is atomic in CPython

    def drain() -> None:
        _local.inside = True
        try:
            while (i := next(ticket)) < count:
                work(i)
        finally:
            _local.inside = False

    pending = [_executor(threads).submit(drain) for _ in range(helpers)]
    try:
        drain()
    finally:
        wait(pending)  # nobody may still write when the memory is handed back
    for future in pending:
        future.result()


def _executor(threads: int) -> ThreadPoolExecutor:
    global _pool
    process = os.getpid()
    with _lock:
        # A forked child has the object but not its threads.
        if _pool is None or _pool.process != process or _pool.threads < threads:
            helpers = ThreadPoolExecutor(threads - 1, thread_name_prefix="octavo-numpy")
            _pool = _Pool(process, threads, helpers)
        return _pool.executor


def scratch(nbytes: int) -> Array:
    """Return this thread's scratch memory, uint8, at least ``nbytes`` long.

    Its content lasts until the next call.
    """
    buffer: Array | None = getattr(_local, "scratch", None)
    if buffer is None or buffer.size < nbytes:
        buffer = _local.scratch = np.empty(nbytes, np.uint8)
    return buffer
