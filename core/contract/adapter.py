"""A backend, as the core sees it: twelve methods.

An :class:`Adapter` opens sources; a :class:`Session` is one opened model; a :class:`Candidate` is
that model with a recipe carried out. Everything else is written once, over these, in the core. A
third party subclasses the three and registers a card; ``octavo.core.testing.conformance`` tells
whether the promises in the docstrings are kept.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from octavo.core.errors import PluginError, SchemeError
from octavo.core.numerics.affine import Array
from octavo.core.numerics.channels import Factors

# Where plugins have always found it.
from octavo.core.values.calls import Batch as Batch
from octavo.core.values.capability import Capability
from octavo.core.values.graph import HeldWeight, ModelView
from octavo.core.values.ledger import Applied as Applied  # likewise
from octavo.core.values.recipe import Recipe

from .candidate import Candidate as Candidate
from .candidate import OpParameters as OpParameters
from .candidate import answered
from .output_metric import OutputMetric
from .parts import PartConfig
from .revision import Revision
from .training import Training

Sink = Callable[[str, Array], None]
"""Takes (value name, array) as ``Session.observe`` meets them."""


class Session(ABC):
    """One opened model. Its source is never changed."""

    @abstractmethod
    def describe(self) -> ModelView:
        """Return the ops, values and groups.

        The same source gives the same names in any process.
        """

    @abstractmethod
    def capability(self) -> Capability:
        """Return what can be executed on this session's device, established and not assumed."""

    def outcome(self, recipe: Recipe) -> Mapping[str, str]:
        """Return op -> why it runs in float though a recipe quantizes it: its neighbours' schemes.

        Optional. Cheap, and the same for the same recipe: the search asks before it spends a trial,
        and tries the recipe without these ops. Of one op, ``Offer.refuses`` tells.
        """
        return {}

    @abstractmethod
    def observe(
        self, batches: Iterable[Batch], values: Iterable[str], sink: Sink
    ) -> int:
        """Run the float model over ``batches`` once, and hand named values to ``sink``.

        Values come as the ops see them: after batch-norm folding and fused activations.

        Args:
            batches: Batches; each is read and run exactly once.
            values: Names of values, as :meth:`describe` gives them.
            sink: Takes (value name, array) for each value of each batch, in the model's own dtype;
                it must not keep or change the array.

        Returns:
            The number of batches.
        """

    def watcher(
        self, batches: Iterable[Batch], limit: int
    ) -> Callable[[Iterable[str], Sink], int]:
        """Return a function that observes the same batches again and again, some values at a time.

        Each call does what :meth:`observe` does. A backend may keep, between two calls, what the
        rest of the model needs of each batch, and start the next call there if its values all come
        later: values that are asked for in execution order then cost one pass altogether.

        Args:
            batches: Batches that can be read again.
            limit: Bytes that it may keep.
        """
        return lambda values, sink: self.observe(batches, values, sink)

    @abstractmethod
    def tensor(self, name: str) -> Array:
        """Return a weight or bias by name, as the ops use it: batch norm folded, rescaled.

        Not to be changed.
        """

    def apply(
        self, recipe: Recipe, parameters: Mapping[str, OpParameters]
    ) -> Candidate:
        """:meth:`refuse_unoffered`, and :meth:`carry_out`."""
        self.refuse_unoffered(parameters)
        return answered(self.carry_out(recipe, parameters), parameters)

    def refuse_unoffered(self, parameters: Mapping[str, OpParameters]) -> None:
        """Raise SchemeError for what :meth:`capability` does not offer."""
        schemes = {name: given.scheme for name, given in parameters.items()}
        self.capability().refuse_others(self.describe(), schemes)

    def carry_out(
        self, recipe: Recipe, parameters: Mapping[str, OpParameters]
    ) -> Candidate:
        """Return the model with a recipe carried out; ops without parameters stay float.

        :meth:`apply` calls it for what is offered. It costs what the quantized ops cost, never a
        copy of the model, unless the runtime compiles whole graphs; what is packed from one
        :class:`~octavo.core.numerics.tensor.QuantizedTensor` object is reused while that lives.

        Args:
            recipe: Kept in the candidate.
            parameters: Op name -> all that the core decided for it.
        """
        raise PluginError(f"{type(self).__name__} must define carry_out")

    def draft(
        self, recipe: Recipe, parameters: Mapping[str, OpParameters]
    ) -> Candidate:
        """Return what :meth:`apply` returns, for a :meth:`runner` alone: saving may wait."""
        return self.apply(recipe, parameters)

    @abstractmethod
    def reference(self) -> Candidate:
        """Return the model as it was given: the baseline."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Return a content digest of structure and weights, the same in any process."""

    def census(self) -> Sequence[HeldWeight] | None:
        """Return every distinct floating weight that the model's forward uses.

        Weights have two or more dimensions. They are counted in the model's tensors, wherever they
        stand, and not in what :meth:`describe` found: the core holds the two against each other
        whenever a candidate is built.

        Returns:
            None where a backend cannot count: then what it describes is believed.
        """
        return None

    def runner(
        self, batches: Sequence[Batch]
    ) -> Callable[[Candidate], Iterator[tuple[np.ndarray, ...]]]:
        """Return a function that runs candidates of this session over the same few batches.

        It yields, batch by batch, what :meth:`Candidate.run` would return. A backend may run the
        float model once here and let each candidate start where it first differs from it.
        """
        return lambda candidate: (candidate.run(batch) for batch in batches)

    def further(self, batches: Sequence[Batch]) -> Session:
        """Return a session of the same model that has looked at these batches too.

        They differ from the example in shapes or plain values, and may take other branches of the
        model. Where they change nothing, it is this session itself.
        """
        return self

    def facts(self) -> tuple[str, ...]:
        """Return further lines of ``octavo inspect``: a memory plan, a device."""
        return ()

    # Optional primitives: declared in ``Capability.features``.

    def rescale(self, factors: Mapping[str, Factors]) -> Session:
        """Return a session whose model computes the same function with other channels.

        Feature ``rescale``.

        Args:
            factors: Name of a ``rescale`` group -> positive float32 factors, shape (channels,): the
                group's value is divided by them per channel, and the members' weights are
                multiplied by them. Or a :class:`~octavo.core.numerics.channels.ChannelMap`, which
                may also shift and rotate where the group takes it (features ``rescale:shift``,
                ``rescale:rotation``); members without a bias gain one from a shift.

        Returns:
            A new session that shares every other tensor with this one; ops and values keep their
            names.

        Raises:
            SchemeError: If a group is unknown, or cannot take its map
                (:func:`~octavo.core.numerics.channels.channel_maps` checks).
        """
        what = f"{type(self).__name__} does not offer rescale"
        raise SchemeError(f"{what}; leave transforms out of the configuration")

    def gradients(
        self,
        batches: Iterable[Batch],
        tensors: Iterable[str],
        sink: Sink,
        *,
        seed: int = 0,
        along: Mapping[str, Array] | None = None,
        metric: OutputMetric | None = None,
    ) -> int:
        """Hand gradients with respect to weights to ``sink``, batch by batch, weight by weight.

        Feature ``gradients``; ``metric`` is given where ``gradients:metric`` is one too. No
        labels are needed. The loss is the distance D of the outputs to the float outputs:
        ``metric``, or the plain one: |y - y0|^2 / (2 |y0 - mean y0|^2), or the mean
        divergence of a token where the model predicts tokens. At the float weights its gradient is
        0 and its Hessian H says what a change of the weights costs: D = d^T H d / 2.

        Args:
            batches: Batches; each is run once.
            tensors: Names of weights, as :meth:`tensor` takes them.
            sink: Takes (name, float32 array of the weight's shape); it must not keep or change it.
            seed: Of the draws.
            along: Tensor -> direction v of its shape: (H v) is handed over, for all directions
                together. None: draws g with E[g g^T] = H are, the gradient at labels that are
                sampled from the model's own prediction.
            metric: D of these batches, in their order; None for the plain one.

        Returns:
            The number of batches.

        Raises:
            SchemeError: If the backend does not offer it.
        """
        what = f"{type(self).__name__} does not offer gradients"
        raise SchemeError(f"{what}; choose another sensitivity")

    def revision(self, batches: Iterable[Batch], limit: int) -> Revision:
        """Return a model of its own whose weights may be replaced, watched over these batches.

        Feature ``revision``.

        Args:
            batches: Batches that can be read again.
            limit: Bytes that it may keep of them between two observations.

        Raises:
            SchemeError: If the backend does not offer it.
        """
        what = f"{type(self).__name__} replaces no weights of a model that it observes"
        raise SchemeError(f"{what}; use gptq in place of gptaq")

    def training(self) -> Training:
        """Return what learns from data.

        The features of :data:`~octavo.core.contract.training.TRAINING` say which of it there is.

        Raises:
            SchemeError: If this backend offers none of it.
        """
        raise SchemeError(
            f"{type(self).__name__} offers no training; choose an algorithm that needs no "
            "gradients (gptq, autoround), or a backend whose features name it (torch)"
        )

    def export(self, format: str, path: Path) -> None:
        """Write the float model in an interchange format; feature ``export:<format>``.

        Args:
            format: ``onnx``.
            path: The file.

        Raises:
            SchemeError: If the backend does not export that format.
        """
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
            ModelError: If it cannot be read.
            NonFiniteWeight: If a tensor that no op names holds NaN; the core looks at others.
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
        """Return what the configured device executes, whatever the model.

        A session may know that its own model can take less.

        Raises:
            SchemeError: If this backend can say so for a model only.
        """
        raise SchemeError(f"{type(self).__name__} answers for a model only; give one")

    def sample(self, kind: str) -> tuple[Any, Batch] | None:
        """Return a model of one op of a type, of the size that models have, and a batch for it.

        It is timed, some milliseconds a scheme, when somebody asks how fast schemes are.

        Returns:
            None where there is no such model.
        """
        return None


@dataclass(frozen=True)
class Opened:
    """A session with what the core needs over and over: computed once.

    Attributes:
        name: The backend's name.
        session: The opened model.
        view: What ``session.describe()`` returns.
        capability: What ``session.capability()`` returns.
        notes: What a reader of the result must know of this backend.
        settings: The backend's; None for the defaults.
    """

    name: str
    session: Session
    view: ModelView
    capability: Capability
    notes: tuple[str, ...] = field(default=())
    settings: PartConfig | None = None
