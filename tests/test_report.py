"""muscjax.report: hostile names, sizes, pictures that decode, both scales, tables and figures."""

from __future__ import annotations

import base64
import dataclasses
import html.parser
import importlib.util
import io
import json
import subprocess
import sys
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from muscjax import config, metrics, report
from muscjax.colormap import depth_picture, heat, heat_limits
from muscjax.datasets import synthetic
from muscjax.errors import InputError
from muscjax.report import figures, tables

HOSTILE = (
    "<script>alert(1)</script>",
    "a/\"><img src=x onerror='alert(2)'>",
    "</script><script>alert(3)</script>",
    "{{ 7 * 7 }} & 'quoted' &lt;b&gt; <!--",
    "bytes\udcff and \u202e turned",
    "two\nlines\u2028 \u2066isolated <\u200bscript> \x1b[31m ]]> --> ${7*7} `",
)
RECORD = {
    "finished": "2025-06-01T12:00:00Z",
    "versions": {"python": "3.11.9", "muscjax": "0.1.0", "jax": "0.10.2", "tifffile": None},
    "device": {"platform": "cpu", "kind": "cpu", "count": 1},
    "seconds": {"loading": 12.0, "scoring": 48.0, "<b>stage</b>": 0.1},
    "compile": {"seconds": 21.44, "programs": 34},
    "peak_host_memory_mib": 2048.0,
    "request": {"path": "lines/<i>x</i>", "image_backbone": "weights/small.safetensors", "clean": True},
    "modality": {"": "image"},
}


def scan(i: int, **changes) -> report.ReportScan:
    """A grey picture of 60×80 whose map is 0, 0.5 on a large field and 1.0 (or 0.7) on a small one."""
    heat_map = np.zeros((48, 64), np.float32)
    heat_map[4:44, 4:30] = 0.5
    heat_map[20:28, 44:52] = 1.0 if i == 0 else 0.7
    given = {
        "name": f"line/test/{i:03d}",
        "anomaly_map": heat_map,
        "score": 1.0 - 0.1 * i,
        "score_before": 0.5,
        "rank": i + 1,
        "image": np.full((60, 80, 3), 120, np.uint8),
        "mask": heat_map > 0.6 if i == 0 else np.zeros((48, 64), bool),
        "label": int(i == 0),
        "defect": "bent" if i == 0 else None,
    }
    return report.ReportScan(**(given | changes))


def write(path, scans, *, limits=(0.0, 1.0), max_bytes=report.MAX_BYTES, **fields):
    cards = (report.encode(s, limits=limits) for s in scans)
    about = report.Report(**({"title": "line", "config": config.released(), "record": RECORD} | fields))
    return report.write_report(path, about, cards, max_bytes=max_bytes).read_text(encoding="utf-8")


class Elements(html.parser.HTMLParser):
    """Every element of a page with its attributes and the text inside it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict, list[str]]] = []
        self._open: list[tuple[str, dict, list[str]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        element = (tag, dict(attrs), [])
        self.found.append(element)
        if tag not in ("meta", "link", "img", "input"):
            self._open.append(element)

    def handle_endtag(self, tag):
        assert self._open.pop()[0] == tag

    def handle_data(self, data):
        for _, _, texts in self._open:
            texts.append(data)

    def all(self, tag: str, **attributes) -> list[tuple[dict, str]]:
        return [
            (attrs, "".join(texts))
            for name, attrs, texts in self.found
            if name == tag and all(attrs.get(key) == value for key, value in attributes.items())
        ]

    @property
    def planes(self) -> list[dict]:
        return [
            json.loads(text)
            for attrs, text in self.all("script", type="application/json")
            if "id" not in attrs
        ]


def unpacked(plane: dict) -> np.ndarray:
    """What the page's script does: inflate, and add each row to the one above."""
    rows = np.frombuffer(zlib.decompress(base64.b64decode(plane["data"])), np.uint8).reshape(
        plane["h"], plane["w"]
    )
    return np.cumsum(rows, axis=0, dtype=np.uint8)


def restored(plane: dict) -> np.ndarray:
    return np.frombuffer(base64.b64decode(plane["levels"]), "<f4")[unpacked(plane)]


