"""A backend, as the core sees it: about eight primitives.

An :class:`Adapter` opens sources; a :class:`Session` is one opened model; a :class:`Candidate` is
that model with a recipe carried out. Everything else (calibrators, algorithms, strategies,
measurement, storage) is written once, over these, in the core. A third party subclasses the three
and registers a card; ``octavo.core.testing.conformance`` tells whether the promises in the
docstrings are kept.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from octavo.core.errors import SchemeError
from octavo.core.numerics.affine import Array
from octavo.core.numerics.channels import Factors
from octavo.core.values.calls import Batch as Batch  # where plugins have always found it
from octavo.core.values.capability import Capability
from octavo.core.values.graph import HeldWeight, ModelView
from octavo.core.values.ledger import Applied as Applied
from octavo.core.values.recipe import Recipe

from .candidate import Candidate as Candidate
from .candidate import OpParameters as OpParameters
from .parts import PartConfig
from .training import Training

Sink = Callable[[str, Array], None]
"""Takes (value name, array) as ``Session.observe`` meets them."""


class Session(ABC):
    """One opened model. Its source is never changed."""

    @abstractmethod
    def describe(self) -> ModelView:
        """Return the ops, values and groups. The same source gives the same names in
        any process."""

    @abstractmethod
    def capability(self) -> Capability:
        """Return what can be executed on this session's device, established and not assumed."""

    @abstractmethod
    def observe(self, batches: Iterable[Batch], values: Iterable[str], sink: Sink) -> int:
        """Run the float model over ``batches`` ONCE and hand each array of each named value to
        ``sink``.

        A sink must not keep or change the array. Returns the number of batches. Values come as the
        ops see them: after batch-norm folding and fused activations.
        """

    def watcher(self, batches: Iterable[Batch], limit: int) -> Callable[[Iterable[str], Sink], int]:
        """Return a function that observes values over the same batches as :meth:`observe` would,
        some of them at a time.

        A backend may keep, between two calls, what the rest of the model needs of each batch, and
        start the next call there if
        its values all come later: values that are asked for in execution order then cost one pass
        altogether.

        Args:
            batches: Batches that can be read again.
            limit: Bytes that it may keep.
        """
        return lambda values, sink: self.observe(batches, values, sink)

    @abstractmethod
    def tensor(self, name: str) -> Array:
        """Return a weight or bias by name, as the ops use it (batch norm folded, rescaled). Not to
        be changed."""

    @abstractmethod
    def apply(self, recipe: Recipe, parameters: Mapping[str, OpParameters]) -> Candidate:
        """Carry a recipe out. Ops without parameters stay float.

        Costs what the quantized ops cost, never a copy of the model; what is packed from one
        :class:`QuantizedTensor` object is reused while that object lives.

        Raises:
            SchemeError: If a scheme is outside the capability.
        """

    def draft(self, recipe: Recipe, parameters: Mapping[str, OpParameters]) -> Candidate:
        """Return what :meth:`apply` returns, for a :meth:`runner`: what only other uses need may
        wait until they come."""
        return self.apply(recipe, parameters)

    @abstractmethod
    def reference(self) -> Candidate:
        """Return the model as it was given: the baseline."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a content digest of structure and weights, the same in any process."""

    def census(self) -> Sequence[HeldWeight] | None:
        """Return every distinct floating weight of two or more dimensions that the model's forward
        uses, wherever it stands.

        It is counted in the model's tensors, and not in what :meth:`describe` found: the core holds
        the two against each
        other whenever a candidate is built. None where a backend cannot count: then what it
        describes is believed.
        """
        return None

    def runner(
        self, batches: Sequence[Batch]
    ) -> Callable[[Candidate], Iterator[tuple[np.ndarray, ...]]]:
        """Return a function that runs candidates of this session over the same few batches, as
        :meth:`Candidate.run` would.

        A backend may run the float model once here and let each candidate start where it first
        differs from it.
        """
        return lambda candidate: (candidate.run(batch) for batch in batches)

    def further(self, batches: Sequence[Batch]) -> Session:
        """Return a session of the same model that has looked at these batches too; itself where
        they change nothing.

        Args:
            batches: Some that differ from the example in shapes or plain values: they may take
                other branches of the model.
        """
        return self

    def facts(self) -> tuple[str, ...]:
        """Return what else ``octavo inspect`` should show of this model (a memory plan, a device),
        one line each."""
        return ()

    # Optional primitives: declared in ``Capability.features``.

    def rescale(self, factors: Mapping[str, Factors]) -> Session:
        """Return a session whose model computes the same function with other channels (feature
        ``rescale``).

        Args:
            factors: Name of a ``rescale`` group -> positive float32 factors, shape (channels,): the
                group's value is divided by them per channel, and the members' weights are
                multiplied by them. Or a :class:`~.channels.ChannelMap`, which may also shift and
                rotate where the group takes it (features ``rescale:shift``, ``rescale:rotation``);
                members without a bias gain one from a shift.

        Returns:
            A new session that shares every other tensor with this one; ops and values keep their
            names.

        Raises:
            SchemeError: If a group is unknown, or cannot take its map
                (:func:`~.channels.channel_maps` checks).
        """
        raise SchemeError(
            f"{type(self).__name__} does not offer rescale; leave transforms out of the "
            "configuration"
        )

    def gradients(
        self,
        batches: Iterable[Batch],
        tensors: Iterable[str],
        sink: Sink,
        *,
        seed: int = 0,
        along: Mapping[str, Array] | None = None,
    ) -> int:
        """Hand gradients with respect to weights to ``sink``, batch by batch, one weight at a time
        (feature ``gradients``).

        No labels are needed. The loss is the distance D of the outputs to the float outputs: |y -
        y0|^2 / (2 |y0 - mean y0|^2), or the mean Kullback-Leibler divergence of a token where the
        model predicts tokens. At the float weights its gradient is 0
        and its Hessian H says what a change of the weights costs: D = d^T H d / 2.

        Args:
            batches: Batches; each is run once.
            tensors: Names of weights, as :meth:`tensor` takes them.
            sink: Takes (name, float32 array of the weight's shape); it must not keep or change it.
            seed: Of the draws.
            along: Tensor -> direction v of its shape: (H v) is handed over, for all directions
                together. None: draws g with E[g g^T] = H are, the gradient at labels that are
                sampled from the model's own prediction.

        Returns:
            The number of batches.
        """
        raise SchemeError(
            f"{type(self).__name__} does not offer gradients; choose another sensitivity"
        )

    def training(self) -> Training:
        """Return what learns from data (a feature of :data:`~.training.TRAINING` says which of it
        there is).

        Raises:
            SchemeError: If this backend offers none of it.
        """
        raise SchemeError(
            f"{type(self).__name__} offers no training; choose an algorithm that needs no "
            "gradients "
            "(gptq, autoround), or a backend whose features name it (torch)"
        )

    def export(self, format: str, path: Path) -> None:
        """Write the float model in an interchange format (feature ``export:<format>``)."""
        raise SchemeError(f"{type(self).__name__} does not export {format!r}")


