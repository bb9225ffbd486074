"""report.html as a reader sees it: in a browser, on a desk and on a phone, by day and by night."""
import re
from pathlib import Path

import pytest
from chromium import Chromium, find

from report import build

ROOT = Path(__file__).resolve().parent.parent
DESK, PHONE = 1280, 390  # pixels across

pytestmark = pytest.mark.skipif(find() is None, reason="no Chromium or Chrome on this machine")

# The number of pictures and of those that cannot be drawn; how far the page reaches out of the window.
PICTURES = """Promise.all([...document.images].map(i => i.decode().then(() => i.naturalWidth > 0, () => false)))
              .then(drawn => [drawn.length, drawn.filter(d => !d).length])"""
SCROLL = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


def faults(page, url, width, scheme="light"):
    """What is wrong with the page at this width, and its number of pictures."""
    page.open(url, width, scheme=scheme)
    pictures, broken = page.value(PICTURES)
    too_wide = page.value(SCROLL)
    found = list(page.complaints())
    found += [f"asks for {address}" for address in page.requests() if address != url]
    found += [f"{broken} pictures cannot be drawn"] * bool(broken) + [f"{too_wide} pixels too wide"] * (too_wide > 0)
    return found, pictures


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    trial = tmp_path_factory.mktemp("trial") / "trial.html"
    trial.write_text("<title>trial</title>")
    try:
        chromium = Chromium(find(), tmp_path_factory.mktemp("profile"))
    except (EOFError, OSError) as err:
        pytest.skip(f"{find()} does not start: {err}")
    chromium.open(trial.as_uri(), DESK)
    if chromium.value("document.title") == "trial":
        yield chromium
        chromium.close()
    else:  # as a snap, it has a /tmp of its own
        chromium.close()
        pytest.skip(f"{find()} may not read {trial}")


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    path = tmp_path_factory.mktemp("html") / "report.html"
    build.build_html(path, ROOT)
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [DESK, PHONE])
def test_nothing_is_missing_and_nothing_is_too_wide(page, report, width, scheme):
    found, pictures = faults(page, report.as_uri(), width, scheme)
    assert found == []
    assert pictures == report.read_text(encoding="utf-8").count("<img ") > 10
    page.value("document.querySelectorAll('details').forEach(d => d.open = true)")  # all code and solutions
    assert page.value(SCROLL) <= 0


def test_the_contents_stand_at_the_side_where_there_is_room(page, report):
    nav, main = ("document.querySelector('%s').getBoundingClientRect()" % name for name in ("nav", "main"))
    page.open(report.as_uri(), DESK)
    assert page.value(f"{nav}.right <= {main}.left") and page.value("document.querySelector('nav details').open")
    page.open(report.as_uri(), PHONE)
    assert page.value(f"{nav}.bottom <= {main}.top") and not page.value("document.querySelector('nav details').open")


def test_the_page_is_dark_in_the_dark(page, report):
    def contrast(scheme):
        page.open(report.as_uri(), DESK, scheme=scheme)
        style = "getComputedStyle(document.body)"
        back, front = (page.value(f"{style}.{name}") for name in ("backgroundColor", "color"))
        back, front = (sum(map(int, re.findall(r"\d+", colour)[:3])) / 765 for colour in (back, front))
        return back, front - back

    paper, ink = contrast("light")
    assert paper > 0.9 and ink < -0.7
    paper, ink = contrast("dark")
    assert paper < 0.2 and ink > 0.7


def test_code_unfolds_and_equations_are_set(page, report):
    page.open(report.as_uri(), DESK)
    page.value("{ code = document.querySelector('details.source:not([open])') }")
    assert not page.value("code.querySelector('pre').checkVisibility()")
    page.value("code.querySelector('summary').click()")
    assert page.value("code.querySelector('pre').checkVisibility()")
    heights = page.value("[...document.querySelectorAll('math')].slice(0, 200)"
                         ".map(m => m.getBoundingClientRect().height)")
    assert len(heights) == 200 and min(heights) > 5
    assert page.value("[...document.fonts].map(f => f.family + ' ' + f.status)") == ["Formulas loaded"]
    big = page.value("document.querySelector('math[display=block] munderover mo').getBoundingClientRect().height")
    small = page.value("document.querySelector('math:not([display=block]) mo').getBoundingClientRect().height")
    assert big > 1.4 * small  # a sum in a display is larger than the signs of a line


@pytest.mark.parametrize("body, fault", [
    ("<div style='width: 2000px'>wide</div>", "pixels too wide"),
    ("<img src='data:image/png;base64,AAAA'>", "pictures cannot be drawn"),
    ("<script>console.error('a complaint')</script>", "a complaint"),
    ("<script>undefined_name</script>", "ReferenceError"),
    ("<link rel='stylesheet' href='beside.css'>", "asks for"),
])
def test_a_faulty_page_is_noticed(page, tmp_path, body, fault):
    path = tmp_path / "faulty.html"
    path.write_text(f"<!DOCTYPE html><meta name='viewport' content='width=device-width'><title>x</title>{body}")
    found, _ = faults(page, path.as_uri(), PHONE)
    assert fault in " ".join(found)
