"""LSTM, GRU and RNN: a loop over time, whole batches at a time; the input products of all steps are one BLAS call."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from .elementwise import (
    elu,
    hard_sigmoid,
    leaky_relu,
    relu,
    sigmoid,
    softplus,
    softsign,
    thresholded_relu,
)
from .registry import Build, Kernel, compiled

_PLAIN: dict[str, Any] = {
    "sigmoid": sigmoid,
    "tanh": np.tanh,
    "relu": relu,
    "softplus": softplus,
    "softsign": softsign,
}
_WITH: dict[str, Any] = {
    "leakyrelu": lambda x, a, b: leaky_relu(x, alpha=a),
    "thresholdedrelu": lambda x, a, b: thresholded_relu(x, alpha=a),
    "elu": lambda x, a, b: elu(x, alpha=a),
    "hardsigmoid": lambda x, a, b: hard_sigmoid(x, alpha=a, beta=b),
    "affine": lambda x, a, b: x * x.dtype.type(a) + x.dtype.type(b),
    "scaledtanh": lambda x, a, b: x.dtype.type(a) * np.tanh(x * x.dtype.type(b)),
}
_ALPHA = {
    "leakyrelu": 0.01,
    "thresholdedrelu": 1.0,
    "elu": 1.0,
    "hardsigmoid": 0.2,
    "affine": 1.0,
    "scaledtanh": 1.0,
}
_BETA = {"hardsigmoid": 0.5, "affine": 0.0, "scaledtanh": 1.0}
Activation = Callable[[np.ndarray], np.ndarray]


def _activations(build: Build, default: tuple[str, ...], directions: int) -> list[list[Activation]]:
    names = [n.lower() for n in build.get("activations", default * directions)]
    alphas, betas = list(build.get("activation_alpha", ())), list(build.get("activation_beta", ()))
    found: list[Activation] = []
    for name in names:
        if name in _PLAIN:
            found.append(_PLAIN[name])
            continue
        # Alphas and betas are listed for those activations that take one, in order.
        a = alphas.pop(0) if alphas else _ALPHA[name]
        b = (betas.pop(0) if betas else _BETA[name]) if name in _BETA else 0.0
        found.append(partial(_WITH[name], a=a, b=b))
    each = len(default)
    return [found[i * each : (i + 1) * each] for i in range(directions)]


Cell = Callable[[np.ndarray, tuple[np.ndarray, ...]], tuple[np.ndarray, ...]]
"""(input product of one step, states) -> new states; the first state is the hidden output."""


def _sweep(
    gates: np.ndarray,
    states: tuple[np.ndarray, ...],
    cell: Cell,
    lengths: np.ndarray | None,
    backwards: bool,
) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """Run a cell over time (steps, batch, gates); steps beyond a sequence's length leave its states and write zero."""
    steps, batch = gates.shape[:2]
    outputs = np.zeros((steps, batch, states[0].shape[-1]), gates.dtype)
    rows = np.arange(batch)
    for i in range(steps):
        if lengths is None:
            t = steps - 1 - i if backwards else i
            states = cell(gates[t], states)
            outputs[t] = states[0]
        else:
            # Each sequence is walked from its own end.
            at = np.where(i < lengths, lengths - 1 - i, i) if backwards else np.full(batch, i)
            live = (i < lengths)[:, None]
            new = cell(gates[at, rows], states)
            states = tuple(np.where(live, n, s) for n, s in zip(new, states, strict=True))
            outputs[at, rows] = np.where(live, new[0], 0)
    return outputs, states


