"""A trial: a recipe with its measurements, or with its error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from .capability import Realization
from .ledger import Applied
from .recipe import Recipe
from .sampling import Sampling
from .scheme import Frozen, OpScheme
from .settings import checked

State = Literal["complete", "failed", "rejected"]


@dataclass(frozen=True, slots=True)
class Measurement:
    """One measured number.

    Attributes:
        value: The figure (a median where it was repeated).
        low: Lower end of its spread (first quartile, of what was measured in turns with the float
            model by its ratio to that).
        high: Upper end (third quartile). Both equal value where it is exact. Of what was measured
            in turns with other candidates they are the interval by which these compare.
        unit: ``ms``, ``bytes``, ...
        ratio: value / the float model's value measured in the same interleaved run; None where
            there is none.
        lower_is_better: Direction.
    """

    value: float
    low: float
    high: float
    unit: str
    ratio: float | None = None
    lower_is_better: bool = True

    def __repr__(self) -> str:
        ratio = "" if self.ratio is None else f", {self.ratio:.3g} of float"
        return f"Measurement({self.value:.4g} {self.unit}{ratio})"

    @property
    def cost(self) -> float:
        """The value with its sign turned where more is better: what is minimised."""
        return self.value if self.lower_is_better else -self.value

    @property
    def base(self) -> float | None:
        """The float model's figure in the same rounds, such that ``base * ratio`` is the value.

        None where the float model was not measured beside it. Shown beside the value and its ratio
        everywhere: what the float model took in another minute does not belong there.
        """
        return self.value / self.ratio if self.ratio else None

    @property
    def relative(self) -> Measurement:
        """The same as shares of the float model's figure, which takes turns with it: what a drift
        of the machine leaves as it is."""
        if self.ratio is None or not self.value:
            return self
        scale = self.ratio / self.value
        return replace(
            self, value=self.ratio, low=self.low * scale, high=self.high * scale
        )

    def ties(self, best: Measurement, slack: float = 0.0) -> bool:
        """True if this is no worse than ``best`` beyond the two spreads, and a share of ``best``
        more."""
        room = slack * abs(best.value)
        if self.lower_is_better:
            return self.low <= best.high + room
        return self.high >= best.low - room

    def to_row(self) -> list[Any]:
        """Return the fields in order, JSON-ready."""
        return [
            self.value,
            self.low,
            self.high,
            self.unit,
            self.ratio,
            self.lower_is_better,
        ]


@dataclass(frozen=True)
class Trial:
    """One evaluated recipe.

    Attributes:
        number: 0 is the baseline; then in the order of asking.
        recipe: What was tried.
        state: ``complete``; ``failed`` (with ``error``); ``rejected`` (a racing bound ended its
            evaluation early).
        metrics: Metric name -> score, checked floats.
        passed: The criterion is met, and every budget was kept.
        margin: Signed distance to the goal, as a share of the tolerated loss where that is defined:
            >= 0 passes, and higher is better whatever the metric's direction. The one number that
            strategies rank accuracy by.
        objectives: Objective name -> measurement.
        ledger: Op -> what was requested and what runs.
        over: Budget -> what was used as a share of what is allowed, for those that were overrun.
        error: Traceback text, if it failed.
        seconds: Phase -> wall time: ``apply`` (quantizing included), ``recover`` (learning, where
            the recipe asks for recovery), ``evaluate``, ``measure``.
        evaluated: Share of the samples that the evaluation used (1.0 unless racing stopped it).
        reused: Number of the earlier trial whose result answered this recipe, or None.
        runs: Evaluations that the metrics are the mean of; more than one where the score varies.
        noise: Standard deviation of the float model's margin from one evaluation to the next, of
            the baseline only.
        refused: Why it does not count although it passed in the search: it failed when it was
            confirmed, or on held-out data.
        sampling: Metric -> how many samples its score is the mean of, and its interval; of the
            metric whose samples the score function gave.
        distances: Of a winner that learned further: the distance of its outputs to the float
            model's on samples that it did not learn from, ``before`` and ``after`` it did. Where
            that is no less it is ``rejected``, and was not scored.
    """

    number: int
    recipe: Recipe
    state: State = "complete"
    metrics: Mapping[str, float] = field(default_factory=dict)
    passed: bool = False
    margin: float = float("-inf")
    objectives: Mapping[str, Measurement] = field(default_factory=dict)
    ledger: Mapping[str, Applied] = field(default_factory=dict)
    over: Mapping[str, float] = field(default_factory=dict)
    error: str = ""
    seconds: Mapping[str, float] = field(default_factory=dict)
    evaluated: float = 1.0
    reused: int | None = None
    refused: str = ""
    runs: int = 1
    noise: float = 0.0
    sampling: Mapping[str, Sampling] = field(default_factory=dict)
    distances: Mapping[str, float] = field(default_factory=dict)

    @property
    def is_gain(self) -> bool:
        """Whether a refinement was scored, because it brought the model nearer to float."""
        return self.state == "complete" and bool(self.distances)

    def __repr__(self) -> str:
        """Two lines at the most: the figures, and the recipe by its counts and digest."""
        scores = [f"{name}={value:.5g}" for name, value in self.metrics.items()]
        costs = [f"{name}={m!r}" for name, m in self.objectives.items()]
        passed = "passes" if self.passed else "does not pass"
        told = ", ".join([self.state, passed, *scores, *costs])
        return f"Trial({self.number}: {told},\n  {self.recipe!r})"

    def costs(self, names: tuple[str, ...]) -> tuple[float, ...]:
        """Objective costs (lower is better) in the given order; inf where one was not measured.

        Shares of the float model's figure where they are known: trials lie minutes apart, and a
        machine drifts.
        """
        costs = []
        for name in names:
            measured = self.objectives.get(name)
            costs.append(float("inf") if measured is None else measured.relative.cost)
        return tuple(costs)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-ready mapping. The ledger is stored as its differences from the recipe."""
        return {
            "number": self.number,
            "recipe": self.recipe.to_json(),
            "state": self.state,
            "metrics": dict(self.metrics),
            "passed": self.passed,
            "margin": self.margin,
            "objectives": {
                name: found.to_row() for name, found in self.objectives.items()
            },
            "ledger": {op: line.to_row() for op, line in self.ledger.items()},
            "over": dict(self.over),
            "error": self.error,
            "seconds": dict(self.seconds),
            "evaluated": self.evaluated,
            "reused": self.reused,
            "refused": self.refused,
            "runs": self.runs,
            "noise": self.noise,
            "sampling": {name: s.to_row() for name, s in self.sampling.items()},
            # Of refinements alone.
            **({"distances": dict(self.distances)} if self.distances else {}),
        }

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Trial:
        """Read what :meth:`to_json` wrote.

        Raises:
            ConfigError: If a field is missing or malformed.
        """
        row = checked(_Row, raw, "a stored trial is damaged")
        recipe = Recipe.from_json(row.recipe)
        lines = {
            op: Applied.from_row(recipe[op], line) for op, line in row.ledger.items()
        }
        objectives = {
            name: _measurement(figures) for name, figures in row.objectives.items()
        }
        over = {
            budget: float("inf") if share is None else share
            for budget, share in row.over.items()
        }
        return cls(
            number=row.number,
            recipe=recipe,
            state=row.state,
            metrics=row.metrics,
            passed=row.passed,
            margin=float("-inf") if row.margin is None else row.margin,
            objectives=objectives,
            ledger=lines,
            over=over,
            error=row.error,
            seconds=row.seconds,
            evaluated=row.evaluated,
            reused=row.reused,
            refused=row.refused,
            runs=row.runs,
            noise=row.noise,
            sampling={name: Sampling(*found) for name, found in row.sampling.items()},
            distances=row.distances,
        )


