"""The report in a headless Chromium: pictures, scales, filters, enlarged view, print, and no request."""

from __future__ import annotations

import numpy as np
import pytest

from muscjax import metrics
from muscjax.colormap import heat_table
from tests import browser
from tests.test_report import HOSTILE, scan, write

NO_HEAT, HALF, HOT = range(3)  # the areas of ``scan``'s map
# Pixels are read from a copy: reading the page's own canvas often would make Chromium warn about it.
READ = """
  const { width, height } = canvas, copy = Object.assign(document.createElement("canvas"), { width, height });
  const pixels = copy.getContext("2d", { willReadFrequently: true });
  pixels.drawImage(canvas, 0, 0);
"""
AREAS = """(() => {
  const canvas = document.querySelector('.card[data-name$="%s"] figure[data-kind="%s"] canvas');
  {READ}
  const at = (u, v) => [...pixels.getImageData(u * canvas.width, v * canvas.height, 1, 1).data];
  return [at(.9, .1), at(.25, .5), at(.75, .5)];
})()""".replace("{READ}", READ)
BRIGHT_LINE = """(() => {
  const canvas = document.querySelector('.card figure[data-kind="overlay"] canvas');
  {READ}
  const p = pixels.getImageData(0, 0, canvas.width, canvas.height).data;
  let found = 0;
  for (let i = 0; i < p.length; i += 4) found += p[i] < 130 && p[i + 1] > 220 && p[i + 2] > 230;
  return found;
})()""".replace("{READ}", READ)
SHOWN = "[...document.querySelectorAll('.card')].filter((c) => !c.hidden).map((c) => c.dataset.name)"
NAME = "document.getElementById('viewer-name').textContent"
PANEL = "document.querySelector('#tabs [aria-pressed=true]').textContent"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Seven scans of two categories, one without a picture, three with hostile names; everything in view."""
    program = browser.binary()
    if program is None:
        pytest.skip("needs a chromium or google-chrome on the path")
    path = tmp_path_factory.mktemp("report") / "r.html"
    depth = np.full((60, 80), 90, np.uint8)
    scans = [scan(i, category="a") for i in range(3)]
    scans += [scan(5, image=None, depth=depth, mask=None, category="a", rank=4)]
    scans += [scan(i, name=name, category="b") for i, name in enumerate(HOSTILE[:3])]
    summaries = {"a": metrics.summary(labels=np.array([1, 0]), scores=np.array([1.0, 0.5]))}
    write(path, scans, limits=(0.0, 1.0), summaries=summaries)
    with browser.browse(program) as found:
        for width, dark in ((420, False), (1280, True)):
            found.open(path, width=width, height=4000, dark=dark)
            assert found.evaluate("document.documentElement.scrollWidth") <= width
        yield found
        assert found.problems == []
        assert {url.split(":")[0] for url in found.requests} == {"file", "data"}


def areas(page, name: str, kind: str) -> np.ndarray:
    """Colours (3 areas, RGB) of a panel."""
    colours = np.array(page.evaluate(AREAS % (name, kind)))
    assert (colours[:, 3] == 255).all()
    return colours[:, :3]


def choose(page, select: str, value: str) -> None:
    page.evaluate(
        f"(() => {{ const s = document.getElementById('{select}'); s.value = '{value}';"
        " s.dispatchEvent(new Event('change')); })()"
    )


def scale(page, name: str) -> None:
    page.evaluate(f"document.querySelector('input[value={name}]').click()")
    page.wait(f"document.querySelectorAll('.card canvas[data-painted={name}]').length === 20")


def test_every_picture_loads_and_every_map_is_drawn(page):
    page.wait("[...document.images].every((i) => i.complete)")
    assert page.evaluate("document.images.length") == 7
    assert page.evaluate("[...document.images].filter((i) => i.naturalWidth === 0).length") == 0
    page.wait("document.querySelectorAll('.card canvas[data-painted=set]').length === 20")
    assert page.evaluate("document.getElementById('unsupported').hidden")


def test_the_scales_colour_as_the_table_says(page):
    table = heat_table().astype(int)
    scale(page, "set")
    assert np.abs(areas(page, "001", "map") - table[[0, 128, round(0.7 * 255)]]).max() <= 4
    overlay = areas(page, "000", "overlay")
    assert np.ptp(overlay[NO_HEAT]) <= 2  # the grey picture, a little paler
    assert 0.75 * 120 < overlay[NO_HEAT].mean() < 1.15 * 120
    assert overlay[HOT].sum() > overlay[HALF].sum() > overlay[NO_HEAT].sum()
    assert "compared" in page.evaluate("document.getElementById('meaning').textContent")
    scale(page, "scan")
    # On its own scale this scan's maximum is full heat, and what most of it has is none.
    assert np.abs(areas(page, "001", "map")[[HALF, HOT]] - table[[0, 255]]).max() <= 4
    assert "not how hot" in page.evaluate("document.getElementById('meaning').textContent")
    scale(page, "set")
    assert np.abs(areas(page, "001", "map") - table[[0, 128, round(0.7 * 255)]]).max() <= 4


def test_known_defects_are_outlined(page):
    # The defect is a square with sides of 36 to 48 canvas pixels; the line is one or two wide.
    assert 4 * 34 <= page.evaluate(BRIGHT_LINE) <= 8 * 50
    page.evaluate("document.getElementById('outline').click()")
    assert page.evaluate(BRIGHT_LINE) == 0
    page.evaluate("document.getElementById('outline').click()")


def test_filters_leave_what_they_say(page):
    choose(page, "category", "b")
    assert page.evaluate(SHOWN) == list(HOSTILE[:3])
    choose(page, "kind", "defective/bent")
    assert page.evaluate(SHOWN) == [HOSTILE[0]]
    choose(page, "category", "")
    choose(page, "kind", "normal")
    assert page.evaluate("document.getElementById('count').textContent") == "5 of 7 scans"
    choose(page, "kind", "")
    assert len(page.evaluate(SHOWN)) == 7


def test_keys_lead_through_the_enlarged_view(page):
    page.evaluate("document.querySelector('.card button').click()")
    assert page.evaluate("document.getElementById('viewer').open")
    steps = {
        "ArrowRight": "line/test/001",
        "End": HOSTILE[2],
        "ArrowLeft": HOSTILE[1],
        "Home": "line/test/000",
    }
    for key, name in {"": "line/test/000", **steps}.items():
        if key:
            page.press(key)
        assert page.evaluate(NAME) == name
    assert page.evaluate(PANEL) == "overlay"
    page.press("ArrowDown")
    assert page.evaluate(PANEL) == "map"
    page.press("s")
    page.wait("document.getElementById('stage').dataset.painted === 'scan'")
    box = page.evaluate("document.getElementById('stage').getBoundingClientRect().toJSON()")
    page.point(box["x"] + 0.755 * box["width"], box["y"] + 0.51 * box["height"])
    page.wait("document.getElementById('readout').textContent === 'Score 1 at x 60, y 30'")
    page.press("Escape")
    page.wait("!document.getElementById('viewer').open")
    page.wait("document.activeElement.closest('.card')?.dataset.name === 'line/test/000'")
    scale(page, "set")


def test_it_prints(page):
    assert page.pdf().startswith(b"%PDF")


def test_no_other_script_could_run(page):
    before = len(page.problems)
    page.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), { text: 'window.ran = 1' }))"
    )
    assert page.evaluate("window.ran === undefined")
    assert all("Content Security Policy" in text for text in page.problems[before:])
    del page.problems[before:]
