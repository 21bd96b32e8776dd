"""The page's words and numbers, from a run's record and metrics. Plain text: the template escapes it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

from muscjax import config as configuration
from muscjax.config import Config

# Heading, where the value stands in `muscjax.metrics.summary`, and what it says.
COLUMNS = (
    ("Image AUROC", "image", "auroc", "How well the scores order defective scans above normal ones"),
    ("Image F1", "image", "f1_max", "Best F1 over all thresholds of the score"),
    ("Image AP", "image", "ap", "Average precision of the ranked list"),
    ("Pixel AUROC", "pixel", "auroc", "High for any map that tells the object from the background"),
    ("Pixel F1", "pixel", "f1_max", "Best F1 over all thresholds of the map"),
    ("Pixel AP", "pixel", "ap", "Average precision of the map over all pixels"),
    ("AUPRO musc", "pixel", "aupro_musc", "Per-region overlap up to 30 % false positives, as in the paper"),
    ("AUPRO mvtec", "pixel", "aupro_mvtec", "The same as the authors of MVTec 3D-AD define it"),
    ("Object AP", "pixel", "foreground_ap", "Pixel AP over the pixels of the object only"),
    ("Hit rate", "pixel", "hit_rate", "Defective scans whose highest pixel lies on the defect"),
)
MODALITIES = {"image": "images", "points": "3D points", "both": "images and 3D points"}


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the metrics table."""

    name: str
    cells: tuple[str, ...]
    kind: str  # "result", "yardstick"
    total: bool = False  # a mean over categories


@dataclasses.dataclass(frozen=True)
class Tile:
    """One of the figures at the top."""

    name: str
    value: str
    unit: str
    note: str


@dataclasses.dataclass(frozen=True)
class Setting:
    """One field of the configuration."""

    name: str
    value: str
    preset: str
    differs: bool


@dataclasses.dataclass(frozen=True)
class Stage:
    name: str
    seconds: str
    share: float  # of the longest stage, 0...1


def percent(value: float | None) -> str:
    """``0.6405`` as ``64.0`` or a dash."""
    return "–" if value is None else f"{100 * value:.1f}"


def mean(summaries: Sequence[Mapping[str, Any]], part: str, metric: str) -> float | None:
    """The mean over categories; None where one of them has no value, as then it would mean something else."""
    values = [(summary.get(part) or {}).get(metric) for summary in summaries]
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def metric_rows(summaries: Mapping[str, Mapping[str, Any]]) -> list[Row]:
    """Each category, its yardstick below it, and their means at the end where there are several."""
    rows = []
    groups = [(name or "this set", [summary], False) for name, summary in summaries.items()]
    if len(summaries) > 1:
        groups.append(("Mean", list(summaries.values()), True))
    for name, group, total in groups:
        rows.append(Row(name, _cells(group), "result", total))
        rows += [Row(title, _cells(found), "yardstick", total) for title, found in yardsticks(group).items()]
    return rows


