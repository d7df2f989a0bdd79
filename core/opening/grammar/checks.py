"""Whether the parts of a scheme make sense together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

from octavo.core.contract.plugins import PluginHost
from octavo.core.contract.recovery import check_recovery
from octavo.core.errors import ConfigError
from octavo.core.quantizing.chains import broken_link

from ..roundable import why_not_by
from .formats import Format
from .methods import Method
from .written import plain


@dataclass(frozen=True)
class Checks:
    """The checks of one scheme, each with its own message.

    Attributes:
        text: The scheme as it was given.
        format: What weights and inputs become.
        methods: What is done beside it, in the order in which it was written.
        host: Knows the cards.
    """

    text: str
    format: Format
    methods: tuple[Method, ...]
    host: PluginHost

    def run(self, *, bias_correction: bool) -> None:
        """Run them all.

        Args:
            bias_correction: Whether biases are corrected too.

        Raises:
            ConfigError: If a method has nothing to do in the format, stands twice or in the wrong
                place, or cannot go on from the one before it.
        """
        for method in self.methods:
            self._fits(method)
        if bias_correction:
            self._corrects()
        self._once()
        self._in_order()
        self._chain()
        recovery = [m.choice for m in self.methods if m.family == "recovery"]
        check_recovery(recovery)

    def remarks(self) -> Iterator[str]:
        """Yield what is left out, and why."""
        if self.format.mode == "static":
            return
        for method in self.methods:
            if method.brings:
                yield (
                    f"{method.name} brings the calibrator {method.brings}, which has nothing to do "
                    f"in {self.format.name}: it finds no ranges in calibration"
                )

    def _fail(self, why: str) -> NoReturn:
        raise ConfigError(f"scheme {self.text!r}: {why}")

    def _fits(self, method: Method) -> None:
        mode = self.format.mode
        if mode in method.modes:
            self._rounds(method)
            return
        name, fmt = method.name, self.format.name
        if mode in ("float", "cast"):
            what = (
                "quantizes nothing" if mode == "float" else "rounds to shorter floats"
            )
            self._fail(
                f"{fmt} {what}, so that {name} has nothing to do; write a format of integers "
                f"before it: int8-static, int4-weight-only"
            )
        if method.family == "calibrator":
            when = "at each call" if mode == "dynamic" else "for no input"
            self._fail(
                f"{name} is a calibrator, and {fmt} finds ranges {when}, not in calibration; "
                "leave it out, or take a static format"
            )
        if "weight_only" not in method.modes:
            self._fail(
                f"{name} makes inputs easier to quantize at the expense of weights, and in {fmt} "
                "inputs stay in floating point; leave it out, or take a format that quantizes "
                "inputs: int8-static, int8-dynamic"
            )
        modes = " or ".join(sorted(method.modes)).replace("_", "-")
        self._fail(f"{name} is for {modes} formats, and {fmt} is none")

    def _rounds(self, method: Method) -> None:
        if method.family != "algorithm":
            return
        word = self.format.weight.replace("-", "_")
        why = why_not_by(method.choice.kind, word, self.host)
        if why:
            self._fail(why)

    def _corrects(self) -> None:
        if self.format.mode in ("float", "cast"):
            self._fail(f"{self.format.name} has no rounding whose bias is corrected")
        algorithms = [m for m in self.methods if m.family == "algorithm"]
        if not algorithms:
            return
        card = algorithms[-1].card
        if card is not None and "bias_correction" not in card.config.model_fields:
            self._fail(f"{algorithms[-1].name} has no setting bias_correction")

    def _once(self) -> None:
        seen: set[tuple[str, str]] = set()
        for method in self.methods:
            key = (method.family, method.choice.kind)
            if key in seen:
                self._fail(f"{method.name} stands twice")
            seen.add(key)
        calibrators = [m.name for m in self.methods if m.family == "calibrator"]
        if len(calibrators) > 1:
            self._fail(f"an input has one calibrator, and here are {calibrators}")

    def _in_order(self) -> None:
        learned = ""
        for method in self.methods:
            if method.family == "recovery":
                learned = method.name
            elif learned:
                self._fail(
                    f"{learned} learns after quantization: write it behind {method.name}"
                )

    def _chain(self) -> None:
        chain = [m.choice for m in self.methods if m.family == "algorithm"]
        found = broken_link(chain, self.host)
        if found is None:
            return
        before, after, able = found
        first, second = plain(before.kind), plain(after.kind)
        is_turned_whole = self.host.part("algorithms", before.kind).refines
        remedy = (
            f"write {second} before it" if is_turned_whole else "leave one of them out"
        )
        self._fail(
            f"{second} cannot go on from what {first} made, it chooses everything anew; {remedy}. "
            f"What can go on: {able}"
        )


__all__ = ["Checks"]
