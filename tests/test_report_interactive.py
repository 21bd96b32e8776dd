"""The report's sliders, filters, 3D view and links in a headless Chromium."""

from __future__ import annotations

import numpy as np
import pytest

from muscjax import config, report
from tests import browser
from tests.test_report import RECORD, scan
from tests.test_report_browser import SHOWN, choose

SCORES = np.array([0.9, 0.8, 0.7, 0.6, 0.4, 0.3, 0.2, 0.1])
LABELS = np.array([1, 0, 1, 1, 0, 0, 1, 0])
KINDS = ("bent", None, "bent", "cut", None, None, "cut", None)
LIVE = """Object.fromEntries([...document.querySelectorAll('.histogram[data-set="%d"] [data-live]')]
  .map((e) => [e.dataset.live, e.textContent]))"""
DOT = """(() => { const dot = document.querySelector('.histogram[data-set="0"] .%s circle');
  return dot.style.display === 'none' ? null : [dot.cx.baseVal.value, dot.cy.baseVal.value]; })()"""
CALLS = """Object.fromEntries([...document.querySelectorAll('.card')]
  .map((c) => [c.dataset.name, c.querySelector('.call').textContent]))"""
NEIGHBOURS = """[...document.querySelectorAll('#neighbours li')]
  .map((e) => [...e.children].map((c) => c.tagName + ' ' + c.textContent))"""
STAGE = """(() => {
  const canvas = document.getElementById("stage"), copy = document.createElement("canvas");
  [copy.width, copy.height] = [canvas.width / 8, canvas.height / 8];
  const context = copy.getContext("2d", { willReadFrequently: true });
  context.drawImage(canvas, 0, 0, copy.width, copy.height);
  return [copy.width, copy.height, ...context.getImageData(0, 0, copy.width, copy.height).data];
})()"""
PAINTED = "document.getElementById('stage').dataset.painted"
NAME = "document.getElementById('viewer-name').textContent"


def hill() -> dict[str, np.ndarray]:
    """A cloud for ``scan``: a plane half a metre away with a hill where its map is hot, in its right half."""
    v, u = (np.indices((48, 64)) + 0.5) / np.array([48, 64])[:, None, None]
    z = 0.5 - 0.01 * np.exp(-60 * ((u - 0.75) ** 2 + (v - 0.5) ** 2))
    points = np.stack([0.16 * (u - 0.5), 0.12 * (v - 0.5), z], axis=-1).astype(np.float32)
    return {"points": points.reshape(-1, 3), "places": np.stack([u, v], axis=-1).reshape(-1, 2)}


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Eight labelled scans, the first two with a cloud, and three normal ones; and the same squeezed."""
    folder = tmp_path_factory.mktemp("report")
    scans = [
        scan(
            min(i, 1),
            name=f"a/{i}",
            category="a",
            score=float(SCORES[i]),
            rank=i + 1,
            label=int(LABELS[i]),
            defect=KINDS[i],
            neighbours=[("a/3", 0.3), ("a/7", 0.25), ("a/1", 0.05)] if i == 0 else (),
            **(hill() if i < 2 else {}),
        )
        for i in range(8)
    ]
    scans += [
        scan(1, name=f"b/{i}", category="b", score=0.5 - 0.1 * i, rank=i + 1, label=0) for i in range(3)
    ]
    cards = [report.encode(s, limits=(0.0, 1.0)) for s in scans]
    about = report.Report(title="line", config=config.released(), record=RECORD, thresholds={"a": 0.5})
    pictures = sum(card.size + 4_000 for card in cards if card.name != "a/7")
    sizes = {"whole": report.MAX_BYTES, "squeezed": 400_000 + 11 * 500 + pictures + 100}
    return {
        name: report.write_report(folder / f"{name}.html", about, cards, max_bytes=size)
        for name, size in sizes.items()
    }


@pytest.fixture(scope="module")
def page(paths):
    program = browser.binary()
    if program is None:
        pytest.skip("needs a chromium or google-chrome on the path")
    with browser.browse(program) as found:
        found.open(paths["whole"], width=1280, height=1000)
        yield found
        assert found.problems == []
        assert {url.split(":")[0] for url in found.requests} == {"file", "data"}


def live(page, index: int = 0) -> dict[str, str]:
    return page.evaluate(LIVE % index)


def slide(page, index: int, value: int) -> float:
    """Move a category's slider; the threshold that the page then says."""
    page.evaluate(
        f"(() => {{ const s = document.querySelector('.histogram[data-set=\"{index}\"] input.threshold');"
        f" s.value = {value}; s.dispatchEvent(new Event('input', {{ bubbles: true }})); }})()"
    )
    return float(live(page, index)["value"])


def enter(page, control: str, value: str) -> None:
    page.evaluate(
        f"(() => {{ const i = document.getElementById('{control}'); i.value = '{value}';"
        " i.dispatchEvent(new Event('input')); })()"
    )


