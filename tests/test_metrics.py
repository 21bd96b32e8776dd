"""muscjax.metrics (and muscjax.curves below it): goldens, threshold sweeps, scikit-learn, properties."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muscjax import metrics
from muscjax.errors import InputError
from tests.reference import metrics as reference


def scans(seed: int, *, n: int = 4, side: int = 12, levels: int | None = None, size: int = 3):
    """Masks with a few blobs, among them two that touch at a corner, and maps that see them badly."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((n, side, side), bool)
    for i in range(n - 1):
        for _ in range(2):
            y, x = rng.integers(0, side - size, 2)
            masks[i, y : y + size, x : x + size] = True
    masks[0] = False
    masks[0, 1:3, 1:3] = masks[0, 3:5, 3:5] = True
    maps = rng.normal(size=masks.shape) + 0.8 * masks
    if levels:
        maps = np.floor((maps - maps.min()) / np.ptp(maps) * levels) / levels
    return masks, maps.astype(np.float32)


@pytest.mark.parametrize("suffix", ["_auroc_f1_ap_aupro", "_quantised"])
def test_golden_pixel_metrics(golden, suffix):
    g = golden("metrics")
    maps = g["pr_px_quantised" if suffix == "_quantised" else "pr_px"]
    ours = metrics.pixel_metrics(g["gt_px"], maps)
    found = [ours[k] for k in ("auroc", "f1_max", "ap", "aupro_musc")]
    np.testing.assert_allclose(found, g["pixel_metric" + suffix], rtol=0, atol=1e-6)
    assert ours["reasons"] == {}


@pytest.mark.parametrize("suffix", ["_auroc_f1_ap", "_quantised"])
def test_golden_image_metrics(golden, suffix):
    g = golden("metrics")
    ours = metrics.image_metrics(g["gt_sp"], g["pr_sp_quantised" if suffix == "_quantised" else "pr_sp"])
    found = [ours[k] for k in ("auroc", "f1_max", "ap")]
    np.testing.assert_allclose(found, g["image_metric" + suffix], rtol=0, atol=1e-6)


def test_golden_aupro_limit(golden):
    g = golden("metrics")
    ours = metrics.aupro(g["gt_px"], g["pr_px"], form="musc", limit=0.1)
    np.testing.assert_allclose(ours, g["aupro_limit_0p1"], rtol=0, atol=1e-6)


def test_golden_end_to_end_metrics(golden):
    g = golden("end_to_end")
    image = metrics.image_metrics(g["labels"], g["scores_cls"])
    pixel = metrics.pixel_metrics(g["masks"].reshape(-1, *g["masks"].shape[-2:]), _maps(g["anomaly_maps"]))
    np.testing.assert_allclose(
        [image[k] for k in metrics.IMAGE], g["metrics_image_auroc_f1_ap"], rtol=0, atol=1e-6
    )
    found = [pixel[k] for k in ("auroc", "f1_max", "ap", "aupro_musc")]
    np.testing.assert_allclose(found, g["metrics_pixel_auroc_f1_ap_aupro"], rtol=0, atol=1e-6)


def _maps(values):
    return values.reshape(-1, *values.shape[-2:])


@pytest.mark.parametrize("levels", [None, 40, 5])
@pytest.mark.parametrize("limit", [0.3, 0.07])
def test_aupro_equals_a_threshold_sweep(levels, limit):
    masks, maps = scans(3, levels=levels)
    for form, sweep in (("musc", reference.aupro_musc), ("mvtec", reference.aupro_mvtec)):
        ours = metrics.aupro(masks, maps, form=form, limit=limit)
        np.testing.assert_allclose(ours, sweep(masks, maps, limit), rtol=0, atol=1e-6)


