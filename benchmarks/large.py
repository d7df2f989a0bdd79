"""An ONNX model over 2 GB, from file to file. Run it as ``python -m benchmarks.large [GIGABYTES]``
(needs twice that on disk).

Each row is a process of its own: open by path, describe, quantize, save, load, run. Peak memory is
what the process held at most beyond its imports, mapped files included, in float models; the bar is
4.
"""

from __future__ import annotations

import gc
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import octavo
from benchmarks.onnx import _memory, row

WIDTH, ROWS = 8192, 20_000
KINDS: dict[str, Any] = {
    "float, saved again": {
        "rules": [{"types": ["linear", "embedding"], "keep": "float"}]
    },
    "one product dynamic, saved with external data": {
        "rules": [
            {"types": ["linear", "embedding"], "keep": "float"},
            {
                "ops": ["product0"],
                "mode": "dynamic",
                "weight": {"granularity": ["channel"]},
            },
        ]
    },
    "int8-dynamic": "int8-dynamic",
    "int8-weight-only": "int8-weight-only",
    "int4-weight-only": "int4-weight-only",
}


def build(path: Path, gigabytes: float) -> int:
    """Write a table and as many products as it takes, all in one external file; return
    its bytes."""
    layers = max(1, round((gigabytes * 1e9 / 4 - ROWS * WIDTH) / WIDTH**2))
    shapes = {
        "table": (ROWS, WIDTH),
        **{f"w{i}": (WIDTH, WIDTH) for i in range(layers)},
    }
    rng, held, offset = np.random.default_rng(0), [], 0
    with (path.parent / "weights.bin").open("wb") as file:
        for name, shape in shapes.items():
            (
                rng.standard_normal(shape, np.float32) / np.float32(np.sqrt(WIDTH))
            ).tofile(file)
            tensor = TensorProto(
                name=name,
                data_type=TensorProto.FLOAT,
                dims=shape,
                data_location=TensorProto.EXTERNAL,
            )
            for key, value in {
                "location": "weights.bin",
                "offset": offset,
                "length": 4 * shape[0] * shape[1],
            }.items():
                tensor.external_data.add(key=key, value=str(value))
            held.append(tensor)
            offset += 4 * shape[0] * shape[1]
    nodes = [helper.make_node("Gather", ["table", "ids"], ["h0"], "embed")]
    for i in range(layers):
        nodes += [
            helper.make_node("MatMul", [f"h{i}", f"w{i}"], [f"p{i}"], f"product{i}"),
            helper.make_node("Tanh", [f"p{i}"], [f"t{i}"], f"tanh{i}"),
            helper.make_node("Mul", [f"t{i}", "two"], [f"h{i + 1}"], f"double{i}"),
        ]
    ends = [
        helper.make_tensor_value_info(n, t, ["n", *s])
        for n, t, s in (
            ("ids", TensorProto.INT64, []),
            (f"h{layers}", TensorProto.FLOAT, [WIDTH]),
        )
    ]
    graph = helper.make_graph(
        nodes,
        "large",
        ends[:1],
        ends[1:],
        [*held, numpy_helper.from_array(np.float32(2), "two")],
    )
    onnx.save(
        helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
        ),
        path,
    )
    return offset


def child(path: Path, kind: str) -> None:
    from octavo.adapters.onnx import OnnxConfig
    from octavo.adapters.onnx.adapter import OnnxAdapter

    ids = np.arange(16) * 997 % ROWS
    adapter = OnnxAdapter(OnnxConfig(threads=2))
    adapter.capability()  # established once per process, whatever the model
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    before, start = _memory("VmRSS"), time.perf_counter()
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        made = octavo.quantize_model(
            path, KINDS[kind], backend={"kind": "onnx", "threads": 2}
        )
        kernels = sum(
            line.realization == "kernel" and not line.applied.is_float
            for line in made.ledger.values()
        )
        y = made.model(ids)
        saved = made.save(Path(folder) / "out")
        files = {f.name: f.stat().st_size for f in saved.rglob("model.onnx*")}
        peak, seconds = _memory("VmHWM") - before, time.perf_counter() - start
        del made
        same = np.array_equal(octavo.load(saved)(ids), y)
    del y
    print(
        kernels,
        seconds,
        peak,
        max(peak, _memory("VmHWM") - before),
        sum(files.values()),
        len(files),
        same,
    )


def main(gigabytes: float) -> None:
    with tempfile.TemporaryDirectory(prefix="octavo-large-") as folder:
        path = Path(folder) / "large.onnx"
        size = build(path, gigabytes)
        print(f"{size / 1e9:.2f} GB of float32 weights in an external file")
        for kind in KINDS:
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.large", "child", str(path), kind],
                capture_output=True,
                text=True,
                check=True,
            )
            kernels, seconds, peak, loading, written, files, same = done.stdout.split()[
                -7:
            ]
            row(
                f"{kind}: kernels, seconds, size, files, loads and answers the same",
                f"{kernels}, {float(seconds):.0f}, {int(written) / size:.3f}, {files}, {same}",
                "True",
                same == "True",
            )
            row(
                "  peak memory to the saved file, and with loading, in models",
                f"{int(peak) / size:.2f}, {int(loading) / size:.2f}",
                "< 4",
                int(loading) / size < 4,
            )


if __name__ == "__main__":
    if sys.argv[1:2] == ["child"]:
        child(Path(sys.argv[2]), sys.argv[3])
    else:
        main(float(sys.argv[1]) if sys.argv[1:] else 2.5)
