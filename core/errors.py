"""Errors, all of one family.

Every message names the thing at fault and the way out. Anything octavo raises on purpose is an
:class:`OctavoError`; the second base class keeps ``except ValueError`` and friends working.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any


class OctavoError(Exception):
    """Base of every error octavo raises on purpose."""


class ConfigError(OctavoError, ValueError):
    """A setting is unknown, malformed or contradicts another."""


class UnknownPart(OctavoError, LookupError):
    """A config names a part that no loaded plugin offers."""


class MissingFramework(OctavoError, ImportError):
    """A part was asked for whose framework is not installed."""


class DuplicatePart(OctavoError):
    """Two plugins offer the same name."""


class PluginError(OctavoError):
    """A plugin breaks the rules of the seam."""


class AdapterFault(PluginError, UserWarning):
    """A backend contradicts itself. The model may be right all the same, so a run warns of it;
    octavo's tests fail."""


class ModelError(OctavoError, ValueError):
    """The model cannot be opened, or holds something that cannot be quantized honestly."""


class NonFiniteWeight(ModelError):
    """A weight holds NaN or Inf."""


class UnsafeFile(ModelError):
    """A file would run code or reach outside its folder when it is read."""


class DataError(OctavoError, ValueError):
    """Calibration or evaluation data is empty, exhausted, non-finite or of the wrong shape."""


class EvaluationError(OctavoError, TypeError):
    """The score function returned something that is not a score."""


class SchemeError(OctavoError, ValueError):
    """A quantization scheme cannot be carried out as asked."""


class DeviceError(OctavoError, RuntimeError):
    """A device was asked for that is not there."""


class StoreError(OctavoError, RuntimeError):
    """A history is corrupt, busy, read-only, too new or of another run; or a result cannot be
    written."""


class TrialTimeout(OctavoError, TimeoutError):
    """A trial ran past its time limit."""


class WorkerDied(OctavoError, RuntimeError):
    """The child process that carried a trial ended without an answer."""


_VALUE = 80
"""Characters of a refused value that a message repeats."""

_SHOWN = 400
"""Characters of a foreign error's text that a message repeats: some hold a whole file."""


def said(error: BaseException) -> str:
    """Return an exception's type and text in one line."""
    text = " ".join(str(error).split())
    shown = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
    return f"{type(error).__name__}: {shown}" if shown else type(error).__name__


def shown(value: Any) -> str:
    """Return a value as a message repeats it: short, whatever it is."""
    try:
        text = repr(value)
    # integers of thousands of digits, nesting without end, objects with a faulty repr
    except Exception:
        return f"a {type(value).__name__}"
    return text if len(text) <= _VALUE else f"{text[:_VALUE]}..."


@contextmanager
def raised_as(family: type[OctavoError], what: str, remedy: str = "") -> Iterator[None]:
    """Raise whatever the block raises as one of octavo's own errors, the first one as its cause.

    For the places where something from outside is read: parsers of damaged or hostile files, and
    frameworks that are given odd models, raise more kinds than can be listed. Octavo's own errors
    pass as they are.

    Args:
        family: Which error to raise.
        what: What is at fault, before the colon.
        remedy: What to do, after it.
    """
    try:
        yield
    except OctavoError:
        raise
    except Exception as error:
        raise family(
            f"{what}: {said(error)}" + (f"; {remedy}" if remedy else "")
        ) from error


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``'; did you mean 'x' or 'y'?'`` for the closest known names, or the list of them."""
    names = sorted(set(known))
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    if close:
        return "; did you mean " + " or ".join(repr(c) for c in close) + "?"
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    return f"; there are: {shown}" if names else "; there are none"