def yardsticks(group: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """The trivial maps' summaries by name; only those that every category of the group has."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for summary in group:
        for yardstick in summary.get("yardsticks") or ():
            found.setdefault(yardstick["name"], []).append(yardstick)
    return {name: members for name, members in found.items() if len(members) == len(group)}


def _cells(group: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    return tuple(percent(mean(group, part, metric)) for _, part, metric, _ in COLUMNS)


def metric_notes(summaries: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Sizes, chance bands, and the reason of every value that is not defined."""
    notes = []
    for name, summary in summaries.items():
        size = summary.get("size")
        text = f"{name}: " if name else ""
        text += f"{summary['scans']} scans, {summary['defective']} defective"
        text += "." if size is None else f"; maps of {size[0]}×{size[1]} pixels."
        if summary.get("chance_band_image_auroc") is not None:
            low, high = summary["chance_band_image_auroc"]
            text += f" Scores without any information give an image AUROC of {_band(low, high)} (95 %)."
        reasons: dict[str, list[str]] = {}
        for part in ("image", "pixel"):
            for metric, reason in ((summary.get(part) or {}).get("reasons") or {}).items():
                title = next((c[0] for c in COLUMNS if c[1:3] == (part, metric)), f"{part} {metric}")
                reasons.setdefault(reason, []).append(title)
        text += "".join(f" No {', '.join(names)}: {reason}." for reason, names in reasons.items())
        notes.append(text)
    return notes


def reading(summaries: Mapping[str, Mapping[str, Any]]) -> str:
    """How to read the table, in a sentence."""
    names = {y["name"] for summary in summaries.values() for y in summary.get("yardsticks") or ()}
    if names - {"picture centre"}:
        return (
            "Read each line against those below it: the masks know where the object is and nothing else, so "
            "only what exceeds them is detection; pixel AUROC and AUPRO are high for them too, while pixel "
            "AP, object AP and the hit rate are hard to get for nothing."
        )
    if names:
        return (
            "Read each line against the one below it: the picture's centre is a map that falls from the "
            "middle to the corners and looks at nothing, so only what exceeds it is detection."
        )
    return (
        "No foreground was known, so there is no trivial map to compare with: where the object fills a small "
        "part of the picture, pixel AUROC and AUPRO are high for any map that finds the object."
    )


def _band(low: float, high: float) -> str:
    return f"{100 * low:.0f}–{100 * high:.0f}"


def tiles(summaries: Mapping[str, Mapping[str, Any]], record: Mapping[str, Any], scans: int) -> list[Tile]:
    """The few figures that a reader wants first."""
    found = list(summaries.values())
    trivial = yardsticks(found)
    defective = sum(s["defective"] for s in found)
    out = [Tile("Scans", str(scans), "", f"{defective} defective" if found else "no labels known")]
    of = " (mean)" if len(found) > 1 else ""
    for title, part, metric in (
        ("Image AUROC", "image", "auroc"),
        ("Pixel AP", "pixel", "ap"),
        ("Hit rate", "pixel", "hit_rate"),
    ):
        value = mean(found, part, metric)
        if value is None:
            continue
        note = ""
        band = found[0].get("chance_band_image_auroc")
        if part == "pixel" and trivial:
            title_of, made = list(trivial.items())[-1]
            note = f"{title_of} {percent(mean(made, part, metric))}"
        elif part == "image" and len(found) == 1 and band is not None:
            note = f"by chance {_band(*band)}"
        out.append(Tile(title + of, percent(value), "%", note))
    total = sum((record.get("seconds") or {}).values())
    if total:
        out.append(Tile("Time", *_duration(total), f"{total / max(scans, 1):.2g} s per scan"))
    return out


def _duration(seconds: float) -> tuple[str, str]:
    if seconds < 90:
        return f"{seconds:.3g}", "s"
    return (f"{seconds / 60:.1f}", "min") if seconds < 5400 else (f"{seconds / 3600:.1f}", "h")


def stages(record: Mapping[str, Any]) -> list[Stage]:
    """Wall seconds per stage in the order of the run, compilation included."""
    seconds = record.get("seconds") or {}
    longest = max(seconds.values(), default=0.0) or 1.0
    return [Stage(name, f"{value:.1f}", value / longest) for name, value in seconds.items()]


def settings(config: Config) -> dict[str, list[Setting]]:
    """Every field of the configuration beside its preset's, by stage."""
    base = configuration.PRESETS.get(config.preset, configuration.released)()
    out: dict[str, list[Setting]] = {}
    for stage in dataclasses.fields(config):
        if stage.name == "preset":
            continue
        mine, theirs = getattr(config, stage.name), getattr(base, stage.name)
        out[stage.name] = [
            Setting(
                field.name,
                _text(getattr(mine, field.name)),
                _text(getattr(theirs, field.name)),
                getattr(mine, field.name) != getattr(theirs, field.name),
            )
            for field in dataclasses.fields(mine)
        ]
    return out


def _text(value: Any) -> str:
    if value is None:
        return "automatic"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    if isinstance(value, int) and value >= 1 << 20 and value % (1 << 20) == 0:
        return f"{value >> 20} MiB"
    return f"{value:g}" if isinstance(value, float) else str(value)


def what_was_run(record: Mapping[str, Any], config: Config) -> list[str]:
    """Modality, backbones and sizes, a few words each."""
    request = record.get("request") or {}
    kinds = list(dict.fromkeys((record.get("modality") or {}).values()))
    out = [" / ".join(MODALITIES.get(kind, str(kind)) for kind in kinds)] if kinds else []
    if any(kind != "points" for kind in kinds) and request.get("image_backbone"):
        out.append(f"image backbone {os.path.basename(str(request['image_backbone']))}")
    if any(kind != "image" for kind in kinds) and request.get("point_backbone"):
        out.append(f"point backbone {os.path.basename(str(request['point_backbone']))}")
    if any(kind != "points" for kind in kinds) and config.input.image_size:
        out.append(f"{config.input.image_size} px")
    return [*out, f"preset {config.preset}"]


def premise(sizes: Mapping[str, int], config: Config) -> str:
    """What kind of statement a score is: nobody should take this for a trained inspection."""
    parts = config.run.subsets
    others = "the other scans" if len(sizes) == 1 else "the other scans of its category"
    if parts > 1:
        others += f" in its part of the set ({parts} parts)"
    elif len(sizes) == 1:
        others = f"the other {next(iter(sizes.values())) - 1} scans"
    return (
        "Zero-shot and transductive: nothing was trained, and no label or flawless reference was used. Each "
        f"scan was scored against {others}, so a score depends on which scans were run together, and "
        "what most of them share counts as normal."
    )


def facts(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Device, memory, versions, date."""
    device = record.get("device") or {}
    out = []
    if device:
        name = device.get("kind") or device.get("platform")
        out.append(("Device", f"{device.get('count', 1)} × {name} ({device.get('platform')})"))
    if record.get("peak_host_memory_mib"):
        out.append(("Peak host memory", f"{record['peak_host_memory_mib'] / 1024:.2f} GiB"))
    if record.get("finished"):
        out.append(("Finished", str(record["finished"])))
    return out + [(name, str(v)) for name, v in (record.get("versions") or {}).items() if v is not None]


def options(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What the user asked for, as recorded."""
    return [(name, _text(value)) for name, value in (record.get("request") or {}).items()]
