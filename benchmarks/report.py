"""How large the page of a run is, and how fast it is drawn. Run: python -m benchmarks.report

Bars: at most 300 kB for a model of 229 ops and 1.5 MB for 2,000, and under ten pages of paper for
229. Models are ONNX chains of residual blocks that are really tuned; nodes, time to draw and pages
are those of a browser, where there is one.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import octavo

SIZES = (8, 229, 2000)
CHANNELS = 8
TRIALS = 18


def chain(ops: int, path: Path) -> Path:
    """Write a chain of residual blocks (convolution with its rectifier, sum) of so many ops."""
    draw = np.random.default_rng(0)
    nodes = []
    weights = []
    value = "x"
    before = "x"
    for index in range(ops):
        name = f"/encoder/layer.{index // 2}"
        given = value
        value = f"v{index}"
        if index % 2:
            node = helper.make_node(
                "Add", [given, before], [value], name=f"{name}/residual_sum/Add"
            )
            nodes.append(node)
        else:
            before = given
            weight = draw.normal(0, 0.004, (CHANNELS, CHANNELS, 3, 3))
            held = numpy_helper.from_array(weight.astype(np.float32), f"w{index}")
            weights.append(held)
            convolution = helper.make_node(
                "Conv",
                [given, held.name],
                [f"c{index}"],
                name=f"{name}/conv/Conv",
                pads=[1, 1, 1, 1],
            )
            # It runs inside the convolution and is no op of its own.
            rectifier = helper.make_node(
                "Relu", [f"c{index}"], [value], name=f"{name}/act/Relu"
            )
            nodes += [convolution, rectifier]
    shape = ["n", CHANNELS, 4, 4]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(value, TensorProto.FLOAT, shape)],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, path)
    return path


def tuned(model: Path, folder: Path) -> octavo.Result:
    """Tune a chain: random recipes, so that trials differ in many ops."""
    draw = np.random.default_rng(1)
    samples = draw.normal(0, 1, (16, CHANNELS, 4, 4)).astype(np.float32)

    def accuracy(candidate: octavo.ArrayModel) -> float:
        found = candidate(samples)
        return float(np.isfinite(found).mean())

    return octavo.autotune(
        model,
        accuracy,
        [samples],
        strategy={"kind": "bayesian", "over": "op", "sampler": "random"},
        max_trials=TRIALS,
        minimise="size",
        storage=folder / "history.db",
        confirm=False,
    )


def in_a_browser(page: Path) -> str:
    """Return how many nodes the page has, how long it takes to draw, and how many pages of paper;
    why not, where there is no browser."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        return "no browser on this machine"
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        shown = playwright.chromium.launch(
            executable_path=browser, args=["--no-sandbox"]
        )
        view = shown.new_page(viewport={"width": 1400, "height": 900})
        start = time.perf_counter()
        view.goto(page.as_uri())
        took = time.perf_counter() - start
        nodes = view.evaluate("document.querySelectorAll('*').length")
        start = time.perf_counter()
        view.click("#op-table thead th:nth-child(3) button")
        sorting = time.perf_counter() - start
        # A PDF names each of its pages once.
        paper = view.pdf(format="A4").count(b"/Type /Page\n")
        shown.close()
    times = f"shown in {took:.2f} s, sorted in {sorting:.2f} s"
    return f"{nodes:,} nodes, {times}, {paper} pages of paper"


def main() -> None:
    """Print the figures of each size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ops", type=int, nargs="*", default=SIZES)
    for ops in parser.parse_args().ops:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            result = tuned(chain(ops, folder / "chain.onnx"), folder)
            start = time.perf_counter()
            page = result.report(folder / "report.html", f"A chain of {ops} ops")
            took = time.perf_counter() - start
            size = page.stat().st_size / 1000
            shown = in_a_browser(page)
        told = f"{len(result.ledger):5} ops, {len(result.trials)} trials: {size:.0f} kB"
        print(f"{told}, drawn in {took:.2f} s; {shown}", flush=True)


if __name__ == "__main__":
    main()
