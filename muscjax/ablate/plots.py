"""A picture of each table: lines over a swept number, bars over settings; needs the ``report`` extra."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from muscjax.ablate.tables import Table, Variant
from muscjax.files import replaced

if TYPE_CHECKING:
    from muscjax.ablate.runner import Result

_DRAWN = ("ap_seg", "f1_max_seg", "ap_cls", "auroc_cls")
_LABELS = {
    "ap_seg": "pixel AP",
    "f1_max_seg": "pixel F1",
    "ap_cls": "image AP",
    "auroc_cls": "image AUROC",
}


def draw(path: Path, table: Table, results: Sequence[Result], say: Callable[[str], None]) -> None:
    """Write one PNG with a panel per swept number, or a panel per metric where nothing is swept.

    Of several categories the mean is drawn. Without matplotlib a remark is all there is.
    """
    if importlib.util.find_spec("matplotlib") is None:
        say(f"{path.name} is not drawn: it needs the report extra, pip install 'muscjax[report]'")
        return
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    categories = list(dict.fromkeys(row.category for row in results))
    mine = [row for row in results if row.category == (categories[-1] if categories else "")]
    if not mine:
        return
    axes = list(dict.fromkeys(variant.axis for variant in table.variants if variant.axis))
    metrics = [name for name in _DRAWN if any(row.metric == name for row in mine)]
    panels = axes or metrics
    figure = Figure(figsize=(1.0 + 3.6 * len(panels), 3.4), layout="constrained")
    for place, panel in enumerate(panels, start=1):
        plot = figure.add_subplot(1, len(panels), place)
        if axes:
            swept = [variant for variant in table.variants if variant.axis == panel]
            for metric in metrics:
                _lines(plot, swept, [row for row in mine if row.metric == metric], metric)
            plot.set_xlabel(panel)
            if place == 1:
                plot.set_ylabel("%")
                plot.legend(frameon=False, fontsize=8)
        else:
            _bars(plot, [row for row in mine if row.metric == panel], panel, with_names=place == 1)
        plot.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{table.title}, {mine[0].category}", fontsize=10)
    figure.supxlabel("lines: ± over seeds, else the 95 % interval over scans", fontsize=7)
    with replaced(path) as file:
        FigureCanvasAgg(figure).print_png(file)


def _lines(plot: Any, swept: Sequence[Variant], rows: Sequence[Result], metric: str) -> None:
    by_setting = {row.setting: row for row in rows}
    found = [(variant, by_setting[variant.setting]) for variant in swept if variant.setting in by_setting]
    places = list(range(len(found)))  # even steps: the numbers of a sweep lie far apart
    plot.errorbar(
        places,
        [row.value for _, row in found],
        yerr=_spans([row for _, row in found]),
        marker="o",
        markersize=3,
        linewidth=1,
        capsize=2,
        label=_LABELS[metric],
    )
    names = [variant.setting if variant.x is None else f"{variant.x:g}" for variant, _ in found]
    plot.set_xticks(places, names, fontsize=8)


def _bars(plot: Any, rows: Sequence[Result], metric: str, *, with_names: bool) -> None:
    several = len({row.modality for row in rows}) > 1
    names = [f"{row.modality} {row.setting}" if several else row.setting for row in rows]
    places = list(range(len(rows)))
    spans = _spans(rows)
    plot.barh(places, [row.value for row in rows], xerr=spans, height=0.7, error_kw={"linewidth": 0.8})
    plot.set_yticks(places, names if with_names else [""] * len(names), fontsize=8)
    plot.invert_yaxis()
    plot.set_xlabel(f"{_LABELS[metric]}, %")


def _spans(rows: Sequence[Result]) -> list[list[float]]:
    """Below and above each value: the spread over seeds where there are several, else the interval."""
    below, above = [], []
    for row in rows:
        if row.std is not None:
            low, high = row.value - row.std, row.value + row.std
        else:
            low = row.value if row.low is None else row.low
            high = row.value if row.high is None else row.high
        below.append(max(row.value - low, 0.0))
        above.append(max(high - row.value, 0.0))
    return [below, above]