def stage(page) -> np.ndarray:
    """The enlarged picture, (h, w, 3), an eighth of its size."""
    width, height, *values = page.evaluate(STAGE)
    return np.array(values).reshape(height, width, 4)[..., :3]


def settled(page) -> np.ndarray:
    """The enlarged picture once the screen shows what was asked for last."""
    page.evaluate(
        "new Promise((r) => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(r, 20))))"
    )
    return stage(page)


def covered(picture: np.ndarray) -> float:
    """Share of the points in it, without the corner of the ruler."""
    return float((picture[: int(0.85 * len(picture))].max(axis=-1) > 40).mean())


def expected(at: float) -> dict[str, str]:
    called, bad = at < SCORES, LABELS == 1
    found, alarms, missed = (called & bad).sum(), (called & ~bad).sum(), (~called & bad).sum()

    def ratio(part, whole):
        return f"{100 * part / whole:.1f} %" if whole else "–"

    return {
        "called": f"{called.sum()} of 8",
        "precision": ratio(found, found + alarms),
        "recall": ratio(found, found + missed),
        "f1": ratio(2 * found, 2 * found + alarms + missed),
        "alarms": f"{alarms} of 4",
        "missed": f"{missed} of 4",
    }


def test_the_slider_begins_at_the_runs_threshold(page):
    assert live(page) == {"value": "0.5", **expected(0.5)}
    assert expected(0.5)["precision"] == "75.0 %"
    assert live(page, 1)["precision"] == "0.0 %"  # all are normal: the middle of their scores calls one
    assert page.evaluate(CALLS)["a/1"] == "false alarm"
    assert page.evaluate("document.querySelector('#total [data-live=alarms]').textContent") == "2 of 7"


@pytest.mark.parametrize("position", [-4, 0, 110, 180, 290, 400, 404])
def test_moving_it_changes_every_count_and_both_curves(page, position):
    at = slide(page, 0, position)
    assert at == pytest.approx(0.1 + 0.8 * position / 400, rel=5e-3)
    at = 0.1 + 0.8 * position / 400
    assert {key: text for key, text in live(page).items() if key != "value"} == expected(at)
    called, bad = at < SCORES, LABELS == 1
    recall, false = (called & bad).sum() / 4, (called & ~bad).sum() / 4
    assert page.evaluate(DOT % "roc") == pytest.approx([100 * false, 100 * (1 - recall)])
    precision = (called & bad).sum() / called.sum() if called.any() else None
    point = page.evaluate(DOT % "pr")
    assert point == (
        None if precision is None else pytest.approx([100 * recall, 100 * (1 - precision)], abs=1e-4)
    )
    words = {
        (1, 1): "called defective",
        (0, 0): "called normal",
        (1, 0): "false alarm",
        (0, 1): "missed defect",
    }
    calls = page.evaluate(CALLS)
    assert [calls[f"a/{i}"] for i in range(8)] == [words[c, b] for c, b in zip(called, bad, strict=True)]
    # The line in the histogram, the slider below it, and the other slider over the gallery agree.
    line, plot = page.evaluate(
        "(() => { const p = document.querySelector('.histogram .plot').getBoundingClientRect();"
        " return [(document.querySelector('.histogram .cut').getBoundingClientRect().x - p.x) / p.width,"
        " document.querySelector('.set .threshold').value]; })()"
    )
    assert line == pytest.approx(min(max(position / 400, 0), 1), abs=0.004)
    assert int(plot) == position


def test_the_keyboard_moves_it_and_buttons_set_it(page):
    page.evaluate("document.querySelector('.histogram button[data-start=\"1\"]').click()")
    assert live(page)["value"] == "0.5"  # of the best F1, 0.75, halfway from 0.6 to 0.4
    slide(page, 0, 200)
    page.evaluate("document.querySelector('.histogram input.threshold').focus()")
    page.press("ArrowRight")
    assert live(page)["value"] == "0.502"
    page.press("Home")
    assert live(page)["called"] == "8 of 8"
    said = page.evaluate(
        "document.querySelector('.histogram input.threshold').getAttribute('aria-valuetext')"
    )
    assert said == "0.092: 8 of 8 called defective"
    page.evaluate("document.querySelector('.histogram button[data-start=\"0\"]').click()")
    assert live(page) == {"value": "0.5", **expected(0.5)}


