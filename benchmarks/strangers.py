"""Models of strangers: every .onnx file given, or of the packages that are installed, with each
8-bit preset.

    python -m benchmarks.strangers [--schemes int8-static,int8-dynamic] [--seconds 2] [FILE OR
    FOLDER ...]

Without files, those are taken that installed distributions carry. Inputs are drawn at random, in
the first shapes that ONNX Runtime takes; so cosines say whether a candidate computes the same
function, not what a user loses. One line for each
file and preset: float weights of two or more dimensions, the share of them that is quantized, the
smallest cosine of an output on inputs that calibration did not see, the float file's size and time
over the candidate's, and what stays float and why. An ``!`` line is an exception that is no
OctavoError: a fault.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

import octavo
from octavo.core.errors import OctavoError

SCHEMES = ("int8-static", "int8-dynamic", "int8-weight-only")
LENGTHS = (64, 96, 32, 16, 512, 576, 224, 320, 416, 640, 128, 8, 4, 2, 1, 1000, 16000)
"""Lengths that are tried for axes that a file leaves open, batch and channels aside."""
CHANNELS = (3, 1)
"""Numbers that are tried for the open second axis of an input of rank 4."""
WHOLE = (16000, 1, 0)
"""Values of an integer without axes; a sampling rate comes first."""

Feeds = dict[str, np.ndarray]


def found_files(given: Sequence[str]) -> Iterator[Path]:
    """Yield the .onnx files of paths and folders; without any, those of installed distributions."""
    if not given:
        for distribution in importlib.metadata.distributions():
            for file in distribution.files or ():
                if file.suffix == ".onnx":
                    yield Path(str(distribution.locate_file(file)))
        return
    for name in given:
        path = Path(name)
        yield from sorted(path.rglob("*.onnx")) if path.is_dir() else (path,)


def float_session(file: Path) -> ort.InferenceSession:
    """Return the float model's session, on one thread."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def drawn(
    inputs: Sequence[Any], length: int, channels: int, whole: int, seed: int
) -> Feeds:
    """Return random inputs; axes that a model leaves open get ``length``, the first of them 1."""
    rng = np.random.default_rng(seed)
    feeds: Feeds = {}
    for info in inputs:
        shape = _shape(info.shape, length, channels)
        if "float" in info.type or "double" in info.type:
            kind = {"tensor(float16)": np.float16, "tensor(double)": np.float64}.get(
                info.type, np.float32
            )
            feeds[info.name] = (0.3 * rng.normal(size=shape)).astype(kind)
        elif "bool" in info.type:
            feeds[info.name] = np.ones(shape, bool)
        else:
            kind = np.dtype(info.type.removeprefix("tensor(").removesuffix(")"))
            values = (
                rng.integers(0, 2 if "mask" in info.name else 100, size=shape)
                if shape
                else whole
            )
            feeds[info.name] = np.asarray(values).astype(kind)
    return feeds


def _shape(declared: Sequence[Any], length: int, channels: int) -> list[int]:
    """Return a declared shape with its open axes filled in: the first one counts samples."""
    found = [axis if isinstance(axis, int) and axis > 0 else 0 for axis in declared]
    open_axes = [place for place, axis in enumerate(found) if not axis]
    for place in open_axes:
        found[place] = channels if len(found) == 4 and place == 1 else length
    if open_axes:
        found[open_axes[0]] = 1
    return found


def plausible(session: ort.InferenceSession) -> Callable[[int], Feeds] | None:
    """Return what draws inputs of the first shapes that the model takes; None if it takes none that
    is tried."""
    inputs = session.get_inputs()
    for length, channels, whole in itertools.product(LENGTHS, CHANNELS, WHOLE):
        try:
            session.run(None, drawn(inputs, length, channels, whole, 0))
        # whatever a model says about a shape that it cannot take, the next one is tried
        except Exception:
            continue
        return lambda seed, at=(length, channels, whole): drawn(inputs, *at, seed)  # type: ignore[misc]
    return None


def cosine(expected: Sequence[Any], got: Sequence[Any]) -> float:
    """Return the smallest cosine of a floating output."""
    found = [1.0]
    for a, b in zip(expected, got, strict=True):
        if isinstance(a, np.ndarray) and a.dtype.kind == "f" and a.size:
            x, y = (np.ravel(v).astype(np.float64) for v in (a, b))
            norms = np.linalg.norm(x) * np.linalg.norm(y)
            found.append(float(x @ y / norms) if norms else float(np.array_equal(x, y)))
    return min(found)


def time_ratio(
    first: Callable[[], Any], second: Callable[[], Any], seconds: float
) -> float:
    """Return the median of first's time over second's, taken in turns."""
    first(), second()
    ratios: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(ratios) < 3:
        start = time.perf_counter()
        first()
        middle = time.perf_counter()
        second()
        ratios.append((middle - start) / (time.perf_counter() - middle))
    return statistics.median(ratios)


def row(
    file: Path,
    scheme: str,
    session: ort.InferenceSession,
    draw: Callable[[int], Feeds],
    seconds: float,
) -> str:
    """Quantize a file with a preset; return what came of it in one line."""
    try:
        made = octavo.quantize_model(
            file,
            scheme,
            calibration=[draw(seed) for seed in range(4)],
            backend={"kind": "onnx", "threads": 1},
        )
    except OctavoError as error:
        return f"{scheme:17} {type(error).__name__}: {str(error)[:300]}"
    except Exception as error:  # what this program is there to find
        return f"{scheme:17} ! {type(error).__name__}: {str(error)[:300]}"
    feeds = draw(99)
    expected, got = session.run(None, feeds), made.model(feeds)
    answers = got if isinstance(got, tuple) else (got,)
    with tempfile.TemporaryDirectory() as folder:
        made.save(Path(folder) / "saved")
        size = sum(
            p.stat().st_size
            for p in (Path(folder) / "saved" / "model").rglob("*")
            if p.is_file()
        )
    faster = time_ratio(
        lambda: session.run(None, feeds), lambda: made.model(feeds), seconds
    )
    covered = made.coverage
    share = 100 * covered.quantized / covered.total if covered.total else 0.0
    told = f"{scheme:17} {covered.total:>12,} {share:6.1f} % cosine {cosine(expected, answers):.4f}"
    told += f" size {file.stat().st_size / size:4.2f} speed {faster:4.2f}"
    return f"{told}  {covered.summary()[:220]}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0] if __doc__ else ""
    )
    parser.add_argument("paths", nargs="*")
    parser.add_argument("--schemes", default=",".join(SCHEMES))
    parser.add_argument(
        "--seconds",
        type=float,
        default=2.0,
        help="how long each pair of models is timed",
    )
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    for file in found_files(given.paths):
        print(f"{file} ({file.stat().st_size:,} bytes)", flush=True)
        try:
            session = float_session(file)
        except Exception as error:
            # A file that ONNX Runtime does not read is none of these.
            print(f"  ONNX Runtime: {str(error)[:200]}")
            continue
        draw = plausible(session)
        if draw is None:
            print("  no input of the shapes that were tried is taken")
            continue
        for scheme in given.schemes.split(","):
            print(" ", row(file, scheme, session, draw, given.seconds), flush=True)


if __name__ == "__main__":
    main()
