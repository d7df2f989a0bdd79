"""The NumPy backend's primitives."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from octavo.adapters.numpy.apply.lowering import quantized
from octavo.adapters.numpy.apply.rescaling import rescaled
from octavo.adapters.numpy.describe.census import census
from octavo.adapters.numpy.describe.ops import describe
from octavo.adapters.numpy.files.archive import load_graph, save_graph
from octavo.adapters.numpy.kernels.casting import dtype_of
from octavo.adapters.numpy.kernels.fallback import REASON, native
from octavo.adapters.numpy.prepare.rewrites import optimised
from octavo.adapters.numpy.run.parallel import blas_kernels
from octavo.adapters.numpy.run.prefix_reuse import Reuse
from octavo.adapters.numpy.run.program import Kernels, Program
from octavo.core.calibration.reading import choose, takes_of
from octavo.core.contract.adapter import Adapter, Batch, Candidate, OpParameters, Session, Sink
from octavo.core.contract.parts import PartConfig
from octavo.core.errors import ModelError, NonFiniteWeight, SchemeError, nearest, raised_as
from octavo.core.numerics.channels import FEATURES, Factors
from octavo.core.values.calls import Call, plainest
from octavo.core.values.capability import Capability
from octavo.core.values.graph import Group, HeldWeight, ModelView
from octavo.core.values.ledger import Applied
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import FLOAT

from . import NumpyConfig
from .graph import Graph
from .offers import OFFERS
from .samples import sample

MODEL = "model.npz"


class NumpyCandidate(Candidate):
    """A program with its recipe and ledger."""

    def __init__(
        self, graph: Graph, recipe: Recipe, ledger: Mapping[str, Applied], kernels: Kernels
    ) -> None:
        self.graph = graph
        self.recipe = recipe
        self.ledger = ledger
        self._kernels = kernels
        self._program: Program | None = None

    @property
    def program(self) -> Program:
        """The runnable form, built at first use."""
        if self._program is None:
            remedy = "the file is damaged; save the model again"
            with raised_as(ModelError, "the graph cannot be run", remedy):
                self._program = Program(self.graph, self._kernels)
        return self._program

    @property
    def native(self) -> Callable[..., Any]:
        """The candidate itself: a callable, arrays in, arrays out."""
        return self

    def __call__(self, *arrays: Any, **named: Any) -> Any:
        """Run the model on arrays in the order of its inputs, or by name; one output comes as an array, several as a tuple."""
        alone = (
            len(arrays) == 1 and not named and isinstance(arrays[0], (Mapping, tuple, list, Call))
        )
        batch: Any = arrays[0] if alone else plainest(arrays, named)
        result = self.run(batch)
        return result[0] if len(result) == 1 else result

    def run(self, batch: Batch) -> tuple[np.ndarray, ...]:
        """Run one batch."""
        program = self.program
        return program.run(program.feed(batch))

    def save(self, folder: Path) -> None:
        """Write ``model.npz``: structure, arrays, recipe and ledger."""
        ledger = {
            name: line.to_json()
            for name, line in self.ledger.items()
            if not line.requested.is_float or not line.applied.is_float or line.reason
        }
        save_graph(self.graph, folder / MODEL, recipe=self.recipe.to_json(), ledger=ledger)

    def fingerprint(self) -> str:
        """Digest of the graph it runs."""
        return self.graph.fingerprint()

    def __getstate__(self) -> dict[str, Any]:
        return {
            "graph": self.graph,
            "recipe": self.recipe,
            "ledger": dict(self.ledger),
            "scratch": self._kernels.scratch,
            "threads": self._kernels.threads,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        NumpyCandidate.__init__(
            self,
            state["graph"],
            state["recipe"],
            state["ledger"],
            Kernels(state["scratch"], state["threads"]),
        )


class NumpySession(Session):
    """One opened graph, optimised.

    Args:
        graph: After :func:`.passes.optimised`.
        kernels: Shared with every candidate.
        example: One batch, for shapes.
        groups: Of the graph as it was opened, where this one is rescaled: nodes may lie between their ends now.
    """

    def __init__(
        self,
        graph: Graph,
        kernels: Kernels,
        example: Batch | None = None,
        groups: tuple[Group, ...] | None = None,
    ) -> None:
        self.graph = graph
        self._groups = groups
        self._kernels = kernels
        kernels.keep(graph.nodes)
        self._program = Program(graph, kernels)
        self._example = example
        self._view: ModelView | None = None
        self._facts: tuple[str, ...] = ()
        self._fingerprint = ""
        self._foreign = {n.name for n in graph.nodes if not native(n, graph.opset)}

    def describe(self) -> ModelView:
        """Return the ops of the optimised graph."""
        if self._view is None:
            shapes, self._facts = self._traced()
            found = describe(self.graph, shapes)
            self._view = found if self._groups is None else replace(found, groups=self._groups)
        return self._view

    def facts(self) -> tuple[str, ...]:
        """Return what the memory plan comes to."""
        self.describe()
        return self._facts

    def _traced(self) -> tuple[dict[str, tuple[int, ...]], tuple[str, ...]]:
        """Return the shapes of all values for one batch, and what its memory plan comes to."""
        batch = self._example
        if batch is None:
            if any(
                i.shape is None or any(s is None for s in i.shape[1:]) for i in self.graph.inputs
            ):
                return {}, ()
            batch = tuple(
                np.zeros([s or 1 for s in i.shape or ()], dtype_of(i.dtype))
                for i in self.graph.inputs
            )
        shapes: dict[str, tuple[int, ...]] = {}
        names = {i.name for i in self.graph.inputs} | {
            v for n in self.graph.nodes for v in n.outputs if v
        }

        def note(name: str, array: np.ndarray) -> None:
            shapes[name] = array.shape

        arrays = self._program.feed(batch)
        self._program.run(arrays, dict.fromkeys(names, note))
        plan = self._program.plan(arrays)
        given = ", ".join(
            f"{i.name} {a.shape}" for i, a in zip(self.graph.inputs, arrays, strict=True)
        )
        return shapes, (
            f"static memory plan for {given}: {plan.arena:,} bytes of activations at the peak, {plan.total:,} without reuse",
        )

    def capability(self) -> Capability:
        """Integer arithmetic on linear and convolution layers; exact on any processor."""
        return NumpyAdapter(NumpyConfig()).capability()

    def observe(self, batches: Iterable[Batch], values: Iterable[str], sink: Sink) -> int:
        """Run the float graph once over the batches."""
        watch = dict.fromkeys(values, lambda name, array: sink(name, _plain(array)))
        known = {i.name for i in self.graph.inputs} | {
            v for n in self.graph.nodes for v in n.outputs
        }
        for name in watch:
            if name not in known:
                raise ModelError(f"there is no value {name!r} to observe{nearest(name, known)}")
        count = 0
        for batch in batches:
            self._program.run(self._program.feed(batch), watch)
            count += 1
        return count

    def tensor(self, name: str) -> np.ndarray:
        """Return an initializer."""
        if name not in self.graph.initializers:
            raise ModelError(
                f"the graph has no tensor {name!r}{nearest(name, self.graph.initializers)}"
            )
        return _plain(self.graph.initializers[name])

    def apply(self, recipe: Recipe, parameters: Mapping[str, OpParameters]) -> NumpyCandidate:
        """Replace the named ops by integer ones."""
        view, capability = self.describe(), self.capability()
        ledger: dict[str, Applied] = {}
        for op in view.ops:
            scheme = recipe[op.name]
            if not scheme.is_float:
                realization = capability.realization(op, scheme)
                if op.name not in parameters:
                    raise SchemeError(
                        f"op {op.name!r} is to run as [{scheme}], but no parameters were given for it"
                    )
                reason = (
                    "codes stay packed and are unpacked inside the operator; its arithmetic is float"
                    if scheme.mode == "weight_only"
                    else ""
                )
                ledger[op.name] = Applied(scheme, scheme, realization, reason)
            elif op.type in OFFERS or op.out_of_reach or op.name in self._foreign:
                ledger[op.name] = Applied(
                    FLOAT, FLOAT, reason=REASON if op.name in self._foreign else op.out_of_reach
                )
        kept = {name: parameters[name] for name in recipe}
        return NumpyCandidate(quantized(self.graph, kept), recipe, ledger, self._kernels)

    def census(self) -> Sequence[HeldWeight]:
        """Return the floating constants of two or more dimensions that the outputs depend on."""
        return census(self.graph)

    def runner(self, batches: Sequence[Batch]) -> Reuse:
        """Return what runs candidates over the same batches, each from its first changed node on."""
        return Reuse(
            self.graph, self._program, self._kernels, [self._program.feed(b) for b in batches]
        )

    def reference(self) -> NumpyCandidate:
        """Return the float graph, batch norms folded and activations fused."""
        return self.apply(Recipe({}, backend="numpy"), {})

    def fingerprint(self) -> str:
        """Digest of the optimised graph."""
        if not self._fingerprint:
            self._fingerprint = self.graph.fingerprint()
        return self._fingerprint

    def rescale(self, factors: Mapping[str, Factors]) -> NumpySession:
        """Change the values of the groups and their readers' weights."""
        groups = self.describe().groups
        return NumpySession(
            rescaled(self.graph, groups, factors), self._kernels, self._example, groups
        )


