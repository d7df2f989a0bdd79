"""The site: built with every warning an error, without the network, and whole."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import typer
from playwright.sync_api import sync_playwright

import octavo
import octavo.plugin
from octavo.cli import app
from scripts import settings_page
from scripts.plain_roles import plain

from .pages import ROOT

# A proxy that nobody listens at: whatever asks the network fails at once.
NOWHERE = "http://127.0.0.1:9"
OFFLINE = {
    "http_proxy": NOWHERE,
    "https_proxy": NOWHERE,
    "NO_MKDOCS_2_WARNING": "1",
    "PYTHONPATH": str(ROOT / "src"),
}
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
ASKS = ("src", "srcset", "data", "poster")
"""Attributes for which a browser asks a server."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", folder]
    done = subprocess.run(
        build,
        cwd=ROOT,
        env={**os.environ, **OFFLINE},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


class Asked(HTMLParser):
    """What a browser asks a server for when it shows a page."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.found += [given[name] for name in ASKS if name in given]
        # Of links only these are fetched; a canonical address is just told.
        if tag == "link" and given.get("rel") in ("stylesheet", "icon", "preload"):
            self.found.append(given["href"])


def test_no_page_asks_another_server(site: Path) -> None:
    for page in site.rglob("*.html"):
        assert not [link for link in Asked(page).found if "//" in link], page
        # With this component the browser would ask GitHub for the number of stars.
        assert 'data-md-component="source"' not in page.read_text(encoding="utf-8")
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\([\"']?(https?:)?//", sheet.read_text("utf-8")), (
            sheet
        )


@pytest.mark.skipif(not BROWSER, reason="no Chromium here: `make system` installs one")
def test_a_browser_asks_no_other_server(site: Path) -> None:
    asked: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=BROWSER, args=["--no-sandbox"]
        )
        tab = browser.new_page()
        tab.on("request", lambda request: asked.append(request.url))
        for page in ("index.html", "api/octavo/index.html"):
            tab.goto((site / page).as_uri(), wait_until="networkidle")
        browser.close()
    assert len(asked) > 4
    assert not [url for url in asked if not url.startswith(("file:", "data:"))]


@pytest.mark.parametrize(
    ("page", "names"),
    [
        ("octavo", [f"octavo.{name}" for name in (*octavo.__all__, "prepare", "Run")]),
        ("plugin", [f"octavo.plugin.{name}" for name in octavo.plugin.__all__]),
    ],
)
def test_every_public_name_has_its_place(
    site: Path, page: str, names: list[str]
) -> None:
    text = (site / "api" / page / "index.html").read_text(encoding="utf-8")
    anchors = set(re.findall(r'id="([\w.]+)"', text))
    assert set(names) <= anchors


def test_every_command_and_option_has_its_place(site: Path) -> None:
    text = (site / "api" / "commands" / "index.html").read_text(encoding="utf-8")
    group = typer.main.get_command(app)
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        assert f"octavo {name}" in text
        for parameter in command.params:
            if parameter.param_type_name == "option" and not parameter.hidden:
                assert all(option in text for option in parameter.opts), parameter.opts


def test_every_setting_has_its_place(site: Path) -> None:
    text = (site / "api" / "settings" / "index.html").read_text(encoding="utf-8")
    for name in octavo.TuningConfig.model_fields:
        assert f"<code>{name}</code>" in text
    for part in ("gptq", "bayesian", "smoothquant", "percentile", "latency", "onnx"):
        assert f'id="{part}"' in text


def test_a_setting_is_told_with_type_limits_default_and_meaning() -> None:
    rows = settings_page.settings().splitlines()
    # Other settings' texts name it too.
    (row,) = [row for row in rows if row.startswith("| `max_trials`")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    meaning = "Evaluations after the baseline."
    assert cells == ["`max_trials`", "whole number, at least 1", "`50`", meaning]


def test_roles_become_code() -> None:
    assert (
        plain("a :class:`~octavo.core.values.trial.Trial` and :func:`load`")
        == "a `Trial` and `load`"
    )


def test_lists_are_lists(site: Path) -> None:
    # Where no blank line stands before a list, Markdown on the site reads on in the paragraph.
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        for paragraph in re.findall(r"<p>.*?</p>", text, re.DOTALL):
            assert not re.search(r"\n(- |\* |\d+\. )", paragraph), (
                page,
                paragraph[:200],
            )


def test_links_to_the_sources_lead_to_the_repository(site: Path) -> None:
    text = (site / "architecture" / "index.html").read_text(encoding="utf-8")
    assert 'href="https://github.com/octavo/octavo/blob/main/core/errors.py"' in text
    assert "<!-- fragment" not in text
