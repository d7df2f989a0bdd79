"""What a backend can really carry out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from octavo.core.errors import SchemeError, nearest

from .graph import ModelView, Op
from .scheme import FLOAT, OpScheme
from .sizes import repairs_of, without_repairs

Realization = Literal["kernel", "simulated", "codes"]
"""How an op is carried out. ``codes`` is said of ops that compute nothing and move the codes of
their input as they are."""


LOW_RANK_REPAIR = "low_rank_repair"
"""The feature of a backend that carries out a low-rank repair beside a weight's codes."""


@dataclass(frozen=True, slots=True)
class Offer:
    """One scheme that a backend can carry out for an op type.

    Attributes:
        scheme: With the default algorithm and calibrator; both may be varied freely.
        realization: ``kernel`` only if low precision really runs: integer (or fp8, bf16) products
            for static, dynamic and cast schemes; for ``weight_only``, whose arithmetic is float by
            definition, weights that stay packed in memory and are decoded inside the operator.
            ``simulated`` if values are rounded and everything else stays float; such offers are
            left out unless the user asks for them.
        refuses: Returns why an op cannot take this offer, or an empty string.
        narrowed: Returns why this device carries the scheme out with a weight of reduced range (see
            :class:`~.scheme.QuantSpec`), or an empty string where it keeps the whole range. The
            scheme and its recipes stay the same on every machine; the ledger says what runs on this
            one.
        slower: Why it is slower than float wherever this backend runs, with the figure; empty where
            that is not known. A table's entry and never a clock's, so that it is the same in every
            process.
        repairs: Whether a low-rank repair may stand beside the weight's codes.
        scales: Further formats of the weight's scales that it takes (None for float32), each as
            fast as the scheme's own. Spaces have them where a rule or a scheme by name says
            ``scale_dtype``; a recipe may always name them.
    """

    scheme: OpScheme
    realization: Realization = "kernel"
    refuses: Callable[[Op], str] | None = None
    narrowed: Callable[[], str] | None = None
    slower: str = ""
    repairs: bool = False
    scales: tuple[str | None, ...] = ()

    @property
    def schemes(self) -> tuple[OpScheme, ...]:
        """The scheme, and the same with each further format of its weight's scales."""
        weight = self.scheme.weight
        if weight is None:
            return (self.scheme,)
        made = [self.scheme]
        for name in self.scales:
            changed = weight.model_copy(update={"scale_dtype": name})
            made.append(self.scheme.variant(weight=changed))
        return tuple(dict.fromkeys(made))

    def takes(self, scheme: OpScheme) -> bool:
        """Return whether its kernel takes a scheme."""
        own, weight = self.scheme.weight, scheme.weight
        if own is not None and weight is not None and weight.scale_dtype in self.scales:
            weight = weight.model_copy(update={"scale_dtype": own.scale_dtype})
            scheme = scheme.model_copy(update={"weight": weight})
        return _kernel_of(self.scheme) == _kernel_of(scheme)

    def refusal_of(self, op: Op) -> str:
        """Return why ``op`` cannot take this offer; empty where it can."""
        return self.refuses(op) if self.refuses else ""


