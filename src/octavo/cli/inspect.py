"""``octavo inspect``: a model's ops, groups and sizes, or a saved result's ledger."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from octavo.core.contract.adapter import Candidate
from octavo.core.contract.parts import AdapterPart
from octavo.core.contract.plugins import PluginHost
from octavo.core.errors import OctavoError
from octavo.core.opening.backends import only_backend
from octavo.core.opening.opening import open_model
from octavo.core.report import text
from octavo.core.report.ledger_tables import ledger_table, legend_table
from octavo.core.report.summary import float_weights
from octavo.core.report.tables import TextTable, table
from octavo.core.results.result import load_candidate, read_manifest
from octavo.core.values.coverage import Coverage
from octavo.core.values.graph import ModelView, Op
from octavo.core.values.ledger import Applied
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import in_order

from .console import out, show_json
from .face.options import INPUT, AsJson, FloatModel, argument, option
from .given.models import check_model, is_result, source

EXAMPLES = """
octavo inspect model.onnx
octavo inspect model-quantized
octavo inspect my_module:model --json
"""

_WHAT = "A model file, module:name, or the folder of a saved result."


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("inspect", epilog=EXAMPLES)(inspect)


def inspect(
    model: Annotated[str, argument("MODEL", _WHAT)],
    backend: Annotated[
        str | None, option(INPUT, "NAME", "Open with this.", "--backend", "-b")
    ] = None,
    float_model: FloatModel = None,
    as_json: AsJson = False,
) -> None:
    """Show a model's ops, groups and sizes, or what runs in a saved result.

    Of a result, and of a quantized .onnx file: what was asked of each op and what runs.
    """
    if backend is not None:
        only_backend(backend, PluginHost())
    check_model(model, or_result=True)
    opened = source(model)
    if is_result(opened):
        _result(opened, source(float_model) if float_model else None, as_json)
        return
    saved = _saved_file(opened) if isinstance(opened, Path) else None
    if saved is not None:
        _file(opened, saved, as_json)
        return
    found = open_model(opened, PluginHost(), backend=backend)
    view, facts = found.view, found.session.facts()
    if as_json:
        show_json({**_as_json(view), "facts": facts})
        return
    console = out()
    for part in _shown(view):
        console.print(part, soft_wrap=isinstance(part, str))
    for fact in facts:
        console.print(fact, soft_wrap=True)


def _shown(view: ModelView) -> Iterator[TextTable | str]:
    """Yield a model's tables and lines, in the order of reading."""
    columns = ("op", "type", "weight", "parameters", "MACs", "in float32", "remark")
    figures = ("parameters", "MACs", "in float32")
    rows = [_row(op) for op in view.ops]
    yield table(columns, rows, right=figures, least=("in float32", "MACs", "remark"))
    if view.groups:
        yield _groups(view)
    inputs = ", ".join(f"{i.name} {i.dtype}{_shape(i.shape)}" for i in view.inputs)
    outputs = ", ".join(view.outputs)
    yield f"inputs: {inputs or 'unknown'}; outputs: {outputs or 'unknown'}"
    macs = sum(op.macs for op in view.ops if op.macs is not None)
    size = text.size(4 * view.parameters)
    elements = f"{view.parameters:,} weight elements ({size} in float32)"
    yield f"{len(view.ops)} ops, {elements}, {macs:,} MACs a sample"
    if view.unclaimed:
        yield _unclaimed(view)
    for note in view.notes:
        yield f"note: {note}"


def _groups(view: ModelView) -> TextTable:
    """What belongs together, and what it takes its input from."""
    rows = []
    for group in view.groups:
        members = ", ".join(group.members)
        rows.append((group.name, group.kind, members, group.producer))
    return table(("group", "kind", "members", "producer"), rows)


def _row(op: Op) -> tuple[str, ...]:
    """Return an op's line of the table; what it does not have is empty."""
    macs = "" if op.macs is None else f"{op.macs:,}"
    if op.weight is None:
        return op.name, op.type, "", "", macs, "", op.out_of_reach
    shape = "x".join(map(str, op.weight.shape))
    size = text.size(4 * op.parameters)
    return op.name, op.type, shape, f"{op.parameters:,}", macs, size, op.out_of_reach


def _unclaimed(view: ModelView) -> TextTable:
    """Weights that the model uses and no op claims: they stay float whatever is chosen."""
    rows = [
        (w.name, "x".join(map(str, w.shape)), f"{prod(w.shape):,}", w.reason)
        for w in view.unclaimed
    ]
    return table(
        ("in no op", "shape", "elements", "why it stays float"),
        rows,
        right=("elements",),
    )


