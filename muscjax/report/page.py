"""Cards, metrics and the record of a run to one HTML file."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import importlib.resources
import importlib.util
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from muscjax.colormap import heat_table
from muscjax.config import Config
from muscjax.errors import InputError
from muscjax.files import replaced
from muscjax.report import decision, figures, tables
from muscjax.report.images import Card

MAX_BYTES = 30_000_000
_PAGE_BYTES = 400_000  # everything but the cards, at most
_CARD_MARKUP = 4_000  # around a card's pictures
_ROW_MARKUP = 500  # of a scan without pictures, with its place in the figures
# The script in its order of reading; the parts share one scope.
_SCRIPTS = ("cards", "paint", "solid", "decision", "gallery", "viewer", "hands")


@dataclasses.dataclass(frozen=True)
class Report:
    """What the page says beside its scans."""

    title: str  # such as the name of the data set
    config: Config
    record: Mapping[str, Any]  # muscjax.outputs.run_record
    summaries: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)  # by category
    notes: Sequence[str] = ()  # remarks of the run that a reader must see, one line each
    # What puts the scores themselves in doubt, such as normals that are no longer the majority.
    warnings: Sequence[str] = ()
    # Label-free, by category; a scan whose score is above it is called defective.
    thresholds: Mapping[str, float] = dataclasses.field(default_factory=dict)
    # Which of a scan's two scores that is; figures, sliders and the bars of the cards show it.
    decided_by: Literal["score", "score_before"] = "score"


@dataclasses.dataclass(frozen=True)
class Section:
    """One category, its scans in the order of their ranks."""

    category: str
    cards: tuple[Card, ...]
    rest: tuple[Card, ...]  # beyond the page's size: listed without pictures
    flattened: int  # of the cards, those whose cloud was left out for the page's size
    prefix: str  # what all names begin with; left out on the cards
    decided_by: str  # the field of a card that a threshold is compared with
    range: tuple[float, float]  # of that score
    starts: tuple[decision.Start, ...]
    histogram: figures.Histogram
    curves: figures.Curves | None  # None unless some scans are known to be defective and some normal

    @property
    def scans(self) -> tuple[Card, ...]:
        return (*self.cards, *self.rest)

    @property
    def labelled(self) -> bool:
        return any(card.label is not None for card in self.scans)

    @property
    def for_script(self) -> dict[str, Any]:
        """What the sliders need, in the order of the ranks."""
        return {
            "scores": [self.value(card) for card in self.scans],
            "labels": [card.label for card in self.scans],
            "range": self.histogram.range,
            "starts": [start.value for start in self.starts],
        }

    def value(self, card: Card) -> float:
        """The score that decides."""
        return getattr(card, self.decided_by)

    def called(self, card: Card) -> bool:
        """What the page says before its slider is moved."""
        return self.value(card) > self.starts[0].value if card.pred_label is None else card.pred_label

    def neighbours(self, card: Card) -> str:
        """Ranks and weights, which the script turns into links."""
        ranks = {other.name: other.rank for other in self.scans}
        return " ".join(f"{ranks[name]}:{weight:.4g}" for name, weight in card.neighbours)

    def text(self, score: float) -> str:
        """A score with as many decimals as tell a thousandth of the range, the same for all cards."""
        span = self.range[1] - self.range[0]
        decimals = 3 - math.floor(math.log10(span) + 1e-9) if span > 0 else 3
        return f"{score:.{min(max(decimals, 0), 9)}f}"


def available() -> str | None:
    """None where a report can be written, else the line that says how to get what is missing."""
    if importlib.util.find_spec("jinja2") is None:
        return "report.html needs jinja2: pip install 'muscjax[report]'"
    return None


def write_report(
    path: str | os.PathLike, report: Report, cards: Iterable[Card], *, max_bytes: int = MAX_BYTES
) -> Path:
    """Write the page and return its path.

    cards: from `muscjax.report.encode`, in any order; a generator may encode one scan at a time. Where they
    exceed ``max_bytes``, the least anomalous scans lose their 3D view and, where that is not enough, are
    listed without pictures; the page says so.

    Raises:
        InputError: jinja2 is missing, there is no card, or the file cannot be written.
        ValueError: a neighbour that is not among its category's scans.
    """
    missing = available()
    if missing:
        raise InputError(missing)
    import jinja2

    cards = list(cards)
    if not cards:
        raise InputError(f"{path}: no scans, expected at least one to report")
    sections = _sections(cards, report, max_bytes)
    parts = "".join(_part(f"app/{name}.js") for name in _SCRIPTS)
    script = f'"use strict";\n(() => {{\n{parts}}})();\n'
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.FunctionLoader(_part),
    )
    pages = environment.get_template("template.html").generate(
        report=report,
        sections=sections,
        style=_part("style.css"),
        script=script,
        # The page runs this one script: a name that got past the escaping could still do nothing.
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
        for_script={
            "heat": base64.b64encode(heat_table().tobytes()).decode("ascii"),
            "sets": [section.for_script for section in sections],
        },
        gradient=figures.gradient(),
        begin=" or ".join(dict.fromkeys(section.starts[0].text for section in sections)),
        labelled=any(card.label is not None for card in cards),
        kinds=_kinds(cards),
        masks=any(card.has_mask for card in cards),
        clouds=any(card.cloud for section in sections for card in section.cards),
        flattened=sum(section.flattened for section in sections),
        settings=tables.settings(report.config),
        columns=tables.COLUMNS,
        metrics=tables.metric_rows(report.summaries),
        metric_notes=tables.metric_notes(report.summaries),
        reading=tables.reading(report.summaries),
        tiles=tables.tiles(report.summaries, report.record, len(cards)),
        stages=tables.stages(report.record),
        compile=report.record.get("compile"),
        what=tables.what_was_run(report.record, report.config),
        premise=tables.premise({s.category: len(s.cards) + len(s.rest) for s in sections}, report.config),
        facts=tables.facts(report.record),
        options=tables.options(report.record),
        version=(report.record.get("versions") or {}).get("muscjax"),
    )
    with replaced(path) as file:
        for text in pages:
            # Names with bytes that are no UTF-8 show their escapes instead of stopping the report.
            file.write(text.encode("utf-8", "backslashreplace"))
    return Path(path)


def _part(name: str) -> str:
    return importlib.resources.files("muscjax.report").joinpath(name).read_text(encoding="utf-8")


def _sections(cards: Sequence[Card], report: Report, max_bytes: int) -> list[Section]:
    """The cards by category in the order of their appearance, with what fits: pictures before clouds."""
    by_rank = sorted(range(len(cards)), key=lambda i: (cards[i].rank, i))
    room = max_bytes - _PAGE_BYTES - _ROW_MARKUP * len(cards)
    pictured, solid = set(), set()
    for position in by_rank:
        room -= cards[position].size + _CARD_MARKUP
        if room < 0:
            break
        pictured.add(position)
    for position in by_rank:
        room -= len(cards[position].cloud)
        if room < 0:
            break
        solid.add(position)
    return [
        _section(
            category, cards, [i for i in by_rank if cards[i].category == category], report, pictured, solid
        )
        for category in dict.fromkeys(card.category for card in cards)
    ]


def _section(
    category: str,
    cards: Sequence[Card],
    mine: Sequence[int],
    report: Report,
    pictured: set[int],
    solid: set[int],
) -> Section:
    names = {cards[i].name for i in mine}
    for i in mine:
        unknown = [name for name, _ in cards[i].neighbours if name not in names]
        if unknown:
            raise ValueError(f"{cards[i].name}: neighbour {unknown[0]}, expected a scan of its category")
    scores, labels = [getattr(cards[i], report.decided_by) for i in mine], [cards[i].label for i in mine]
    operating = decision.operating(scores, labels)
    starts = decision.starts(scores, operating, report.thresholds.get(category))
    shown = [i for i in mine if i in pictured]
    return Section(
        category=category,
        cards=tuple(cards[i] if i in solid else dataclasses.replace(cards[i], cloud="") for i in shown),
        rest=tuple(cards[i] for i in mine if i not in pictured),
        flattened=sum(bool(cards[i].cloud) and i not in solid for i in shown),
        prefix=_shared_folders([cards[i].name for i in mine]),
        decided_by=report.decided_by,
        range=(min(scores), max(scores)),
        starts=starts,
        histogram=figures.histogram(scores, labels, thresholds=[start.value for start in starts]),
        curves=None if operating is None else figures.curves(operating),
    )


def _shared_folders(names: Sequence[str]) -> str:
    """The folders that all names begin with, ending in a slash, or an empty text."""
    split = [re.split(r"(?<=/)", name)[:-1] for name in names]
    shared = []
    for parts in zip(*split, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return "".join(shared) if len(names) > 1 else ""


def _kinds(cards: Sequence[Card]) -> list[str]:
    """The kinds of defect, sorted, where some scan has one by name."""
    return sorted({card.defect for card in cards if card.label and card.defect})
