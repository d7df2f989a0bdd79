"""GPTQ: round column by column and let later columns make up for the error."""

from __future__ import annotations

from typing import Any, Literal

from array_api_compat import array_namespace

from octavo.core.contract.algorithm import WeightAlgorithm, WeightConfig, WeightContext
from octavo.core.errors import SchemeError
from octavo.core.numerics.affine import Array, QuantParams
from octavo.core.numerics.codec import encode
from octavo.core.numerics.scales import (
    FixedSteps,
    has_movable_scales,
    shares_scales,
)
from octavo.core.numerics.tensor import QuantizedTensor
from octavo.core.values.scheme import QuantSpec
from octavo.core.values.sizes import is_grouped

from .learned import best_rows
from .search import given_grid, own_grid, power_cost, searched_grid
from .sweep import ChooseGrid, Sweep


class GptqConfig(WeightConfig):
    """Settings of GPTQ.

    Attributes:
        damping: Share of the mean diagonal that is added to the Gram matrix's diagonal.
        act_order: Round the columns with the largest inputs first; groups then keep the scales of
            the original weight.
        static_groups: Choose every group's scale from the original weight instead of the weight as
            already corrected.
        clip: ``mse`` searches a smaller range for each scale, weighted by the Gram matrix's
            diagonal; ``none`` takes the whole range.
    """

    kind: Literal["gptq"] = "gptq"
    damping: float = 0.01
    act_order: bool = False
    static_groups: bool = False
    clip: Literal["none", "mse"] = "none"


