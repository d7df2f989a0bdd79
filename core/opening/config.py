"""The configuration of a tuning run.

From TOML, YAML, JSON, a mapping or Python; unknown keys are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, field_validator

from octavo.core.contract.parts import PartConfig
from octavo.core.errors import ConfigError, shown
from octavo.core.scoring.criteria.config import ToleranceConfig
from octavo.core.scoring.racing import RaceConfig
from octavo.core.values.budgets import BITS, with_bits_of
from octavo.core.values.scheme import Frozen, PartChoice
from octavo.core.values.settings import checked

from .alternatives import (
    Alternative,
    AlternativeTable,
    Chain,
    PartTable,
    as_chain,
)
from .config_files import parse_file
from .durations import seconds
from .recover_setting import Recover, Refine
from .rules import Rule
from .specs import or_one

if TYPE_CHECKING:
    from octavo.core.contract.plugins import PluginHost


class ObjectiveGoals(Frozen):
    """What to minimise.

    Attributes:
        minimise: Most important first. Each entry is an objective's name or its settings.
    """

    minimise: tuple[PartTable, ...] = ("latency", "size")


class ExecutorConfig(Frozen):
    """Where trials run.

    Attributes:
        kind: ``inline``: in this process. ``process``: each evaluation in a child process, so that
            a crash, a hang or running out of memory ends a trial and not the run.
    """

    kind: Literal["inline", "process"] = "inline"


_OF_ACCURACY = ("metric", "tolerance", "mode", "higher_is_better")
"""Keywords that stand for a setting of the accuracy table."""

_SHORT = (*_OF_ACCURACY, "minimise", "minimize")
"""All keywords that stand for a setting of a table."""


class TuningConfig(Frozen):
    """All settings of a run.

    Attributes:
        strategy: A strategy's name, or its settings with ``kind``.
        max_trials: Evaluations after the baseline.
        timeout: Seconds (or text: ``10min``) for the whole search; None for no limit.
        trial_timeout: The same for one evaluation. Hard with the ``process`` executor; with
            ``inline`` it interrupts Python code and waits for a running kernel.
        stop: ``goal``: end at the first recipe that passes. ``budget``: use the trials to find a
            better one.
        seed: The only source of randomness; below 2**32, as some generators take no more.
        accuracy: The criterion; a table without ``kind`` is the tolerance criterion's.
        objective: What to minimise.
        rules: Restrict or widen what ops may take; the later rule wins.
        transforms: Alternatives of model-wide transforms, names or settings; one that is a list is
            applied in its order: ``[["smoothquant", "hadamard"], "awq"]``. None: what the strategy
            suggests (``auto`` suggests some); an empty list: none.
        require: Model-wide transforms that every recipe has, in order, before those of any
            alternative.
        recover: What the best candidates learn from data where no trial reached the goal, in this
            order: ``reconstruction``, ``distillation``, ``qat``, or settings with ``kind``. Empty
            for nothing; ``qat`` alone where a function that trains is given.
        recover_top: How many candidates each of these steps is tried on, the closest to the goal
            first. They come on top of ``max_trials``.
        refine: What the winner learns in the end, judged by samples that are held back and kept
            where it is nearer to the float model than before: ``reconstruction``, ``distillation``,
            or settings with ``kind``, in order. ``auto``: the scales, by distillation, where that
            is cheap; an empty list: nothing.
        backends: Backends to search over; None for the model's own. Names (``onnx``,
            ``onnx(threads=1)``), or settings with ``kind``. A setting that is a list is searched:
            ``{"kind": "onnx", "threads": [1, 2]}`` is two backends, and so is a backend that is
            named twice with different settings.
        baseline: The backend whose float model everything is measured against, by name or with its
            settings; None for the model's own where that is searched, and for the one runtime that
            is searched in its place.
        simulated: Also offer schemes that a backend can only simulate.
        racing: How evaluations of a :class:`~octavo.SampleScore` may be stopped early; None scores
            every sample.
        holdout: Share of a SampleScore's samples that the search never sees; the winner is scored
            on them at the end.
        confirm: Reload the saved winner and score it again before it is called done.
        non_finite: What becomes of an op whose weight holds NaN or Inf: refuse the model, or keep
            the op in float.
        output_metric: How outputs are compared where sensitivities are asked for: by what fits the
            model (``auto``), the divergence of predictions (``kl``), the ``cosine``, or the squared
            difference as a share of each output's ``variance``.
        gram_megabytes: How much of memory (in units of 2**20 bytes) the Gram matrices of
            calibration may take at a time, which gptq, awq and others need; the same again is for
            activations from which a further pass over the data goes on.
        executor: Where trials run.
        budgets: Hard limits: a trial that overruns one does not pass. ``bits``: bits of an average
            weight over the ops that may be quantized, with all that the file holds for them
            (codes, scales, zero points, repairs). ``bits_of = "all"`` counts all ops, those kept in
            float among them, ``"codes"`` the codes alone, ``["all", "codes"]`` both; ``all_bits``,
            ``code_bits`` and ``all_code_bits`` are the same in a word. ``size``: share of the float
            file; ``latency``: share of the float time. None can be above the float model's own
            figure.
        plugins: Plugin policy: ``autoload``, ``allow``, ``deny``.
    """

    strategy: PartTable = "auto"
    max_trials: int = Field(default=50, ge=1, le=10**9)
    timeout: float | None = None
    trial_timeout: float | None = None
    stop: Literal["goal", "budget"] = "budget"
    seed: int = Field(default=0, ge=0, lt=2**32)
    accuracy: dict[str, Any] = Field(default_factory=dict)
    objective: ObjectiveGoals = ObjectiveGoals()
    rules: tuple[Rule, ...] = ()
    transforms: Annotated[
        tuple[Alternative, ...] | None, or_one(PartTable, AlternativeTable)
    ] = None
    require: Annotated[tuple[PartChoice, ...], or_one(PartTable, or_none=False)] = ()
    recover: Recover = ()
    recover_top: int = Field(default=2, ge=1, le=10**6)
    refine: Refine = "auto"
    backends: tuple[PartTable, ...] | None = None
    baseline: PartTable | None = None
    simulated: bool = False
    racing: RaceConfig | None = RaceConfig()
    holdout: float = Field(default=0.0, ge=0, lt=1)
    confirm: bool = True
    non_finite: Literal["error", "float"] = "error"
    output_metric: Literal["auto", "kl", "cosine", "variance"] = "auto"
    gram_megabytes: float = Field(default=1024, ge=0, le=2**40)
    executor: ExecutorConfig = ExecutorConfig()
    budgets: dict[
        Literal["bits", "all_bits", "code_bits", "all_code_bits", "size", "latency"],
        Annotated[float, Field(gt=0)],
    ] = Field(default_factory=dict)
    plugins: PluginPolicy = Field(default_factory=lambda: PluginPolicy())

    @field_validator(
        "timeout",
        "trial_timeout",
        mode="before",
        json_schema_input_type=float | str | None,
    )
    @classmethod
    def _duration(cls, value: Any) -> Any:
        return seconds(value)

    @field_validator("trial_timeout")
    @classmethod
    def _timer_can_run(cls, value: float | None) -> float | None:
        # To a timer, 0 means none at all, and so does what rounds to it.
        if value is not None and value < 1e-3:
            raise ValueError(
                "a trial needs at least 1 ms; leave trial_timeout out for no limit"
            )
        return value

    @field_validator("budgets", mode="before")
    @classmethod
    def _bits_of(cls, value: Any) -> Any:
        """Read ``bits_of = "all"`` beside ``bits`` as the budget ``all_bits``, and so on."""
        if not isinstance(value, Mapping) or "bits_of" not in value:
            return value
        rest = {k: v for k, v in value.items() if k != "bits_of"}
        return with_bits_of(rest, value["bits_of"])

    @field_validator("budgets")
    @classmethod
    def _budgets_limit_something(cls, value: dict[str, float]) -> dict[str, float]:
        for name, limit in value.items():
            most = 32.0 if name in BITS else 1.0
            if 0 < limit <= most:
                continue
            what, remark = f"share of the float model's {name}", " (30 % is 0.3)"
            if name in BITS:
                what, remark = "bits of a weight", ""
            raise ValueError(
                f"{name} = {limit:g} limits nothing: it is the {what}, above 0 and at most "
                f"{most:g}{remark}"
            )
        return value

    @field_validator("strategy", mode="before")
    @classmethod
    def _settings_to_table(cls, value: Any) -> Any:
        return value.model_dump() if isinstance(value, PartConfig) else value

    @field_validator("accuracy", mode="before")
    @classmethod
    def _criterion_to_table(cls, value: Any) -> Any:
        return (
            value.model_dump(exclude_unset=True)
            if isinstance(value, PartConfig)
            else value
        )

    @field_validator(
        "executor",
        mode="before",
        json_schema_input_type=ExecutorConfig | Literal["inline", "process"],
    )
    @classmethod
    def _executor_by_name(cls, value: Any) -> Any:
        return {"kind": value} if isinstance(value, str) else value

    @classmethod
    def read(
        cls,
        source: TuningConfig | str | Path | Mapping[str, Any] | None = None,
        /,
        **overrides: Any,
    ) -> TuningConfig:
        """Read a configuration from anywhere.

        Args:
            source: A path (.toml, .yaml, .yml, .json), a mapping, a TuningConfig, or None for the
                defaults.
            **overrides: Top-level settings, or ``metric``, ``tolerance``, ``mode``,
                ``higher_is_better`` of the accuracy table, or ``minimise`` of the objective table.

        Raises:
            ConfigError: If a setting is unknown (with the nearest name) or malformed, or the file
                cannot be read.
        """
        raw = _as_written(source)
        # Whole tables first, so that the order of the keywords means nothing.
        for key, value in sorted(overrides.items(), key=lambda item: item[0] in _SHORT):
            if key in _OF_ACCURACY:
                raw["accuracy"] = {**_table(raw.get("accuracy", {})), key: value}
            elif key in _SHORT:
                is_one = isinstance(value, (str, Mapping))
                raw["objective"] = {"minimise": [value] if is_one else value}
            else:
                raw[key] = value
        where = str(source) if isinstance(source, (str, Path)) else "config"
        return checked(cls, raw, where)

    @property
    def combinations(self) -> tuple[Chain, ...]:
        """The alternatives of ``transforms``, each in its order, without what ``require`` names."""
        return tuple(as_chain(alternative) for alternative in self.transforms or ())

    @property
    def gram_bytes(self) -> int:
        """``gram_megabytes`` in bytes."""
        return int(self.gram_megabytes * 2**20)

    def criterion(self, host: PluginHost) -> PartConfig:
        """Return the criterion's checked settings."""
        return host.read("criteria", {"kind": "tolerance", **self.accuracy})


