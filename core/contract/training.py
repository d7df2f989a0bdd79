"""What a backend may learn from data, behind one door: :meth:`Session.training`.

All of it is optional. A backend that has some of it returns a :class:`Training` and declares each
part as a feature of its capability, by the names of :data:`TRAINING`. Nothing here knows a
framework: what a user's own loop trains is the framework's object, as :attr:`Candidate.native` is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from octavo.core.errors import ConfigError, SchemeError
from octavo.core.values.calls import Batch
from octavo.core.values.recipe import Recipe

from .candidate import Candidate, OpParameters

TRAINING: Mapping[str, tuple[str, ...]] = {
    "block_reconstruction": ("reconstruct",),
    "distillation": ("distill",),
    "training": ("prepare_qat",),
    "low_rank": ("add_low_rank", "load_low_rank"),
    "low_rank_results": ("save_low_rank", "merge_low_rank", "keep_low_rank"),
}
"""Feature of a capability -> the methods of :class:`Training` that it stands for."""


@dataclass(frozen=True, slots=True)
class Reconstruction:
    """Settings of block reconstruction.

    Attributes:
        iterations: Steps for each block.
        rate: Step size of the offsets at the start, falling linearly to zero; in units of the
            scale. None for the optimizer's own: 1 / iterations for ``signed``, as in the paper, and
            0.02 for ``adam``.
        scale_rate: Step size of the ranges' ends (``signed``) or of the scales (``adam``), relative
            to them. None for the optimizer's own: ``rate`` for ``signed``, as in the paper, and
            0.002 for ``adam``.
        half: Multiply in bfloat16 while learning, where the processor can.
        seed: Of the order of batches.
        optimizer: ``signed`` is AutoRound as its paper has it: gradient descent by the sign, over
            rounding offsets and both ends of each range. ``adam`` learns offsets and scales.
        rows: Sequences of one step, at least: smaller batches are taken together.
        hold_back: Learn nothing from one batch in four, which judge then.
    """

    iterations: int = 40
    rate: float | None = None
    scale_rate: float | None = None
    half: bool = True
    seed: int = 0
    optimizer: Literal["signed", "adam"] = "signed"
    rows: int = 8
    hold_back: bool = False


@dataclass(frozen=True, slots=True)
class Distillation:
    """Settings of distillation.

    Attributes:
        steps: Number of steps, one batch each, in turn.
        rate: Step size of the rounding offsets, in units of the scale; 0 leaves the codes as they
            are and learns scales alone: what helps after gptq.
        scale_rate: Step size of the scales, relative to them; with ``rate`` 0 that of 2-bit grids,
            and less on finer ones.
        temperature: Of both predictions.
        half: Multiply in bfloat16 while learning, where the processor has instructions for it.
    """

    steps: int = 24
    rate: float = 0.02
    scale_rate: float = 0.01
    temperature: float = 1.0
    half: bool = True


@dataclass(frozen=True, slots=True)
class LowRank:
    """Settings of low-rank updates.

    Attributes:
        rank: Of the updates.
        alpha: Their gain is alpha / rank.
        dropout: Of the updates' inputs while training.
        ops: Names of the ops that get one, or patterns such as ``*.q_proj``; None for every
            weight-only linear layer.
        library: Whose layers hold the updates: ``octavo``; another library of the backend's (torch:
            ``peft``); or ``auto``, that library where it is installed and takes the model.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    ops: tuple[str, ...] | None = None
    library: str = "octavo"

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"the rank of updates is at least 1, not {self.rank}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(
                f"dropout is a share from 0 to below 1, not {self.dropout}"
            )


