"""What a backend really executes: each scheme tried on a model of one op, through the backend
itself."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from octavo.core.contract.adapter import Session
from octavo.core.contract.candidate import Candidate, OpParameters
from octavo.core.errors import AdapterFault, said
from octavo.core.numerics.arrays import to_numpy
from octavo.core.system.log import fault, get_logger
from octavo.core.values.calls import Batch
from octavo.core.values.capability import Offer
from octavo.core.values.graph import Op
from octavo.core.values.ledger import Applied
from octavo.core.values.recipe import Recipe

from .judging import Judge
from .one_op import one_op_parameters

logger = get_logger("authoring")

ProbeFn = Callable[[str], tuple[Session, Batch] | None]
"""Op type -> a model with one op of that type and a batch for it; None where there is none."""

WitnessFn = Callable[[Candidate, str], str]
"""Takes a candidate and an op's name; returns an empty string if the runtime's own execution graph
or profile shows the low-precision kernel, else why not."""

_LARGEST_ERROR = {16: 0.02, 8: 0.1, 4: 0.3, 2: 1.0}
"""Bits of the narrowest tensor -> how far an answer may be from float's, as a share of its norm.

Two to three times what rounding to nearest costs on normal numbers: a kernel that reads a scale or
a zero point wrongly is off by more.
"""

_TRYING: ContextVar[bool] = ContextVar("octavo_trying", default=False)
"""True while a scheme is tried: a backend that asks meanwhile what it offers is told the claims."""

_ANSWERS: dict[Hashable, tuple[Offer, ...]] = {}
"""What was found in this process, by all that was asked."""


def established(
    offers: Mapping[str, Sequence[Offer]],
    probe: ProbeFn,
    witness: WitnessFn,
) -> dict[str, tuple[Offer, ...]]:
    """Return what of these offers is true on this machine, each tried once in this process.

    For each scheme a model of one op is described and quantized by the backend's own ``describe``
    and ``carry_out``, and run. A scheme is left out if that fails, if the ledger says that
    something else was carried out, if the answer is far from float's or, where NumPy can tell, from
    what rounding gives, or if it is float's to the last bit. It is ``kernel`` if the ledger says so
    and the witness agrees, else ``simulated``. The logger ``octavo.authoring`` is told why.

    While a scheme is tried, the backend that asks what it offers is told the claims: do not keep
    what this returns, it is kept here.

    Args:
        offers: Op type -> what may be possible, best first, each with the realization that is
            claimed for it.
        probe: Gives the model of one op. An op type for which it has none is left out.
        witness: Tells what the runtime shows.

    Returns:
        Op type -> the offers that hold, in their order; types without any are left out.
    """
    if _TRYING.get():
        return {kind: tuple(claimed) for kind, claimed in offers.items()}
    found: dict[str, tuple[Offer, ...]] = {}
    for kind, of_kind in offers.items():
        if not of_kind:
            continue
        key = (kind, tuple(of_kind), _identity(probe), _identity(witness))
        if key not in _ANSWERS:
            before = _TRYING.set(True)
            try:
                _ANSWERS[key] = _established(kind, of_kind, probe, witness)
            finally:
                _TRYING.reset(before)
        if _ANSWERS[key]:
            found[kind] = _ANSWERS[key]
    return found


def _identity(function: Callable[..., Any]) -> Hashable:
    """Return what tells functions apart: partials of one function with equal arguments are one."""
    if isinstance(function, partial):
        named = tuple(sorted(function.keywords.items()))
        return (_identity(function.func), function.args, named)
    return function


def _established(
    kind: str, offers: Sequence[Offer], probe: ProbeFn, witness: WitnessFn
) -> tuple[Offer, ...]:
    tried = _Tried.of(kind, probe)
    if tried is None:
        return ()
    kept: list[Offer] = []
    why_not = ""
    for offer in offers:
        why_not, why_no_kernel = tried.ask(offer, witness)
        if why_not:
            logger.debug("%s: [%s] is not offered: %s", kind, offer.scheme, why_not)
            continue
        if why_no_kernel:
            logger.debug("%s: [%s] is simulated: %s", kind, offer.scheme, why_no_kernel)
            offer = replace(offer, realization="simulated")
        kept.append(offer)
    if not kept:
        # A runtime without a kernel looks like a backend with a fault in it: its author is told.
        logger.info("%s: none of %d schemes is offered: %s", kind, len(offers), why_not)
    return tuple(kept)


@dataclass(frozen=True)
class _Tried:
    """A model of one op, with what it answers in float."""

    session: Session
    op: Op
    batch: Batch
    expected: Sequence[np.ndarray]
    low: float
    high: float
    judge: Judge | None

    @classmethod
    def of(cls, kind: str, probe: ProbeFn) -> _Tried | None:
        """Build it; None where there is none, or none that can be used."""
        given = probe(kind)
        if given is None:
            logger.debug("%s: nothing is offered: there is no model to try it on", kind)
            return None
        session, batch = given
        ops = [o for o in session.describe().ops if o.type == kind]
        if not ops:
            what = f"the model that tries {kind!r} has no op of that type, so nothing is offered"
            fault(AdapterFault(what), "authoring")
            return None
        op = ops[0]
        expected = session.reference().run(batch)
        seen = _seen(session, op, batch)
        low, high = _extremes(seen)
        judge = _judge(session, op, seen, expected)
        return cls(session, op, batch, expected, low, high, judge)

    def ask(self, offer: Offer, witness: WitnessFn) -> tuple[str, str]:
        """Carry an offer out.

        Returns:
            Why it is not offered, and why it is no kernel; each empty where it is.
        """
        refusal = self.op.out_of_reach or offer.refusal_of(self.op)
        if refusal:
            return f"the op that tries it is refused: {refusal}", ""
        try:
            decided = self._decided(offer)
            recipe = Recipe({self.op.name: offer.scheme})
            candidate = carried_out(self.session, recipe, {self.op.name: decided})
            line = candidate.ledger.get(self.op.name)
            outputs = candidate.run(self.batch)
        # Whatever a runtime raises for what it cannot do; a fault of the backend's looks alike.
        except Exception as error:
            return said(error), ""
        why_not = _not_carried_out(line) or self._wrong(offer, outputs)
        if not why_not and self.judge is not None:
            why_not = self.judge.off(outputs[0], decided)
        if why_not or line is None:
            return why_not, ""
        if offer.realization != "kernel" or line.realization != "kernel":
            return "", line.reason or "the backend says so"
        return "", witness(candidate, self.op.name)

    def _decided(self, offer: Offer) -> OpParameters:
        is_narrowed = offer.narrowed is not None and bool(offer.narrowed())
        return one_op_parameters(
            self.op,
            offer.scheme,
            self.session.tensor,
            self.low,
            self.high,
            reduced=is_narrowed,
        )

    def _wrong(self, offer: Offer, outputs: Sequence[np.ndarray]) -> str:
        """Return what is wrong with an answer; empty where nothing is."""
        difference = 0.0
        size = 0.0
        for got, wanted in zip(outputs, self.expected, strict=True):
            if got.shape != wanted.shape:
                return f"its output has shape {got.shape}, float's {wanted.shape}"
            exact = np.asarray(wanted, np.float64)
            difference += float(np.sum((np.asarray(got, np.float64) - exact) ** 2))
            size += float(np.sum(exact**2))
        if difference == 0.0:
            return "its answer is float's to the last bit: nothing is quantized"
        error = (difference / size) ** 0.5
        largest = _LARGEST_ERROR[_bits(offer)]
        if not error <= largest:  # also where it is not a number
            return f"its answer is {error:.2g} of float's norm away, over {largest}"
        return ""


def carried_out(
    session: Session, recipe: Recipe, parameters: Mapping[str, OpParameters]
) -> Candidate:
    """Return what ``session.apply`` would, without asking what is offered: that is being found."""
    if type(session).carry_out is Session.carry_out:
        # A backend that was written before there was carry_out.
        return session.apply(recipe, parameters)
    return session.carry_out(recipe, parameters)


def _not_carried_out(line: Applied | None) -> str:
    if line is None:
        return "the ledger has no line for it"
    if not line.honoured:
        return f"the ledger says that [{line.applied}] was carried out: {line.reason}"
    return ""


def _bits(offer: Offer) -> int:
    """Return the bits of the narrowest tensor, as :data:`_LARGEST_ERROR` has them."""
    scheme = offer.scheme
    specs = (scheme.weight, scheme.input, scheme.output)
    bits = min((spec.bits for spec in specs if spec is not None), default=16)
    return max((known for known in _LARGEST_ERROR if known <= bits), default=2)


def _seen(session: Session, op: Op, batch: Batch) -> dict[str, np.ndarray]:
    """Return what an op reads and writes, by the names of the values."""
    found: dict[str, np.ndarray] = {}

    def keep(name: str, array: Any) -> None:
        found[name] = np.array(to_numpy(array))

    session.observe([batch], [*op.inputs, *op.outputs], keep)
    return found


def _extremes(seen: Mapping[str, np.ndarray]) -> tuple[float, float]:
    """Return the smallest and the largest of all floating numbers, 0 between them."""
    ends = [0.0]
    for numbers in seen.values():
        if numbers.dtype.kind == "f" and numbers.size:
            ends.extend((float(numbers.min()), float(numbers.max())))
    return min(ends), max(ends)


def _judge(
    session: Session,
    op: Op,
    seen: Mapping[str, np.ndarray],
    expected: Sequence[np.ndarray],
) -> Judge | None:
    """Return what holds answers against NumPy's; None where it cannot."""
    if len(expected) != 1:
        return None
    inputs = [np.asarray(seen[value], np.float64) for value in op.inputs]
    weight = _float64(session, op.weight.name if op.weight else None)
    return Judge.of(op, inputs, weight, _float64(session, op.bias), expected[0])


def _float64(session: Session, name: str | None) -> np.ndarray | None:
    if name is None:
        return None
    return np.asarray(to_numpy(session.tensor(name)), np.float64)
