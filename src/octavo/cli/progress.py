"""The display of a run under the name that the command line had for it."""

from __future__ import annotations

from octavo.core.report.text import duration
from octavo.core.tuning.telling.display import ProgressDisplay as Show
from octavo.core.tuning.telling.lines import figures, line, verdict

__all__ = ["Show", "duration", "figures", "line", "verdict"]