@given(seed=st.integers(0, 10_000), levels=st.sampled_from([None, 3, 20]))
def test_sorted_metrics_equal_their_definitions(seed, levels):
    masks, maps = scans(seed, n=3, side=7, levels=levels, size=2)
    ours = metrics.pixel_metrics(masks, maps)
    labels, scores = masks.ravel(), maps.ravel().astype(float)
    expected = {
        "auroc": reference.auroc(labels, scores),
        "f1_max": reference.f1_max(labels, scores),
        "ap": reference.average_precision(labels, scores),
        "aupro_mvtec": reference.aupro_mvtec(masks, maps, 0.3),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(ours[name], value, rtol=0, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("levels", [None, 17])
def test_metrics_equal_scikit_learn(levels):
    from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

    masks, maps = scans(5, n=6, side=40, levels=levels)
    ours = metrics.pixel_metrics(masks, maps)
    precision, recall, _ = precision_recall_curve(masks.ravel(), maps.ravel())
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-300)
    expected = [
        roc_auc_score(masks.ravel(), maps.ravel()),
        f1.max(),
        average_precision_score(masks.ravel(), maps.ravel()),
    ]
    np.testing.assert_allclose([ours[k] for k in metrics.IMAGE], expected, rtol=0, atol=1e-12)


def test_mvtec_form_is_the_limit_of_the_sampled_curve():
    masks, maps = scans(7, n=5, side=60, size=9)
    exact = metrics.aupro(masks, maps, form="mvtec")
    errors = [abs(reference.aupro_sampled(masks, maps, 0.3, t) - exact) for t in (100, 20_000)]
    # 16,000 clean pixels: one step of the false-positive rate is 6e-5 of the whole, 2e-4 of the limit.
    assert errors[1] < 2e-4
    assert errors[0] < 5e-3


def test_regions_that_touch_at_a_corner_are_one():
    mask = np.zeros((1, 6, 6), bool)
    mask[0, 0, 0] = mask[0, 1, 1] = mask[0, 4, 4] = True
    maps = np.zeros((1, 6, 6))
    maps[0, 0, 0] = maps[0, 1, 1] = 1.0
    # One region of two pixels is found, one of one pixel is not: the overlap starts at 1/2 and meets the ties
    # at 0 on a straight line to 1.
    expected = 0.5 + 0.5 * 0.3 / 2
    np.testing.assert_allclose(metrics.aupro(mask, maps, form="mvtec"), expected, atol=1e-12)


def test_small_regions_weigh_as_much_as_large_ones():
    masks = np.zeros((1, 20, 20), bool)
    masks[0, :10, :10] = True
    masks[0, 15, 15] = True
    maps = np.where(masks, 1.0, 0.0)
    maps[0, 15, 15] = -1.0
    assert metrics.aupro(masks, maps, form="mvtec") == pytest.approx(0.5)


@given(seed=st.integers(0, 10_000))
def test_order_and_monotone_scale_do_not_matter(seed):
    masks, maps = scans(seed, n=3, side=8, size=2, levels=12)
    order = np.random.default_rng(seed).permutation(3)
    ours = metrics.pixel_metrics(masks, maps)
    for other in (
        metrics.pixel_metrics(masks[order], maps[order]),
        metrics.pixel_metrics(masks[:, ::-1], maps[:, ::-1]),
        metrics.pixel_metrics(masks, maps * 4 - 1),
    ):
        for name in metrics.PIXEL:
            np.testing.assert_allclose(other[name], ours[name], rtol=0, atol=1e-12, err_msg=name)


def test_scans_of_different_size_and_integer_maps():
    masks, maps = scans(11, n=2, side=10)
    uneven = [masks[0], masks[1, :6]], [maps[0], maps[1, :6]]
    flat = masks.ravel()[:160], maps.ravel()[:160].astype(float)
    assert metrics.pixel_metrics(*uneven)["auroc"] == pytest.approx(reference.auroc(*flat))
    grey = np.round((maps - maps.min()) * 20).astype(np.uint8)
    assert metrics.pixel_metrics(masks, grey) == metrics.pixel_metrics(masks, grey.astype(np.float64))


def test_what_the_data_do_not_define_is_none_with_a_reason():
    maps = np.random.default_rng(0).random((2, 8, 8))
    clean = metrics.pixel_metrics(np.zeros((2, 8, 8)), maps)
    assert all(clean[name] is None for name in metrics.PIXEL)
    assert set(clean["reasons"]) == set(metrics.PIXEL)
    assert clean["reasons"]["ap"] == "no pixel is defect"
    full = metrics.pixel_metrics(np.ones((2, 8, 8)), maps)
    assert (full["auroc"], full["aupro_musc"], full["aupro_mvtec"]) == (None, None, None)
    assert (full["ap"], full["f1_max"]) == (1.0, 1.0)
    assert full["reasons"]["auroc"] == "every pixel is defect"
    good = metrics.image_metrics(np.zeros(3), np.arange(3.0))
    assert good["auroc"] is None
    assert good["reasons"]["auroc"] == "no scan is defective"
    assert metrics.image_metrics(np.ones(3), np.arange(3.0))["reasons"] == {
        "auroc": "every scan is defective"
    }
    assert metrics.hit_rate(np.zeros((2, 8, 8)), maps) is None
    assert metrics.foreground_ap(np.ones((2, 8, 8)), maps, np.zeros((2, 8, 8))) is None


def test_constant_maps():
    masks, maps = scans(1)
    ours = metrics.pixel_metrics(masks, np.zeros_like(maps))
    assert ours["auroc"] == 0.5
    assert ours["aupro_mvtec"] == pytest.approx(0.15)
    assert ours["ap"] == pytest.approx(masks.mean())
    assert ours["aupro_musc"] is None
    assert "thresholds" in ours["reasons"]["aupro_musc"]
    assert metrics.hit_rate(masks, np.zeros_like(maps)) == pytest.approx(masks[:3].mean())


def test_a_perfect_map():
    masks, _ = scans(2)
    ours = metrics.pixel_metrics(masks, masks.astype(np.float32))
    assert [ours[k] for k in ("auroc", "f1_max", "ap", "aupro_mvtec")] == pytest.approx([1.0] * 4)
    assert metrics.hit_rate(masks, masks.astype(np.float32)) == 1.0


def test_hit_rate_counts_tied_maxima_by_their_share():
    masks = np.zeros((3, 4, 4), bool)
    masks[0, 0, 0] = masks[1, 0, 0] = True
    maps = np.zeros((3, 4, 4))
    maps[0, 0, 0] = maps[0, 3, 3] = 2.0
    maps[1, 0, 0] = 1.0
    maps[2, 1, 1] = 9.0
    assert metrics.hit_rate(masks, maps) == pytest.approx(0.75)


def test_foreground_ap_sees_only_the_object():
    masks, maps = scans(9)
    foreground = np.zeros_like(masks)
    foreground[:, :, :7] = True
    expected = reference.average_precision(masks[foreground], maps[foreground].astype(float))
    assert metrics.foreground_ap(masks, maps, foreground) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: metrics.pixel_metrics(np.zeros((2, 4, 4)), np.zeros((3, 4, 4))), ("2 masks", "3 maps")),
        (lambda: metrics.pixel_metrics(np.zeros((1, 4, 5)), np.zeros((1, 4, 4))), ("masks[0]", "(4, 5)")),
        (lambda: metrics.pixel_metrics(np.zeros((1, 4, 4)), np.full((1, 4, 4), np.nan)), ("maps[0]", "NaN")),
        (lambda: metrics.pixel_metrics([], []), ("no maps",)),
        (lambda: metrics.image_metrics(np.zeros(3), np.zeros(2)), ("(3,)", "(2,)")),
        (lambda: metrics.image_metrics(np.zeros(2), np.array([1, np.inf])), ("scores", "infinity")),
        (lambda: metrics.image_metrics(np.zeros(0), np.zeros(0)), ("no scores",)),
        (lambda: metrics.aupro(np.ones((1, 2, 2)), np.ones((1, 2, 2)), form="x"), ("'x'", "musc")),
        (lambda: metrics.aupro(np.ones((1, 2, 2)), np.ones((1, 2, 2)), limit=0.0), ("limit", "0.0")),
    ],
)
def test_bad_input_is_one_line(call, words):
    with pytest.raises(InputError) as error:
        call()
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words)


