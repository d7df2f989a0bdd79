"""Sessions that borrow a model's tensors, and what ONNX Runtime made of its graph."""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as _state

from octavo.adapters.onnx import OnnxConfig
from octavo.adapters.onnx.files.message import skeleton
from octavo.adapters.onnx.prepare.mending import graphs
from octavo.core.errors import DeviceError, ModelError

from .lending import lend


def _is_error(found: object) -> bool:
    return isinstance(found, type) and issubclass(found, Exception)


RUNTIME_ERRORS: tuple[type[Exception], ...] = (
    *filter(_is_error, vars(_state).values()),
    RuntimeError,
)
"""What ONNX Runtime raises: a dozen classes without a common base, and RuntimeError of C++."""

_borrowed: weakref.WeakKeyDictionary[ort.InferenceSession, list[ort.OrtValue]] = (
    weakref.WeakKeyDictionary()
)
"""What a session reads and does not own lives as long as the session, whatever the graph does."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """A session with the graph that ONNX Runtime executes after its own optimization.

    Attributes:
        session: Ready to run.
        nodes: Optimized nodes, those of bodies among them, weights left out; empty where they were
            not asked for.
    """

    session: ort.InferenceSession
    nodes: Sequence[onnx.NodeProto] = ()


def compile_model(
    model: ir.Model,
    config: OnnxConfig,
    *,
    inspect: bool = False,
    lean: bool = False,
    profile: str = "",
) -> Compiled:
    """Create a session for a model.

    Large tensors are lent, not copied: every candidate shares the model's float tensors.

    Args:
        model: Not changed.
        config: Providers and threads.
        inspect: Also read the optimized graph.
        lean: Give memory back after every op instead of keeping an arena, and keep no second,
            packed copy of the weights.
        profile: How the file begins into which the session's profiler writes; '' for none.

    Raises:
        DeviceError: If an execution provider is not there.
        ModelError: If ONNX Runtime refuses the model.
    """
    proto, held = skeleton(model)
    return compile_proto(
        proto, held, config, inspect=inspect, lean=lean, profile=profile
    )


def compile_proto(
    proto: onnx.ModelProto,
    held: Mapping[str, ir.TensorProtocol],
    config: OnnxConfig,
    *,
    inspect: bool = False,
    lean: bool = False,
    optimize: bool = True,
    profile: str = "",
) -> Compiled:
    """Create a session for a message whose large tensors were left out.

    Where ``optimize`` is false the graph is run as it is written. Raises as
    :func:`compile_model` does.
    """
    _check_providers(config)
    options = _options(config, lean=lean)
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if profile:
        options.enable_profiling = True
        options.profile_file_prefix = profile
    lent = [lend(tensor) for tensor in held.values()]
    options.add_external_initializers(list(held), lent)
    if not inspect:
        session = _session(proto, options, config)
        _borrowed[session] = lent
        return Compiled(session)
    with tempfile.TemporaryDirectory(prefix="octavo-") as folder:
        optimized = _ask_for_optimized(options, Path(folder))
        session = _session(proto, options, config)
        _borrowed[session] = lent
        graph = onnx.load(optimized, load_external_data=False).graph
    nodes: list[onnx.NodeProto] = []
    for scope in graphs(graph):
        nodes.extend(scope.node)
    return Compiled(session, nodes)


def _check_providers(config: OnnxConfig) -> None:
    available = ort.get_available_providers()
    missing = [p for p in config.providers if p not in available]
    if missing:
        raise DeviceError(
            f"execution provider {missing[0]!r} is not there; "
            f"this ONNX Runtime has {', '.join(available)}"
        )


def _options(config: OnnxConfig, *, lean: bool) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = (
        4  # what goes wrong is raised, and need not be printed as well
    )
    options.enable_cpu_mem_arena = not lean
    # 0 leaves the number to the runtime.
    options.intra_op_num_threads = config.threads or 0
    spinning = "1" if config.spinning else "0"
    options.add_session_config_entry("session.disable_prepacking", "1" if lean else "0")
    options.add_session_config_entry("session.intra_op.allow_spinning", spinning)
    return options


def _ask_for_optimized(options: ort.SessionOptions, folder: Path) -> Path:
    """Let a session write its optimized graph into a folder; return where it will be."""
    optimized = folder / "optimized.onnx"
    weights = "weights.bin"
    external = "session.optimized_model_external_initializers"
    options.optimized_model_filepath = str(optimized)
    options.add_session_config_entry(f"{external}_file_name", weights)
    options.add_session_config_entry(f"{external}_min_size_in_bytes", "1024")
    if os.name == "posix":
        # Nobody looks at the weights of the optimized graph: let them not reach the disk.
        (folder / weights).symlink_to(os.devnull)
    return optimized


def _session(
    proto: onnx.ModelProto, options: ort.SessionOptions, config: OnnxConfig
) -> ort.InferenceSession:
    message = proto.SerializeToString()
    try:
        return ort.InferenceSession(message, options, providers=list(config.providers))
    except RUNTIME_ERRORS as error:
        said = str(error).strip()[:600]
        raise ModelError(
            f"ONNX Runtime {ort.__version__} cannot run the model: {said}"
        ) from error


def judge(model: ir.Model, config: OnnxConfig) -> None:
    """Let ONNX Runtime say whether it can run a model.

    Raises:
        DeviceError: If an execution provider is not there.
        ModelError: If it cannot.
    """
    try:
        proto, held = skeleton(model)
    except Exception as error:
        # A name that is no text, a type that does not exist: onnx-ir raises errors of no one kind.
        cause = error.__cause__ or error
        raise ModelError(
            f"the model is not valid: it cannot be written ({cause})"
        ) from error
    compile_proto(proto, held, config, lean=True, optimize=False)