def _recurrent(
    build: Build,
    gate_count: int,
    default: tuple[str, ...],
    make: Callable[..., Cell],
    state_count: int,
) -> Kernel:
    hidden = build.get("hidden_size", 0)
    direction = build.get("direction", "forward")
    batch_first = build.get("layout", 0)
    directions = 2 if direction == "bidirectional" else 1
    activations = _activations(build, default, directions)

    def run(
        x: Any,
        w: Any,
        r: Any,
        b: Any = None,
        lengths: Any = None,
        h: Any = None,
        c: Any = None,
        p: Any = None,
    ) -> Any:
        size = hidden or r.shape[-1]
        if batch_first:
            x = x.swapaxes(0, 1)
            h, c = (None if s is None else s.swapaxes(0, 1) for s in (h, c))
        steps, batch = x.shape[:2]
        if lengths is not None and (lengths == steps).all():
            lengths = None
        outputs, finals = [], []
        for d in range(directions):
            bias = np.zeros(2 * gate_count * size, x.dtype) if b is None else b[d]
            gates = (x.reshape(steps * batch, -1) @ w[d].T).reshape(steps, batch, -1)
            starts = [
                np.zeros((batch, size), x.dtype) if s is None else s[d]
                for s in (h, c)[:state_count]
            ]
            cell = make(r[d], bias, None if p is None else p[d], activations[d], size, build)
            backwards = direction == "reverse" or d == 1
            y, states = _sweep(gates, tuple(starts), cell, lengths, backwards)
            outputs.append(y)
            finals.append(states)
        y = np.stack(outputs, axis=1)  # steps, directions, batch, hidden
        last = [np.stack([f[i] for f in finals]) for i in range(state_count)]
        if batch_first:
            y = y.transpose(2, 0, 1, 3)
            last = [s.swapaxes(0, 1) for s in last]
        return y, *last

    return run


def _clipped(build: Build) -> Activation:
    limit = build.get("clip", None)
    return (
        (lambda x: x)
        if limit is None
        else (lambda x: np.clip(x, -x.dtype.type(limit), x.dtype.type(limit)))
    )


def _rnn_cell(
    r: np.ndarray, b: np.ndarray, p: Any, f: list[Activation], n: int, build: Build
) -> Cell:
    bias, clip, transposed = b[:n] + b[n:], _clipped(build), r.T
    return lambda g, s: (f[0](clip(g + s[0] @ transposed + bias)),)


def _gru_cell(
    r: np.ndarray, b: np.ndarray, p: Any, f: list[Activation], n: int, build: Build
) -> Cell:
    clip = _clipped(build)
    both, candidate = np.ascontiguousarray(r[: 2 * n].T), np.ascontiguousarray(r[2 * n :].T)
    w_bias, r_bias = b[: 3 * n], b[3 * n :]
    gate_bias = w_bias[: 2 * n] + r_bias[: 2 * n]
    after = build.get("linear_before_reset", 0)

    def cell(g: np.ndarray, s: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        (h,) = s
        zr = f[0](clip(g[:, : 2 * n] + h @ both + gate_bias))
        z, reset = zr[:, :n], zr[:, n:]
        inner = (
            reset * (h @ candidate + r_bias[2 * n :])
            if after
            else (reset * h) @ candidate + r_bias[2 * n :]
        )
        new = f[1](clip(g[:, 2 * n :] + inner + w_bias[2 * n :]))
        return ((1 - z) * new + z * h,)

    return cell


def _lstm_cell(
    r: np.ndarray, b: np.ndarray, p: Any, f: list[Activation], n: int, build: Build
) -> Cell:
    clip, transposed, bias = _clipped(build), np.ascontiguousarray(r.T), b[: 4 * n] + b[4 * n :]
    pi, po, pf = (np.zeros(n, r.dtype),) * 3 if p is None else (p[:n], p[n : 2 * n], p[2 * n :])
    coupled = build.get("input_forget", 0)

    def cell(g: np.ndarray, s: tuple[np.ndarray, ...]) -> tuple[np.ndarray, ...]:
        h, c = s
        y = g + h @ transposed + bias  # gates i, o, f, c
        i = f[0](clip(y[:, :n] + pi * c))
        forget = 1 - i if coupled else f[0](clip(y[:, 2 * n : 3 * n] + pf * c))
        new = forget * c + i * f[1](clip(y[:, 3 * n :]))
        o = f[0](clip(y[:, n : 2 * n] + po * new))
        return o * f[2](new), new

    return cell


@compiled("RNN")
def rnn(build: Build) -> Kernel:
    """Elman's network: outputs of all steps, the last one."""
    return _recurrent(build, 1, ("Tanh",), _rnn_cell, 1)


@compiled("GRU")
def gru(build: Build) -> Kernel:
    """Gated recurrent unit, with either place of the reset."""
    return _recurrent(build, 3, ("Sigmoid", "Tanh"), _gru_cell, 1)


@compiled("LSTM")
def lstm(build: Build) -> Kernel:
    """Long short-term memory, with peepholes and coupled gates; outputs of all steps, last hidden state, last cell."""
    return _recurrent(build, 4, ("Sigmoid", "Tanh", "Tanh"), _lstm_cell, 2)
