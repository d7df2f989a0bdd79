"""What algorithms are told of an op's input features: their probes, and what these saw."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from array_api_compat import array_namespace, device

from octavo.core.calibration.features import FEATURE_OBSERVERS, FeatureObserver
from octavo.core.calibration.statistics import Statistics
from octavo.core.contract.algorithm import WeightContext
from octavo.core.contract.calibrator import Observer, Probe
from octavo.core.numerics.affine import Array
from octavo.core.numerics.rows import rounding_rows
from octavo.core.values.graph import Op
from octavo.core.values.scheme import OpScheme, PartChoice

INDEPENDENT = ("embedding", "lstm", "gru", "rnn", "batched_linear")
"""Their features count as independent and weigh alike.

A looked-up row is an output by itself, and a recurrent state is not observed.
"""

WEIGHING = frozenset({"gram", "channel_range", "channel_square", "paired_gram"})
"""Needs that say how much each feature weighs: without them an algorithm cannot work."""

_MEANS = frozenset({"channel_mean", "channel_square"})
"""Needs that are told as means over the rows."""

SeenBy = Callable[[str, str], Statistics]
"""(op name, value name) -> what calibration saw of the value as the op meets it."""


@dataclass(frozen=True, slots=True, eq=False)
class PairedMoments:
    """Second moments of an op's inputs X of the float model and X' of the quantized one.

    Attributes:
        gram: X'^T X', float32, shape (groups, features, features).
        drift: (X - X')^T X', likewise.
        count: Number of rows seen.
    """

    gram: Array
    drift: Array
    count: int


@dataclass(frozen=True, slots=True)
class WeightRequest:
    """One weight that is to be quantized.

    Attributes:
        op: The op that asks.
        users: Every op that uses the weight; what they see of calibration is put together.
        scheme: Its weight spec and algorithm.
        needs: What the algorithm needs of calibration.
        seen_by: What calibration saw.
        gradient_square: The mean square of the loss's gradient at the weight, of its shape, where
            ``needs`` asks for it.
        paired: What reaches the op in the float and the quantized model, where ``needs`` asks for
            it and some did.
    """

    op: Op
    users: tuple[Op, ...]
    scheme: OpScheme
    needs: frozenset[str]
    seen_by: SeenBy
    gradient_square: Array | None = None
    paired: PairedMoments | None = None

    def observers(self, user: Op) -> Iterator[tuple[Probe, Observer]]:
        """Yield what was asked of one user's input features, and who saw it."""
        for probe in feature_probes(user, self.needs):
            yield probe, self.seen_by(user.name, probe.value).observer(probe)


def feature_probes(op: Op, needs: Iterable[str]) -> Iterator[Probe]:
    """Yield the probes of an op's input features.

    There are none for ops whose weight multiplies no rows (embeddings).
    """
    rows = rounding_rows(op)
    if rows is None or not op.inputs:
        return
    for need in sorted(needs):
        if need in FEATURE_OBSERVERS:
            yield Probe(op.inputs[0], PartChoice(kind=need), None, rows)


def weight_contexts(request: WeightRequest, matrix: Array) -> list[WeightContext]:
    """Return what an algorithm is given.

    Args:
        request: The weight.
        matrix: It as a matrix.

    Returns:
        One context per group of a grouped convolution; one for every other op.
    """
    asked = [user for user in request.users if _is_asked(request, user)]
    seen = [user for user in asked if _saw_rows(request, user)]
    if seen:
        return _of_observers(request.op, _together(request, seen))
    # An expert may have met no token: then its features, too, count as independent and weigh alike.
    weigh_alike = bool(asked) or request.op.type in INDEPENDENT
    if weigh_alike and request.needs & WEIGHING:
        return [independent(matrix)]
    return [WeightContext()]


def _is_asked(request: WeightRequest, user: Op) -> bool:
    probes = feature_probes(user, request.needs)
    return any(probe in request.seen_by(user.name, probe.value) for probe in probes)


def _saw_rows(request: WeightRequest, user: Op) -> bool:
    for _, observer in request.observers(user):
        if isinstance(observer, FeatureObserver) and observer.count:
            return True
    return False


def independent(matrix: Array) -> WeightContext:
    """Return what an algorithm is given of features that weigh alike."""
    xp = array_namespace(matrix)
    features = matrix.shape[1]
    where = device(matrix)
    eye = xp.eye(features, dtype=xp.float32, device=where)
    ones = xp.ones((features,), dtype=xp.float32, device=where)
    return WeightContext(
        eye,
        ones,
        0 * ones,
        1,
        channel_square=ones,
        quantized_gram=eye,
        drift=0 * eye,
    )


def _together(request: WeightRequest, seen: Iterable[Op]) -> dict[str, FeatureObserver]:
    """Return need -> what all users saw together; an op that uses the weight twice counts once."""
    found: dict[str, FeatureObserver] = {}
    distinct = {user.name: user for user in seen}
    for user in distinct.values():
        for probe, observer in request.observers(user):
            assert isinstance(observer, FeatureObserver)
            need = probe.calibrator.kind
            found[need] = observer.joined(found.get(need))
    return found


def _of_observers(op: Op, found: dict[str, FeatureObserver]) -> list[WeightContext]:
    seen: dict[str, Array] = {}
    count = 0
    for need, observer in found.items():
        seen[need] = observer.value
        count = max(count, observer.count)
    # What their observers give are sums.
    for need in _MEANS & found.keys():
        rows = found[need].count
        seen[need] = seen[need] / max(1, rows)
    if op.type == "conv_transpose":
        return [_context(_of_all_groups(seen), count)]
    groups = max(len(values) for values in seen.values())
    contexts = []
    for group in range(groups):
        of_group = {need: values[group, ...] for need, values in seen.items()}
        contexts.append(_context(of_group, count))
    return contexts


def _context(seen: Mapping[str, Array], count: int) -> WeightContext:
    return WeightContext(
        seen.get("gram"),
        seen.get("channel_range"),
        seen.get("channel_mean"),
        count,
        channel_square=seen.get("channel_square"),
    )


def _of_all_groups(seen: Mapping[str, Array]) -> dict[str, Array]:
    """Return what a transposed convolution's features show together.

    A row of its matrix holds the weights of every group, and the groups' inputs never meet in one
    output.
    """
    together = {}
    for need, values in seen.items():
        if need == "gram":
            together[need] = _block_diagonal(values)
        else:
            xp = array_namespace(values)
            together[need] = xp.reshape(values, (-1,))
    return together


def with_paired(
    op: Op, contexts: list[WeightContext], paired: PairedMoments
) -> list[WeightContext]:
    """Return the contexts with an op's paired moments; one for each group of a convolution."""
    gram, drift = paired.gram, paired.drift
    if op.type == "conv_transpose":
        gram, drift = (
            _block_diagonal(gram)[None, ...],
            _block_diagonal(drift)[None, ...],
        )
    groups = gram.shape[0]
    if len(contexts) != groups:
        contexts = contexts * groups
    return [
        replace(
            context,
            quantized_gram=gram[i, ...],
            drift=drift[i, ...],
            count=paired.count,
        )
        for i, context in enumerate(contexts)
    ]


def _block_diagonal(blocks: Array) -> Array:
    xp = array_namespace(blocks)
    count, size, _ = blocks.shape
    eye = xp.eye(count, dtype=blocks.dtype, device=device(blocks))
    apart = eye[:, None, :, None] * blocks[:, :, None, :]
    side = count * size
    return xp.reshape(apart, (side, side))
