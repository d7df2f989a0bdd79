"""What is mutated and what it is put through: one function for each family of cases, through
octavo's public face alone."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import yaml
from torch import nn

import octavo
from octavo.adapters.numpy.graph import Graph, Node
from octavo.cli import main
from octavo.core.calibration.sources import load_arrays
from octavo.core.contract.plugins import PluginHost
from octavo.core.opening.opening import open_model
from octavo.core.report import report_data, write
from octavo.core.results.result import read_manifest
from octavo.core.storage.history import StudyHistory, read_history

from . import corpus
from .mutations import OBJECTS, Mutator, dump

PRESETS = ("int8-static", "int8-dynamic", "int8-weight-only", "int4-weight-only")
CODES = (0, 1, 2, 3, 130)  # what the command line may end with
ATTRIBUTES = (
    "stride",
    "padding",
    "dilation",
    "groups",
    "in_features",
    "out_features",
    "in_channels",
    "kernel_size",
    "eps",
    "training",
    "num_features",
    "padding_mode",
    "hidden_size",
    "num_layers",
    "batch_first",
    "padding_idx",
    "normalized_shape",
    "bias",
)


class BadExit(Exception):
    """The command line ended with a code that it does not document, or printed a traceback."""


class Bench:
    """What a case works with.

    Args:
        mutator: Draws the changes.
        home: The corpus, which is only read.
        folder: Where the case writes; empty.
    """

    def __init__(self, mutator: Mutator, home: Path, folder: Path) -> None:
        self.mutator = mutator
        self.random = mutator.random
        self.home = home
        self.folder = folder

    def pick(self, names: Any) -> Any:
        """Return one of several."""
        return self.random.choice(list(names))

    def file(self, source: Path, name: str | None = None) -> Path:
        """Return a copy of a file of the corpus with mutated bytes."""
        target = self.folder / (name or source.name)
        target.write_bytes(self.mutator.bytes(source.read_bytes()))
        return target

    def table(self, path: Path, raw: Any) -> None:
        """Write a table as JSON: mutated as a value, or as a text."""
        if self.random.random() < 0.8:
            path.write_text(dump(self.mutator.json(raw)))
        else:
            path.write_bytes(self.mutator.text(json.dumps(raw)))


def command(*arguments: str) -> None:
    """Run the command line in this process.

    Raises:
        BadExit: If its exit code is none of the documented ones.
    """
    out, err = io.StringIO(), io.StringIO()
    code: Any = 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(arguments)
        except SystemExit as ended:
            code = ended.code or 0
    if code not in CODES or "Traceback (most recent call last)" in err.getvalue():
        raise BadExit(
            f"octavo {' '.join(arguments)} ended with {code!r}: {err.getvalue()[-300:]}"
        )


def _use(bench: Bench, model: Any, batch: Any, *, backend: str | None = None) -> None:
    """Open a model, or quantize it and run the result."""
    if bench.random.random() < 0.2:
        open_model(
            model, PluginHost(third_party=False), backend=backend
        ).session.describe()
        return
    # Integer kernels are wrong on some processors, where nothing offers them: codes in place of
    # weights work on each.
    scheme = "int8-weight-only" if bench.mutator.off else bench.pick(PRESETS)
    quantized = octavo.quantize_model(model, scheme, [batch], backend=backend)
    quantized.candidate.run((batch,))
    if bench.random.random() < 0.3:
        quantized.save(bench.folder / "result")


def onnx_bytes(bench: Bench) -> None:
    """An ONNX file with changed bytes."""
    name = bench.pick(corpus.PROTOS)
    path = bench.file(bench.home / f"{name}.onnx")
    if bench.random.random() < 0.2:
        # Names in a file need not be UTF-8: each of a name's places is changed alike, so that the
        # graph stays connected.
        word = bench.pick((b"conv1", b"x", b"w1", b"MatMul", b"inner", b"reshape"))
        path.write_bytes(
            path.read_bytes().replace(word, b"\xff" * len(word))
            if not bench.mutator.off
            else path.read_bytes()
        )
    _use(bench, path, corpus.inputs_of(name), backend=bench.pick((None, "numpy")))


def onnx_fields(bench: Bench) -> None:
    """An ONNX model with changed fields, as a message or as a file."""
    name = bench.pick(corpus.PROTOS)
    proto = corpus.model_of(name)
    bench.mutator.proto(proto)
    if bench.random.random() < 0.3:
        _use(bench, proto, corpus.inputs_of(name))
        return
    path = bench.folder / "model.onnx"
    path.write_bytes(proto.SerializePartialToString())
    _use(bench, path, corpus.inputs_of(name), backend=bench.pick((None, "numpy")))


def onnx_outside(bench: Bench) -> None:
    """An ONNX model with external data, either of its files changed."""
    for path in (bench.home / "outside").iterdir():
        shutil.copy(path, bench.folder)
    chosen = bench.pick(("weights.bin", "model.onnx", "fields"))
    if chosen == "fields":
        proto = onnx.load(bench.folder / "model.onnx", load_external_data=False)
        tensor = bench.pick(proto.graph.initializer)
        bench.mutator.proto(tensor)
        (bench.folder / "model.onnx").write_bytes(proto.SerializePartialToString())
    else:
        path = bench.folder / chosen
        path.write_bytes(bench.mutator.bytes(path.read_bytes()))
    _use(
        bench,
        bench.folder / "model.onnx",
        corpus.images(),
        backend=bench.pick((None, "numpy")),
    )


def torch_modules(bench: Bench) -> None:
    """A torch module with odd parameters, attributes or children, or with an odd batch."""
    name = bench.pick(corpus.MODULES)
    model, batch = corpus.model_of(name), corpus.inputs_of(name)
    given: Any = batch
    if not bench.mutator.off:
        _change_module(bench, model)
        if bench.random.random() < 0.2:
            given = _odd_batch(bench, batch)
    _use(bench, model, given)


def _change_module(bench: Bench, model: nn.Module) -> None:
    child = bench.pick([m for m in model.modules() if m._parameters])
    name = bench.pick(list(child._parameters))
    way = bench.random.randrange(6)
    parameter = child._parameters[name]
    if way == 0 and parameter is not None:
        dtype = bench.pick(
            (
                torch.float64,
                torch.float16,
                torch.bfloat16,
                torch.int32,
                torch.complex64,
                torch.bool,
                torch.float8_e4m3fn,
            )
        )
        child._parameters[name] = nn.Parameter(
            parameter.detach().to(dtype), requires_grad=False
        )
    elif way == 1 and parameter is not None:
        form = bench.pick(
            (
                (0,),
                (1,),
                (),
                (3, 2),
                (*parameter.shape, 1),
                (0, *parameter.shape[1:]),
                tuple(reversed(parameter.shape)),
            )
        )
        child._parameters[name] = nn.Parameter(torch.randn(form))
    elif way == 2 and parameter is not None:
        with torch.no_grad():
            parameter.view(-1)[bench.random.randrange(parameter.numel())] = bench.pick(
                (float("nan"), float("inf"), 1e38, 1e-45)
            )
    elif way == 3:
        child._parameters[name] = None
    elif way == 4:
        attribute = bench.pick(
            [a for a in ATTRIBUTES if hasattr(child, a)] or ["training"]
        )
        # Torch guards some of them itself.
        with contextlib.suppress(TypeError, KeyError):
            setattr(
                child,
                attribute,
                bench.pick(
                    (
                        0,
                        -1,
                        None,
                        "same",
                        "weird",
                        (0, 0),
                        (1,),
                        (2, 2, 2),
                        3,
                        1e9,
                        True,
                        OBJECTS[3],
                    )
                ),
            )
    else:
        inner = bench.pick([m for m in model.modules() if m._modules])
        inner._modules[bench.pick(inner._modules)] = bench.pick(
            (None, nn.Identity(), nn.Flatten(), nn.Linear(3, 3), inner)
        )


def _odd_batch(bench: Bench, batch: np.ndarray) -> Any:
    return bench.pick(
        (
            batch[:0],
            batch[:1],
            batch.astype(np.float64),
            batch.astype(np.int64),
            batch.astype(object),
            batch[0],
            batch[..., None],
            batch * np.nan,
            batch.tolist(),
            "text",
            None,
            {"x": batch},
            {"input": batch},
            [batch, batch],
            torch.tensor(batch).half(),
            np.array(["a"]),
            (batch, None),
            {},
            (),
            {"input": None},
            np.float32(3),
            batch.astype("M8[s]"),
            batch.astype(complex),
        )
    )


def odd_batches(bench: Bench) -> None:
    """Calibration batches and calls that do not fit, for every backend."""
    name = bench.pick((*corpus.MODULES, *corpus.PROTOS, "graph"))
    model, batch = corpus.model_of(name), corpus.inputs_of(name)
    given = batch if bench.mutator.off else _odd_batch(bench, batch)
    whole: Any = bench.pick(
        ([given], given, [batch, given], lambda: [given], iter([given]))
    )
    if bench.random.random() < 0.5:
        octavo.quantize_model(
            model, bench.pick(PRESETS), whole if not bench.mutator.off else [given]
        )
        return
    candidate = octavo.quantize_model(model, "int8-weight-only", [batch]).candidate
    candidate.run(given if isinstance(given, (dict, tuple)) else (given,))


def numpy_files(bench: Bench) -> None:
    """A NumPy graph's file: changed bytes, or a changed table."""
    path = bench.home / "graph.npz"
    target = _changed_npz(bench, path, bench.folder / path.name)
    _use(bench, target, corpus.rows())


