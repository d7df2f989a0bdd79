"""What core and backend hand each other for a recipe: decisions, and the model that has them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from octavo.core.errors import AdapterFault
from octavo.core.numerics.affine import Array, QuantParams
from octavo.core.numerics.tensor import QuantizedTensor
from octavo.core.system.log import fault
from octavo.core.values.calls import Batch
from octavo.core.values.capability import Realization
from octavo.core.values.ledger import REDUCED, Applied
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import FLOAT, OpScheme


@dataclass(frozen=True, slots=True)
class OpParameters:
    """Everything the core decided for one op; ``Session.apply`` only carries it out.

    Attributes:
        scheme: What was asked for.
        weight: The quantized weight, or None.
        inputs: For static schemes: parameters of each activation input, in the op's order; None
            where it stays float.
        outputs: Parameters of each output where the scheme or a static consumer asks for them; else
            None.
        bias: A corrected bias in float32 that replaces the model's own, or None.
        further: The quantized weights beside the first, in the order of ``Op.further``.
    """

    scheme: OpScheme
    weight: QuantizedTensor | None = None
    inputs: tuple[QuantParams | None, ...] = ()
    outputs: tuple[QuantParams | None, ...] = ()
    bias: Array | None = None
    further: tuple[QuantizedTensor, ...] = ()

    @property
    def carried(self) -> OpScheme:
        """The scheme with the range over which its weight was really quantized.

        See ``Capability.carried``.
        """
        asked = self.scheme.weight
        if self.weight is None or asked is None:
            return self.scheme
        is_reduced = self.weight.params.spec.reduce_range
        if is_reduced == asked.reduce_range:
            return self.scheme
        return self.scheme.variant(
            weight=asked.reduced() if is_reduced else asked.whole()
        )

    def line(self, realization: Realization, reason: str = "") -> Applied:
        """Return the ledger's line of an op that is carried out as it was decided.

        Args:
            realization: How the backend carries it out.
            reason: What a reader must know of it beside a reduced range, which is said here.
        """
        carried = self.carried
        reduced = REDUCED if carried != self.scheme else ""
        said = "; ".join(filter(None, (reason, reduced)))
        return Applied(self.scheme, carried, realization, said)


class Candidate(ABC):
    """A runnable model with a recipe carried out; it shares every float tensor with the original.

    It must be picklable (cloudpickle), so that trials can run in child processes and on clusters.

    Attributes:
        recipe: What was asked for.
        ledger: Op name -> what became of it, of every op that the recipe quantizes.
    """

    recipe: Recipe
    ledger: Mapping[str, Applied]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.recipe!r})"

    @property
    @abstractmethod
    def native(self) -> Any:
        """What a score function of a single-backend run is given.

        The nn.Module, or the callable session.
        """

    @abstractmethod
    def run(self, batch: Batch) -> tuple[np.ndarray, ...]:
        """Run one batch: arrays in, arrays out.

        Args:
            batch: What the model's call takes.

        Returns:
            NumPy arrays in the order of ``ModelView.outputs``.

        Raises:
            DataError: If names or shapes are not the model's; the message says expected against
                got.
        """

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the model's files, without pickle; their sum is the model's size.

        Args:
            folder: There, and empty.
        """

    def profile(self, batch: Batch, seconds: float) -> Mapping[str, float]:
        """Return the milliseconds that each op takes in a call of the real runtime.

        Optional: figures by layer are left out where a backend does not offer it. It is called at
        the end of a run, in turns with the float model's, and may make a session of its own.

        Args:
            batch: What the model's call takes.
            seconds: About how long it may take beside what comes before the first call: a call to
                warm up, then as many as fit, one at least.

        Returns:
            Op name -> what is typical of its calls (:func:`octavo.plugin.by_op`).
            Steps that the model does not have (quantizations, casts) are counted with the op that
            they serve, and all else with :data:`octavo.core.values.layers.REST`, so that the sum is
            the time of a call. Ops that cannot be told apart are left out; {} where none can.
        """
        return {}

    def bytes_by_op(self) -> Mapping[str, int]:
        """Return the bytes that each op's parameters take in the saved files, exactly.

        Optional, as :meth:`profile` is.

        Returns:
            Op name -> its codes, scales, zero points and bias; a tensor that several ops share is
            counted with the first. Tensors of no op are under
            :data:`octavo.core.values.layers.REST`. What is missing to the files' size is their
            structure. {} where that is not known.
        """
        return {}

    def decided(self) -> Mapping[str, OpParameters]:
        """Return what was decided for each op that it quantizes: training goes on from there.

        Optional, for backends that train.

        Returns:
            Op name -> what :meth:`Session.apply` was given; {} where that is not kept.
        """
        return {}

    def with_ledger(
        self, ledger: Mapping[str, Applied], recipe: Recipe | None = None
    ) -> Self:
        """Return the same model under another ledger.

        Every other attribute is shared with this one. A backend that keeps attributes elsewhere
        than in ``__dict__`` (slots) overrides it.

        Args:
            ledger: What became of each op.
            recipe: What was asked for; None keeps the recipe.
        """
        twin = object.__new__(type(self))
        vars(twin).update(vars(self))
        twin.ledger = ledger
        twin.recipe = self.recipe if recipe is None else recipe
        return twin

    def fingerprint(self) -> str:
        """Return a digest of the parameters it runs with; '' if unknown.

        By it a score function is noticed that changes the model.
        """
        return ""


def answered(candidate: Candidate, parameters: Mapping[str, OpParameters]) -> Candidate:
    """Return a candidate whose ledger has a line for every op that was to be quantized.

    An op without one was lost: the backend's author is warned, and the line says so.

    Args:
        candidate: As a backend made it.
        parameters: What was decided, by op name.
    """
    asked = {n: own.scheme for n, own in parameters.items() if not own.scheme.is_float}
    lost = [name for name in asked if name not in candidate.ledger]
    if not lost:
        return candidate
    what = f"the ledger has no line for {lost[0]!r}, which was to be quantized"
    fault(AdapterFault(f"{type(candidate).__name__}: {what}"), "quantizing")
    why = "the backend does not say what became of it"
    lines = {name: Applied(asked[name], FLOAT, "simulated", why) for name in lost}
    return candidate.with_ledger({**candidate.ledger, **lines})
