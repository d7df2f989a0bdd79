"""The pictures of the README: ``make pictures`` runs the demo and draws its table and its report.

They are drawn from one run, so that the figures of both agree. ``python -m scripts.pictures
--again`` draws those of the run that was last.
"""

from __future__ import annotations

import io
import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright
from rich.console import Console
from rich.terminal_theme import MONOKAI

from examples.demo import OUT, main
from octavo.core.report import ReportData, report_data, write
from octavo.core.report.summary import summary
from octavo.core.results.result import read_manifest

PICTURES = Path(__file__).resolve().parent.parent / "docs" / "pictures"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")

COLUMNS = 126
"""Of the terminal in the picture: the widest table fits, and letters are legible on a page."""

SCREEN = {"width": 1280, "height": 1300}
COLOURS = 128
"""Of the screenshot: text and plain areas look the same with few, at a third of the bytes."""


def draw_table(data: ReportData, path: Path) -> None:
    """Draw what the demo prints as an SVG."""
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), highlight=False)
    console.print(summary(data))
    console.print()  # else the last line touches the frame
    svg = console.export_svg(title="make demo", theme=MONOKAI)
    path.write_text(_without_fonts(svg), encoding="utf-8")


def _without_fonts(svg: str) -> str:
    """Return the picture without the fonts that rich would fetch from another server."""
    start, end = svg.index("@font-face"), svg.rindex("@font-face")
    last = svg.index("}", end) + 1
    return svg[:start] + svg[last:].lstrip()


def draw_report(page: Path, path: Path) -> None:
    """Draw the report's first screen as a PNG."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=_browser(), args=["--no-sandbox"]
        )
        tab = browser.new_page(viewport=SCREEN, color_scheme="light")
        tab.goto(page.as_uri())
        shot = tab.screenshot()
        browser.close()
    picture = Image.open(io.BytesIO(shot)).convert("RGB").quantize(COLOURS)
    picture.save(path, optimize=True)


def _browser() -> str | None:
    """Return a browser of the system; None takes the one that playwright installed."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def pictures(folder: Path = PICTURES) -> None:
    """Draw both from what the demo left."""
    data = report_data(read_manifest(OUT), "The digits network on three backends")
    if not data.goal_met:
        sys.exit("the demo missed its goal: its pictures would tell of a failure")
    folder.mkdir(parents=True, exist_ok=True)
    draw_table(data, folder / "demo.svg")
    draw_report(write(data, OUT / "report.html"), folder / "report.png")
    for path in sorted(folder.iterdir()):
        print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    if "--again" not in sys.argv:
        main()
    pictures()