def _plain(array: np.ndarray) -> np.ndarray:
    """Return float32 for types that NumPy has from elsewhere (bfloat16): array functions ask for NumPy's own."""
    return array if array.dtype.isbuiltin == 1 else array.astype(np.float32)


class NumpyAdapter(Adapter):
    """Opens graphs, ONNX models, scikit-learn estimators and .npz files."""

    def __init__(self, config: PartConfig) -> None:
        super().__init__(config)
        self._settings = config if isinstance(config, NumpyConfig) else NumpyConfig()

    def _kernels(self) -> Kernels:
        return Kernels(self._settings.scratch, self._settings.threads)

    def open(self, source: Any, example: Batch | None = None) -> NumpySession:
        """Open a graph, an ONNX file or ModelProto, a fitted estimator, or a .npz file."""
        graph = optimised(read(source).check())
        for name, array in graph.initializers.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all() and _is_weight(graph, name):
                raise NonFiniteWeight(f"tensor {name!r} holds NaN or Inf; repair the model")
        if example is not None:
            # It may still hold labels.
            example = choose(example, takes_of(graph.inputs), None)(example, 0)
        return NumpySession(graph, self._kernels(), example)

    def capability(self) -> Capability:
        """Integer arithmetic on any processor."""
        versions = {"numpy": np.__version__, "blas": blas_kernels() or "unknown"}
        return Capability("numpy", "cpu", OFFERS, frozenset(FEATURES.values()), versions)

    def sample(self, kind: str) -> tuple[Any, Batch] | None:
        """Return a graph of one op and a batch for it."""
        return sample(kind)

    def load(self, folder: Path, model: Any = None) -> NumpyCandidate:
        """Read ``model.npz``."""
        graph, table = load_graph(Path(folder) / MODEL)
        ledger = {name: Applied.from_json(row) for name, row in table.get("ledger", {}).items()}
        recipe = (
            Recipe.from_json(table["recipe"]) if "recipe" in table else Recipe({}, backend="numpy")
        )
        return NumpyCandidate(graph, recipe, ledger, self._kernels())