def _changed_npz(bench: Bench, path: Path, target: Path) -> Path:
    """Write an .npz with mutated bytes, or with its table mutated and the arrays as they were."""
    import zipfile

    if bench.random.random() < 0.3:
        target.write_bytes(bench.mutator.bytes(path.read_bytes()))
        return target
    with zipfile.ZipFile(path) as archive:
        held = {name: archive.read(name) for name in archive.namelist()}
    table = bench.folder / "table"
    bench.table(table, json.loads(held["graph.json"]))
    held["graph.json"] = table.read_bytes()
    table.unlink()
    with zipfile.ZipFile(target, "w") as archive:
        for name, data in held.items():
            archive.writestr(name, data)
    return target


def numpy_graphs(bench: Bench) -> None:
    """A NumPy graph as a caller builds it, with odd nodes and arrays."""
    found = corpus.graph()
    nodes = [
        [n.op, list(n.inputs), list(n.outputs), n.name, dict(n.attributes)]
        for n in found.nodes
    ]
    arrays: dict[str, Any] = dict(found.initializers)
    if not bench.mutator.off and bench.random.random() < 0.4:
        name = bench.pick(arrays)
        kinds = (np.float64, np.float16, np.int8, object, complex, "U5", bool)
        arrays[name] = bench.pick(
            (
                arrays[name].T,
                arrays[name][:0],
                arrays[name] * np.nan,
                None,
                3,
                arrays[name].astype(bench.pick(kinds)),
            )
        )
    else:
        nodes = bench.mutator.json(nodes)
    try:
        made = tuple(Node(*n) for n in nodes)
    except TypeError:
        return  # not even a caller can make such a node
    model = Graph(made, arrays, found.inputs, found.outputs, found.opset)
    _use(bench, model, corpus.rows())