class PluginPolicy(Frozen):
    """Which plugins a run loads.

    Attributes:
        autoload: Load entry points of other distributions.
        allow: When not empty, only these.
        deny: Never these.
    """

    autoload: bool = True
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()


TuningConfig.model_rebuild()


def _as_written(source: Any) -> dict[str, Any]:
    """Return the settings of a configuration, from wherever it is, unchecked.

    Raises:
        ConfigError: If it is nothing that settings are read from.
    """
    if isinstance(source, TuningConfig):
        return source.model_dump(exclude_unset=True)
    if isinstance(source, (str, Path)):
        return parse_file(Path(source))
    if source is None or isinstance(source, Mapping):
        return {str(k): v for k, v in (source or {}).items()}
    raise ConfigError(
        f"config must be a TuningConfig, a mapping or a path, not {type(source).__name__}"
    )


def _table(value: Any) -> dict[str, Any]:
    if isinstance(value, PartConfig):
        return value.model_dump(exclude_unset=True)
    if not isinstance(value, Mapping):
        raise ConfigError(
            f"accuracy: a table of settings is needed (got {shown(value)})"
        )
    return {str(k): v for k, v in value.items()}


__all__ = [
    "ExecutorConfig",
    "ObjectiveGoals",
    "PluginPolicy",
    "ToleranceConfig",
    "TuningConfig",
    "seconds",
]