def test_names_stay_text_wherever_they_stand(tmp_path):
    scans = [scan(i, name=name, category=name, defect=name, label=1) for i, name in enumerate(HOSTILE)]
    summaries = {
        name: metrics.summary(labels=np.array([1, 0]), scores=np.array([1.0, 0.5])) for name in HOSTILE
    }
    text = write(
        tmp_path / "r.html",
        scans,
        title=HOSTILE[0],
        notes=HOSTILE,
        warnings=HOSTILE,
        thresholds=dict.fromkeys(HOSTILE, 0.7),
        summaries=summaries,
        record={
            **RECORD,
            "request": {"path": HOSTILE[2], HOSTILE[1]: HOSTILE[2]},
            "versions": {HOSTILE[2]: HOSTILE[0]},
        },
    )
    page = Elements(text)  # raises where the elements do not nest
    assert len(page.all("script")) == len(HOSTILE) + 2
    embedded = [body for attrs, body in page.all("script", type="application/json")]
    assert len(embedded) == len(HOSTILE) + 1
    assert all(isinstance(json.loads(body), dict) for body in embedded)
    assert not any("<" in body or "alert" in body for body in embedded)
    for raw in (
        "<script>alert",
        "<img src=x",
        "onerror='",
        "</script><script>alert",
        "<i>x",
        "<!-",
        "<\u200bs",
        "<b>stage",
    ):
        assert raw not in text, raw
    assert not any(key.startswith("on") for _, attrs, _ in page.found for key in attrs)
    assert all(attrs["src"].startswith("data:image/jpeg;base64,") for attrs, _ in page.all("img"))
    assert "stage" not in [text for _, text in page.all("b")]
    assert "49" not in page.all("h4")[3][1]
    shown = [name.replace("\udcff", "\\udcff") for name in HOSTILE]
    titles = [
        attrs["title"] for attrs, _ in page.all("button") if "data-start" not in attrs and "title" in attrs
    ]
    assert titles[: len(shown)] == shown
    assert [text for _, text in page.all("h4")] == shown
    assert page.all("h1")[0][1] == shown[0]
    assert "alert(1)" in page.all("title")[0][1]


def test_the_page_may_load_nothing_and_run_one_script(tmp_path):
    page = Elements(write(tmp_path / "r.html", [scan(0), scan(1)]))
    policy = page.all("meta", **{"http-equiv": "Content-Security-Policy"})[0][0]["content"]
    assert "default-src 'none'" in policy
    assert "script-src 'sha256-" in policy
    addresses = [attrs[key] for _, attrs, _ in page.found for key in ("src", "href") if key in attrs]
    assert addresses
    assert all(address.startswith(("data:", "#")) for address in addresses)
    script = page.all("script")[-1][1]
    assert not any(word in script for word in ("fetch(", "XMLHttpRequest", "http", "innerHTML", "eval("))


def test_every_picture_decodes_and_has_a_text(tmp_path):
    depth = np.full((30, 40), 90, np.uint8)
    scans = [
        scan(0, depth=depth),
        scan(1, image=None, depth=depth),
        scan(2, image=np.zeros((900, 1200, 3), np.uint8)),
    ]
    page = Elements(write(tmp_path / "r.html", scans))
    sizes = []
    for attrs, _ in page.all("img"):
        with Image.open(io.BytesIO(base64.b64decode(attrs["src"].split(",", 1)[1]))) as picture:
            picture.load()
            assert (str(picture.width), str(picture.height)) == (attrs["width"], attrs["height"])
            sizes.append(picture.size)
        assert " of line/test/00" in attrs["alt"]
    assert sizes == [(80, 60), (40, 30), (40, 30), (400, 300)]
    kinds = [attrs["data-kind"] for attrs, _ in page.all("figure") if "data-kind" in attrs]
    shared = ["overlay", "map", "mask"]
    assert kinds == ["image", *shared, "depth", *shared, "depth", "image", *shared]
    assert len(page.all("canvas", role="img")) == len(kinds) - len(sizes) + 1
    assert all(attrs.get("aria-label") for attrs, _ in page.all("canvas") if attrs.get("id") != "stage")


def test_both_scales_are_in_the_page(tmp_path):
    maps = [scan(i).anomaly_map for i in range(3)]
    limits = heat_limits(maps)
    page = Elements(write(tmp_path / "r.html", [scan(i) for i in range(3)], limits=limits))
    for found, expected in zip(page.planes, maps, strict=True):
        assert tuple(found["set"]) == limits
        assert tuple(found["scan"]) == heat_limits([expected])
        assert np.abs(restored(found["map"]) - expected).max() <= expected.max() / 62 + 1e-6
    np.testing.assert_array_equal(unpacked(page.planes[0]["mask"]), maps[0] > 0.6)
    assert not unpacked(page.planes[1]["mask"]).any()
    switch = page.all("input", name="scale")
    assert [(attrs["value"], "checked" in attrs) for attrs, _ in switch] == [("set", True), ("scan", False)]


