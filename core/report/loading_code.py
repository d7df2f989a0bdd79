"""Where a saved model lies, and the lines of code that load it and run it."""

from __future__ import annotations

import keyword
import re
from collections.abc import Sequence
from pathlib import Path

Input = tuple[str, str, tuple[int | None, ...] | None]
"""Name, type and shape of an input of the model."""

MODEL = "model"
"""Folder of the model's files in a result's folder."""


def model_file(folder: Path) -> Path | None:
    """Return the file that a runtime opens, in the folder of a model: of several the one that holds
    the weights."""
    for suffix in (".onnx", ".npz", ".safetensors"):
        found = sorted(folder.glob(f"*{suffix}"))
        if found:
            return found[0]
    files = sorted(path for path in folder.glob("*") if path.is_file())
    return files[0] if files else None


def near(path: Path) -> str:
    """Return a path as short as it can be said in the folder where the process runs."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def loading_code(
    backend: str, folder: Path | None, inputs: Sequence[Input] = ()
) -> str:
    """Return three lines that load a saved model and run it.

    Args:
        backend: The backend that made it.
        folder: Where the result is saved; None writes a name in its place.
        inputs: What the model takes.
    """
    place = Path("model-quantized" if folder is None else near(folder))
    names = _variables(inputs) or ["x"]
    if backend == "onnx" and inputs:
        lines = _onnxruntime_code(place, inputs, names)
    else:
        lines = _octavo_code(place, backend, names)
    takes = _described(inputs, names)
    if takes:
        lines.insert(-1, f"# {takes}")
    return "\n".join(lines)


def _octavo_code(place: Path, backend: str, names: Sequence[str]) -> list[str]:
    arguments = [repr(str(place))]
    remark = ""
    if backend == "torch":
        # Files of PyTorch hold weights and recipe: the architecture is the user's own code.
        arguments.append("float_model")
        remark = "  # float_model: the module that was quantized"
    return [
        f"import octavo{remark}",
        _call("model = octavo.load", arguments),
        _call("outputs = model", names),
    ]


def _onnxruntime_code(
    place: Path, inputs: Sequence[Input], names: Sequence[str]
) -> list[str]:
    """Return lines that need nothing but ONNX Runtime."""
    file = str(place / MODEL / "model.onnx")
    given = zip(inputs, names, strict=True)
    feed = ", ".join(f"{name!r}: {variable}" for (name, *_), variable in given)
    return [
        "import onnxruntime",
        _call("session = onnxruntime.InferenceSession", [repr(file), _PROVIDERS]),
        _call("outputs = session.run", ["None", f"{{{feed}}}"]),
    ]


_PROVIDERS = 'providers=["CPUExecutionProvider"]'
"""Said, because builds of ONNX Runtime with more than one refuse to choose."""

_CODE_WIDTH = 76
"""Columns that a line of code takes at most where it can be broken: a narrow terminal and what
stands before it."""


def _call(function: str, arguments: Sequence[str]) -> str:
    """Return a call, on one line or an argument a line."""
    whole = f"{function}({', '.join(arguments)})"
    if len(whole) <= _CODE_WIDTH:
        return whole
    inner = "\n".join(f"    {argument}," for argument in arguments)
    return f"{function}(\n{inner}\n)"


def _variables(inputs: Sequence[Input]) -> list[str]:
    """Return a variable for each input, no two alike."""
    found: list[str] = []
    for name, *_ in inputs:
        variable = _variable(name)
        found.append(f"{variable}_{len(found)}" if variable in found else variable)
    return found


def _variable(name: str) -> str:
    """Return an input's name as one that Python takes."""
    found = re.sub(r"\W", "_", name)
    is_name = found.isidentifier() and not keyword.iskeyword(found)
    # What the code itself names must not be hidden by an input.
    return found if is_name and found not in _TAKEN else f"x_{found}"


_TAKEN = ("float_model", "model", "octavo", "onnxruntime", "outputs", "session")


def _described(inputs: Sequence[Input], names: Sequence[str]) -> str:
    """Return what the inputs are: ``x: float32 [n, 64]``."""
    told = []
    for variable, (_, dtype, shape) in zip(names, inputs, strict=False):
        sides = ["n" if length is None else str(length) for length in shape or ()]
        shown = f" [{', '.join(sides)}]" if shape is not None else ""
        told.append(f"{variable}: {dtype}{shown}")
    return "; ".join(told)
