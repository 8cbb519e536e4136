"""The page in a real browser: it sorts, switches its theme, fits a phone, never complains and asks for nothing."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.browser import CHROMIUM, Page, chromium
from tljax.reports import report
from tljax.reports.schema import Options

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH: apt-get install chromium")

FIRST = "document.querySelector('table.sortable')"
ORDER = f"[...{FIRST}.tBodies[0].rows].map(row => row.cells[0].dataset.key)"
GIVEN = ["linear_probe", "prompt", "full"]


@pytest.fixture(scope="module")
def page(runs, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("page")
    report.report([str(runs)], out, Options(draws=200, test="t"))
    return out / "report.html"


@pytest.fixture
def browser(page) -> Iterator[Page]:
    with chromium() as browser:
        yield browser
        assert browser.complaints == []
        assert {address for address in browser.requests if not address.startswith("data:")} == {page.as_uri()}


def test_a_column_sorts_by_mouse_and_by_keyboard(browser, page):
    browser.open(page)
    heads = browser.value(f"[...{FIRST}.tHead.rows[0].cells].map(cell => cell.textContent)")
    accuracy, p = heads.index("test accuracy, %"), heads.index("p")
    button = f"{FIRST}.tHead.rows[0].cells[{accuracy}].firstElementChild"
    sorts = f"{FIRST}.tHead.rows[0].cells[{accuracy}].getAttribute('aria-sort')"
    assert browser.value(ORDER) == GIVEN
    browser.value(f"{button}.click()")
    assert browser.value(ORDER) == ["prompt", "full", "linear_probe"] and browser.value(sorts) == "descending"
    browser.value(f"{button}.focus()")
    browser.press("Enter")
    assert browser.value(ORDER) == ["linear_probe", "prompt", "full"] and browser.value(sorts) == "ascending"
    browser.press(" ")
    assert browser.value(ORDER) == GIVEN and browser.value(sorts) is None
    browser.value(f"{FIRST}.tHead.rows[0].cells[{p}].firstElementChild.click()")
    assert browser.value(ORDER)[0] == "linear_probe"  # the baseline, which has none, at the largest


def test_the_theme_follows_the_system_until_one_is_chosen_and_then_stays(browser, page):
    ground = "getComputedStyle(document.body).backgroundColor"
    ink = "getComputedStyle(document.querySelector('svg text')).fill"
    browser.open(page, scheme="light")
    light = browser.value(ground), browser.value(ink)
    browser.open(page, scheme="dark")
    dark = browser.value(ground), browser.value(ink)
    assert light[0] == "rgb(255, 255, 255)" and dark[0] == "rgb(20, 23, 27)" and light[1] != dark[1]
    browser.value("document.querySelector('.theme input[value=light]').click()")
    assert (browser.value(ground), browser.value(ink)) == light
    browser.open(page, scheme="dark")
    assert (browser.value(ground), browser.value(ink)) == light
    browser.value("document.querySelector('.theme input[value=light]').focus()")
    browser.press("ArrowRight")
    assert browser.value("localStorage.getItem('tljax-theme')") == "dark" and browser.value(ground) == dark[0]
    browser.value("document.querySelector('.theme input[value=system]').click()")
    browser.open(page, scheme="light")
    assert browser.value(ground) == light[0]


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_nothing_is_wider_than_the_window(browser, page, width):
    browser.open(page, width=width)
    browser.value("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert browser.value("document.documentElement.scrollWidth") <= width
    wide = "document.querySelector('.scroll')"
    if width <= 390:  # the table is, and scrolls inside of itself
        assert browser.value(f"{wide}.scrollWidth > {wide}.clientWidth")


def test_a_number_leads_to_its_runs(browser, page):
    browser.open(page)
    browser.value(f"{FIRST}.tBodies[0].rows[1].cells[9].querySelector('a').click()")
    number = browser.value("location.hash.slice(1)")
    assert browser.value(f"new Promise(done => setTimeout(() => done(document.getElementById('{number}').open), 100))")
    text = browser.value(f"document.getElementById('{number}').innerText")
    assert "prompt" in text and "--config.tuning.strategy=prompt" in text and "seed 0" in text
    browser.value(f"{FIRST}.tBodies[0].rows[1].cells[1].querySelector('a').click()")
    heading = "document.getElementById(location.hash.slice(1)).querySelector('h4').textContent"
    assert browser.value(heading) == "prompt"


def test_it_is_drawn(browser, page, tmp_path):
    browser.open(page, width=390, height=800)
    browser.picture(tmp_path / "phone.png", whole=True)
    with Image.open(tmp_path / "phone.png") as picture:
        assert picture.width == 390 and picture.height > 3000
        assert np.asarray(picture.convert("L")).std() > 10
    assert browser.value("[...document.querySelectorAll('svg')].every(svg => svg.getBoundingClientRect().height > 100)")
    assert browser.value("document.querySelectorAll('figure').length") == 9
