"""Running a model: sessions that borrow the tensors of the onnx-ir model, and what ONNX Runtime made of its graph."""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx_ir import serde
from onnxruntime.capi import onnxruntime_pybind11_state as _state

from octavo.adapters.onnx.prepare.mending import graphs
from octavo.adapters.onnx.prepare.scopes import tensors_of
from octavo.core.errors import DeviceError, ModelError

from . import OnnxConfig

RUNTIME_ERRORS: tuple[type[Exception], ...] = (
    *(c for c in vars(_state).values() if isinstance(c, type) and issubclass(c, Exception)),
    RuntimeError,
)
"""What ONNX Runtime raises: a dozen classes without a common base, and RuntimeError for exceptions of C++'s own."""

_BORROW_FROM = 1024
"""Bytes from which a tensor is lent to the runtime and not copied into the serialized graph."""

_lent: weakref.WeakKeyDictionary[ir.TensorProtocol, ort.OrtValue] = weakref.WeakKeyDictionary()
_borrowed: weakref.WeakKeyDictionary[ort.InferenceSession, list[ort.OrtValue]] = (
    weakref.WeakKeyDictionary()
)
"""What a session reads without owning it must live as long as the session, whatever becomes of the graph."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """A session with the graph that ONNX Runtime executes after its own optimization.

    Attributes:
        session: Ready to run.
        nodes: Optimized nodes, those of bodies among them, weights left out; empty where they were not asked for.
    """

    session: ort.InferenceSession
    nodes: Sequence[onnx.NodeProto] = ()


def compile_model(
    model: ir.Model, config: OnnxConfig, *, inspect: bool = False, lean: bool = False
) -> Compiled:
    """Create a session for a model. Large tensors are lent, not copied: every candidate shares the model's float tensors.

    Args:
        model: Not changed.
        config: Providers and threads.
        inspect: Also read the optimized graph.
        lean: Give memory back after every op instead of keeping an arena, and keep no second, packed copy of the weights.

    Raises:
        DeviceError: If an execution provider is not there.
        ModelError: If ONNX Runtime refuses the model.
    """
    return compile_proto(*skeleton(model), config, inspect=inspect, lean=lean)


def compile_proto(
    proto: onnx.ModelProto,
    held: Mapping[str, ir.TensorProtocol],
    config: OnnxConfig,
    *,
    inspect: bool = False,
    lean: bool = False,
    optimize: bool = True,
) -> Compiled:
    """Create a session for what :func:`skeleton` or :func:`part` made; raises as :func:`compile_model` does.

    Where ``optimize`` is false the graph is run as it is written.
    """
    missing = [p for p in config.providers if p not in ort.get_available_providers()]
    if missing:
        raise DeviceError(
            f"execution provider {missing[0]!r} is not there; this ONNX Runtime has {', '.join(ort.get_available_providers())}"
        )
    options = ort.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised, and need not be printed as well
    options.enable_cpu_mem_arena = not lean
    options.add_session_config_entry("session.disable_prepacking", "1" if lean else "0")
    options.intra_op_num_threads = config.threads or 0
    options.add_session_config_entry(
        "session.intra_op.allow_spinning", "1" if config.spinning else "0"
    )
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    lent = [_lend(tensor) for tensor in held.values()]
    options.add_external_initializers(list(held), lent)
    with tempfile.TemporaryDirectory(prefix="octavo-") as folder:
        optimized = Path(folder) / "optimized.onnx"
        if inspect:
            options.optimized_model_filepath = str(optimized)
            options.add_session_config_entry(
                "session.optimized_model_external_initializers_file_name", "weights.bin"
            )
            options.add_session_config_entry(
                "session.optimized_model_external_initializers_min_size_in_bytes", "1024"
            )
            if (
                os.name == "posix"
            ):  # nobody looks at the weights of the optimized graph: let them not reach the disk
                (Path(folder) / "weights.bin").symlink_to(os.devnull)
        try:
            session = ort.InferenceSession(
                proto.SerializeToString(), options, providers=list(config.providers)
            )
        except RUNTIME_ERRORS as error:
            raise ModelError(
                f"ONNX Runtime {ort.__version__} cannot run the model: {str(error).strip()[:600]}"
            ) from error
        _borrowed[session] = lent
        nodes = _nodes(onnx.load(optimized, load_external_data=False).graph) if inspect else ()
    return Compiled(session, nodes)


def _nodes(graph: onnx.GraphProto) -> tuple[onnx.NodeProto, ...]:
    return tuple(node for scope in graphs(graph) for node in scope.node)


def judge(model: ir.Model, config: OnnxConfig) -> None:
    """Let ONNX Runtime say whether it can run a model.

    Raises:
        DeviceError: If an execution provider is not there.
        ModelError: If it cannot.
    """
    try:
        proto, held = skeleton(model)
    except (
        Exception
    ) as error:  # a name that is no text, a type that does not exist: no error of one kind
        raise ModelError(
            f"the model is not valid: it cannot be written ({error.__cause__ or error})"
        ) from error
    compile_proto(proto, held, config, lean=True, optimize=False)


def skeleton(model: ir.Model) -> tuple[onnx.ModelProto, dict[str, ir.TensorProtocol]]:
    """Serialize a graph with its large tensors left out; return both. The model is as before afterwards."""
    initializers = model.graph.initializers
    held = _held(initializers.values())
    try:
        for name, tensor in held.items():
            initializers[name].const_value = _elsewhere(tensor, name)
        return ir.to_proto(model), held
    finally:
        for name, tensor in held.items():
            initializers[name].const_value = tensor


def part(
    model: ir.Model,
    nodes: Sequence[ir.Node],
    inputs: Sequence[ir.Value],
    outputs: Sequence[ir.Value],
) -> tuple[onnx.ModelProto, dict[str, ir.TensorProtocol]]:
    """Serialize some nodes of a graph as a model of their own, as :func:`skeleton` does; nothing is cloned.

    Args:
        model: The whole; not changed.
        nodes: In its order; bodies in them come along.
        inputs: Values that they read and do not write, beside initializers.
        outputs: Values that are put out.
    """
    used = tensors_of(nodes) | {v.name or "": v for v in outputs if v.is_initializer()}
    held = _held(used.values())
    graph = onnx.GraphProto(name="part")
    graph.node.extend(serde.serialize_node(n) for n in nodes)
    graph.input.extend(serde.serialize_value(v) for v in inputs)
    graph.output.extend(serde.serialize_value(v) for v in outputs)
    graph.value_info.extend(
        serde.serialize_value(v)
        for n in nodes
        for v in n.outputs
        if v.name and v.type is not None and v not in outputs
    )
    for name, value in used.items():
        tensor = value.const_value
        assert tensor is not None
        graph.initializer.append(
            serde.serialize_tensor(_elsewhere(tensor, name) if name in held else tensor)
        )
        graph.initializer[-1].name = name
    imports = [
        onnx.OperatorSetIdProto(domain=d, version=v) for d, v in model.graph.opset_imports.items()
    ]
    return onnx.ModelProto(ir_version=model.ir_version, graph=graph, opset_import=imports), held


def _held(initializers: Iterable[ir.Value]) -> dict[str, ir.TensorProtocol]:
    """Return the tensors that are lent, by name."""
    found: dict[str, ir.TensorProtocol] = {}
    for value in initializers:
        tensor = value.const_value
        if (
            tensor is not None
            and value.uses()
            and tensor.nbytes >= _BORROW_FROM
            and _lendable(tensor.dtype)
        ):
            found[value.name or ""] = tensor
    return found


def _elsewhere(tensor: ir.TensorProtocol, name: str) -> ir.ExternalTensor:
    return ir.ExternalTensor(
        "elsewhere", 0, tensor.nbytes, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=name
    )


def _lendable(dtype: ir.DataType) -> bool:
    """True for types that an OrtValue can be made of from outside: neither strings nor several numbers to a byte."""
    return dtype != ir.DataType.STRING and dtype.bitwidth >= 8


def _lend(tensor: ir.TensorProtocol) -> ort.OrtValue:
    found = _lent.get(tensor)
    if found is None:
        found = _lent[tensor] = _ort_value(tensor)
    return found


def _ort_value(tensor: ir.TensorProtocol) -> ort.OrtValue:
    array = tensor.numpy()
    if tensor.dtype in _OPAQUE:
        packed = np.frombuffer(tensor.tobytes(), _OPAQUE[tensor.dtype])
        return ort.OrtValue.ortvalue_from_numpy_with_onnx_type(
            packed.reshape(tensor.shape.numpy()), tensor.dtype.value
        )
    return ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))


# Types that NumPy has no number for; the runtime takes their bytes.
_OPAQUE = {
    ir.DataType.BFLOAT16: np.uint16,
    ir.DataType.FLOAT8E4M3FN: np.uint8,
    ir.DataType.FLOAT8E4M3FNUZ: np.uint8,
    ir.DataType.FLOAT8E5M2: np.uint8,
    ir.DataType.FLOAT8E5M2FNUZ: np.uint8,
}
