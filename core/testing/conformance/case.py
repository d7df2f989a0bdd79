"""A model that exercises an adapter, and what the promises compare."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from array_api_compat import array_namespace, device, is_array_api_obj

from octavo.core.contract.adapter import Adapter, Batch, Candidate, Opened
from octavo.core.contract.parts import AdapterPart, PartConfig
from octavo.core.contract.plugins import PluginHost
from octavo.core.errors import DataError
from octavo.core.numerics.arrays import to_numpy
from octavo.core.quantizing.realize import Realizer
from octavo.core.values.calls import parts, plainest
from octavo.core.values.space import TuningSpace

Arrays = Sequence[np.ndarray]


@dataclass(frozen=True)
class AdapterCase:
    """A model that exercises an adapter.

    Attributes:
        card: The adapter's card.
        model: A native model or a path. It must have at least one op that the adapter can quantize.
        batches: Inputs for calibration and for comparing outputs.
        config: The adapter's settings; None for the defaults.
        closeness: Least cosine similarity of quantized and float outputs, for 8 bits and more; an
            adapter's arithmetic is wrong long before it falls below 0.95.
        float_model: What ``Adapter.load`` needs beside the files, if anything.
        smaller: Whether quantizing everything must make the saved files smaller (false for models
            of a few bytes).
        ops_per_type: How many ops of each type try every offer.
        host: The plugins whose algorithms and calibrators are used.
        witness: Tells, without the ledger, whether low precision really runs: it is given a
            candidate and an op's name and looks into the runtime's own execution graph or profile.
            It returns '' where that shows the low-precision kernel, else what it shows. Without
            one ``kernel`` is believed as far as numbers tell.
        alone: Returns, for a type of ops, a model of one such op and batches for it, of which the
            kit computes what they must give; None asks ``Adapter.sample``.
        source: The model as its own framework runs it in float: takes a batch, returns an array
            or a sequence of them. Everything that is opened must compute what it does.
        opens: An interchange file that holds the same model, of a format that the card accepts.
        loads_alone: Loads the folder of a saved candidate with the runtime alone, without octavo,
            and returns what takes a batch and returns an array or a sequence of them.
        odd: Batches that must run too: one row, an odd width, nothing but padding.
    """

    card: AdapterPart[Any]
    model: Any
    batches: Sequence[Batch]
    config: PartConfig | None = None
    closeness: float = 0.95
    float_model: Any = None
    smaller: bool = True
    ops_per_type: int = 1
    host: PluginHost = field(default_factory=lambda: PluginHost(third_party=False))
    witness: Callable[[Candidate, str], str] | None = None
    alone: Callable[[str], tuple[Any, Sequence[Batch]] | None] | None = None
    source: Callable[[Batch], Any] | None = None
    opens: Path | str | None = None
    loads_alone: Callable[[Path], Callable[[Batch], Any]] | None = None
    odd: Sequence[Batch] = ()

    def adapter(self) -> Adapter:
        """Build the adapter."""
        return self.card.build(self.config)  # type: ignore[no-any-return]

    def open(self) -> Opened:
        """Open the model."""
        session = self.adapter().open(self.model, self.batches[0])
        return Opened(self.card.name, session, session.describe(), session.capability())

    def open_file(self) -> Opened:
        """Open the interchange file."""
        return replace(self, model=self.opens).open()

    def of_one_op(self, kind: str) -> AdapterCase | None:
        """Return the case of a model with one op of a type; None where there is none."""
        if self.alone is not None:
            found = self.alone(kind)
        else:
            sample = self.adapter().sample(kind)
            found = None if sample is None else (sample[0], [sample[1]])
        if found is None:
            return None
        model, batches = found
        return replace(self, model=model, batches=batches, opens=None, source=None)

    def realizer(self, opened: Opened, space: TuningSpace) -> Realizer:
        """Return a calibrated realizer."""
        realizer = Realizer(opened, space, self.host)
        realizer.calibrate(self.batches)
        return realizer


def outputs(candidate: Candidate, batches: Sequence[Batch]) -> list[np.ndarray]:
    """Run every batch and return all outputs, float64."""
    found: list[np.ndarray] = []
    for batch in batches:
        found += arrays(candidate.run(batch))
    return found


def arrays(result: Any) -> list[np.ndarray]:
    """Return what a call gave, an array or several in order or by name, float64."""
    if isinstance(result, Mapping):
        result = list(result.values())
    if not isinstance(result, tuple | list):
        result = [result]
    return [np.asarray(to_numpy(y), dtype=np.float64) for y in result]


def cosine(a: Arrays, b: Arrays) -> float:
    """Cosine similarity of two lists of arrays, taken as one vector each."""
    x = np.concatenate([array.ravel() for array in a])
    y = np.concatenate([array.ravel() for array in b])
    lengths = np.linalg.norm(x) * np.linalg.norm(y)
    # A model whose outputs are all 0 is like nothing, and no division by 0.
    return float(x @ y / max(lengths, 1e-30))


def check_equal(got: Arrays, expected: Arrays) -> None:
    """Two lists of arrays agree bit for bit."""
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def check_close(
    got: Arrays, expected: Arrays, rtol: float, atol: float, of: str = ""
) -> None:
    """Two lists of arrays agree up to rounding; ``of`` is named if they do not."""
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol, err_msg=of)


def check_close_to_largest(got: Arrays, expected: Arrays, share: float) -> None:
    """Two lists of arrays agree to 1e-3, or to a share of the largest element.

    Where sums are reordered, small elements carry the rounding errors of large terms.
    """
    for a, b in zip(got, expected, strict=True):
        largest = float(np.abs(b).max())
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=share * max(1.0, largest))


def like(array: np.ndarray, other: Any) -> Any:
    """Return ``array`` in the array namespace and on the device of ``other``."""
    return array_namespace(other).asarray(array, device=device(other))


def first_row(batch: Batch) -> Batch | None:
    """Return a batch of the first row alone; None where its inputs have none in common."""
    args, kwargs = parts(batch)
    values = [*args, *kwargs.values()]
    is_flat = all(is_array_api_obj(value) and value.ndim for value in values)
    if not is_flat or len({value.shape[0] for value in values}) != 1:
        return None
    return each(batch, lambda value: value[:1])


def each(batch: Batch, change: Callable[[Any], Any]) -> Batch:
    """Return a batch with each of its values changed."""
    args, kwargs = parts(batch)
    return plainest(
        [change(value) for value in args],
        {name: change(value) for name, value in kwargs.items()},
    )


def runs(model: Candidate, batch: Batch) -> bool:
    """Return whether a model takes a batch; whatever else it raises is a fault."""
    try:
        model.run(batch)
    except DataError:
        return False
    return True


def rms(x: np.ndarray) -> float:
    """Return the root mean square; 0 of nothing."""
    return float(np.sqrt(np.mean(np.square(x)))) if x.size else 0.0
