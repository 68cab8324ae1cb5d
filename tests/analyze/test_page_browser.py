"""The page in a browser: what it shows when pointed at, searched, switched, in the dark and on a phone.

Needs playwright for Python and a Chromium of the system; the tests say what is missing. Nothing is downloaded.
"""

import importlib.util
import io
import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from moepp.analyze import write_page

from .pages import VANILLA, hostile_table, several

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
MISSING = [
    *([] if importlib.util.find_spec("playwright") else ["playwright (pip install playwright)"]),
    *([] if CHROMIUM else ["a Chromium (apt-get install chromium)"]),
]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"the page's browser test misses {' and '.join(MISSING)}")

# No sandbox: continuous integration often runs as root. No networking of Chromium's own, which would be counted.
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run", "--disable-sync"]
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 380, "height": 780}


class Visit:
    """A page on the screen, what it asked for and what it complained about."""

    def __init__(self, browser: "Browser", path: Path, **options: Any) -> None:
        self.page: Page = browser.new_page(**({"viewport": DESKTOP, "color_scheme": "light"} | options))
        self.url = path.as_uri()
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(self.url)

    def text(self, selector: str) -> str:
        return self.page.locator(selector).inner_text()

    def close(self) -> None:
        """Whatever was done: no request but the file, no complaint, no script of the text's."""
        hacked = self.page.evaluate("window.hacked")
        self.page.close()
        assert self.complaints == []
        assert self.requests == [self.url]
        assert hacked is None


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=ARGUMENTS)
        yield started
        started.close()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_page(several(), path)
    return path


@pytest.fixture
def visit(browser: "Browser", path: Path) -> Iterator[Visit]:
    visit = Visit(browser, path)
    yield visit
    visit.close()


def colours(visit: Visit, selector: str) -> list[tuple[tuple[float, ...], tuple[float, ...]]]:
    """Background and ink of each element."""
    script = "nodes => nodes.map(n => { const s = getComputedStyle(n); return [s.backgroundColor, s.color]; })"
    pairs = visit.page.locator(selector).evaluate_all(script)
    return [tuple(tuple(map(float, re.findall(r"[\d.]+", one)[:3])) for one in pair) for pair in pairs]


def contrast(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """WCAG 2's ratio of two colours."""

    def luminance(colour: tuple[float, ...]) -> float:
        linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in (c / 255 for c in colour)]
        return float(np.dot((0.2126, 0.7152, 0.0722), linear))

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_pointing_at_a_token_shows_its_experts_in_each_layer(visit: Visit) -> None:
    span = visit.page.locator("#text span[data-token='3']")
    span.hover()
    table = several()["MoE++ <1>"]
    assert "of 2" in visit.text("#token dl")
    assert "vanilla" in visit.text("#token dl"), "its twin saw the same token"
    chips = visit.page.locator("#token .chip").all_inner_texts()
    assert len(chips) == 3 * 2
    # The sample begins with the first document.
    assert [int(re.findall(r"\d+", chip)[0]) for chip in chips] == table.expert[3].ravel().tolist()
    assert visit.page.locator("#token .dropped").count() == int((~table.kept[3]).sum())


def test_the_keyboard_reaches_every_token(visit: Visit) -> None:
    visit.page.locator("#text span").first.focus()
    visit.page.keyboard.press("ArrowRight")
    visit.page.keyboard.press("ArrowRight")
    assert visit.page.evaluate("document.activeElement.dataset.token") == "2"
    assert visit.page.locator("#token .chip").count() == 6
    visit.page.keyboard.press("ArrowDown")
    assert int(visit.page.evaluate("document.activeElement.dataset.token")) > 2
    visit.page.keyboard.press("Home")
    assert visit.page.evaluate("document.activeElement.dataset.token") == "0"
    visit.page.keyboard.press("Escape")
    assert visit.page.locator("#token .chip").count() == 0


def test_a_click_holds_a_token_until_the_next(visit: Visit) -> None:
    visit.page.locator("#text span[data-token='3']").click()
    held = visit.text("#token")
    visit.page.locator("#text span[data-token='9']").hover()
    assert visit.text("#token") == held
    visit.page.keyboard.press("Escape")
    visit.page.locator("#text span[data-token='8']").hover()
    assert visit.text("#token") != held


