"""The backend: integer arithmetic on chains, in about a hundred and fifty lines."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from octavo.plugin import (
    Adapter,
    Applied,
    Batch,
    Candidate,
    Capability,
    InputInfo,
    ModelView,
    Offer,
    Op,
    OpParameters,
    OpScheme,
    QuantParams,
    QuantSpec,
    Recipe,
    Session,
    Sink,
    Weight,
    affine_params,
    feed,
    quantize,
    read_recipe,
    write_recipe,
)

from .model import Chain

_X = QuantSpec(dtype="uint8", symmetric=False)
_W = (QuantSpec(dtype="int8", granularity="channel"), QuantSpec(dtype="int8"))
_OFFERS = tuple(
    Offer(OpScheme(mode=mode, weight=w, input=_X))
    for mode in ("static", "dynamic")
    for w in _W
)


class TinyCandidate(Candidate):
    def __init__(
        self,
        chain: Chain,
        recipe: Recipe,
        layers: Mapping[int, tuple[str, np.ndarray, np.ndarray, np.ndarray | None]],
    ) -> None:
        self.chain, self.recipe, self.layers = chain, recipe, dict(layers)
        self.ledger = {name: Applied(recipe[name], recipe[name]) for name in recipe}

    @property
    def native(self) -> Any:
        return self

    def __call__(self, *args: Any, **named: Any) -> np.ndarray:
        return self.run(named or (args[0] if isinstance(args[0], Mapping) else args))[0]

    def run(self, batch: Batch) -> tuple[np.ndarray, ...]:
        x = feed(batch, (_input(self.chain),))["x"]
        for i, (w, b) in enumerate(
            zip(self.chain.weights, self.chain.biases, strict=True)
        ):
            x = (x @ w.T if i not in self.layers else self._product(x, i)) + b
            if i + 1 < len(self.chain.weights):
                x = np.maximum(x, 0)
        return (x.astype(np.float32),)

    def fingerprint(self) -> str:
        return hashlib.sha256(
            b"".join(a.tobytes() for a in (*self.chain.weights, *self.chain.biases))
        ).hexdigest()

    def _product(self, x: np.ndarray, i: int) -> np.ndarray:
        _, codes, scale, known = self.layers[i]
        params = (
            affine_params(x.min(), x.max(), _X)
            if known is None
            else QuantParams(known[0], known[1].astype(np.int32), _X)
        )
        q = quantize(x, params) - params.zero_point
        return (q @ codes.T.astype(np.int32)).astype(np.float32) * (
            params.scale * scale
        )

    def save(self, folder: Path) -> None:
        arrays: dict[str, np.ndarray] = {}
        for i, (w, b) in enumerate(
            zip(self.chain.weights, self.chain.biases, strict=True)
        ):
            arrays[f"b{i}"] = b
            if i in self.layers:
                _, codes, scale, known = self.layers[i]
                arrays |= {f"q{i}": codes, f"s{i}": np.atleast_1d(scale)} | (
                    {f"k{i}": known} if known is not None else {}
                )
            else:
                arrays[f"w{i}"] = w
        np.savez(folder / "chain.npz", **arrays)
        write_recipe(folder, self)


def _input(chain: Chain) -> InputInfo:
    return InputInfo("x", (None, chain.weights[0].shape[1]))


class TinySession(Session):
    def __init__(self, chain: Chain) -> None:
        self.chain = chain

    def describe(self) -> ModelView:
        last = len(self.chain.weights) - 1
        ops = tuple(
            Op(
                f"layer.{i}",
                "linear",
                (f"h{i}",),
                (f"h{i + 1}" if i < last else "y",),
                Weight(f"layer.{i}.weight", w.shape),
                f"layer.{i}.bias",
                w.size,
            )
            for i, w in enumerate(self.chain.weights)
        )
        return ModelView(
            ops,
            inputs=(_input(self.chain),),
            outputs=("y",),
        )

    def capability(self) -> Capability:
        return Capability("tiny", offers={"linear": _OFFERS})

    def observe(
        self, batches: Iterable[Batch], values: Iterable[str], sink: Sink
    ) -> int:
        wanted, count = set(values), 0
        for batch in batches:
            x = feed(batch, (_input(self.chain),))["x"]
            for i, (w, b) in enumerate(
                zip(self.chain.weights, self.chain.biases, strict=True)
            ):
                if f"h{i}" in wanted:
                    sink(f"h{i}", x)
                x = np.maximum(x @ w.T + b, 0)
            count += 1
        return count

    def tensor(self, name: str) -> np.ndarray:
        _, index, kind = name.split(".")
        return (self.chain.weights if kind == "weight" else self.chain.biases)[
            int(index)
        ]

    def carry_out(
        self, recipe: Recipe, parameters: Mapping[str, OpParameters]
    ) -> Candidate:
        layers, biases = {}, list(self.chain.biases)
        for name, p in parameters.items():
            assert p.weight is not None
            x = p.inputs[0] if p.inputs else None
            known = None if x is None else np.array([x.scale, x.zero_point], np.float32)
            i = int(name.split(".")[1])
            layers[i] = (p.scheme.mode, p.weight.codes, p.weight.params.scale, known)
            if p.bias is not None:
                biases[i] = p.bias
        return TinyCandidate(Chain(self.chain.weights, biases), recipe, layers)

    def reference(self) -> Candidate:
        return TinyCandidate(self.chain, Recipe(backend="tiny"), {})

    def fingerprint(self) -> str:
        return hashlib.sha256(
            b"".join(a.tobytes() for a in (*self.chain.weights, *self.chain.biases))
        ).hexdigest()[:16]


class TinyAdapter(Adapter):
    def open(self, source: Any, example: Batch | None = None) -> Session:
        return TinySession(source)

    def load(self, folder: Path, model: Any = None) -> Candidate:
        found = np.load(folder / "chain.npz")
        recipe, ledger = read_recipe(folder)
        weights, biases, layers = [], [], {}
        for i in range(sum(k.startswith("b") for k in found.files)):
            biases.append(found[f"b{i}"])
            if f"q{i}" in found.files:
                scale = found[f"s{i}"]
                layers[i] = (
                    "",
                    found[f"q{i}"],
                    scale if scale.size > 1 else scale[0],
                    found.get(f"k{i}"),
                )
                weights.append(np.zeros(found[f"q{i}"].shape, np.float32))
            else:
                weights.append(found[f"w{i}"])
        loaded = TinyCandidate(Chain(weights, biases), recipe, layers)
        return loaded.with_ledger(ledger)

    def sample(self, kind: str) -> tuple[Any, Batch] | None:
        random = np.random.default_rng(0)
        w, b, x = (
            random.normal(size=n).astype(np.float32) for n in ((64, 64), 64, (32, 64))
        )
        return (Chain([w], [b]), (x,)) if kind == "linear" else None
