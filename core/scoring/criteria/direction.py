"""Which way a metric's name points: known to be better when higher, or to be asked for.

A loss that is taken for a score turns the search round: the worse a candidate, the sooner it
passes. So a direction is never guessed. A name is accepted without one only if a word in it is
known to be better when higher, whatever stands before, after or between its words, and no word in
it is that of a loss, a distance or a cost.
"""

from __future__ import annotations

import re
import unicodedata

HIGHER = frozenset(
    [
        "acc",
        "accs",
        "accuracy",
        "accuracies",
        "agreement",
        "ap",
        "auc",
        "auprc",
        "auroc",
        "bertscore",
        "bleu",
        "chrf",
        "cider",
        "comet",
        "cosine",
        "dice",
        "f1",
        "f2",
        "fbeta",
        "fscore",
        "fwiou",
        "hits",
        "iou",
        "jaccard",
        "kappa",
        "map",
        "mar",
        "matthews",
        "mcc",
        "meteor",
        "miou",
        "mrr",
        "ndcg",
        "pesq",
        "precision",
        "psnr",
        "r2",
        "recall",
        "rouge",
        "rougel",
        "sacrebleu",
        "sdr",
        "sisdr",
        "sisnr",
        "snr",
        "specificity",
        "spearman",
        "spearmanr",
        "pearson",
        "pearsonr",
        "spice",
        "ssim",
        "msssim",
        "stoi",
        "vmaf",
    ]
)
"""Words of metrics of which everybody means the same, and of which more is better."""

PHRASES = (
    ("exact", "match"),
    ("explained", "variance"),
    ("hit", "rate"),
    ("pass", "at"),
    ("success", "rate"),
    ("win", "rate"),
    ("matthews", "correlation"),
    ("cosine", "similarity"),
)
"""The same in several words."""

LOSSES = frozenset(
    [
        "bce",
        "bits",
        "bleurtloss",
        "bpb",
        "bpc",
        "bpd",
        "bpw",
        "brier",
        "cd",
        "ce",
        "cer",
        "chamfer",
        "cost",
        "delta",
        "deviation",
        "diff",
        "difference",
        "dist",
        "drop",
        "ece",
        "edit",
        "eer",
        "emd",
        "energy",
        "err",
        "fail",
        "failed",
        "failure",
        "failures",
        "false",
        "far",
        "fdr",
        "fid",
        "fnr",
        "fpr",
        "frr",
        "gap",
        "hamming",
        "hausdorff",
        "hinge",
        "inaccuracy",
        "imprecision",
        "inverse",
        "kid",
        "kl",
        "kld",
        "js",
        "jsd",
        "latency",
        "levenshtein",
        "lpips",
        "lost",
        "lower",
        "mae",
        "mape",
        "mase",
        "medae",
        "minus",
        "misses",
        "miss",
        "mistakes",
        "mpjpe",
        "mse",
        "msle",
        "nats",
        "neg",
        "negative",
        "negated",
        "nll",
        "nmse",
        "nrmse",
        "overhead",
        "penalty",
        "ppl",
        "psnrloss",
        "rank",
        "regret",
        "residual",
        "risk",
        "rmse",
        "rmsle",
        "sad",
        "seconds",
        "smape",
        "mape",
        "ter",
        "time",
        "uncertainty",
        "violation",
        "wer",
        "wrong",
        "xe",
        "xent",
    ]
)
"""Words of what is better when lower, or that turn what stands beside them round."""

LOSS_STEMS = (
    "loss",
    "error",
    "entropy",
    "perplex",
    "distan",
    "diverg",
    "degrad",
    "dissimilar",
)
"""Parts of words that say the same wherever they stand: ``logloss``, ``crossentropy``,
``errors``."""

AFFIXES = (
    "validation", "valid", "val", "test", "eval", "dev", "train", "mean", "avg", "average",
    "macro", "micro", "weighted", "balanced", "overall", "total", "top", "roc", "pr", "score",
    "rate",
)  # fmt: skip
"""What is run together with a known word and changes nothing: ``valacc``, ``macrof1``,
``rocauc``."""

SCORE = "score"
"""The name of a number that has none. It is documented as better when higher, and the model that is
broken on purpose guards it."""


def words(name: str) -> tuple[str, ...]:
    """Return the words of a name in lower case, split at what is no letter or digit, and at camel
    case.

    A known abbreviation stays whole, so that ``mAP`` is ``map`` and ``meanIoU`` is ``meaniou``.
    """
    found: list[str] = []
    for chunk in re.split(r"[\W_]+", unicodedata.normalize("NFKC", name)):
        whole = chunk.lower()
        parts = re.findall(r"[A-Z]+(?![a-z])\d*|[A-Z]?[a-z]+\d*|\d+", chunk)
        split = [part.lower() for part in parts]
        found += [whole] if _is_known(whole) or len(split) < 2 else split
    return tuple(word for word in found if word)


def reads_like_a_loss(name: str) -> bool:
    """True if a word of the name is that of a loss, or turns a metric round (``1 - accuracy``)."""
    if re.match(r"\W*1\s*[-\u2212]", name):
        return True
    for word in words(name):
        bare = _without_affixes(word.rstrip("0123456789"))
        if bare in LOSSES or any(stem in word for stem in LOSS_STEMS):
            return True
    return False


def known_as_higher_is_better(name: str) -> bool:
    """True if the name is that of a metric that is better when higher: the only ones whose
    direction need not be said."""
    if name == SCORE:
        return True
    if reads_like_a_loss(name):
        return False
    found = words(name)
    return any(map(_is_known, found)) or _has_phrase(found) or _has_top(found)


def ask_for_direction(name: str) -> str:
    """Return what to answer to a metric whose direction was not said, with every way to say it."""
    what = (
        "reads like a loss"
        if reads_like_a_loss(name)
        else "is not known to be better when higher"
    )
    return (
        f"metric {name!r} {what}, and nothing is guessed: say higher_is_better=False for a loss or "
        "higher_is_better=True for a score (Python); higher_is_better = false or = true under "
        "[accuracy], or "
        f'under [accuracy.metrics."{name}"] (configuration file); --lower-is-better or '
        "--higher-is-better (command line)"
    )


def _is_known(word: str) -> bool:
    if word in HIGHER:
        return True
    bare = word.rstrip("0123456789")
    return (
        bare in HIGHER
        or _without_affixes(word) in HIGHER
        or _without_affixes(bare) in HIGHER
    )


def _without_affixes(word: str) -> str:
    """Return a word without what may be run together with it; the word itself where nothing else
    would be left."""
    for affix in AFFIXES:
        rest = ""
        if word.startswith(affix):
            rest = word[len(affix) :].lstrip("0123456789")
        elif word.endswith(affix):
            rest = word[: -len(affix)]
        if rest:
            return _without_affixes(rest)
    return word


def _has_phrase(found: tuple[str, ...]) -> bool:
    for phrase in PHRASES:
        starts = range(len(found) - len(phrase) + 1)
        if any(found[start : start + len(phrase)] == phrase for start in starts):
            return True
    return False


def _has_top(found: tuple[str, ...]) -> bool:
    """True for ``top1``, ``top-5``, ``top_k``: how often the right class is among the first."""
    joined = " ".join(found)
    return re.search(r"\btop ?(\d+|k)\b", joined) is not None