def test_the_search_narrows_the_table_and_marks_the_text(visit: Visit) -> None:
    rows = visit.page.locator("#types tbody tr")
    assert rows.count() == 21, "every type once"
    visit.page.fill("#search", "return")
    assert sorted(visit.page.locator("#types tbody button").all_inner_texts()) == ["return_", "␣Return", "␣return"]
    marked = visit.page.locator("#text .hit")
    assert marked.count() == int(visit.text("#hits").split()[0])
    assert all("return" in text.lower() for text in marked.all_inner_texts())
    visit.page.fill("#search", "nowhere")
    assert "No token type contains “nowhere”" in visit.text("#types")
    visit.page.fill("#search", "")
    assert rows.count() == 21
    assert visit.page.locator("#text .hit").count() == 0
    visit.page.select_option("#document", "1")
    for written in visit.page.locator("#types tbody button").all_inner_texts()[:6]:
        visit.page.fill("#search", "")
        visit.page.locator("#types button", has_text=re.compile(f"^{re.escape(written)}$")).first.click()
        assert visit.page.locator("#text .hit").count() > 0, "in whichever document it is"


def test_tokens_can_be_ranked_and_coloured_otherwise(visit: Visit) -> None:
    visit.page.select_option("#rank", "loss")
    assert "Most loss" in visit.text("#types")
    for by in ("zero", "copy", "constant", "loss"):
        visit.page.check(f"input[name=by][value={by}]", force=True)
        assert (f"{by} experts" if by != "loss" else "nats") in visit.text("#legend")
    visit.page.check("input[name=by][value=ffn]", force=True)
    visit.page.select_option("#layer", "1")
    assert "in layer 1" in visit.text("#legend")
    levels = set(visit.page.locator("#text span").evaluate_all("nodes => nodes.map(n => n.className.match(/q\\d/)[0])"))
    assert levels <= {"q0", "q4", "q8"}, "0, 1 or 2 experts"


def test_the_text_keeps_its_white_space(visit: Visit) -> None:
    table = several()["MoE++ <1>"]
    spans = visit.page.locator("#text span")
    shown = spans.evaluate_all("nodes => nodes.map(node => node.textContent)")
    for written, token in zip(shown, table.token, strict=False):
        expected = table.vocabulary[int(token)]
        assert written == {"": "∅", "\x00": "␀"}.get(expected, expected)
    assert visit.page.locator("#text").evaluate("node => getComputedStyle(node).whiteSpace") == "pre-wrap"


def test_another_model_or_document_or_source_changes_what_is_shown(visit: Visit) -> None:
    page = visit.page
    load, correlation = visit.text("#load"), visit.text("#correlation")
    page.select_option("#source", "<b>code</b>")
    assert visit.text("#load") != load
    text = visit.text("#text")
    page.select_option("#document", "1")
    assert visit.text("#text") != text
    page.select_option("#relation", "first")
    assert visit.text("#correlation") != correlation

    page.check("input[name=model][value='1']", force=True)
    assert "FFN experts alone" in visit.text("#plain")
    assert page.is_checked("input[name=by][value=loss]")
    assert page.locator("#load tbody tr").first.locator("td").count() == 4
    assert page.locator("#document").input_value() == "1", "the same document of the same text"
    page.check("input[name=model][value='2']", force=True)
    assert not page.is_visible("#plain")
    assert page.is_checked("input[name=by][value=ffn]")
    assert page.locator("#correlation td").count() == 1


def test_what_was_chosen_comes_back_with_the_model_that_can_show_it(visit: Visit) -> None:
    page = visit.page
    page.check("input[name=by][value=copy]", force=True)
    for select, value in (("rank", "zero"), ("relation", "first"), ("layer", "2"), ("source", "<b>code</b>")):
        page.select_option(f"#{select}", value)
    parts = ("#legend", "#types", "#correlation", "#load")
    before = list(map(visit.text, parts))
    for model in ("1", "2", "0"):
        page.check(f"input[name=model][value='{model}']", force=True)
    assert list(map(visit.text, parts)) == before
    assert "copy experts in layer 2" in before[0]


