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
from typing import Any

from muscjax.colormap import heat_table
from muscjax.config import Config
from muscjax.errors import InputError
from muscjax.outputs import replaced
from muscjax.report import figures, tables
from muscjax.report.images import Card

MAX_BYTES = 30_000_000
_PAGE_BYTES = 400_000  # everything but the cards, at most
_CARD_MARKUP = 4_000  # around a card's pictures
_ROW_MARKUP = 400  # of a scan without pictures


@dataclasses.dataclass(frozen=True)
class Report:
    """What the page says beside its scans."""

    title: str  # such as the name of the data set
    config: Config
    record: Mapping[str, Any]  # muscjax.outputs.run_record
    summaries: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)  # by category
    notes: Sequence[str] = ()  # remarks of the run that a reader must see, one line each


@dataclasses.dataclass(frozen=True)
class Section:
    """The cards of one category, the most anomalous first."""

    category: str
    cards: tuple[Card, ...]
    rest: tuple[Card, ...]  # beyond the page's size: listed without pictures
    prefix: str  # what all names begin with; left out on the cards
    range: tuple[float, float]  # of the scores

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
    exceed ``max_bytes``, the least anomalous scans of each category are listed without pictures, and the
    page says so.

    Raises:
        InputError: jinja2 is missing, there is no card, or the file cannot be written.
    """
    missing = available()
    if missing:
        raise InputError(missing)
    import jinja2

    cards = list(cards)
    if not cards:
        raise InputError(f"{path}: no scans, expected at least one to report")
    sections = _sections(cards, max_bytes)
    style, script = (_part(name) for name in ("style.css", "app.js"))
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
        style=style,
        script=script,
        # The page runs this one script: a name that got past the escaping could still do nothing.
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii"),
        heat_rgb=base64.b64encode(heat_table().tobytes()).decode("ascii"),
        gradient=figures.gradient(),
        histograms=[
            figures.histogram(s.category, [c.score for c in every], [c.label for c in every])
            for s in sections
            for every in [(*s.cards, *s.rest)]
        ],
        labelled=any(card.label is not None for card in cards),
        kinds=_kinds(cards),
        masks=any(card.has_mask for card in cards),
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


def _sections(cards: Sequence[Card], max_bytes: int) -> list[Section]:
    """The cards by category in the order of their first appearance, pictures for as many as fit."""
    categories = list(dict.fromkeys(card.category for card in cards))
    room = max_bytes - _PAGE_BYTES - _ROW_MARKUP * len(cards)
    pictured = set()
    for position in sorted(range(len(cards)), key=lambda i: (cards[i].rank, i)):
        room -= cards[position].size + _CARD_MARKUP
        if room < 0:
            break
        pictured.add(position)
    out = []
    for category in categories:
        mine = sorted(
            (i for i, card in enumerate(cards) if card.category == category), key=lambda i: (cards[i].rank, i)
        )
        scores = [cards[i].score for i in mine]
        out.append(
            Section(
                category=category,
                cards=tuple(cards[i] for i in mine if i in pictured),
                rest=tuple(cards[i] for i in mine if i not in pictured),
                prefix=_shared_folders([cards[i].name for i in mine]),
                range=(min(scores), max(scores)),
            )
        )
    return out


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