def _saved_file(path: Path) -> Candidate | None:
    """Return what a single file holds if a backend saved it there with its recipe (an .onnx file
    carries its own); else None."""
    try:
        return load_candidate(path)
    except (OctavoError, OSError):
        return None


def _shape(shape: tuple[int | None, ...] | None) -> str:
    if shape is None:
        return ""
    lengths = ["any" if length is None else str(length) for length in shape]
    return f"[{', '.join(lengths)}]"


def _as_json(view: ModelView) -> dict[str, Any]:
    return {
        "ops": [_op_as_json(op) for op in view.ops],
        "groups": [
            {
                "name": g.name,
                "kind": g.kind,
                "members": g.members,
                "producer": g.producer,
            }
            for g in view.groups
        ],
        "inputs": [
            {"name": i.name, "shape": i.shape, "dtype": i.dtype} for i in view.inputs
        ],
        "outputs": view.outputs,
        "parameters": view.parameters,
        "unclaimed": [
            {
                "name": w.name,
                "shape": list(w.shape),
                "dtype": w.dtype,
                "reason": w.reason,
            }
            for w in view.unclaimed
        ],
        "notes": view.notes,
    }


def _op_as_json(op: Op) -> dict[str, Any]:
    return {
        "name": op.name,
        "type": op.type,
        "inputs": op.inputs,
        "outputs": op.outputs,
        "weight": None if op.weight is None else list(op.weight.shape),
        "parameters": op.parameters,
        "macs": op.macs,
        "out_of_reach": op.out_of_reach,
    }


def _file(path: Path, saved: Candidate, as_json: bool) -> None:
    """Show a single file that carries its recipe."""
    recipe, size = saved.recipe, path.stat().st_size
    if as_json:
        ledger = {op: line.to_row() for op, line in saved.ledger.items()}
        told = {"backend": recipe.backend, "recipe": recipe.to_json()}
        show_json({**told, "ledger": ledger, "bytes": size})
        return
    console = out()
    _print_ledger(console, saved.ledger)
    _print_transforms(console, recipe)
    told_of_it = f"backend {recipe.backend}, {text.size(size)}, recipe {recipe.digest}"
    console.print(told_of_it, soft_wrap=True)


def _print_transforms(console: Console, recipe: Recipe) -> None:
    """Print the model-wide transforms in their order, where there are any."""
    if recipe.transforms:
        console.print(f"transforms {in_order(recipe.transforms)}", soft_wrap=True)


def _print_ledger(console: Console, ledger: Mapping[str, Applied]) -> None:
    """Print a ledger, and what the short names of its schemes stand for."""
    console.print(ledger_table(ledger))
    legend = legend_table(ledger)
    if legend is not None:
        console.print(legend)


def _result(folder: Path, float_model: Any, as_json: bool) -> None:
    manifest = read_manifest(folder)
    size = sum(f.stat().st_size for f in (folder / "model").rglob("*") if f.is_file())
    if as_json:
        keys = ("octavo", "backend", "recipe", "made", "environment")
        told = {key: manifest[key] for key in keys}
        told["backend_settings"] = manifest.get("backend_settings") or {}
        show_json({**told, "bytes": size})
        return
    candidate = load_candidate(folder, float_model)
    console = out()
    _print_ledger(console, _in_order(candidate.ledger, manifest.get("ops") or {}))
    coverage = Coverage.from_json(manifest.get("coverage") or {})
    if coverage.total:
        console.print(float_weights(coverage))
    _print_transforms(console, candidate.recipe)
    console.print(
        f"backend {_backend(manifest)}, {text.size(size)}, made {manifest['made']} by octavo "
        f"{manifest['octavo']}",
        soft_wrap=True,
    )


def _backend(manifest: Mapping[str, Any]) -> str:
    """Return a result's backend with the settings that somebody chose: ``onnx (threads = 1)``."""
    name = str(manifest["backend"])
    card = PluginHost().adapters().get(name)
    settings = dict(manifest.get("backend_settings") or {})
    usual = _usual(card) if card is not None else {}
    chosen = [
        f"{setting} = {value}"
        for setting, value in settings.items()
        if setting != "kind" and usual.get(setting) != value
    ]
    return f"{name} ({', '.join(chosen)})" if chosen else name


def _usual(card: AdapterPart[Any]) -> dict[str, Any]:
    return card.config.model_validate({"kind": card.name}).to_save()


def _in_order(
    ledger: Mapping[str, Applied], ops: Mapping[str, Any]
) -> dict[str, Applied]:
    """Return a ledger in the order of the model, as far as a result records that."""
    known = {op: ledger[op] for op in ops if op in ledger}
    return {**known, **ledger}
