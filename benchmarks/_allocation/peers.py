"""The peers' allocations: AutoScheme of auto-round 0.16 and ModelOpt 0.47, read from their
packages.

Both are given the same layers, widths, groups and calibration rows as octavo. Neither is needed:
where one is not installed, the table says so.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from octavo.core.contract.algorithm import WeightContext
from octavo.core.quantizing.algorithms.rtn import RoundToNearest, RtnConfig
from octavo.core.values.scheme import QuantSpec

from .arithmetic import average, least
from .bench import FLOAT, Axis, Bench
from .methods import Found, Method, found

GROUP = 32
BACKEND = "octavo_benchmark"
HEAD_BITS = 16.0  # what ModelOpt counts a weight that is not quantized as


def _missing(package: str, bench: Bench) -> str:
    """Return why a peer cannot be asked; empty if it can."""
    if bench.subject.language is None:
        return "for language models only"
    return "" if importlib.util.find_spec(package) else "not installed"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what a peer prints and warns of out of the tables."""
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        contextlib.redirect_stdout(nowhere),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


Value = TypeVar("Value")


def _by_unit(bench: Bench, by_module: Mapping[str, Value]) -> dict[str, Value]:
    """Return what belongs to modules by octavo's names, which begin with the wrapper's own."""
    return {
        name: by_module[module]
        for name in bench.units
        for module in by_module
        if name == module or name.endswith(f".{module}")
    }


def auto_scheme(bench: Bench, axis: Axis, budget: float, folder: Path) -> Found:
    """Ask AutoScheme (auto_round/auto_scheme): sum |gradient x weight error|, dynamic program.

    By code bits it is told to ignore scales and zero points; by file bits it counts those of its
    own files: 16 bits a scale, and a zero point of the code's width in every integer scheme.
    """
    if why := _missing("auto_round", bench):
        return Found(None, note=why)
    # Scores are kept for further budgets in this run alone.
    os.environ["AR_AUTO_SCHEME_CACHE"] = str(folder / "auto-round")
    from auto_round import AutoRound, AutoScheme
    from auto_round.auto_scheme import delta_loss
    from auto_round.logger import logger
    from auto_round.schemes import QuantizationScheme
    from transformers import AutoTokenizer

    logger.setLevel(logging.ERROR)
    subject = bench.subject
    assert subject.language is not None
    batches = [batch[0] for batch in subject.calibration]
    # Its loader takes names of public data sets; these are the rows that octavo has, too.
    delta_loss.get_dataloader = lambda *_, **__: [
        {"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in batches
    ]
    options = [
        QuantizationScheme(
            bits=int(label), group_size=GROUP, sym=label == "8", data_type="int"
        )
        for label in bench.layers(axis)[0].bits
    ]
    rows = sum(len(ids) for ids in batches)
    length = int(batches[0].shape[1])
    scheme = AutoScheme(
        avg_bits=budget,
        options=options,
        ignore_scale_zp_bits=axis == "code",
        nsamples=rows,
        seqlen=length,
        batch_size=len(batches[0]),
        enable_torch_compile=False,
    )
    try:
        with _quiet():
            asked = AutoRound(
                subject.language(),
                AutoTokenizer.from_pretrained(subject.folder),
                scheme=scheme,
                iters=0,
                nsamples=rows,
                seqlen=length,
                batch_size=len(batches[0]),
                device_map="cpu",
                enable_torch_compile=False,
            )
            asked.post_init()
    except ValueError as error:  # below the narrowest scheme
        return Found(None, note=str(error).split(". ")[0])
    widths = {n: f"{config['bits']}" for n, config in asked.layer_config.items()}
    allocation = _by_unit(bench, widths)
    layers = bench.layers("code")
    used = average(layers, allocation)
    if axis == "file":
        total = sum(layer.parameters for layer in layers)
        held = sum(
            layer.parameters
            * (
                int(allocation[layer.name])
                + auto_round_overhead(allocation[layer.name])
            )
            for layer in layers
        )
        used = held / total
    return Found(allocation, used)


def auto_round_overhead(label: str) -> float:
    """Return the bits a weight that AutoScheme counts beside the codes, at groups of 32."""
    return (16 + int(label)) / GROUP


class _ModelOpt:
    """Scores once for all budgets.

    Args:
        bench: Whose layers are scored.
        grouped: Whether q, k and v share a width, and gate and up, as ModelOpt ships it.
    """

    def __init__(self, bench: Bench, *, grouped: bool) -> None:
        import modelopt.torch.quantization as mtq
        from modelopt.torch.quantization import algorithms
        from modelopt.torch.quantization import nn as quantizers

        subject = bench.subject
        assert subject.language is not None
        quantizers.register_quant_backend(BACKEND, _common_rounding)
        model = subject.language()
        batches = [batch[0] for batch in subject.calibration]
        self._labels = list(bench.layers("code")[0].bits)
        searcher = algorithms.AutoQuantizeGradientSearcher
        rules = searcher.quant_grouping_rules
        searcher.quant_grouping_rules = rules if grouped else []
        try:
            _, self._state = mtq.auto_quantize(
                model,
                constraints={"effective_bits": HEAD_BITS},
                quantization_formats=[_format(label) for label in self._labels],
                data_loader=batches,
                forward_step=lambda m, ids: m(input_ids=ids, use_cache=False),
                loss_func=_next_token_loss,
                disabled_layers=["*lm_head*"],
                num_calib_steps=len(batches),
                num_score_steps=len(batches),
            )
        finally:
            searcher.quant_grouping_rules = rules
        self._head = model.get_output_embeddings().weight.numel()
        self._inner = sum(layer.parameters for layer in bench.layers("code"))

    def own(self, bench: Bench, budget: float) -> dict[str, str]:
        """Return its own solution."""
        from modelopt.torch.quantization import algorithms

        # It counts the head, which is left alone, with 16 bits a weight.
        held = budget * self._inner + HEAD_BITS * self._head
        whole = held / (self._inner + self._head)
        best = algorithms._resolve_best_recipe(self._state, {"effective_bits": whole})
        widths = {}
        for name, recipe in best.items():
            for module in self._modules(name):
                widths[module] = self._label(recipe)
        return _by_unit(bench, widths)

    def losses(self, bench: Bench) -> dict[str, dict[str, float]]:
        """Return its scores by octavo's names."""
        by_module = {}
        for name, stats in self._state["candidate_stats"].items():
            scores = zip(stats["formats"], stats["scores"], strict=True)
            losses = {self._label(recipe): float(score) for recipe, score in scores}
            by_module.update(dict.fromkeys(self._modules(name), losses))
        return _by_unit(bench, by_module)

    def _modules(self, name: str) -> list[str]:
        found: list[str] = self._state["candidate_stats"][name]["module_names"]
        return found

    def _label(self, recipe: Any) -> str:
        """Return the width of a format of its; float where it is none of them."""
        return next((b for b in self._labels if int(b) == recipe.num_bits), FLOAT)


def _format(label: str) -> dict[str, Any]:
    weight = {
        "num_bits": int(label),
        "block_sizes": {-1: GROUP},
        "backend": BACKEND,
        "backend_extra_args": {"label": label},
    }
    return {
        "quant_cfg": [
            {"quantizer_name": "*", "enable": False},
            {"quantizer_name": "*weight_quantizer", "cfg": weight, "enable": True},
        ],
        "algorithm": "max",
    }


def _next_token_loss(output: Any, ids: torch.Tensor) -> torch.Tensor:
    logits = output.logits[:, :-1].float()
    return torch.nn.functional.cross_entropy(
        logits.reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1)
    )


