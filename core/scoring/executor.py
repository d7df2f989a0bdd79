"""Where an evaluation runs: in this process, or in a child that may crash, hang or run out of
memory.

Anything with ``submit(function, *arguments) -> concurrent.futures.Future`` can take their place (a
Dask or Ray client).
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from importlib import import_module
from typing import Any, Protocol, TypeVar

from octavo.core.errors import EvaluationError, TrialTimeout, WorkerDied, said
from octavo.core.system.redaction import redacted
from octavo.core.system.signals import time_limit

T = TypeVar("T")


class Executor(Protocol):
    """Runs a function elsewhere."""

    def submit(self, function: Callable[..., Any], /, *arguments: Any) -> Future[Any]:
        """Start ``function(*arguments)``; everything must be picklable by cloudpickle."""


class InlineExecutor:
    """Runs in this process. A time limit interrupts Python code; it cannot stop a
    running kernel."""

    def __init__(self, timeout: float | None = None) -> None:
        self._timeout = timeout

    def submit(self, function: Callable[..., T], /, *arguments: Any) -> Future[T]:
        """Run now; the future is done when this returns."""
        future: Future[T] = Future()
        try:
            with time_limit(self._timeout):
                found = function(*arguments)
        except Exception as error:
            future.set_exception(error)
        except SystemExit as error:
            future.set_exception(
                EvaluationError(
                    f"the score function called sys.exit({error.code!r}); let it return or raise"
                )
            )
        else:
            future.set_result(found)
        return future

    def close(self) -> None:
        """Nothing to release."""


class ProcessExecutor:
    """Runs in one child process, which is started again when it dies or outlives the time limit."""

    def __init__(self, timeout: float | None = None) -> None:
        from pebble import ProcessPool

        from octavo.core.system.spawning import BareSpawnContext

        self._timeout = timeout
        # spawn: a fork would inherit the frameworks' thread pools in a broken state.
        self._pool = ProcessPool(max_workers=1, context=BareSpawnContext())

    def submit(self, function: Callable[..., T], /, *arguments: Any) -> Future[T]:
        """Start in the child."""
        import cloudpickle

        # A fresh child imports its framework first, which is not the trial's time.
        modules = {
            str(getattr(a, "__module__", None) or type(a).__module__) for a in arguments
        }
        needed = sorted(modules - {"__main__", "builtins"})
        self._pool.schedule(_import, args=(needed,))
        blob = cloudpickle.dumps((function, arguments))
        inner = self._pool.schedule(
            _unpickle_and_call, args=(blob,), timeout=self._timeout
        )
        outer: Future[T] = Future()
        inner.add_done_callback(lambda done: self._hand_over(done, outer))
        return outer

    def _hand_over(self, inner: Any, outer: Future[Any]) -> None:
        from pebble import ProcessExpired

        error = inner.exception()
        if error is None:
            _unpack(inner.result(), outer)
        elif isinstance(error, TimeoutError):
            outer.set_exception(
                TrialTimeout(
                    f"the trial ran past its time limit of {self._timeout:g} s and its process "
                    "was ended"
                )
            )
        elif isinstance(error, ProcessExpired):
            outer.set_exception(
                WorkerDied(
                    f"the child process died with exit code {error.exitcode} (crash or out of "
                    "memory)"
                )
            )
        else:
            outer.set_exception(error)

    def close(self) -> None:
        """End the child."""
        self._pool.stop()  # type: ignore[no-untyped-call]
        self._pool.join()


def _import(modules: list[str]) -> None:
    for name in modules:
        # What cannot be imported by name travels by value, or fails in the trial, which then says
        # so.
        with suppress(ImportError):
            import_module(name)


def _unpickle_and_call(blob: bytes) -> tuple[bool, bytes]:
    """Return whether the call succeeded, and its result or what it raised.

    Pickled here: plain pickle, which the pool would use, knows no class of the caller's script.
    """
    import cloudpickle

    try:
        function, arguments = cloudpickle.loads(blob)
        return True, cloudpickle.dumps(function(*arguments))
    except Exception as error:
        told = traceback_text(error)
        try:
            error.__traceback__ = error.__cause__ = error.__context__ = None
            error.add_note(f"In the child process:\n{told}")
            packed = cloudpickle.dumps(error)
            cloudpickle.loads(packed)
        # an exception whose constructor takes something else than its args, or that holds a lock
        except Exception:
            packed = cloudpickle.dumps(
                EvaluationError(f"raised in the child process:\n{told}")
            )
        return False, packed


def _unpack(outcome: tuple[bool, bytes], future: Future[Any]) -> None:
    import cloudpickle

    succeeded, packed = outcome
    try:
        held = cloudpickle.loads(packed)
    except Exception as error:
        future.set_exception(
            EvaluationError(
                f"what the child process returned cannot be read here: {said(error)}"
            )
        )
        return
    if succeeded:
        future.set_result(held)
    else:
        future.set_exception(held)


def traceback_text(error: BaseException) -> str:
    """Return an exception with its traceback, as a trial records it."""
    return redacted("".join(traceback.format_exception(error)).strip())


__all__ = ["Executor", "InlineExecutor", "ProcessExecutor", "traceback_text"]
