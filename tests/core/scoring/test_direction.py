"""A metric's direction is never guessed: only names that everybody reads as better when higher need
none."""

from __future__ import annotations

from pathlib import Path

import pytest

import octavo
from octavo.core.errors import ConfigError
from octavo.core.scoring.criteria.config import ToleranceConfig
from octavo.core.scoring.criteria.direction import known_as_higher_is_better
from octavo.core.scoring.criteria.tolerance import Tolerance
from tests import tiny

LOSSES = [
    "loss",
    "val_loss",
    "eval_loss",
    "valLoss",
    "ValLoss",
    "valloss",
    "log-loss",
    "logloss",
    "CrossEntropyLoss",
    "cross_entropy",
    "ce",
    "kl",
    "KL-div",
    "KLDiv",
    "rmse_test",
    "trainRMSE",
    "rmse",
    "MAE",
    "mape",
    "smape",
    "brier",
    "brier_score",
    "nll",
    "bits_per_byte",
    "bpb",
    "error_rate",
    "err",
    "top5_error",
    "top1-err",
    "wordErrRate",
    "wer/clean",
    "WER",
    "cer",
    "hinge_loss",
    "ppl_wikitext",
    "perplexity",
    "fid",
    "lpips",
    "cosine_distance",
    "accuracy_loss",
    "accuracyLoss",
    "accLoss",
    "accloss",
    "1-accuracy",
    "one_minus_f1",
    "neg_accuracy",
    "inaccuracy",
    "accuracy_drop",
    "precision_loss",
    "recall_error",
    "mapLoss",
    "dice_loss",
    "f1loss",
    "false_positive_rate",
    "meanSquaredError",
    "neg_mean_squared_error",
    "latency_ms",
    "ece",
    "f1-gap",
    "DSSIM",
]
UNKNOWN = [
    "quality",
    "x",
    "m",
    "fitness",
    "reward_model",
    "my_metric",
    "result",
    "value",
    "eval",
    "metric2",
    "misclassification",
]
SCORES = [
    "accuracy",
    "acc",
    "val_acc",
    "valAcc",
    "valacc",
    "accuracy_top1",
    "top1",
    "top-5",
    "top_5_accuracy",
    "acc1",
    "acc@1",
    "balanced_accuracy",
    "eval/f1-macro",
    "f1",
    "F1Score",
    "macroF1",
    "f1_score",
    "auc",
    "roc_auc",
    "ROC-AUC",
    "AUROC",
    "mAP",
    "mAP@50",
    "map50",
    "mAP50-95",
    "AP50",
    "mrr",
    "MRR@10",
    "ndcg@10",
    "nDCG",
    "recall@k",
    "precision",
    "BLEU",
    "sacrebleu",
    "bleu-4",
    "rouge1",
    "ROUGE-L",
    "iou",
    "mIoU",
    "meanIoU",
    "dice_coefficient",
    "r2",
    "R2",
    "R²",
    "psnr",
    "ssim",
    "ms_ssim",
    "cosine",
    "cosine_similarity",
    "exact_match",
    "hits@10",
    "score",
    "task2.accuracy.int8",
    "spearmanr",
    "pearson_r",
    "kappa",
    "matthews_corrcoef",
    "mcc",
    "token-accuracy",
    "agreement",
]


@pytest.mark.parametrize("name", LOSSES + UNKNOWN)
def test_what_is_not_known_to_be_better_when_higher_is_asked_for(name: str) -> None:
    assert not known_as_higher_is_better(name)
    with pytest.raises(ValueError, match="higher_is_better=False") as asked:
        ToleranceConfig(metric=name)
    for spelling in (
        "higher_is_better=True",
        "higher_is_better = false",
        "--lower-is-better",
    ):
        assert spelling in str(asked.value)
    with pytest.raises(ConfigError, match="nothing is guessed"):
        Tolerance(ToleranceConfig()).check_baseline({name: 0.5, "accuracy": 0.9})
    Tolerance(ToleranceConfig(metric=name, higher_is_better=False)).check_baseline(
        {name: 0.5}
    )


@pytest.mark.parametrize("name", SCORES)
def test_names_of_scores_need_no_direction(name: str) -> None:
    criterion = Tolerance(ToleranceConfig(metric=name))
    criterion.check_baseline({name: 0.9})
    assert criterion.judge({name: 0.95}, {name: 0.9}).passed
    assert not criterion.judge({name: 0.5}, {name: 0.9}).passed


def test_a_direction_said_for_one_of_several_counts_for_that_one() -> None:
    goals = {"val_loss": {"higher_is_better": False}, "val_acc": {}}
    criterion = Tolerance(ToleranceConfig(metrics=goals))
    assert criterion.judge(
        {"val_loss": 0.1, "val_acc": 0.9}, {"val_loss": 0.2, "val_acc": 0.9}
    ).passed
    assert not criterion.judge(
        {"val_loss": 2.0, "val_acc": 0.9}, {"val_loss": 0.2, "val_acc": 0.9}
    ).passed
    with pytest.raises(ValueError, match="'val_loss'"):
        ToleranceConfig(metrics={"val_loss": {}, "val_acc": {"higher_is_better": True}})


@pytest.mark.parametrize(
    "score", [lambda m: 0.1, lambda m: {"accuracy": 0.9, "val_loss": 0.1}]
)
def test_a_run_asks_before_it_searches(tmp_path: Path, score: object) -> None:
    named = {} if isinstance(score(None), dict) else {"metric": "val_loss"}
    with pytest.raises(ConfigError, match="'val_loss' reads like a loss"):
        octavo.autotune(
            tiny.chain(),
            score,
            tiny.calibration(),
            storage=tmp_path / "h.db",
            host=tiny.host(),
            **named,
        )