@dataclass(frozen=True, slots=True)
class Qat:
    """Settings of quantization-aware training.

    Attributes:
        start: Where step sizes begin. ``calibration``: at the ranges that calibration found, so
            that training begins where post-training quantization ended. ``lsq``: at 2 <|v|> /
            sqrt(Qp) of the weights, and of the inputs on the first batch (Esser et al. 2020,
            section 2.1): at 2 and 3 bits, where a range that takes every value in rounds most of
            them to zero. Asymmetric weights and inputs with a zero point inside their range, which
            that formula does not know, begin at calibration's.
    """

    start: Literal["calibration", "lsq"] = "calibration"

    def __post_init__(self) -> None:
        if self.start not in ("calibration", "lsq"):
            raise ConfigError(f"start is 'calibration' or 'lsq', not {self.start!r}")


class QatModel(ABC):
    """A trainable copy of a model under a recipe, and the way back to kernels."""

    @property
    @abstractmethod
    def native(self) -> Any:
        """What an ordinary training loop trains (the nn.Module).

        Layers that the recipe leaves in float train too.
        """

    def train(
        self,
        train_fn: Callable[[Any], Any],
        seed: int = 0,
        run: Callable[..., Any] | None = None,
    ) -> Any:
        """Return the model after a function trained it, as :meth:`convert` takes it.

        Args:
            train_fn: Takes :attr:`native`, trains it, and returns it or None.
            seed: Of the framework's random numbers while it runs.
            run: Calls a function with its arguments and returns what that returns, perhaps in
                another process: what comes back is then a copy. None calls it here.

        Raises:
            SchemeError: If ``train_fn`` returns anything but None or the model.
        """
        found = train_fn(self.native) if run is None else run(train_fn, self.native)
        return self.native if found is None else found

    @abstractmethod
    def convert(self, native: Any = None) -> Candidate:
        """Return the trained model on the kernels that the recipe names.

        It is as after post-training quantization.

        Args:
            native: What was trained, where that is a copy of :attr:`native` or a wrapper around it;
                None for :attr:`native` itself.
        """


