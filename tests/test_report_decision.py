"""muscjax.report.decision and the curves: counts by brute force, areas from muscjax.metrics, words."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from muscjax import metrics
from muscjax.report import decision, figures
from tests.test_report import Elements, scan, write

SETS = st.lists(
    st.tuples(st.integers(0, 12).map(lambda k: k / 8), st.sampled_from([0, 1, None])), min_size=2, max_size=30
)


def made(pairs):
    scores, labels = zip(*pairs, strict=True)
    found = decision.operating(scores, labels)
    assume(found is not None)
    kept = [(s, bool(x)) for s, x in pairs if x is not None]
    return found, np.array([s for s, _ in kept]), np.array([x for _, x in kept])


@given(SETS)
def test_every_threshold_is_counted(pairs):
    found, scores, bad = made(pairs)
    assert found.scores.tolist() == sorted(set(scores), reverse=True)
    for at, hits, alarms in zip(found.scores, found.found, found.alarms, strict=True):
        assert hits == np.sum((scores >= at) & bad)
        assert alarms == np.sum((scores >= at) & ~bad)
    summary = metrics.summary(labels=bad, scores=scores)["image"]
    assert found.auroc == pytest.approx(summary["auroc"])
    assert found.ap == pytest.approx(summary["ap"])


@given(SETS)
def test_the_drawn_curves_have_the_areas_that_are_said(pairs):
    found, _, bad = made(pairs)
    drawn = figures.curves(found)
    roc, pr = (np.array([p.split(",") for p in line.split()], float) / 100 for line in (drawn.roc, drawn.pr))
    assert np.trapezoid(1 - roc[:, 1], roc[:, 0]) == pytest.approx(found.auroc, abs=2e-3)
    assert np.trapezoid(1 - pr[:, 1], pr[:, 0]) == pytest.approx(found.ap, abs=2e-3)
    assert roc[0].tolist() == [0, 1]
    assert roc[-1].tolist() == [1, 0]
    assert 1 - drawn.chance / 100 == pytest.approx(bad.mean(), abs=1e-4)


@given(SETS)
def test_the_best_f1_is_the_highest(pairs):
    found, scores, bad = made(pairs)
    (best,) = decision.starts([s for s, _ in pairs], found, None)
    assert best.name == "best F1"

    def f1(at):
        called = scores > at
        return 2 * np.sum(called & bad) / (np.sum(called) + np.sum(bad))

    assert f1(best.value) == pytest.approx(max(f1(s) for s in [-1, *scores]))
    assert f1(best.value) == pytest.approx(metrics.summary(labels=bad, scores=scores)["image"]["f1_max"])


def test_sliders_begin_at_the_runs_own_threshold_else_at_the_best_else_in_the_middle():
    scores, labels = [0.1, 0.2, 0.9], [0, 0, 1]
    every = decision.operating(scores, labels)
    assert [s.name for s in decision.starts(scores, every, 0.7)] == ["label-free", "best F1"]
    assert decision.starts(scores, every, None)[0].value == pytest.approx(0.55)
    assert decision.starts(scores, None, None)[0].value == 0.2
    assert decision.operating(scores, [0, 0, None]) is None
    near = np.nextafter(0.5, 1)
    assert decision.starts([0.5, near], decision.operating([0.5, near], [0, 1]), None)[0].value == 0.5


@pytest.mark.parametrize(("at", "expected"), [(1.2, (0, 1.2)), (9.0, (0, 1.5)), (-0.2, (-0.2, 1))])
def test_the_axis_reaches_to_the_threshold_but_not_beyond_reason(at, expected):
    assert figures.histogram([0.0, 0.5, 1.0], [None] * 3, thresholds=[at]).range == pytest.approx(expected)


def test_counts_have_no_decimals():
    assert [text for _, text in figures.histogram([0.0, 1.0], [0, 1]).y_ticks] == ["0", "1"]


def test_decision_and_warnings_stand_in_the_page_without_its_script(tmp_path):
    scans = [scan(i, pred_label=i != 1, score=1.0 - 0.3 * i) for i in range(3)]
    page = Elements(
        write(tmp_path / "r.html", scans, thresholds={"": 0.65}, warnings=["normals are no majority"])
    )
    calls = [text for attrs, text in page.all("span") if "call" in (attrs.get("class") or "").split()]
    assert calls == ["called defective", "called normal", "called defective"]  # as the run said
    assert page.all("ul", **{"class": "alarms"})[0][1].strip() == "normals are no majority"
    assert "It begins at the run's own" in page.all("section", id="scores")[0][1]
    assert [text for _, text in page.all("button") if text in ("label-free", "best F1")] == [
        "label-free",
        "best F1",
    ]
    plain = Elements(write(tmp_path / "s.html", scans))
    assert not plain.all("ul", **{"class": "alarms"})
    assert "It begins at the highest F1, chosen with the labels" in plain.all("section", id="scores")[0][1]


def test_a_threshold_of_the_score_before_rescoring_shows_that_score(tmp_path):
    scans = [scan(i, score_before=2.0 + i) for i in range(3)]
    page = Elements(
        write(tmp_path / "r.html", scans, thresholds={"": 2.5}, decided_by="score_before", record={})
    )
    articles = [attrs for attrs, _ in page.all("article")]
    assert [(a["data-score"], a["data-value"]) for a in articles] == [
        ("1.0", "2.0"),
        ("0.9", "3.0"),
        ("0.8", "4.0"),
    ]
    calls = [text for attrs, text in page.all("span") if "call" in (attrs.get("class") or "").split()]
    assert calls == ["called normal", "called defective", "called defective"]
    assert "before re-scoring" in page.all("section", id="scores")[0][1]
    assert [text for attrs, text in page.all("span", **{"class": "value"})] == ["2.000", "3.000", "4.000"]
