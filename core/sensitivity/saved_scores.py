"""Sensitivities in a JSON file, from which other goals of the same model and data start."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from octavo.core.calibration.checks import digest_leaf
from octavo.core.contract.adapter import Batch, Session
from octavo.core.errors import ConfigError, StoreError, raised_as, said
from octavo.core.system.textfiles import read_text, write_text
from octavo.core.values.calls import parts
from octavo.core.values.json_form import canonical_json
from octavo.core.values.trees import leaves

SCHEMA = 1
"""Version of the file's form."""


def identity(session: Session, batches: Sequence[Batch]) -> str:
    """Return what scores belong to: a model, and the batches that it was probed on."""
    return canonical_json([session.fingerprint(), data_digest(batches)])


def data_digest(batches: Sequence[Batch]) -> str:
    """Return a content digest of batches, 16 hex digits."""
    digest = hashlib.sha256()
    for batch in batches:
        args, kwargs = parts(batch)
        for name, value in (*enumerate(args), *sorted(kwargs.items())):
            for path, leaf in leaves(value, str(name)):
                digest_leaf(digest, path, leaf, between=" ")
    return digest.hexdigest()[:16]


def check_place(path: Path) -> None:
    """Make sure that sensitivities can be written at the end of a run, before it begins.

    Raises:
        ConfigError: If the folder of their file is not there, or cannot be written.
    """
    folder = path.expanduser().absolute().parent
    if not folder.is_dir():
        raise ConfigError(
            f"sensitivities: there is no folder {folder}; make it, or name a file elsewhere"
        )
    if not os.access(folder, os.W_OK):
        raise ConfigError(
            f"sensitivities: {folder} cannot be written; name a file in a writable folder"
        )


def write_scores(path: Path, of: str, scores: Mapping[str, float]) -> None:
    """Write scores.

    Args:
        path: The file; what it held is replaced.
        of: What they belong to, see :func:`identity`.
        scores: Key -> loss.

    Raises:
        StoreError: If the file cannot be written.
    """
    # JSON has no infinity.
    finite = {key: loss if np.isfinite(loss) else None for key, loss in scores.items()}
    raw = {"schema": SCHEMA, "of": of, "scores": finite}
    with raised_as(StoreError, f"{path} cannot be written"):
        write_text(path, json.dumps(raw, indent=1))


def read_scores(path: Path, of: str) -> dict[str, float]:
    """Return the scores of a file.

    Raises:
        StoreError: If the file is damaged, or belongs to something else than ``of``.
    """
    try:
        raw: Any = json.loads(read_text(path))
        scores = {str(key): _loss(key, value) for key, value in raw["scores"].items()}
        is_ours = raw["schema"] == SCHEMA and raw["of"] == of
    except Exception as error:  # a damaged file fails in many ways
        raise StoreError(
            f"{path} holds no sensitivities: {said(error)}; delete it, or name another file"
        ) from error
    if not is_ours:
        raise StoreError(
            f"{path} was made for another model, other batches or by another version; "
            "name another file"
        )
    return scores


def _loss(key: str, value: Any) -> float:
    loss = float("inf") if value is None else float(value)
    # Written so that NaN is refused too.
    if not loss >= 0:
        raise ValueError(f"the loss of {key} is {loss}")
    return loss