def read(source: Any) -> Graph:
    """Return the graph of anything that this backend opens.

    Raises:
        ModelError: If it is none of those.
    """
    if isinstance(source, Graph):
        return source
    if isinstance(source, (str, Path)) or hasattr(source, "__fspath__"):
        path = Path(source)
        if not path.is_file():
            raise ModelError(f"there is no file {str(path)!r}")
        if path.suffix == ".npz":
            return load_graph(path)[0]
        from octavo.adapters.numpy.files.onnx_reader import from_onnx

        return from_onnx(path)
    if isinstance(source, bytes) or type(source).__name__ == "ModelProto":
        from octavo.adapters.numpy.files.onnx_reader import from_onnx

        return from_onnx(source)
    if hasattr(source, "get_params") and hasattr(source, "fit"):
        from octavo.adapters.numpy.files.estimators import from_estimator

        return from_estimator(source)
    raise ModelError(
        f"the NumPy backend cannot open a {type(source).__name__}: give a Graph, an ONNX model, a fitted scikit-learn estimator or a .npz path"
    )


def _is_weight(graph: Graph, name: str) -> bool:
    """True for tensors whose NaN or Inf is a fault; an additive mask may well hold -inf."""
    return any(
        name in n.inputs[1:]
        and n.op in ("Gemm", "Conv", "MatMul", "LayerNormalization", "ConvTranspose")
        for n in graph.nodes
    )


__all__ = ["NumpyAdapter", "NumpyCandidate", "NumpySession", "read"]