def test_filters_by_call_kind_and_score(page):
    for call, names in {
        "alarm": ["a/1", "b/0"],
        "missed": ["a/6"],
        "defective": ["a/0", "a/1", "a/2", "a/3", "b/0"],
    }.items():
        choose(page, "call", call)
        assert page.evaluate(SHOWN) == names
    choose(page, "kind", "defective/cut")
    assert page.evaluate(SHOWN) == ["a/3"]
    slide(page, 0, 350)  # 0.8: what is shown follows the slider
    assert page.evaluate(SHOWN) == []
    assert page.evaluate("!document.getElementById('none').hidden")
    choose(page, "call", "missed")
    assert page.evaluate(SHOWN) == ["a/3", "a/6"]
    page.evaluate("document.getElementById('clear').click()")
    assert page.evaluate("document.getElementById('count').textContent") == "11 scans"
    enter(page, "from", "0.3")
    enter(page, "to", "0.6")
    assert page.evaluate(SHOWN) == ["a/3", "a/4", "a/5", "b/0", "b/1", "b/2"]
    choose(page, "category", "b")
    assert page.evaluate("[...document.querySelectorAll('.set')].map((s) => s.hidden)") == [True, False]
    page.evaluate("document.getElementById('clear').click()")
    page.evaluate("document.querySelector('.histogram button[data-start=\"0\"]').click()")


def test_the_cloud_is_drawn_turned_and_zoomed(page):
    page.evaluate("document.querySelector('.card[data-name=\"a/0\"] button').click()")
    page.evaluate("document.querySelector('#tabs [data-value=solid]').click()")
    page.wait(f"{PAINTED} === 'solid heat'")
    first = settled(page)
    assert 0.15 < covered(first) < 0.8
    # The hill's map is the hottest there is, pale yellow, in the right half; the field on the left is orange.
    yellow = (first[..., 1] > 170) & (first[..., 1] - first[..., 2] > 40)
    assert yellow.any()
    assert np.argwhere(yellow)[:, 1].min() > first.shape[1] / 2

    box = page.evaluate("document.getElementById('stage').getBoundingClientRect().toJSON()")
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.drag(middle, (middle[0] + 150, middle[1]))
    turned = settled(page)
    assert (np.abs(turned - first).max(axis=-1) > 20).mean() > 0.05
    page.press("ArrowLeft", shift=True)
    assert np.abs(settled(page) - turned).max() > 20
    page.press("0")
    np.testing.assert_array_equal(settled(page), first)
    page.wheel(*middle, -200)
    near = covered(settled(page))
    assert near > 1.3 * covered(first)
    page.press("-")
    page.press("-")
    assert covered(settled(page)) < near / 1.3
    page.press("0")

    page.evaluate("document.querySelector('#colours [data-value=depth]').click()")
    page.wait(f"{PAINTED} === 'solid depth'")
    blue = settled(page)
    assert (blue[..., 2] - blue[..., 0] > 40).any()
    page.press("c")
    page.press("c")
    page.wait(f"{PAINTED} === 'solid picture'")
    grey = settled(page)[:60]  # above the ruler
    assert np.ptp(grey[grey.max(axis=-1) > 40], axis=-1).max() <= 4
    page.point(*middle)
    page.wait("document.getElementById('readout').textContent.startsWith('Score ')")
    page.press("ArrowRight")  # the next scan has a cloud as well, the one after it has none
    assert page.evaluate(NAME) == "a/1"
    page.wait(f"{PAINTED} === 'solid picture'")
    page.press("ArrowRight")
    page.wait(f"{PAINTED} === 'set'")
    assert page.evaluate("document.getElementById('colours').hidden")
    page.press("Escape")
    page.wait("!document.getElementById('viewer').open")


def test_neighbours_lead_to_their_scans(page):
    page.evaluate("document.querySelector('.card[data-name=\"a/0\"] button').click()")
    assert page.evaluate(NEIGHBOURS) == [
        ["BUTTON 3", "SPAN 30.0 %"],
        ["BUTTON 7", "SPAN 25.0 %"],
        ["BUTTON 1", "SPAN 5.0 %"],
    ]
    assert page.evaluate("document.getElementById('own').textContent") == "40 %"
    page.evaluate("document.querySelector('#neighbours button').click()")
    assert page.evaluate(NAME) == "a/3"
    assert page.evaluate("document.getElementById('neighbours').hidden")  # it has none of its own
    page.press("ArrowRight")
    assert page.evaluate(NAME) == "a/4"
    page.press("Escape")
    page.wait("!document.getElementById('viewer').open")


def test_what_the_size_left_out_is_listed_and_named(page, paths):
    page.open(paths["squeezed"], width=420, height=900, dark=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 420
    row = "document.querySelector('.rest tbody tr')"
    assert page.evaluate(f"{row}.querySelector('.call').textContent") == "called normal"
    page.evaluate("document.querySelector('.card[data-name=\"a/0\"] button').click()")
    assert page.evaluate(NEIGHBOURS)[1] == ["SPAN 7", "SPAN 25.0 %"]
    assert page.evaluate("document.querySelector('#tabs [data-value=solid]') === null")
    page.press("Escape")
    assert live(page)["called"] == "4 of 8"  # the scan without pictures counts
    choose(page, "call", "defective")
    assert page.evaluate(f"{row}.hidden")
    choose(page, "call", "normal")
    assert page.evaluate("document.getElementById('count').textContent") == "6 of 11 scans"
