"""The weights of one model, each quantized once per scheme."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from octavo.core.contract.adapter import Opened
from octavo.core.contract.algorithm import WeightConfig
from octavo.core.numerics.affine import Array
from octavo.core.numerics.tensor import QuantizedTensor, compact
from octavo.core.values.graph import Op
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import FLOAT, OpScheme

from .bias import correct_bias
from .input_features import WeightRequest
from .observing import Observation
from .paired_inputs import PairedWalk
from .probing import ProbePlan
from .rescaled import Prepared
from .squared_gradients import Gradients
from .weights import quantize_weight

if TYPE_CHECKING:
    from octavo.core.contract.plugins import PluginHost

Key = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class OpWeights:
    """What an op's scheme makes of its weights.

    Attributes:
        first: Its first weight; None where it stays float.
        further: Those beside the first, in the order of ``Op.further``.
        bias: A corrected bias in float32, or None.
    """

    first: QuantizedTensor | None = None
    further: tuple[QuantizedTensor, ...] = ()
    bias: Array | None = None


class QuantizedWeights:
    """Quantizes weights, and keeps what it made.

    Args:
        opened: The session.
        host: Builds algorithms by name.
        plan: Knows what algorithms need, and who uses a weight.
        observation: Has the calibration batches.

    Attributes:
        made: Number of weights that were quantized.
    """

    def __init__(
        self,
        opened: Opened,
        host: PluginHost,
        plan: ProbePlan,
        observation: Observation,
    ) -> None:
        self.made = 0
        self._gradients = Gradients(opened, plan, observation)
        self._observation = observation
        self._opened = opened
        self._host = host
        self._plan = plan
        self._weights: dict[Key, QuantizedTensor] = {}
        self._biases: dict[Key, Array | None] = {}

    def walk(self, recipe: Recipe, prepared: Prepared) -> PairedWalk | None:
        """Return a walk along the model for a recipe; None where no algorithm takes part in it."""
        asks = any(
            "paired_gram" in self._plan.needs_of(scheme)
            for scheme in recipe.schemes.values()
            if scheme.weight is not None
        )
        if not asks:
            return None
        return PairedWalk(self._opened, prepared.session, self._observation)

    def of(
        self,
        op: Op,
        recipe: Recipe,
        prepared: Prepared,
        walk: PairedWalk | None = None,
    ) -> OpWeights:
        """Return what a recipe makes of an op's weights.

        Args:
            op: The op.
            recipe: Says its scheme, and those of ops that share its weight.
            prepared: The state after the recipe's transforms.
            walk: What :meth:`walk` returned, with the ops before this one behind it.

        Raises:
            NonFiniteWeight: If a weight holds NaN or Inf.
            SchemeError: If an algorithm lacks what it needs.
        """
        if recipe[op.name].weight is None:
            return OpWeights()
        parts = [
            replace(op, weight=weight, bias=None, further=()) for weight in op.further
        ]
        first, bias = (None, None)
        if op.weight:
            first, bias = self._weight(op, recipe, prepared, walk)
        further = tuple(self._weight(part, recipe, prepared, walk)[0] for part in parts)
        if walk is not None:
            made = (first, *further) if op.weight else further
            for weight, quantized in zip(op.weights, made, strict=True):
                assert quantized is not None
                walk.replace(weight.name, quantized.dequantize)
        return OpWeights(first, further, bias)

    def corrects_bias(self, scheme: OpScheme) -> bool:
        """True if a scheme's algorithm moves the op's bias."""
        if scheme.weight is None:
            return False
        for choice in scheme.algorithms:
            settings = self._host.read("algorithms", choice.table())
            if isinstance(settings, WeightConfig) and settings.bias_correction:
                return True
        return False

    def _weight(
        self, op: Op, recipe: Recipe, prepared: Prepared, walk: PairedWalk | None
    ) -> tuple[QuantizedTensor, Array | None]:
        scheme = self._scheme_on_device(op, recipe)
        key = self._key(op, scheme, recipe, prepared)
        if walk is not None and "paired_gram" in self._plan.needs_of(scheme):
            key = (*key, self._before(op, recipe))
        if key not in self._weights:
            self._weights[key] = self._quantized(op, scheme, prepared, walk)
            self.made += 1
        quantized = self._weights[key]
        if not (self.corrects_bias(scheme) and op.bias):
            return quantized, None
        at = (op.name, *key)
        if at not in self._biases:
            self._biases[at] = self._corrected(op, quantized, prepared)
        return quantized, self._biases[at]

    def _before(self, op: Op, recipe: Recipe) -> Key:
        """Return the schemes of all ops before one: what reaches it depends on them."""
        schemes = []
        for other in self._opened.view.ops:
            if other.name == op.name:
                break
            if other.name in recipe.schemes and not recipe[other.name].is_float:
                schemes.append((other.name, recipe[other.name]))
        return (tuple(schemes), recipe.transforms)

    def _scheme_on_device(self, op: Op, recipe: Recipe) -> OpScheme:
        """Return the scheme that the device carries out for an op.

        Ops that share a weight and its spec share its range too.
        """
        scheme = recipe[op.name]
        assert op.weight is not None
        assert scheme.weight is not None
        for user in self._plan.users(op.weight):
            other = recipe[user.name] if user.name in recipe.schemes else FLOAT
            if other.weight is None or other.weight.whole() != scheme.weight.whole():
                continue
            carried, _ = self._opened.capability.carried(user, other)
            if carried.weight is not None and carried.weight.reduce_range:
                return scheme.variant(weight=scheme.weight.reduced())
        return scheme

    def _key(self, op: Op, scheme: OpScheme, recipe: Recipe, prepared: Prepared) -> Key:
        assert op.weight is not None
        # A weight that no transform touches is the original's, quantized once for all of them.
        touched = any(user.name in prepared.ops for user in self._plan.users(op.weight))
        transforms = recipe.transforms if touched else ()
        return (
            op.weight.name,
            op.weight.channel_axis,
            scheme.weight,
            scheme.algorithms,
            transforms,
        )

    def _quantized(
        self,
        op: Op,
        scheme: OpScheme,
        prepared: Prepared,
        walk: PairedWalk | None,
    ) -> QuantizedTensor:
        assert op.weight is not None
        needs = self._plan.needs_of(scheme)
        squares = None
        if "gradient_square" in needs:
            squares = self._gradients.squares(op, prepared.session)
        paired = None
        if walk is not None and "paired_gram" in needs:
            paired = walk.moments(op)
        request = WeightRequest(
            op,
            self._plan.users(op.weight),
            scheme,
            needs,
            prepared.seen_by,
            squares,
            paired,
        )
        made = quantize_weight(
            request, prepared.session.tensor(op.weight.name), self._host
        )
        # Where the codes are a model's own storage they are kept in their bits; integer kernels
        # take them in bytes.
        return compact(made) if scheme.mode == "weight_only" else made

    def _corrected(
        self, op: Op, quantized: QuantizedTensor, prepared: Prepared
    ) -> Array | None:
        assert op.weight is not None
        assert op.bias is not None
        weight = prepared.session.tensor(op.weight.name)
        bias = prepared.session.tensor(op.bias)
        seen = prepared.seen_by(op.name, op.inputs[0])
        return correct_bias(op, weight, bias, quantized, seen)
