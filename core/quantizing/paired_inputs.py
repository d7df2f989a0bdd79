"""What reaches an op in the float model and in the one that is quantized up to it, in pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from array_api_compat import array_namespace

from octavo.core.contract.adapter import Batch, Opened, Session
from octavo.core.contract.revision import REVISION, Revision
from octavo.core.errors import SchemeError
from octavo.core.numerics.affine import Array
from octavo.core.numerics.rows import Rows, rounding_rows
from octavo.core.values.graph import Op

from .input_features import PairedMoments
from .observing import Observation

Watch = Callable[[Iterable[str], Callable[[str, Array], None]], int]


class PairedWalk:
    """One walk along a model in execution order, in which weights are quantized one by one.

    Both models run from where they stopped before, where the backend can. The float values of one
    op's input, over all batches, are held meanwhile; only weights are replaced, so that what
    rounding activations adds is not seen.

    Args:
        opened: The backend.
        session: The float model, as it is after transforms.
        observation: Has the batches.
    """

    def __init__(
        self, opened: Opened, session: Session, observation: Observation
    ) -> None:
        self._opened = opened
        self._session = session
        self._observation = observation
        self._waiting: list[tuple[str, Callable[[], Array]]] = []
        self._watch: Watch | None = None
        self._revision: Revision | None = None
        self._found: dict[tuple[str, Rows], PairedMoments] = {}

    def replace(self, name: str, weight: Callable[[], Array]) -> None:
        """Note what a weight has become; it is made when somebody asks for moments."""
        self._waiting.append((name, weight))

    def moments(self, op: Op) -> PairedMoments | None:
        """Return what reaches an op; None where its weight multiplies no rows, or none came.

        Raises:
            SchemeError: If the backend cannot replace weights.
            DataError: If there is no calibration data that can be read again.
        """
        rows = rounding_rows(op)
        if rows is None or not op.inputs:
            return None
        at = (op.inputs[0], rows)
        if at not in self._found:
            self._found[at] = self._observed(op, op.inputs[0], rows)
        found = self._found[at]
        return found if found.count else None

    def _observed(self, op: Op, value: str, rows: Rows) -> PairedMoments:
        watch, revision = self._models(op)
        for name, weight in self._waiting:
            revision.replace(name, weight())
        self._waiting.clear()
        floats: list[Array] = []

        def keep(_: str, x: Array) -> None:
            floats.append(array_namespace(x).asarray(x, copy=True))

        sums = _Sums(rows)
        floats_in_order = iter(floats)

        def pair(_: str, x: Array) -> None:
            sums.add(next(floats_in_order, None), x)

        watch((value,), keep)
        revision.observe((value,), pair)
        # What a router sends elsewhere in the quantized model has no partner.
        is_paired = next(floats_in_order, None) is None
        return sums.moments(is_paired=is_paired)

    def _models(self, op: Op) -> tuple[Watch, Revision]:
        if self._watch is None or self._revision is None:
            batches = self._checked_batches(op)
            limit = self._observation.gram_bytes
            self._watch = self._session.watcher(batches, limit)
            self._revision = self._session.revision(batches, limit)
        return self._watch, self._revision

    def _checked_batches(self, op: Op) -> Iterable[Batch]:
        if REVISION not in self._opened.capability.features:
            raise SchemeError(
                f"op {op.name!r}: {self._opened.name} cannot replace weights of a model that it "
                "observes, which gptaq needs; use gptq"
            )
        return self._observation.batches_for(op.name, "gptaq", "use gptq")


class _Sums:
    """Sums over batches of what an op's rows show in pairs."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._gram: Array = None
        self._drift: Array = None
        self._count = 0
        self._is_paired = True

    def add(self, of_float: Array | None, of_quantized: Array) -> None:
        """Take one batch."""
        if of_float is None or of_float.shape != of_quantized.shape:
            self._is_paired = False
            of_float = of_quantized
        exact = self._rows.chunks(of_float)
        rounded = self._rows.chunks(of_quantized)
        for x, y in zip(exact, rounded, strict=True):
            xp = array_namespace(x, y)
            gram = xp.matmul(xp.matrix_transpose(y), y)
            drift = xp.matmul(xp.matrix_transpose(x - y), y)
            self._gram = gram if self._gram is None else self._gram + gram
            self._drift = drift if self._drift is None else self._drift + drift
            self._count += y.shape[1]

    def moments(self, *, is_paired: bool) -> PairedMoments:
        """Return the sums; without a drift where some rows had no partner."""
        drift = self._drift
        if self._count and not (is_paired and self._is_paired):
            drift = array_namespace(drift).zeros_like(drift)
        return PairedMoments(self._gram, drift, self._count)