class Adapter(ABC):
    """A backend: opens models and loads saved candidates. Built from its card's config."""

    def __init__(self, config: PartConfig) -> None:
        self.config = config

    @abstractmethod
    def open(self, source: Any, example: Batch | None = None) -> Session:
        """Open a native model or a path.

        Args:
            source: What the card claims.
            example: One batch, for shapes; None where there is no data.

        Raises:
            ModelError: If it cannot be read; NonFiniteWeight names the tensor.
        """

    @abstractmethod
    def load(self, folder: Path, model: Any = None) -> Candidate:
        """Read what ``Candidate.save`` wrote.

        Args:
            folder: The folder; or the file, for backends whose saved form is a single one.
            model: A float model (or a factory of one) for backends whose files do not hold the
                architecture.
        """

    def capability(self) -> Capability:
        """Return what the configured device executes, whatever the model; a session may know less
        of its own.

        Raises:
            SchemeError: If this backend can say so for a model only.
        """
        raise SchemeError(f"{type(self).__name__} answers for a model only; give one")

    def sample(self, kind: str) -> tuple[Any, Batch] | None:
        """Return a model of one op of a type, of the size that models have, and a batch for it;
        None where there is none.

        It is timed, some milliseconds a scheme, when somebody asks how fast schemes are.
        """
        return None


@dataclass(frozen=True)
class Opened:
    """A session with what the core needs over and over: computed once."""

    name: str
    session: Session
    view: ModelView
    capability: Capability
    notes: tuple[str, ...] = field(default=())
    settings: PartConfig | None = None