@given(
    seed=st.integers(0, 1000),
    spread=st.sampled_from([1e-6, 0.3, 20.0]),
    other=st.tuples(st.floats(-2, 2), st.floats(0.001, 5)),
)
def test_a_level_is_as_fine_as_a_screen_on_either_scale(seed, spread, other):
    rng = np.random.default_rng(seed)
    values = (rng.random((20, 30)) ** 4 * spread).astype(np.float32)
    values[3, 4] += 10 * spread  # one pixel far off
    limits = (other[0], other[0] + other[1])
    card = report.encode(scan(0, anomaly_map=values, mask=None), limits=limits)
    found = json.loads(card.planes)
    assert unpacked(found["map"]).max() < 256
    for scale in (limits, tuple(found["scan"])):
        worst = np.abs(heat(restored(found["map"]), limits=scale) - heat(values, limits=scale)).max()
        assert worst <= 1 / 222 + 1e-5


def test_large_maps_are_reduced_and_thin_defects_stay():
    values = np.zeros((800, 600), np.float32)
    values[400, 300] = 5.0
    mask = np.zeros((800, 600), bool)
    mask[100:700, 301] = True
    card = report.encode(
        scan(0, image=np.zeros((1600, 1200, 3), np.uint8), anomaly_map=values, mask=mask), limits=(0.0, 1.0)
    )
    found = json.loads(card.planes)
    assert (found["map"]["h"], found["map"]["w"]) == (256, 192)
    assert unpacked(found["mask"]).sum() >= 190
    assert (card.image.width, card.image.height) == (300, 400)
    assert card.peak == (801, 601, 5.0)
    assert card.peak_on_defect is False
    assert report.encode(scan(0), limits=(0.0, 1.0)).peak_on_defect is True
    assert report.encode(scan(1), limits=(0.0, 1.0)).peak_on_defect is None


def test_150_rendered_scans_of_400_pixels_stay_below_the_bound(tmp_path):
    rng = np.random.default_rng(0)
    cards = []
    for part in synthetic.parts()[:3]:
        rendered = synthetic.render(part, 1, defect="both_hole", size=400)
        noisy = rng.random((400, 400)).astype(np.float32) * 0.2 + rendered.mask  # noise compresses worst
        one = scan(
            0, image=rendered.rgb, depth=depth_picture(rendered.xyz), anomaly_map=noisy, mask=rendered.mask
        )
        cards.append(report.encode(one, limits=heat_limits([noisy])))
    line = [dataclasses.replace(cards[i % 3], name=f"s{i}", rank=i + 1) for i in range(150)]
    about = report.Report(title="line", config=config.released(), record=RECORD)
    path = report.write_report(tmp_path / "r.html", about, line)
    assert path.stat().st_size < 30_000_000
    assert len(Elements(path.read_text(encoding="utf-8")).all("article")) == 150


def test_beyond_the_bound_the_least_anomalous_are_listed_without_pictures(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), np.uint8)
    card = report.encode(scan(0, image=noise), limits=(0.0, 1.0))
    cards = [dataclasses.replace(card, name=f"s{i:03d}", rank=i + 1, score=-float(i)) for i in range(60)]
    for category in ("a", "b"):
        cards += [
            dataclasses.replace(card, name=f"{category}{i}", rank=i + 1, category=category) for i in range(20)
        ]
    about = report.Report(title="line", config=config.released(), record=RECORD)
    path = report.write_report(tmp_path / "r.html", about, cards, max_bytes=3_000_000)
    page = Elements(path.read_text(encoding="utf-8"))
    assert 2_000_000 < path.stat().st_size < 3_000_000
    pictured = [attrs["data-name"] for attrs, _ in page.all("article")]
    each = sum(name.startswith("a") for name in pictured)
    assert pictured[:each] == [f"s{i:03d}" for i in range(each)]
    assert abs(sum(name.startswith("b") for name in pictured) - each) <= 1
    text = "".join(text for _, text in page.all("details"))
    assert f"{60 - pictured.index('a0')} less anomalous scans without pictures" in text
    assert "s059" in text