class Gptq(WeightAlgorithm):
    """Minimises tr((W - W_q) G (W - W_q)^T) greedily, one column at a time.

    Paper: Frantar et al. 2023, "GPTQ", algorithm 1, in the equivalent form of Chee et al. 2023,
    "QuIP", theorem 6 (LDLQ): with G = (U + I) D (U + I)^T, U strictly upper, column j is rounded to
    Q(w_j + (W - W_q)_{<j} U_{<j,j}). That takes one Cholesky factorisation and no inverse.

    Needs the Gram matrix. Cost: features^3 / 3 multiply-adds for the factor, rows x features^2 / 2
    for the corrections.

    After another algorithm (``awq``, ``hqq``) it rounds on the grid that this one chose, and keeps
    the rows that this one rounded better.
    """

    config: GptqConfig

    def quantize(
        self, matrix: Array, spec: QuantSpec, context: WeightContext
    ) -> QuantizedTensor:
        """Quantize to any dtype, per tensor, channel or group."""
        gram = context.require_gram("gptq")
        return self.rounded(matrix, spec, context, gram)

    def rounded(
        self,
        matrix: Array,
        spec: QuantSpec,
        context: WeightContext,
        gram: Array,
        drift: Array | None = None,
    ) -> QuantizedTensor:
        """Return the codes of one sweep.

        Args:
            matrix: The weight, shape (rows, features).
            spec: No blocks.
            context: May prescribe a grid, or hold a start.
            gram: G, shape (features, features).
            drift: (X - X')^T X' of inputs X that have become X', for GPTAQ; None where they are the
                same.
        """
        if spec.granularity.startswith("block:"):
            raise SchemeError(
                f"{self.config.kind} rounds column by column and cannot share a scale over rows "
                f"({spec}); use group or channel granularity"
            )
        xp = array_namespace(matrix)
        weight = xp.astype(matrix, xp.float32)
        diagonal = xp.linalg.diagonal(gram)
        if 0 in matrix.shape:
            params, extra = self._grid(weight, spec, context, diagonal)
            return QuantizedTensor(encode(weight, params), params, extra)
        size = spec.group_size or matrix.shape[1]
        shared = shares_scales(spec) and has_movable_scales(spec)

        # Scales over a second level are chosen free, and taken to the nearest that may be.
        free = spec.model_copy(update={"scale_dtype": None}) if shared else spec
        fixed, extra, steps = None, None, None
        if self._chooses_first(spec) or given_grid(context) is not None:
            fixed, extra = self._grid(weight, spec, context, diagonal)
        elif shared:
            steps = FixedSteps(self._grid(weight, free, context, diagonal)[0])

        def grid(part: Array, first: int) -> QuantParams:
            importance = diagonal[first : first + part.shape[1]]
            params = self._grid(part, free, context, importance)[0]
            return steps.of_group(params, first // size) if steps else params

        if self.config.act_order:
            assert fixed is not None
            codes = self._by_size_of_inputs(weight, gram, fixed, grid, drift)
            found = QuantizedTensor(codes, fixed, extra)
        else:
            feedback, carried = self._factors(gram, drift)
            sweep = Sweep(weight, spec, feedback, fixed, drift=carried)
            codes, params = sweep.run(grid)
            if steps is not None:
                params, extra = steps.second(params)
            found = QuantizedTensor(codes, params, extra)
        # With drifted inputs the better row is not the one of less weight error.
        if context.start is None or drift is not None:
            return found
        return best_rows(found, context.start, weight, gram)

    def _by_size_of_inputs(
        self,
        weight: Array,
        gram: Array,
        params: QuantParams,
        grid: ChooseGrid,
        drift: Array | None,
    ) -> Array:
        """Return codes, rounded from the column with the largest inputs on."""
        xp = array_namespace(weight)
        ranks = xp.argsort(-xp.linalg.diagonal(gram), stable=True)
        gram = xp.take(xp.take(gram, ranks, axis=0), ranks, axis=1)
        if drift is not None:
            drift = xp.take(xp.take(drift, ranks, axis=0), ranks, axis=1)
        feedback, carried = self._factors(gram, drift)
        order = [int(i) for i in ranks]
        sweep = Sweep(
            xp.take(weight, ranks, axis=1),
            params.spec,
            feedback,
            params,
            order,
            carried,
        )
        codes, _ = sweep.run(grid)
        return xp.take(codes, xp.argsort(ranks, stable=True), axis=1)

    def _factors(self, gram: Array, drift: Array | None) -> tuple[Array, Array | None]:
        """Return what a column takes of errors, and what it takes of columns (GPTAQ)."""
        unit, _ = unit_factor(gram, self.config.damping)
        return unit, None

    def _chooses_first(self, spec: QuantSpec) -> bool:
        """Whether scales are chosen before the first column.

        Always for those that are rounded over the whole tensor, or that all columns share.
        """
        if self.config.static_groups or self.config.act_order:
            return True
        is_shared = shares_scales(spec) and not has_movable_scales(spec)
        return not is_grouped(spec) or is_shared

    def _grid(
        self, part: Array, spec: QuantSpec, context: WeightContext, importance: Array
    ) -> tuple[QuantParams, dict[str, Any] | None]:
        if self.config.clip == "none" or context.params is not None:
            return own_grid(part, spec, context)
        return searched_grid(part, spec, context, power_cost(spec, 2.0, importance))


def feedback_matrix(gram: Array, damping: float) -> Array:
    """Return U + I of :func:`unit_factor`."""
    unit, _ = unit_factor(gram, damping)
    return unit


def unit_factor(gram: Array, damping: float) -> tuple[Array, Array]:
    """Return U + I and D of G + damping * mean(diag G) * I = (U + I) D (U + I)^T.

    Returns:
        Unit upper triangular, float32, shape (features, features); positive, shape (features,).

    Raises:
        SchemeError: If the matrix is not positive definite even with ten times the damping.
    """
    xp = array_namespace(gram)
    diagonal = xp.linalg.diagonal(gram)
    mean = float(xp.mean(diagonal))
    # Inputs that never fired carry no information: a unit diagonal leaves their columns alone.
    dead = xp.astype(diagonal == 0, xp.float32) * max(mean, 1.0)
    # Beside the Gram matrix two of its size are alive at a time: for wide layers they are the peak
    # of a whole run's memory.
    for strength in (damping, 10 * damping):
        flat = xp.reshape(xp.asarray(gram, copy=True), (-1,))
        flat[:: gram.shape[0] + 1] = diagonal + (strength * mean + dead)
        # The Cholesky factor of the matrix turned round is, turned back, the upper factor.
        turned = xp.reshape(xp.flip(flat), gram.shape)
        del flat
        try:
            factor = xp.linalg.cholesky(turned)
        except Exception as error:  # each library has a type of its own
            failure = error
            continue
        finally:
            del turned
        upper = xp.flip(factor, axis=(0, 1))
        del factor
        roots = xp.linalg.diagonal(upper)
        return upper / roots[None, :], roots * roots
    raise SchemeError(
        f"the Gram matrix is not positive definite with damping {10 * damping}: {failure}; "
        "give more calibration data or more damping"
    )