def saved_results(bench: Bench) -> None:
    """A saved result with one of its files changed: loaded and run, inspected, or saved
    once more."""
    name = bench.pick(corpus.SAVED)
    source = corpus.SAVED[name][0]
    folder = bench.folder / "saved"
    shutil.copytree(bench.home / "saved" / name, folder)
    _change_saved(bench, folder)
    model = corpus.model_of(source) if name.startswith("torch") else None
    if bench.random.random() < 0.2:
        arguments = (
            ["--float", f"benchmarks._fuzzing.corpus:{source}"]
            if model is not None
            else []
        )
        command("inspect", str(folder), *arguments, *bench.pick(([], ["--json"])))
        return
    loaded = octavo.load(folder, model)
    batch = corpus.inputs_of(source)
    with torch.no_grad():
        loaded(torch.from_numpy(batch) if model is not None else batch)


def _change_saved(bench: Bench, folder: Path) -> None:
    path = bench.pick(sorted(p for p in folder.rglob("*") if p.is_file()))
    if path.suffix == ".json":
        bench.table(path, json.loads(path.read_text()))
    elif path.suffix == ".npz":
        _changed_npz(bench, path, path)
    elif path.suffix == ".safetensors" and bench.random.random() < 0.6:
        _change_safetensors(bench, path)
    elif path.suffix == ".onnx" and bench.random.random() < 0.6:
        _change_metadata(bench, path)
    elif bench.random.random() < 0.1 and not bench.mutator.off:
        path.unlink()
    else:
        path.write_bytes(bench.mutator.bytes(path.read_bytes()))