def test_pictures_shrink_with_the_number_of_scans():
    assert [report.picture_side(n) for n in (1, 150, 600, 10_000)] == [400, 400, 200, 160]
    small = report.encode(scan(0, image=np.zeros((500, 500, 3), np.uint8)), limits=(0.0, 1.0), side=200)
    assert (small.image.width, small.image.height) == (200, 200)


def test_cards_stand_by_rank_and_drop_what_all_names_share(tmp_path):
    names = ["cap/test/bent/001", "cap/test/good/000", "cap/test/bent/000"]
    scans = [scan(i, name=name, rank=3 - i) for i, name in enumerate(names)]
    page = Elements(write(tmp_path / "r.html", scans))
    assert [text for _, text in page.all("h4")] == ["bent/000", "good/000", "bent/001"]
    assert [attrs["data-name"] for attrs, _ in page.all("article")] == names[::-1]


def test_a_report_without_labels_metrics_or_record(tmp_path):
    scans = [scan(i, label=None, defect=None, mask=None) for i in range(3)]
    page = Elements(write(tmp_path / "r.html", scans, record={}))
    assert not page.all("section", id="metrics")
    assert not page.all("input", id="outline")
    assert [attrs["id"] for attrs, _ in page.all("select")] == ["call"]
    assert {attrs["class"] for attrs, _ in page.all("rect")} == {"unknown"}
    assert "no label or flawless reference was used" in page.all("p", **{"class": "premise"})[0][1]
    assert "no labels known" in page.all("dl", **{"class": "tiles"})[0][1]
    single = write(tmp_path / "one.html", [scan(0)], record={})
    assert len(Elements(single).all("article")) == 1


def test_metrics_stand_beside_their_yardstick(tmp_path):
    rng = np.random.default_rng(1)
    masks = np.zeros((6, 32, 32), bool)
    masks[:3, 10:16, 10:16] = True
    maps = (masks + 0.3 * rng.random((6, 32, 32))).astype(np.float32)
    foreground = np.pad(np.ones((6, 24, 24), bool), ((0, 0), (4, 4), (4, 4)))
    one = metrics.summary(
        labels=masks.any((1, 2)), scores=maps.max((1, 2)), masks=masks, maps=maps, foreground=foreground
    )
    none = metrics.summary(labels=np.zeros(6), scores=maps.max((1, 2)))
    rows = tables.metric_rows({"cap": one})
    assert [(row.name, row.kind) for row in rows] == [
        ("cap", "result"),
        ("foreground mask", "yardstick"),
        ("blurred mask", "yardstick"),
    ]
    assert rows[0].cells[5] == f"{100 * one['pixel']['ap']:.1f}"
    assert rows[2].cells[3] == f"{100 * one['yardsticks'][1]['pixel']['auroc']:.1f}"
    both = tables.metric_rows({"cap": one, "gear": none})
    assert [(row.name, row.total) for row in both][-1] == ("Mean", True)
    assert both[-1].cells == ("–",) * len(tables.COLUMNS)  # never a mean over some of the categories
    assert "the masks know where the object is" in tables.reading({"cap": one})
    assert "no trivial map" in tables.reading({"gear": none})
    notes = " ".join(tables.metric_notes({"cap": one, "gear": none}))
    assert "maps of 32×32 pixels" in notes
    assert "No Image AUROC, Image F1, Image AP: no scan is defective." in notes
    page = Elements(write(tmp_path / "r.html", [scan(i) for i in range(6)], summaries={"cap": one}))
    assert [text for _, text in page.all("th", scope="row")][:3] == ["cap", "foreground mask", "blurred mask"]
    tiles = page.all("dl", **{"class": "tiles"})[0][1]
    assert f"blurred mask {100 * one['yardsticks'][1]['pixel']['ap']:.1f}" in tiles
    assert "by chance" in tiles


