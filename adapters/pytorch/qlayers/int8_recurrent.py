"""LSTM and GRU layers on integer kernels.

The kernels are those of torch's dynamic quantization: input and state of each step are quantized on
their own range (uint8, asymmetric, per tensor) and multiplied by int8 weights; gates and states are
float32. LSTMs that project their state run on :mod:`~.projected_lstm`.
"""

from __future__ import annotations

from typing import Any

import torch

from octavo.adapters.pytorch.kernels.layouts import forget, layout
from octavo.adapters.pytorch.kernels.operators import is_portable
from octavo.adapters.pytorch.kernels.rounding import as_float32
from octavo.adapters.pytorch.kernels.saturation import in_reach

from .differentiable import needs_gradient
from .recurrent import Outcome, States, StoredRecurrent
from .recurrent_kernels import NetworkForm, run_layers

Tensor = torch.Tensor


class Int8Recurrent(StoredRecurrent):
    """An LSTM or GRU with int8 products. In exported programs it decodes its weights instead.

    Args:
        module: The float module.
        weights: int8 codes, symmetric, per tensor or per output channel.
    """

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        for tensor in self.buffers():
            forget(tensor)

    def _run(self, x: Tensor, sizes: Tensor | None, states: States) -> Outcome:
        if needs_gradient(x, *states):
            return self._run_with_gradient(x, sizes, states)
        compiling = torch.compiler.is_compiling()
        if self._computes_in_float(compiling):
            return super()._run(x, sizes, states)
        try:
            return self._run_on_integers(x, sizes, states, compiling)
        except RuntimeError:
            # The kernels find no range in what is not finite; any other error is one.
            given = (x, *states)
            if compiling or all(map(_is_finite, given)):
                raise
            return super()._run(x, sizes, states)

    def _run_with_gradient(
        self, x: Tensor, sizes: Tensor | None, states: States
    ) -> Outcome:
        """Return the integer kernel's values, with the gradient of the decoded layer."""
        smooth, last = super()._run(x, sizes, states)
        with torch.no_grad():
            exact, own = self._run(x, sizes, states)
        y = _with_gradient(exact, smooth)
        after = []
        for value, like in zip(own, last, strict=True):
            after.append(_with_gradient(value, like))
        return y, tuple(after)

    def _computes_in_float(self, compiling: bool) -> bool:
        """Return whether no integer kernel may run.

        That is where the program must be portable, or sums saturate.
        """
        if compiling:
            return is_portable()
        stored: Any = self.weight_codes
        return not all(_in_reach(w.codes) for w in stored)

    def _run_on_integers(
        self, x: Tensor, sizes: Tensor | None, states: States, compiling: bool
    ) -> Outcome:
        stored: Any = self.weight_codes
        matrices = []
        for weight in stored:
            matrices += [weight.codes, weight.scale]
        biases = [getattr(self, name).detach() for name in self.floats]
        given = [as_float32(s.detach()) for s in states]
        form = NetworkForm(
            kind=self.kind,
            layers=self.num_layers,
            bidirectional=self.bidirectional,
            batch_first=self.batch_first,
        )
        run: Any = run_layers
        if compiling:
            run = torch.ops.octavo.int8_recurrent
        values = as_float32(x.detach())
        y, *last = run(values, sizes, given, matrices, biases, *form)
        after = tuple(s.to(self.dtype) for s in last)
        return y.to(self.dtype), after


def _with_gradient(value: Tensor, like: Tensor) -> Tensor:
    """Return a value that has the gradient of another."""
    return value + (like - like.detach())


def _is_finite(tensor: Tensor) -> bool:
    return bool(tensor.isfinite().all())


def _in_reach(codes: Tensor) -> bool:
    """Return :func:`~.saturation.in_reach`, looked up once for each weight."""
    # A list, because a layout that is false in itself would be made again.
    (answer,) = layout(codes, "reach", lambda: [in_reach(codes)])
    return bool(answer)
