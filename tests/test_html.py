"""report.html as a reader sees it: in a browser, on a desk and on a phone, by day and by night."""
import os
import re
import shutil
from pathlib import Path

import pytest
from playwright.sync_api import Error, sync_playwright

from report import build, cells

ROOT = Path(__file__).resolve().parent.parent
NAMES = "chromium", "chromium-browser", "google-chrome", "google-chrome-stable"
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
DESK, PHONE = 1280, 390  # pixels across

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on this machine")

# The number of pictures and of those that cannot be drawn; how far the page reaches out of the window.
PICTURES = """Promise.all([...document.images].map(i => i.decode().then(() => i.naturalWidth > 0, () => false)))
              .then(drawn => [drawn.length, drawn.filter(d => !d).length])"""
SCROLL = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        try:
            chromium = playwright.chromium.launch(executable_path=BROWSER, chromium_sandbox=os.geteuid() != 0)
        except Error as err:
            pytest.skip(f"{BROWSER} does not start: {err.message.splitlines()[0]}")
        yield chromium
        chromium.close()


@pytest.fixture
def show(browser):
    """A function that shows a file in a window of its own: a page, whose `heard` is what the browser reported."""
    pages = []

    def page(path, width=DESK, scheme="light"):
        page = browser.new_page(viewport={"width": width, "height": 900}, is_mobile=width < 600, color_scheme=scheme)
        pages.append(page)
        page.set_default_timeout(120_000)  # ms: other tests may keep the machine busy
        page.heard = []
        page.on("console", lambda m: page.heard.append(m.text) if m.type in ("error", "warning", "assert") else None)
        page.on("pageerror", lambda error: page.heard.append(str(error)))
        page.on("request", lambda request: page.heard.append(f"asks for {request.url}")
                if request.url != path.as_uri() and not request.url.startswith("data:") else None)
        try:
            page.goto(path.as_uri())
        except Error as err:
            if not re.search("ERR_(FILE_NOT_FOUND|ACCESS_DENIED)", err.message):
                raise
            pytest.skip(f"{BROWSER} may not read {path}")  # as a snap, it has a /tmp of its own
        return page

    yield page
    for page in pages:
        page.close()


def faults(page):
    """What is wrong with a page, and its number of pictures."""
    pictures, broken = page.evaluate(PICTURES)
    too_wide = page.evaluate(SCROLL)
    found = page.heard + [f"{broken} pictures cannot be drawn"] * bool(broken)
    return found + [f"{too_wide} pixels too wide"] * (too_wide > 0), pictures


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    path = tmp_path_factory.mktemp("html") / "report.html"
    build.build_html(path, ROOT)
    return path


@pytest.mark.parametrize("width, scheme", [(DESK, "light"), (PHONE, "dark")])
def test_nothing_is_missing_and_nothing_is_too_wide(show, report, width, scheme):
    page = show(report, width, scheme)
    found, pictures = faults(page)
    assert found == []
    assert pictures == report.read_text(encoding="utf-8").count("<img ") > 10
    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")  # all code and solutions
    assert page.evaluate(SCROLL) <= 0


def test_the_contents_stand_at_the_side_where_there_is_room(show, report):
    def places(width):
        page = show(report, width)
        return (*(page.locator(name).bounding_box() for name in ("nav", "main")),
                page.locator("nav details").get_attribute("open") is not None)

    nav, main, is_open = places(DESK)
    assert nav["x"] + nav["width"] <= main["x"] and is_open
    nav, main, is_open = places(PHONE)
    assert nav["y"] + nav["height"] <= main["y"] and not is_open


def test_the_page_is_dark_in_the_dark(show, report):
    def contrast(scheme):
        page = show(report, scheme=scheme)
        style = "getComputedStyle(document.body)"
        back, front = (page.evaluate(f"{style}.{name}") for name in ("backgroundColor", "color"))
        back, front = (sum(map(int, re.findall(r"\d+", colour)[:3])) / 765 for colour in (back, front))
        return back, front - back

    paper, ink = contrast("light")
    assert paper > 0.9 and ink < -0.7
    paper, ink = contrast("dark")
    assert paper < 0.2 and ink > 0.7


def test_code_unfolds_and_equations_are_set(show, report):
    page = show(report)
    code = page.locator("details.source:not([open])").first.element_handle()
    assert not code.query_selector("pre").is_visible()
    code.query_selector("summary").click()
    assert code.query_selector("pre").is_visible()
    heights = [formula.bounding_box()["height"] for formula in page.locator("main > p math").all()[:100]]
    assert len(heights) == 100 and min(heights) > 5
    assert page.evaluate("[...document.fonts].map(f => f.family + ' ' + f.status)") == ["Formulas loaded"]
    big, small = (page.locator(sign).first.bounding_box()["height"] for sign in (
        "math[display=block] munderover mo", "math:not([display=block]) mo"))
    assert big > 1.4 * small  # a sum in a display is larger than the signs of a line


def test_solutions_are_folded_and_unfold_one_by_one(show, report):
    page = show(report)
    solved = sum(cell.source.count("<details>") for path in cells.notebooks() for cell in cells.read(path).cells
                 if "solution" in cells.tags(cell))
    folds = page.locator("details", has_text=re.compile("^\\s*Solution of exercise \\d"))
    assert folds.count() == solved > 20
    assert page.locator("details[open]", has_text=re.compile("^\\s*Solution of exercise")).count() == 0
    one, two = folds.nth(0), folds.nth(1)
    assert not one.locator("pre").is_visible()
    one.locator("summary").click()
    assert one.locator("pre").is_visible() and not two.locator("pre").is_visible()


@pytest.mark.parametrize("body, fault", [
    ("<div style='width: 2000px'>wide</div>", "pixels too wide"),
    ("<img src='data:image/png;base64,AAAA'>", "pictures cannot be drawn"),
    ("<script>console.error('a complaint')</script>", "a complaint"),
    ("<script>undefined_name</script>", "undefined_name is not defined"),
    ("<link rel='stylesheet' href='beside.css'>", "asks for"),
])
def test_a_faulty_page_is_noticed(show, tmp_path, body, fault):
    path = tmp_path / "faulty.html"
    path.write_text(f"<!DOCTYPE html><meta name='viewport' content='width=device-width'><title>x</title>{body}")
    found, _ = faults(show(path, PHONE))
    assert fault in " ".join(found)
