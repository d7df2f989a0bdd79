"""AWQ's clip search: the range of least output error."""

from __future__ import annotations

from typing import Literal

from array_api_compat import array_namespace

from octavo.core.contract.algorithm import WeightAlgorithm, WeightConfig, WeightContext
from octavo.core.numerics.affine import Array
from octavo.core.numerics.codec import encode
from octavo.core.numerics.tensor import QuantizedTensor
from octavo.core.values.scheme import QuantSpec

from .learned import unshrunk
from .output_grid import output_grid


class AwqConfig(WeightConfig):
    """Settings of AWQ's clip search; its scale search is the transform of the same name."""

    kind: Literal["awq"] = "awq"


class Awq(WeightAlgorithm):
    """Rounds to nearest within the shrunk range that changes the output least, for each scale.

    Paper: Lin et al. 2024, "AWQ: Activation-aware Weight Quantization", section 3 and its clip
    search: minimise ||(w - Q(w)) X||^2 over the range. The paper looks at each group alone; here
    the groups of a row take turns and each sees what the others leave, so that errors that point
    the same way are not all accepted; in the end the scales grow by what the outputs have shrunk
    (:func:`.learned.unshrunk`).

    Needs the Gram matrix. Cost: rows x features^2 multiply-adds, and 13 (asymmetric: 25) products
    rows x features x group.
    """

    def quantize(
        self, matrix: Array, spec: QuantSpec, context: WeightContext
    ) -> QuantizedTensor:
        """Quantize to any dtype and granularity."""
        gram = context.require_gram("awq")
        params, extra = output_grid(matrix, spec, context, gram)
        found = QuantizedTensor(encode(matrix, params), params, extra)
        xp = array_namespace(matrix)
        return unshrunk(found, xp.astype(matrix, xp.float32), context)