def test_blurred_mask_knows_the_object_only():
    foreground = np.zeros((2, 48, 48), bool)
    foreground[:, 16:32, 16:32] = True
    maps = metrics.blurred_mask(foreground)
    assert [m.dtype for m in maps] == [np.float32, np.float32]
    assert 0.9 < maps[0][24, 24] <= 1.0
    assert maps[0][0, 0] == 0.0
    assert 0.35 < maps[0][24, 16] < 0.65


def test_summary_is_complete_and_serialisable():
    masks, maps = scans(4, side=30, size=5)
    labels = masks.any((1, 2))
    foreground = np.ones_like(masks)
    foreground[:, :, 25:] = False
    out = metrics.summary(
        labels=labels, scores=maps.max((1, 2)), masks=masks, maps=maps, foreground=foreground
    )
    assert (out["scans"], out["defective"], out["size"]) == (4, 3, (30, 30))
    assert set(out["pixel"]) == {*metrics.PIXEL, "foreground_ap", "hit_rate", "reasons"}
    assert [set(yardstick) for yardstick in out["yardsticks"]] == [{"name", "image", "pixel"}] * 2
    assert [yardstick["name"] for yardstick in out["yardsticks"]] == ["foreground mask", "blurred mask"]
    assert out["pixel"]["ap"] == metrics.pixel_metrics(masks, maps)["ap"]
    assert set(out["intervals"]["pixel"]) == {*out["pixel"]} - {"aupro_musc", "reasons"}
    for name, (low, high) in out["intervals"]["pixel"].items():
        assert low <= out["pixel"][name] <= high
    json.dumps(out, allow_nan=False)
    alone = metrics.summary(labels=labels, scores=maps.max((1, 2)))
    assert (alone["pixel"], alone["yardsticks"]) == (None, [])
    assert set(alone["intervals"]) == {"image"}
    plain = metrics.summary(labels=labels, scores=maps.max((1, 2)), masks=masks, maps=maps, intervals=False)
    assert plain["intervals"] is None
    assert plain["pixel"]["reasons"] == {"foreground_ap": "no foreground is known"}
    assert [yardstick["name"] for yardstick in plain["yardsticks"]] == ["picture centre"]


