"""The report's page in a real browser: whole without a network, light, dark, narrow and on paper."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from tests.support.browser import Browser, missing_browser, pages
from tests.support.sample_report import go_wrong, year_of

from pii_vault.report.page import page

pytestmark = pytest.mark.skipif(missing_browser() is not None, reason=str(missing_browser()))

HOSTILE = "<script>document.title='owned'</script><img src=http://evil.example/x onerror=\"console.log(1)\"><style>*{"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as made:
        yield made


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The page of a tenant in order, of one that is not, and of one with a hostile name."""
    folder = tmp_path_factory.mktemp("reports")
    found = {name: folder / f"{name}.html" for name in ("good", "bad", "hostile")}
    with year_of(folder) as year:
        found["good"].write_text(page(year.report()), "utf-8")
        go_wrong(year)
        found["bad"].write_text(page(year.report()), "utf-8")
    (folder / "other").mkdir()
    with year_of(folder / "other", HOSTILE) as year:
        found["hostile"].write_text(page(year.report()), "utf-8")
    return found


@pytest.fixture(params=["good", "bad", "hostile"])
def file(request: pytest.FixtureRequest, reports: dict[str, Path]) -> Path:
    return reports[request.param]


@pytest.fixture(autouse=True)
def _asks_for_nothing_and_complains_of_nothing(browser: Browser) -> Iterator[None]:
    browser.opened.clear()
    browser.requests.clear()
    browser.complaints.clear()
    yield
    assert list(browser.requests.values()) == browser.opened
    assert browser.complaints == []


def background(png: bytes) -> tuple[int, ...]:
    """Return the colour of a picture's first pixel. The first line of a PNG's rows is never filtered from above."""
    chunks, place = b"", 8
    while place < len(png):
        (size,) = struct.unpack(">I", png[place : place + 4])
        if png[place + 4 : place + 8] == b"IDAT":
            chunks += png[place + 8 : place + 8 + size]
        place += size + 12
    return tuple(zlib.decompress(chunks)[1:4])


def test_it_is_shown_in_light_and_in_dark(browser: Browser, file: Path) -> None:
    browser.open(file)
    assert background(browser.screenshot()) == (255, 255, 255)
    browser.open(file, dark=True)
    assert background(browser.screenshot()) == (0x11, 0x16, 0x1C)


@pytest.mark.parametrize("width", [360, 700, 720, 1000, 1400])
def test_nothing_is_wider_than_the_window(browser: Browser, file: Path, width: int) -> None:
    browser.open(file, width=width)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate("window.innerWidth") == width


def test_it_prints_on_two_pages(browser: Browser, reports: dict[str, Path]) -> None:
    for name in ("good", "bad"):
        for dark in (False, True):
            browser.open(reports[name], dark=dark)
            assert pages(browser.pdf()) == 2, name


def test_bars_and_styles_are_drawn_under_the_pages_own_policy(browser: Browser, file: Path) -> None:
    browser.open(file)
    assert browser.evaluate("getComputedStyle(document.querySelector('rect.active')).fill") == "rgb(31, 95, 139)"
    narrow = "[...document.querySelectorAll('.bar rect')].filter(e => e.getBoundingClientRect().width < 2).length"
    assert browser.evaluate(narrow) == 0
    past = "[...document.querySelectorAll('.bar')].filter(b => [...b.children].at(-1).getBoundingClientRect().right"
    assert browser.evaluate(f"{past} > b.getBoundingClientRect().right + 1).length") == 0


def test_a_hostile_name_is_shown_and_does_nothing(browser: Browser, reports: dict[str, Path]) -> None:
    browser.open(reports["hostile"])
    assert browser.evaluate("document.querySelector('h1').textContent") == HOSTILE
    assert browser.evaluate("document.title").startswith("Data protection report: <script>")
    assert browser.evaluate("document.querySelectorAll('script, img, link, iframe, [style], [onerror]').length") == 0
    assert browser.evaluate("document.querySelectorAll('style').length") == 1


def test_what_slipped_through_the_escaping_would_not_run(
    browser: Browser, reports: dict[str, Path], tmp_path: Path
) -> None:
    forged = tmp_path / "forged.html"
    text = reports["good"].read_text("utf-8")
    forged.write_text(text.replace("</main>", f"{HOSTILE}</style></main>"), "utf-8")
    browser.open(forged)
    assert browser.evaluate("document.title").startswith("Data protection report: acme")
    assert browser.evaluate("getComputedStyle(document.querySelector('rect.active')).fill") == "rgb(31, 95, 139)"
    assert len(browser.complaints) >= 3
    assert all("Content Security Policy" in each for each in browser.complaints)
    browser.complaints.clear()


def test_headings_tables_and_language_are_there_for_who_does_not_see(browser: Browser, file: Path) -> None:
    browser.open(file)
    assert browser.evaluate("document.documentElement.lang") == "en"
    assert browser.evaluate("document.querySelectorAll('h1').length") == 1
    levels = browser.evaluate("[...document.querySelectorAll('h1,h2,h3')].map(e => +e.tagName[1])")
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert browser.evaluate("document.querySelectorAll('th:not([scope])').length") == 0
    assert browser.evaluate("document.querySelectorAll('.bar:not([aria-label])').length") == 0