def test_the_configuration_names_what_differs_from_its_preset(tmp_path):
    changed = config.override(config.paper(), "cae.confidence=false", "snamd.degrees=[1,3]")
    differing = [
        (f"{stage}.{field.name}", field.value, field.preset)
        for stage, fields in tables.settings(changed).items()
        for field in fields
        if field.differs
    ]
    assert differing == [("snamd.degrees", "1, 3", "1, 3, 5"), ("cae.confidence", "no", "yes")]
    everything = sum(len(fields) for fields in tables.settings(changed).values())
    assert everything == sum(
        len(dataclasses.fields(getattr(changed, f.name)))
        for f in dataclasses.fields(changed)
        if f.name != "preset"
    )
    page = Elements(write(tmp_path / "r.html", [scan(0)], config=changed))
    section = page.all("section", id="configuration")[0][1]
    assert "Preset paper, with 2 fields set otherwise." in section
    assert section.count("cae.confidence") == 1
    assert (
        "unchanged"
        in Elements(write(tmp_path / "s.html", [scan(0)])).all("section", id="configuration")[0][1]
    )


def test_the_run_is_told(tmp_path):
    page = Elements(write(tmp_path / "r.html", [scan(i) for i in range(4)]))
    run = page.all("section", id="run")[0][1]
    for said in (
        "48.0",
        "21.4 s went into compiling 34 programs",
        "2.00 GiB",
        "1 × cpu (cpu)",
        "<b>stage</b>",
        "jax",
    ):
        assert said in run
    assert "tifffile" not in run
    what = page.all("p", **{"class": "what"})[0][1]
    assert what == "imagesimage backbone small.safetensorspreset released"
    assert tables.stages(RECORD)[0].share == 0.25
    assert "the other 3 scans" in page.all("p", **{"class": "premise"})[0][1]
    parts = config.override(config.released(), "run.subsets=3")
    assert "its part of the set (3 parts)" in tables.premise({"": 4}, parts)
    assert "of its category" in tables.premise({"a": 4, "b": 2}, config.released())


@given(
    scores=st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=40),
    seed=st.integers(0, 5),
    known=st.booleans(),
)
def test_the_histogram_counts_every_scan_once(scores, seed, known):
    labels = np.random.default_rng(seed).integers(0, 2, len(scores)).tolist()
    found = figures.histogram(scores, labels if known else [None, *labels[1:]])
    assert sum(count for _, count in found.classes) == len(scores)
    highest = max(sum(height for _, _, height in bar.stacks) for bar in found.bars)
    assert highest == pytest.approx(100, abs=0.05)
    per_scan = 100 / np.histogram(scores, 32, found.range)[0].max()
    drawn = sum(height for bar in found.bars for _, _, height in bar.stacks) / per_scan
    assert round(drawn, 1) == pytest.approx(len(scores), abs=0.1)
    assert all(0 <= x <= 100 for x, _ in (*found.x_ticks, *found.y_ticks))
    if known:
        assert dict(found.classes).get("defective", 0) == sum(labels)
    else:
        assert [kind for kind, _ in found.classes] == ["unknown"]


@pytest.mark.parametrize(
    ("low", "high", "texts"),
    [
        (0.0, 1.0, ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
        (0.0, 13.0, ["0", "5", "10"]),
        (-0.02, 0.031, ["-0.02", "0.00", "0.02"]),
    ],
)
def test_ticks_are_round_numbers(low, high, texts):
    assert [text for _, text in figures.ticks(low, high, 5)] == texts


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": None}, "neither a picture nor depth"),
        ({"image": np.zeros((4, 4, 3), np.float32)}, "image .* float32, expected uint8"),
        ({"anomaly_map": np.full((4, 4), np.nan)}, "two axes of finite numbers"),
        ({"mask": np.zeros((2, 4, 4))}, "mask of shape"),
    ],
)
def test_arrays_of_another_kind_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        report.encode(scan(0, **changes), limits=(0.0, 1.0))


def test_without_jinja2_one_line_says_how_to_get_it(tmp_path, monkeypatch):
    assert report.available() is None
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "jinja2" else find(name, *a)
    )
    assert report.available() == "report.html needs jinja2: pip install 'muscjax[report]'"
    with pytest.raises(InputError, match=r"muscjax\[report\]"):
        write(tmp_path / "r.html", [scan(0)])
    assert not (tmp_path / "r.html").exists()


def test_no_scans_and_no_place_are_one_line(tmp_path):
    with pytest.raises(InputError, match="no scans"):
        write(tmp_path / "r.html", [])
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        write(tmp_path / "file" / "r.html", [scan(0)])


def test_importing_it_loads_nothing_of_the_extra():
    code = "import sys, muscjax.report; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"jinja2", "matplotlib", "PIL", "jax"} & set(done.stdout.split())
