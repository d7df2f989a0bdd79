"""The page in a real browser: no message, no barrier, by keyboard, on a phone, in the dark, on
paper."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from octavo.core.report import write

from .runs import HOSTILE, run

playwright = pytest.importorskip("playwright.sync_api")

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
pytestmark = pytest.mark.skipif(
    BROWSER is None,
    reason="no Chromium on this machine: `make system` installs one where apt is at hand",
)

PHONE = {"width": 390, "height": 844}
WIDE = {"width": 1400, "height": 900}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        found = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("page")
    return write(run(ops=40, trials=19), folder / "a report ü.html").as_uri()


@pytest.fixture
def view(browser: Any, address: str) -> Iterator[Any]:
    """The page on a wide screen; what its console says fails the test."""
    page = browser.new_page(viewport=WIDE)
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda r: said.append(r.url) if r.url != address else None)
    page.goto(address)
    yield page
    page.close()
    assert said == []


def test_no_name_runs_and_no_barrier_is_found_light_or_dark(
    browser: Any, address: str
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    for scheme in ("light", "dark"):
        page = browser.new_page(viewport=WIDE, color_scheme=scheme)
        page.goto(address)
        assert page.title() == "digits.onnx · octavo", "the hostile name did not run"
        page.evaluate(
            "document.querySelectorAll('details').forEach(d => d.open = true)"
        )
        found = axe.run(page).response["violations"]
        assert [(v["id"], v["nodes"][0]["html"]) for v in found] == []
        page.close()


TWO_FRAMES = (
    "() => new Promise((r) => requestAnimationFrame(() => requestAnimationFrame(r)))"
)
"""Events that the page has caused are over then. The page's policy forbids waiting by a text."""


def test_the_keyboard_sorts_opens_and_reaches_every_mark(view: Any) -> None:
    head = view.locator("#op-table thead th").nth(4)
    assert head.get_attribute("aria-sort") is None
    head.locator("button").focus()
    view.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") == "descending"
    texts = view.locator("#op-table tbody td:nth-child(5)").all_inner_texts()
    figures = [float(text) for text in texts]
    assert figures == sorted(figures, reverse=True)
    view.keyboard.press("Enter")
    view.keyboard.press("Enter")
    assert head.get_attribute("aria-sort") is None
    assert view.locator("#op-table tbody tr").first.get_attribute("id") == "op-0"

    view.locator("#trial-6 summary").focus()
    view.keyboard.press("Enter")
    view.evaluate(TWO_FRAMES)
    recipe = view.locator("#trial-6 .recipe").inner_text()
    assert "w8a8 per channel, 39" in recipe, "all ops are written out"
    assert HOSTILE in recipe
    assert view.locator("#trial-6 .differences a").count() == 2

    assert view.locator("#trade-off-chart .mark[tabindex='0']").count() == 1
    view.locator("#trade-off-chart .mark[tabindex='0']").focus()
    before = view.locator("#tip").inner_text()
    view.keyboard.press("ArrowRight")
    after = view.locator("#tip").inner_text()
    assert before != after
    for word in ("trial", "accuracy", "latency", "size"):
        assert word in after
    view.keyboard.press("Enter")
    number = re.search(r"trial (\d+)", after)
    assert number is not None
    assert view.url.endswith(f"#trial-{number[1]}")
    assert view.locator(f"#trial-{number[1]} details").get_attribute("open") is not None


def test_rows_are_searched_by_words_and_links_find_what_is_hidden(view: Any) -> None:
    words = view.locator("[data-filter='op-table']")
    words.fill("runs:float")
    assert view.locator("#op-table tbody tr:visible").count() == 1
    words.fill("layer.3 conv")
    shown = view.locator("#op-table tbody tr:visible").all_inner_texts()
    assert shown
    assert all("layer.3" in text for text in shown)
    view.evaluate("location.hash = '#op-0'")
    view.evaluate(TWO_FRAMES)
    assert view.evaluate("document.getElementById('op-0').hidden") is False
    assert words.input_value() == ""
    tip = view.locator("#tip")
    view.locator("#search-chart .mark").nth(2).hover()
    assert tip.is_visible()
    assert "accuracy" in tip.inner_text()


def test_a_tip_stays_with_its_mark_while_the_page_scrolls(view: Any) -> None:
    # Focused by the keyboard: a pointer would leave the mark as it scrolls away.
    view.mouse.move(0, 0)
    view.locator("#search-chart .mark").nth(2).focus()
    tip = view.locator("#tip")
    before = tip.bounding_box()["y"]
    view.evaluate("scrollBy({ top: 40, behavior: 'instant' })")
    view.evaluate(TWO_FRAMES)
    assert tip.is_visible()
    assert tip.bounding_box()["y"] < before - 20


def test_colours_are_the_readers_choice(view: Any) -> None:
    def paper() -> str:
        found: str = view.evaluate("getComputedStyle(document.body).backgroundColor")
        return found

    light = paper()
    view.get_by_role("button", name="Dark").click()
    assert paper() != light
    view.get_by_role("button", name="Light").click()
    assert paper() == light


FIRST_COLUMNS = """() => {
  const em = 16 * 0.88, narrow = [], broken = [];
  for (const cell of document.querySelectorAll("tbody th")) {
    if (!cell.checkVisibility()) continue;
    if (cell.getBoundingClientRect().width < 6 * em) narrow.push(cell.textContent);
    const range = document.createRange();
    range.selectNodeContents(cell);
    const lines = new Set([...range.getClientRects()].map((box) => Math.round(box.top)));
    // One letter a line is what a name of n letters on n lines is.
    const letters = cell.textContent.length;
    if (letters > 3 && lines.size > letters / 2) broken.push(cell.textContent);
  }
  return [narrow, broken];
}"""

BEYOND = """() => [...document.querySelectorAll("body *")].filter((found) => {
  if (found.closest(".scroll, .shapes, .skip, #tip, pre")) return false;
  return found.getBoundingClientRect().right > innerWidth + 1;
}).map((found) => found.outerHTML.slice(0, 120))"""

SMALL = """() => [...document.querySelectorAll("svg text")].filter(
  (text) => text.getBoundingClientRect().height < 10
).map((text) => text.textContent)"""


def test_a_phone_shows_names_and_charts_that_can_be_read(
    browser: Any, address: str
) -> None:
    page = browser.new_page(viewport=PHONE)
    page.goto(address)
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    assert page.evaluate(BEYOND) == []
    assert page.evaluate(FIRST_COLUMNS) == [[], []]
    assert page.evaluate(SMALL) == []
    page.close()


def test_without_its_script_the_page_is_whole(browser: Any, address: str) -> None:
    context = browser.new_context(java_script_enabled=False, viewport=WIDE)
    page = context.new_page()
    page.goto(address)
    assert page.locator("#op-table tbody tr").count() == 40
    page.locator("#trial-6 summary").click()
    assert "w8a8 per channel" in page.locator("#trial-6 .recipe").inner_text()
    assert page.locator(".theme").is_hidden()
    context.close()


def test_on_paper_it_is_a_summary_that_says_so(browser: Any, tmp_path: Path) -> None:
    page = browser.new_page(viewport=WIDE)
    page.goto(write(run(ops=229, trials=19), tmp_path / "large.html").as_uri())
    sheets = page.pdf(format="A4").count(b"/Type /Page\n")
    assert 0 < sheets < 10
    page.emulate_media(media="print")
    assert page.locator("#op-table tbody tr:visible").count() == 40
    assert page.get_by_text("most sensitive of 229 ops").is_visible()
    page.close()