@dataclass(frozen=True)
class Capability:
    """Per op type, the schemes that a backend executes on a device, best first; and its optional
    primitives.

    Attributes:
        backend: The adapter's name.
        device: ``cpu``, ``cuda:0``, ...
        offers: Op type -> offers, in the order in which they should be tried (fastest and smallest
            first).
        features: Optional primitives of a session that are there: ``rescale`` (and
            ``rescale:shift``, ``rescale:rotation``), ``gradients``, ``export:onnx``,
            ``low_rank_repair`` (which ops take one is said by their offers); and what its
            ``training()`` returns can do: ``block_reconstruction``, ``distillation``, ``training``
            (quantization-aware), ``low_rank`` (trainable updates over a quantized base).
        versions: What it was established on (framework versions, processor features).
    """

    backend: str
    device: str = "cpu"
    offers: Mapping[str, tuple[Offer, ...]] = field(default_factory=dict)
    features: frozenset[str] = frozenset()
    versions: Mapping[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        count = sum(len(offers) for offers in self.offers.values())
        types = f"{count} offers for {len(self.offers)} op types"
        return f"Capability({self.backend} on {self.device}: {types})"

    def for_op(
        self, op: Op, *, simulated: bool = False, scales: bool = False
    ) -> tuple[OpScheme, ...]:
        """Return the schemes that ``op`` may take, float last.

        Args:
            op: The op.
            simulated: Those that are only simulated, too.
            scales: Each with every format of scales that its kernel takes.
        """
        if op.out_of_reach:
            return (FLOAT,)
        found: list[OpScheme] = []
        for offer in self.offers.get(op.type, ()):
            is_wanted = simulated or offer.realization == "kernel"
            if is_wanted and not offer.refusal_of(op):
                found += offer.schemes if scales else (offer.scheme,)
        return (*dict.fromkeys(found), FLOAT)

    def slower(self, kind: str, scheme: OpScheme) -> str:
        """Return why a scheme is known to be slower than float for an op type; empty where that is
        not known."""
        first = next(self._offers_of(kind, scheme), None)
        return first.slower if first is not None else ""

    def realization(self, op: Op, scheme: OpScheme) -> Realization:
        """Return how ``scheme`` is carried out for ``op``.

        Raises:
            SchemeError: If it cannot be carried out; the message says what can.
        """
        if scheme.is_float:
            return "kernel"
        reason = op.out_of_reach
        if not reason:
            for offer in self._offers_of(op.type, scheme):
                reason = offer.refusal_of(op) or _no_repair(offer, scheme)
                if not reason:
                    return offer.realization
        offered = "; ".join(str(s) for s in self.for_op(op, simulated=True))
        why = f": {reason}" if reason else ""
        raise SchemeError(
            f"{self.backend} on {self.device} cannot carry out [{scheme}] for op {op.name!r} "
            f"({op.type}){why}. It can: {offered}"
        )

    def refuse_others(self, view: ModelView, schemes: Mapping[str, OpScheme]) -> None:
        """Refuse what cannot be carried out on a model.

        Args:
            view: The model.
            schemes: Op name -> what it is to become.

        Raises:
            SchemeError: If the model has no such op, or a scheme is not offered for one.
        """
        for name, scheme in schemes.items():
            op = view.by_name.get(name)
            if op is None:
                raise SchemeError(
                    f"this model has no op called {name!r}{nearest(name, view.by_name)}"
                )
            self.realization(op, scheme)

    def repairable(self, op: Op, scheme: OpScheme) -> tuple[OpScheme, str]:
        """Return a scheme without the low-rank repairs that an op cannot take, and why.

        Returns:
            ``scheme`` itself and an empty string where there are none, or where it takes them.
        """
        if not repairs_of(scheme):
            return scheme, ""
        offers = [o for o in self._offers_of(op.type, scheme) if not o.refusal_of(op)]
        if any(offer.repairs for offer in offers):
            return scheme, ""
        reason = f"{self.backend} has no low-rank repair for a {scheme.mode} {op.type}"
        return without_repairs(scheme), reason

    def carried(self, op: Op, scheme: OpScheme) -> tuple[OpScheme, str]:
        """Return the scheme that this device carries out for ``scheme``, and why it is another one.

        Returns:
            ``scheme`` itself and an empty string; or the same with a weight of reduced range, and
            the reason.
        """
        if scheme.weight is None or scheme.weight.reduce_range:
            return scheme, ""
        for offer in self._offers_of(op.type, scheme):
            reason = offer.narrowed() if offer.narrowed else ""
            if reason:
                return scheme.variant(weight=scheme.weight.reduced()), reason
        return scheme, ""

    def _offers_of(self, kind: str, scheme: OpScheme) -> Iterator[Offer]:
        """Yield the offers whose kernel takes a scheme."""
        return (offer for offer in self.offers.get(kind, ()) if offer.takes(scheme))


def _no_repair(offer: Offer, scheme: OpScheme) -> str:
    """Return why an offer cannot take a scheme's repair; empty where it has none or can."""
    if offer.repairs or not repairs_of(scheme):
        return ""
    return "no low-rank repair goes with it here: leave low_rank out for this op"


def _kernel_of(scheme: OpScheme) -> tuple[object, ...]:
    """Return what decides whether a kernel takes a scheme.

    It asks for no algorithm and no calibrator, and takes codes of a reduced range as it takes those
    of the whole one.
    """
    weight = scheme.weight.whole() if scheme.weight else None
    return (scheme.mode, weight, scheme.input, scheme.output)