def _change_safetensors(bench: Bench, path: Path) -> None:
    """Change the header, or a tensor's shape or dtype, so that the file is a sound one of other
    tensors."""
    from safetensors.torch import load_file, save_file

    if bench.random.random() < 0.5:
        raw = path.read_bytes()
        length = int.from_bytes(raw[:8], "little")
        header = json.dumps(
            bench.mutator.json(json.loads(raw[8 : 8 + length])), default=str
        ).encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header + raw[8 + length :])
        return
    tensors = load_file(path)
    if not bench.mutator.off:
        name = bench.pick(sorted(tensors))
        tensor = tensors[name]
        ways: tuple[Callable[[], torch.Tensor], ...] = (
            lambda: tensor.reshape(-1),
            lambda: tensor[None],
            lambda: tensor[:0],
            lambda: tensor.to(torch.float64),
            lambda: tensor.to(torch.int64),
            lambda: tensor.to(torch.bool),
            lambda: torch.zeros(3),
            lambda: tensor.float() * float("nan"),
            lambda: tensor.to(torch.float16),
        )
        tensors[name] = bench.pick(ways)().contiguous()
        if bench.random.random() < 0.3:
            del tensors[bench.pick(sorted(tensors))]
    save_file(tensors, path)


def _change_metadata(bench: Bench, path: Path) -> None:
    """Change the recipe or the ledger that an ONNX file carries."""
    proto = onnx.load(path)
    entry = bench.pick([e for e in proto.metadata_props if e.key.startswith("octavo.")])
    changed = dump(bench.mutator.json(json.loads(entry.value)))
    entry.value = (
        changed
        if bench.mutator.off or bench.random.random() < 0.8
        else bench.pick(("", "null", "[" * 100_000, "3"))
    )
    path.write_bytes(proto.SerializeToString())


def manifests(bench: Bench) -> None:
    """The manifest of a searched result: read, reported, listed."""
    folder = bench.folder / "saved"
    shutil.copytree(bench.home / "saved" / "searched", folder)
    bench.table(
        folder / "octavo.json", json.loads((folder / "octavo.json").read_text())
    )
    way = bench.random.randrange(5)
    if way == 0:
        write(report_data(read_manifest(folder)), bench.folder / "report.html")
    elif way == 1:
        command("report", str(folder))
    elif way == 2:
        command("history", str(folder), *bench.pick(([], ["--json"])))
    elif way == 3:
        command("inspect", str(folder), *bench.pick(([], ["--json"])))
    else:
        octavo.load(folder)(corpus.rows())


def histories(bench: Bench) -> None:
    """A history: its file's bytes, or what its rows hold; opened to be read, or to go on."""
    path = bench.folder / "history.db"
    if bench.random.random() < 0.4:
        bench.file(bench.home / "history.db")
    else:
        shutil.copy(bench.home / "history.db", path)
        if not bench.mutator.off:
            _change_rows(bench, path)
    way = bench.random.randrange(3)
    if way == 0:
        read_history(path)
    elif way == 1:
        command("history", str(path), *bench.pick(([], ["--json"])))
    else:
        stored = _fingerprint(bench.home / "history.db")
        with contextlib.closing(StudyHistory(path, fingerprint=stored)) as history:
            assert bench.mutator.off is False or history.trials


def _fingerprint(path: Path) -> Mapping[str, str]:
    found: Mapping[str, str] = read_history(path)[2]["octavo:fingerprint"]
    return found


