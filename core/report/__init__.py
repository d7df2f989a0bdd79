"""The report of a run: one HTML file that works offline. Needs the extra ``octavo[report]``."""

from __future__ import annotations

from .model import OpLine, ReportData
from .page import render, write
from .reading import report_data

__all__ = ["OpLine", "ReportData", "render", "report_data", "write"]
