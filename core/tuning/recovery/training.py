"""The function that trains: what is asked of it, and where it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from octavo.core.contract.recovery import QAT
from octavo.core.errors import ConfigError
from octavo.core.opening.config import TuningConfig
from octavo.core.quantizing.recovering import TrainFn
from octavo.core.scoring.executor import Executor, ProcessExecutor


def read_recovery(settings: TuningConfig, train_fn: TrainFn | None) -> TuningConfig:
    """Return the settings with what a function that trains stands for.

    Without ``recover`` it means ``["qat"]``.

    Raises:
        ConfigError: If ``qat`` is asked for and there is no such function, or there is one that
            nothing asks for, or it cannot be called.
    """
    trains = any(step.kind == QAT for step in settings.recover)
    if train_fn is None:
        if trains:
            raise ConfigError(
                "recover asks for 'qat', and no function trains: give train_fn= (--train), "
                "which takes the model and trains it, or leave 'qat' out of recover"
            )
        return settings
    if not callable(train_fn):
        raise ConfigError(
            f"train_fn must be callable: model -> None; got {type(train_fn).__name__}"
        )
    if not settings.recover:
        return TuningConfig.read(settings, recover=(QAT,))
    if not trains:
        asked = ", ".join(step.kind for step in settings.recover)
        raise ConfigError(
            f"train_fn is given, and recover ({asked}) does not use it: add 'qat' to recover, or "
            "leave train_fn out"
        )
    return settings


class TrainingPlace:
    """Where the function that trains runs: where evaluations do.

    Training has no time limit of its own: ``trial_timeout`` is that of an evaluation.

    Args:
        executor: The caller's own; None for a child process, which is started when it is needed.
    """

    def __init__(self, executor: Executor | None) -> None:
        self._given = executor
        self._own: ProcessExecutor | None = None

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return what a function returns there."""
        return self._executor().submit(function, *arguments).result()

    def _executor(self) -> Executor:
        if self._given is not None:
            return self._given
        if self._own is None:
            self._own = ProcessExecutor()
        return self._own

    def close(self) -> None:
        """End the child process, where there is one."""
        if self._own is not None:
            self._own.close()


def training_place(
    settings: TuningConfig, executor: Executor | None
) -> TrainingPlace | None:
    """Return where the function that trains runs; None for this process.

    Args:
        settings: Say where evaluations run.
        executor: The caller's own, in place of that.
    """
    if executor is None and settings.executor.kind != "process":
        return None
    return TrainingPlace(executor)


__all__ = ["TrainingPlace", "read_recovery", "training_place"]