def test_ends_of_lines_are_told_apart_and_few_types_shown_once(browser: "Browser", tmp_path: Path) -> None:
    table = hostile_table(90, 1)
    words = {0: "\r", 1: "\n", 2: "\r\n"}
    write_page(
        {"m": replace(table, token=np.arange(90, dtype=np.int32) % 3, vocabulary=words)}, tmp_path / "report.html"
    )
    visit = Visit(browser, tmp_path / "report.html")
    assert sorted(visit.page.locator("#types tbody button").all_inner_texts()) == ["↵", "␍", "␍↵"]
    visit.close()


def test_figures_tell_their_numbers_when_pointed_at(visit: Visit) -> None:
    visit.page.locator("#load td").first.hover()
    assert re.search(r"layer 0, FFN 0\s+\d+\.\d % of the choices\s+tau aims at 8\.3 %", visit.text("#tip"))
    for figure in ("by-layer", "scores-0", "scores-1", "loss-by-ffn"):
        visit.page.locator(f"#{figure} svg").hover()
        assert re.search(r"\d\.\d\d", visit.text("#tip")), figure
        assert visit.page.locator(f"#{figure} svg").get_attribute("aria-label")
    assert visit.page.locator(".keys .key").first.inner_text().split("\n") == list(several())
    assert "variance" in visit.text("#moments-0")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_light_and_dark(browser: "Browser", path: Path, scheme: str) -> None:
    visit = Visit(browser, path, color_scheme=scheme)
    for by in ("ffn", "constant", "copy", "zero", "loss"):
        visit.page.check(f"input[name=by][value={by}]", force=True)
        levels = colours(visit, "#legend .ramp i")
        assert len({background for background, _ in levels}) == 9
        assert all(contrast(background, ink) >= 4.5 for background, ink in levels), by
    assert all(contrast(background, ink) >= 4.5 for background, ink in colours(visit, "#load td, #correlation td"))
    (paper, ink), (_, soft) = colours(visit, "body, .lead")
    assert contrast(paper, ink) > 12
    assert contrast(paper, soft) >= 4.5
    visit.close()


def test_the_dark_theme_follows_the_system_and_the_switch(browser: "Browser", path: Path) -> None:
    visit = Visit(browser, path, color_scheme="dark")
    lightness = []
    for _ in range(3):
        lightness.append(sum(colours(visit, "body")[0][0]))
        visit.page.click("#theme")
    assert lightness[0] == lightness[2] < 100
    assert lightness[1] > 700
    visit.close()


def test_a_phone_needs_no_sideways_scroll(browser: "Browser", path: Path) -> None:
    visit = Visit(browser, path, viewport=PHONE, has_touch=True)
    width = "document.documentElement.scrollWidth"
    assert visit.page.evaluate(width) <= PHONE["width"]
    assert not visit.page.is_visible("#detail")
    visit.page.locator("#text span[data-token='3']").tap()
    assert visit.page.is_visible("#detail")
    visit.page.tap("#close")
    assert not visit.page.is_visible("#detail")
    visit.page.fill("#search", "r")
    assert visit.page.evaluate(width) <= PHONE["width"]
    visit.page.check("input[name=model][value='1']", force=True)
    assert visit.page.evaluate(width) <= PHONE["width"]
    visit.close()


def test_a_screenshot_is_not_blank(visit: Visit) -> None:
    from PIL import Image

    picture = np.asarray(Image.open(io.BytesIO(visit.page.screenshot())).convert("RGB"))
    assert picture.std() > 10
    assert len(np.unique(picture[::4, ::4].reshape(-1, 3) // 16, axis=0)) > 20


def test_a_vanilla_model_alone_has_no_empty_figure(browser: "Browser", tmp_path: Path) -> None:
    write_page({"vanilla": hostile_table(200, 2, layout=VANILLA, drops=False)}, tmp_path / "report.html")
    visit = Visit(browser, tmp_path / "report.html")
    assert visit.page.is_visible("#plain")
    assert "Every token uses as many FFN experts" in visit.text("#loss-by-ffn")
    assert "Most loss" in visit.text("#types")
    assert visit.page.locator("#correlation td").count() == 4
    assert visit.page.locator("input[name=model]").count() == 0
    assert not visit.page.is_visible("input[name=by][value=copy]")
    visit.close()