def _change_rows(bench: Bench, path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        way = bench.random.randrange(4)
        if way == 0:
            names = [
                r[0]
                for r in connection.execute(
                    "SELECT name FROM sqlite_master WHERE type='table' ORDER BY name"
                )
            ]
            connection.execute(
                f"{bench.pick(('DROP TABLE', 'DELETE FROM'))} {bench.pick(names)}"
            )
        elif way == 1:
            places = [
                (t, c)
                for t in (
                    "trials",
                    "trial_values",
                    "study_directions",
                    "studies",
                    "version_info",
                    "alembic_version",
                )
                for c in [r[1] for r in connection.execute(f"PRAGMA table_info({t})")]
            ]
            table, column = bench.pick(places)
            with contextlib.suppress(sqlite3.IntegrityError):
                connection.execute(
                    f"UPDATE {table} SET {column} = ?",
                    (bench.pick((None, "x", -1, b"\xff\xfe", 10**15, "FAIL")),),
                )
        else:
            table = bench.pick(
                (
                    "trial_user_attributes",
                    "trial_user_attributes",
                    "study_user_attributes",
                )
            )
            rows = connection.execute(
                f"SELECT rowid, value_json FROM {table} ORDER BY rowid"
            ).fetchall()
            row, value = bench.pick(rows)
            connection.execute(
                f"UPDATE {table} SET value_json = ? WHERE rowid = ?",
                (_changed_value(bench, value), row),
            )
        connection.commit()


def _changed_value(bench: Bench, value: str) -> Any:
    raw = json.loads(value)
    if isinstance(raw, str) and bench.random.random() < 0.8:
        with contextlib.suppress(ValueError):
            return json.dumps(dump(bench.mutator.json(json.loads(raw))))
    return bench.pick(
        (dump(bench.mutator.json(raw)), b"\xff\xfe", "", "[" * 100_000, None, 3)
    )


def configurations(bench: Bench) -> None:
    """Settings: as a file of each kind, as a mapping, or as keywords of TuningConfig; then a short
    run with them."""
    way = bench.random.randrange(5)
    if way < 2:
        raw = bench.mutator.json(corpus.CONFIG, objects=True)
        settings = (
            octavo.TuningConfig(**{str(k): v for k, v in raw.items()})
            if way
            else octavo.TuningConfig.read(raw)
        )
    else:
        raw = bench.mutator.json(corpus.CONFIG)
        suffix = bench.pick((".json", ".yaml", ".toml"))
        path = bench.folder / f"octavo{suffix}"
        text = (
            _toml(raw)
            if suffix == ".toml"
            else yaml.safe_dump(raw)
            if suffix == ".yaml"
            else dump(raw)
        )
        data = text.encode(errors="surrogatepass")
        path.write_bytes(
            data if bench.random.random() < 0.6 else bench.mutator.bytes(data)
        )
        if not bench.mutator.off and bench.random.random() < 0.1:
            path.write_bytes(
                bench.pick(
                    (
                        b"a=" + b"[" * 100_000,
                        b"[" * 100_000,
                        b"{a: " * 5000,
                        b"&a [*a, *a]",
                        b"!!python/object:x {}",
                        b"a: &a [b, *a]",
                    )
                )
            )
        settings = octavo.TuningConfig.read(path)
    _tune(bench, settings)


def _tune(bench: Bench, settings: octavo.TuningConfig) -> None:
    """Tune with the settings, and interrupt the run after a few scores, as a user would."""
    if settings.executor.kind == "process":
        return  # what the child would be asked is the same, and starting it takes seconds
    calls = iter(range(4))

    def judge(model: Any) -> float:
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return corpus.score(model)

    with contextlib.suppress(KeyboardInterrupt):
        octavo.autotune(
            corpus.graph(),
            judge,
            [corpus.rows()],
            settings,
            storage=bench.folder / "history.db",
        )


def _toml(value: Any) -> str:
    """Return TOML: tables inline, so that any nesting can be written."""

    def inline(inner: Any) -> str:
        if isinstance(inner, dict):
            return (
                "{"
                + ", ".join(
                    f"{json.dumps(str(k))} = {inline(v)}" for k, v in inner.items()
                )
                + "}"
            )
        if isinstance(inner, list):
            return "[" + ", ".join(map(inline, inner)) + "]"
        return (
            json.dumps(inner)
            if isinstance(inner, (str, bool))
            else '""'
            if inner is None
            else str(inner)
        )

    return (
        "\n".join(f"{json.dumps(str(k))} = {inline(v)}" for k, v in value.items())
        if isinstance(value, dict)
        else str(value)
    )


def overrides(bench: Bench) -> None:
    """Keyword settings of a run and arguments of the other calls, of any type."""
    junk = lambda: bench.mutator.junk(objects=True)  # noqa: E731
    if bench.mutator.off:
        return
    name = bench.pick(
        (
            *octavo.TuningConfig.model_fields,
            "tolerance",
            "metric",
            "mode",
            "minimise",
            "higher_is_better",
            "unknown",
        )
    )
    way = bench.random.randrange(7)
    if way == 0:
        octavo.TuningConfig(**{name: junk()})
    elif way >= 5:
        _odd_argument(bench, junk())
    elif way == 1:
        octavo.TuningConfig.read(None, **{name: junk()})
    elif way == 2:
        octavo.quantize_model(corpus.graph(), junk(), [corpus.rows()])
    elif way == 3:
        octavo.quantize_model(
            junk(),
            "int8-dynamic",
            [corpus.rows()],
            backend=bench.pick((None, "numpy", "torch", "onnx", junk())),
        )
    else:
        octavo.load(junk(), bench.pick((None, junk())))


def _odd_argument(bench: Bench, value: Any) -> None:
    """Tune with one argument of the call that is none."""
    names = (
        "storage",
        "study",
        "sensitivities",
        "executor",
        "callbacks",
        "backends",
        "holdout_fn",
        "config",
        "eval_fn",
        "calibration",
        "resume",
    )
    given: dict[str, Any] = {
        "eval_fn": corpus.score,
        "calibration": [corpus.rows()],
        "storage": bench.folder / "history.db",
        "max_trials": 1,
        "minimise": "size",
        "tolerance": 0.5,
        "confirm": False,
        bench.pick(names): value,
    }
    before = Path.cwd()
    os.chdir(bench.folder)  # a text may name a file
    try:
        octavo.autotune(corpus.graph(), **given)
    finally:
        os.chdir(before)


def data_files(bench: Bench) -> None:
    """Files of samples."""
    path = bench.file(bench.home / bench.pick(("rows.npz", "x.npy")))
    way = bench.random.randrange(3)
    if way == 0:
        load_arrays(path)
    elif way == 1:
        octavo.quantize_model(corpus.graph(), "int8-static", path)
    else:
        command(
            "quantize",
            str(bench.home / "graph.npz"),
            "--data",
            str(path),
            "--output",
            str(bench.folder / "result"),
        )


def sensitivities(bench: Bench) -> None:
    """A file of sensitivities that a run starts from."""
    kept = bench.pick(sorted(bench.home.glob("sensitivities.*.json")))
    bench.table(bench.folder / kept.name, json.loads(kept.read_text()))
    octavo.autotune(
        corpus.graph(),
        corpus.score,
        [corpus.rows()],
        max_trials=2,
        minimise="size",
        tolerance=0.5,
        confirm=False,
        storage=bench.folder / "history.db",
        sensitivities=bench.folder / "sensitivities.json",
    )


def other_files(bench: Bench) -> None:
    """Files that are models of something else, and commands over mutated models."""
    name = bench.pick(
        ("convolutional.onnx", "controlled.onnx", "graph.npz", "state.pt")
    )
    path = bench.file(
        bench.home / name,
        bench.pick(
            (
                name,
                "model.onnx",
                "model.npz",
                "model.pt",
                "model.pt2",
                "model.safetensors",
                "model",
            )
        ),
    )
    way = bench.random.randrange(4)
    if way == 0:
        command(
            "inspect", str(path), *bench.pick(([], ["--json"], ["--backend", "numpy"]))
        )
    elif way == 1:
        command("capabilities", str(path))
    elif way == 2:
        command(
            "quantize",
            str(path),
            "--scheme",
            "int8-dynamic",
            "--output",
            str(bench.folder / "result"),
        )
    else:
        command(
            "sensitivity",
            str(path),
            "--data",
            str(bench.home / "rows.npz"),
            "--kind",
            "weight_error",
        )


FAMILIES: Mapping[str, Callable[[Bench], None]] = {
    f.__name__: f
    for f in (
        onnx_bytes,
        onnx_fields,
        onnx_outside,
        torch_modules,
        odd_batches,
        numpy_files,
        numpy_graphs,
        saved_results,
        manifests,
        histories,
        configurations,
        overrides,
        data_files,
        sensitivities,
        other_files,
    )
}
"""Name -> runs one case; whatever it raises is judged by the caller."""