_Figures = tuple[float | None, float | None, float | None, str, float | None, bool]
"""What :meth:`Measurement.to_row` writes."""


class _Row(Frozen):
    """A trial as JSON holds it, where None stands for an infinity. Files of later versions may hold
    more."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=True)

    number: Annotated[int, Field(ge=0, lt=2**63)]
    recipe: dict[str, Any]
    state: State
    metrics: dict[str, float]
    passed: bool
    margin: float | None
    objectives: dict[str, _Figures]
    ledger: dict[str, tuple[Realization, str, OpScheme | None]]
    over: dict[str, float | None] = Field(default_factory=dict)
    error: str
    seconds: dict[str, float]
    evaluated: float
    reused: int | None
    refused: str = ""
    runs: int = 1
    noise: float = 0.0
    sampling: dict[str, tuple[int, float, float, bool]] = Field(default_factory=dict)
    distances: dict[str, float] = Field(default_factory=dict)


def _measurement(figures: _Figures) -> Measurement:
    value, low, high = (
        float("inf") if figure is None else figure for figure in figures[:3]
    )
    return Measurement(value, low, high, *figures[3:])


def widths(trial: Trial) -> str:
    """Return the widths of what a trial quantized, in words: ``8-bit``, ``4- and 8-bit``."""
    applied = (line.applied for line in trial.ledger.values())
    specs = [scheme.weight or scheme.input for scheme in applied]
    bits = sorted({spec.bits for spec in specs if spec is not None})
    if not bits:
        return "float throughout"
    narrower = ", ".join(f"{b}-" for b in bits[:-1])
    return f"{narrower} and {bits[-1]}-bit" if narrower else f"{bits[-1]}-bit"