def test_yardsticks_hold_no_information_about_a_scan():
    """The foreground mask's metrics follow from counting pixels; every scan gets the same score."""
    masks, maps = scans(8, n=5, side=30, size=5)
    foreground = np.zeros_like(masks)
    foreground[:, 4:20, 4:22] = True
    out = metrics.summary(
        labels=masks.any((1, 2)),
        scores=maps.max((1, 2)),
        masks=masks,
        maps=maps,
        foreground=foreground,
        intervals=False,
    )
    mask, blurred = out["yardsticks"]
    assert mask["image"]["auroc"] == blurred["image"]["auroc"] == 0.5
    hit, false = (masks & foreground).sum() / masks.sum(), (~masks & foreground).sum() / (~masks).sum()
    assert mask["pixel"]["auroc"] == pytest.approx((1 + hit - false) / 2)
    assert mask["pixel"]["foreground_ap"] == pytest.approx((masks & foreground).sum() / foreground.sum())
    assert blurred["pixel"]["ap"] == metrics.pixel_metrics(masks, metrics.blurred_mask(foreground))["ap"]


def test_picture_centre_falls_from_the_middle_to_the_corners():
    square, wide = metrics.picture_centre([np.zeros((5, 5)), np.zeros((3, 7))])
    assert (square[2, 2], square[0, 0], square[4, 4]) == (1.0, 0.0, 0.0)
    assert square[2, 0] == pytest.approx(1 - np.sqrt(0.5))
    assert (wide.shape, wide.dtype, wide[1, 3]) == ((3, 7), np.float32, 1.0)


def test_every_pixel_is_sorted_once(monkeypatch):
    """All pixel metrics together cost one sort of the pixels; benchmarks/host.py measures the seconds."""
    masks, maps = scans(6, n=5, side=40, size=9)
    total = 0

    def counting(sort):
        def counted(values, *args, **kwargs):
            nonlocal total
            total += np.size(values)
            return sort(values, *args, **kwargs)

        return counted

    for name in ("sort", "unique", "argsort"):
        monkeypatch.setattr(np, name, counting(getattr(np, name)))
    metrics.pixel_metrics(masks, maps)
    assert total == maps.size


def test_aupro_at_scans_of_their_own_sizes_equals_a_sweep():
    """As MVTec AD and 3D-AD define it: regions of all scans at their original sizes, up to 0.3."""
    masks, maps = scans(23, n=4, side=14)
    masks = [masks[0], masks[1, :9], masks[2, :, :8], masks[3]]
    maps = [maps[0], maps[1, :9], maps[2, :, :8], maps[3]]
    for form, sweep in (("musc", reference.aupro_musc), ("mvtec", reference.aupro_mvtec)):
        ours = metrics.aupro(masks, maps, form=form)
        np.testing.assert_allclose(ours, sweep(masks, maps, 0.3), rtol=0, atol=1e-6)
