"""The page of a run: one HTML file that works offline, drawn from what a report tells."""

from __future__ import annotations

from .drawn import render, write

__all__ = ["render", "write"]