@torch.no_grad()
def _common_rounding(weight: torch.Tensor, quantizer: Any) -> torch.Tensor:
    """Round as octavo does: ModelOpt has no integers with a zero point."""
    label = quantizer.backend_extra_args["label"]
    spec = QuantSpec(
        dtype="int8" if label == "8" else f"uint{label}",
        symmetric=label == "8",
        granularity=f"group:{GROUP}",
    )
    rounded = RoundToNearest(RtnConfig()).quantize(weight, spec, WeightContext())
    return rounded.dequantize().to(weight.dtype)


def model_opt(
    bench: Bench, axis: Axis, budget: float, folder: Path, *, grouped: bool = True
) -> Found:
    """Ask ModelOpt's ``auto_quantize`` (method ``gradient``): (gradient x output change)^2.

    As it ships, or its scores without groups and with an exact solution.
    """
    if why := _missing("modelopt", bench):
        return Found(None, note=why)
    if axis == "file":
        return Found(None, note="no files of these")
    kept = f"_model_opt_{grouped}"
    with _quiet():
        asked: _ModelOpt | None = bench.__dict__.get(kept)
        if asked is None:
            asked = bench.__dict__[kept] = _ModelOpt(bench, grouped=grouped)
        if grouped:
            allocation = asked.own(bench, budget)
        else:
            allocation = least(bench.layers(axis), asked.losses(bench), budget)
    return found(bench, axis, allocation)


PEERS: Mapping[str, Method] = {
    "AutoScheme": auto_scheme,
    "ModelOpt": model_opt,
    "ModelOpt alone": partial(model_opt, grouped=False),
}
"""Name -> method; ``ModelOpt alone`` lets each layer decide for itself."""
