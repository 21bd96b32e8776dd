"""muscjax.tabulate: the table as it is printed, and as results.csv and results.json."""

from __future__ import annotations

import csv
import io
import json

import numpy as np
import pytest
from rich.console import Console

from muscjax import metrics, published, tabulate


def summaries(*, foreground: bool = True):
    rng = np.random.default_rng(0)
    masks = np.zeros((6, 24, 24), bool)
    masks[:4, 5:12, 6:10] = True
    maps = rng.random(masks.shape) + 0.4 * masks
    one = metrics.summary(
        labels=masks.any((1, 2)),
        scores=maps.max((1, 2)),
        masks=masks,
        maps=maps,
        foreground=np.pad(np.ones((6, 16, 16)), ((0, 0), (4, 4), (4, 4))) if foreground else None,
    )
    none = metrics.summary(labels=np.zeros(6), scores=maps.max((1, 2)), masks=masks * 0, maps=maps)
    return one, none


def text_of(found, beside=None, width=80, **options) -> str:
    console = Console(width=width, file=io.StringIO())
    tabulate.print_metrics(console, found, beside, **options)
    return console.file.getvalue()


def line_of(text: str, start: str) -> list[str]:
    return next(
        line.split() for line in text.splitlines() if line.split()[: len(start.split())] == start.split()
    )


def beside(same: bool = True) -> published.Beside:
    return published.Beside(
        "mvtec3d", "ViT-B-8 + Point-MAE", same, {"gland": {"ap_seg": 20.0}}, {"ap_seg": 30.0}, ("A remark.",)
    )


def test_table_puts_interval_and_yardsticks_under_a_category():
    one, none = summaries()
    text = text_of({"gland": one}, notes=["no numbers"])
    assert f"{100 * one['pixel']['ap']:.1f}" in line_of(text, "gland")
    low, high = one["intervals"]["pixel"]["auroc"]
    assert f"{100 * low:.0f}-{100 * high:.0f}" in line_of(text, "95 %")
    for name, yardstick in zip(("foreground", "blurred"), one["yardsticks"], strict=True):
        assert f"{100 * yardstick['pixel']['auroc']:.1f}" in line_of(text, name)
    assert "mean" not in text
    assert "6 scans, 4 defective, maps 24×24" in text
    assert "by chance" in text
    assert text.rstrip().endswith("no numbers")
    # Eighty columns, the width of a terminal that is not one, hold every number.
    assert max(len(line) for line in text.splitlines()[:9]) <= 80
    assert "…" not in text

    both = text_of({"gland": one, "pot[red]ato": none})
    assert "pot[red]ato: no scan is defective, so there is no image auroc" in both
    assert "nan" not in both.lower()
    assert set(line_of(both, "mean")[1:]) == {"-"}
    assert f"{100 * one['pixel']['aupro_mvtec']:.1f}" in line_of(text_of({"a": one, "b": one}), "mean")


def test_without_a_foreground_the_centre_of_the_picture_is_the_yardstick():
    one, _ = summaries(foreground=False)
    text = text_of({"gland": one})
    assert f"{100 * one['yardsticks'][0]['pixel']['auroc']:.1f}" in line_of(text, "picture centre")
    assert "blurred" not in text


def test_many_categories_show_the_better_trivial_map_and_the_mean_shows_all():
    one, _ = summaries()
    text = text_of(dict.fromkeys("abcd", one))
    best = max(y["pixel"]["ap"] for y in one["yardsticks"])
    assert f"{100 * best:.1f}" in line_of(text, "trivial")
    assert text.count("blurred ") == 1
    assert "95 %" not in text.split("trivial:")[0]


def test_published_numbers_and_the_difference():
    one, _ = summaries()
    text = text_of({"gland": one, "other": one}, beside())
    assert line_of(text, "published") == ["published", "20.0"]
    assert line_of(text, "difference") == ["difference", f"{100 * one['pixel']['ap'] - 20:+.1f}"]
    mean = text[text.index("mean ") :]
    assert line_of(mean, "published") == ["published", "30.0"]
    assert "A remark." in text
    other = text_of({"gland": one}, beside(same=False))
    assert line_of(other, "(published)") == ["(published)", "20.0"]
    assert "difference" not in other


@pytest.mark.parametrize("same", [True, False])
def test_results_are_tidy(tmp_path, same):
    one, _ = summaries()
    tabulate.write_results(tmp_path, {"=gland": one, "gland": one}, beside(same))
    with open(tmp_path / "results.csv", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 3 * len(tabulate.COLUMNS)
    assert {line["category"] for line in lines} == {"'=gland", "gland", "mean"}
    line = next(r for r in lines if (r["category"], r["metric"]) == ("gland", "ap_seg"))
    value = 100 * one["pixel"]["ap"]
    assert float(line["value"]) == pytest.approx(value, abs=1e-4)
    assert [float(line[k]) for k in ("low", "high")] == pytest.approx(
        [100 * v for v in one["intervals"]["pixel"]["ap"]], abs=1e-4
    )
    assert float(line["blurred_mask"]) == pytest.approx(100 * one["yardsticks"][1]["pixel"]["ap"], abs=1e-4)
    assert (line["published"], line["published_with"]) == ("20.0", "ViT-B-8 + Point-MAE")
    assert (line["difference"] != "") is same
    if same:
        assert float(line["difference"]) == pytest.approx(value - 20, abs=1e-3)
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["unit"] == "per cent"
    assert found["published"]["notes"] == ["A remark."]
    assert found["rows"] == tabulate.rows({"=gland": one, "gland": one}, beside(same))
    tabulate.write_results(tmp_path, {"gland": one})
    assert json.loads((tmp_path / "results.json").read_text())["published"] is None