class Training:
    """What learns from data, over one session's float model, which it never changes.

    A backend overrides the methods whose features it declares.
    """

    def reconstruct(
        self,
        parameters: Mapping[str, OpParameters],
        batches: Iterable[Batch],
        settings: Reconstruction | None = None,
    ) -> dict[str, OpParameters]:
        """Learn the rounding of weight-only linear layers block by block.

        Feature ``block_reconstruction``. Each block is fed with what the quantized blocks before it
        put out, and keeps the best state that it met; where all batches together say that its start
        was better, that. After transforms it is the rescaled session's to learn.

        Args:
            parameters: Where to start from: ``Realizer.parameters(recipe)``. Not changed.
            batches: Calibration batches.
            settings: How long and how fast; None for the defaults.

        Returns:
            ``parameters`` with the learned weights in place, as ``Session.apply`` takes them.

        Raises:
            SchemeError: If there is no repeated block of such layers that runs by itself.
            DataError: If there is no batch.
        """
        self._refuse(
            "block_reconstruction",
            "an algorithm such as autoround rounds layer by layer",
        )

    def distill(
        self,
        parameters: Mapping[str, OpParameters],
        batches: Iterable[Batch],
        settings: Distillation | None = None,
        teacher: Any = None,
    ) -> dict[str, OpParameters]:
        """Learn scales and rounding of all weight-only linear layers together.

        Feature ``distillation``. The goal is the predictions of the float model, or of a teacher:
        the first output. One batch in four, at least one, is held back from learning, and judges:
        the best state by them is kept, the start among them. A single batch is learned from and
        judges too, which favours what was learned.

        Args:
            parameters: Where to start from: ``Realizer.parameters(recipe)``. Not changed.
            batches: Calibration batches.
            settings: How long and how fast; None for the defaults.
            teacher: A model of the backend with the same inputs, whose first output is the goal;
                None for the float model.

        Returns:
            ``parameters`` with the learned weights in place, as ``Session.apply`` takes them.

        Raises:
            SchemeError: If there is no such layer.
            DataError: If there is no batch.
        """
        self._refuse(
            "distillation",
            "an algorithm such as gptq or autoround learns layer by layer",
        )

    def prepare_qat(
        self,
        recipe: Recipe,
        parameters: Mapping[str, OpParameters],
        settings: Qat | None = None,
        batches: Iterable[Batch] = (),
    ) -> QatModel:
        """Return a copy whose layers see quantized weights and inputs while it is trained.

        Feature ``training``.

        Args:
            recipe: What to quantize.
            parameters: Where ranges start, from calibration: ``Realizer.parameters(recipe)``.
            settings: Where step sizes begin; None for the defaults.
            batches: The first one is looked at where ``settings`` ask for that.

        Raises:
            SchemeError: If an op or its scheme cannot be trained.
        """
        self._refuse("training", "train the float model, then quantize it again")

    def add_low_rank(self, candidate: Candidate, settings: LowRank | Any = None) -> Any:
        """Return a native model with trainable low-rank updates over a frozen quantized base.

        Feature ``low_rank``.

        Args:
            candidate: One with weight-only linear layers. Not changed; its tensors are shared.
            settings: :class:`LowRank`, or what a library of such updates calls its own (torch: a
                ``peft.LoraConfig``, and the result is peft's model); None for the defaults.

        Raises:
            SchemeError: If there is no such layer, or the settings read the base's weight, which is
                stored in few bits.
            MissingFramework: If the library is not installed.
        """
        self._refuse("low_rank", "train the float model, then quantize it again")

    def load_low_rank(self, candidate: Candidate, folder: Path, **options: Any) -> Any:
        """Return a native model with the updates that the library of :meth:`add_low_rank` saved.

        Feature ``low_rank``.

        Args:
            candidate: The base, as for :meth:`add_low_rank`.
            folder: What the library wrote (torch: ``save_pretrained`` of peft).
            **options: The library's own (torch: those of ``PeftModel.from_pretrained``, such as
                ``is_trainable=True``).

        Raises:
            SchemeError: As for :meth:`add_low_rank`.
            MissingFramework: If the library is not installed.
        """
        self._refuse(
            "low_rank", "merge the updates into the float model, then quantize it"
        )

    def save_low_rank(self, native: Any, folder: Path) -> None:
        """Write the updates of a trained model in the format of the library of such updates.

        Feature ``low_rank_results``. Torch: as peft's ``save_pretrained`` does.

        Args:
            native: What :meth:`add_low_rank` or :meth:`load_low_rank` returned.
            folder: It is made where it is missing.

        Raises:
            SchemeError: If it has no updates.
        """
        self._refuse("low_rank_results", "save the trained model by its own means")

    def merge_low_rank(
        self, candidate: Candidate, native: Any, base: Literal["quantized", "float"]
    ) -> Any:
        """Return a float model with the updates added to its weights.

        Feature ``low_rank_results``.

        Args:
            candidate: The base that was trained over.
            native: What :meth:`add_low_rank` or :meth:`load_low_rank` returned.
            base: ``quantized`` adds them to the numbers that the base's codes stand for: the model
                computes what was trained. ``float`` adds them to the float model's weights.

        Raises:
            SchemeError: If it has no updates, or a weight cannot take one.
        """
        self._refuse("low_rank_results", "merge the updates by the library's own means")

    def keep_low_rank(self, candidate: Candidate, native: Any) -> Candidate:
        """Return the base with the updates beside its codes, as low-rank repairs of its weights.

        Feature ``low_rank_results``.

        Args:
            candidate: The base that was trained over.
            native: What :meth:`add_low_rank` or :meth:`load_low_rank` returned.

        Raises:
            SchemeError: If it has no updates, or a weight cannot take one.
        """
        self._refuse("low_rank_results", "save the updates beside the base")

    def _refuse(self, feature: str, remedy: str) -> NoReturn:
        raise SchemeError(
            f"this backend has no feature {feature!r} ({type(self).__name__}); {remedy}"
        )
