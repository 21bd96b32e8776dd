"""What a run leaves behind: maps, overlays, the ranked list, metrics and the record of the run.

Every file is written under a temporary name beside its place and renamed, so that a reader never meets half
a file and an interrupted run keeps what it had finished. Names that come from a data set cannot lead out of
the output folder. Everything that cannot be written is one line of InputError.
"""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import json
import math
import os
import re
import secrets
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np

from muscjax.errors import InputError
from muscjax.files import replaced, writing

SCORE_COLUMNS = ("path", "rank", "score", "score_before_rscon", "pred_label", "label")
_OPTIONAL = ("pred_label", "label")
_FORMULA_START = ("=", "+", "-", "@", "\t", "\r", "\n")


def open_output(out: str | os.PathLike) -> Path:
    """The output folder, made where it is missing and tried with a small file.

    Called before the first computation, so that hours of work do not end at a read-only disk. Raises
    InputError where the folder cannot be made or written.
    """
    folder = Path(out)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".{secrets.token_hex(8)}.tmp"
        try:
            probe.write_bytes(b"")
        finally:
            probe.unlink(missing_ok=True)
    return folder


def inside(out: str | os.PathLike, folder: str, name: str, suffix: str) -> Path:
    """``out/folder/name + suffix``, for a ``name`` such as ``cable_gland/test/bent/000`` from a data set.

    Raises InputError for a name that is empty or absolute, that holds ``..`` or a NUL, or whose folder leads
    through a symbolic link to a place outside ``out``. Nothing is created.
    """
    parts = re.split(r"[\\/]", name)
    if PureWindowsPath(name).drive or "\0" in name or any(part in ("", ".", "..") for part in parts):
        raise InputError(f"scan name {name!r}: expected a relative name without '..' to write below {out}")
    path = Path(out, folder, *parts[:-1], parts[-1] + suffix)
    home, place = Path(os.path.realpath(out)), Path(os.path.realpath(path.parent))
    if not place.is_relative_to(home):
        raise InputError(f"scan name {name!r}: {path.parent} leads to {place}, expected a folder in {home}")
    return path


def map_path(out: str | os.PathLike, scan_name: str) -> Path:
    """Where the map of a scan belongs: ``out/maps/<scan name>.tiff``.

    scan_name: without a file suffix; ``<category>/test/<defect>/NNN`` gives the folders that the MVTec 3D-AD
    evaluation reads when it is pointed at ``out/maps``. Raises as `inside`.
    """
    return inside(out, "maps", scan_name, ".tiff")


def overlay_path(out: str | os.PathLike, scan_name: str) -> Path:
    """Where the picture of a scan belongs: ``out/overlays/<scan name>.png``. Raises as `inside`."""
    return inside(out, "overlays", scan_name, ".png")


def mask_path(out: str | os.PathLike, scan_name: str) -> Path:
    """Where the decided pixels of a scan belong: ``out/masks/<scan name>.png``. Raises as `inside`."""
    return inside(out, "masks", scan_name, ".png")


def write_mask(path: str | os.PathLike, mask: np.ndarray) -> None:
    """(H, W) bool as a PNG of one bit per pixel, losslessly."""
    from PIL import Image

    with replaced(path) as file:
        Image.fromarray(np.asarray(mask, bool)).save(file, format="PNG")


def write_map(path: str | os.PathLike, anomaly_map: np.ndarray) -> None:
    """(H, W) scores as one page of 32-bit float TIFF, losslessly compressed; reads back bit for bit."""
    import tifffile

    values = np.ascontiguousarray(anomaly_map, dtype=np.float32)
    if values.ndim != 2 or not np.isfinite(values).all():
        raise ValueError(f"{path}: map of shape {values.shape}, expected two axes of finite numbers")
    with replaced(path) as file:
        tifffile.imwrite(
            file, values, compression="zlib", photometric="minisblack", metadata=None, software=False
        )


def write_overlay(
    path: str | os.PathLike,
    image: np.ndarray,
    anomaly_map: np.ndarray,
    *,
    limits: tuple[float, float],
    legend: bool = True,
) -> None:
    """The scan's picture under its heat, as PNG.

    image: (H, W, 3) or (H, W) uint8. anomaly_map: (H, W). limits: as in `muscjax.colormap.overlay`, one pair
    for the whole set. legend: a strip with the colours and their scores, to the right of pictures that are at
    least 128 pixels high; without it the file has the picture's size.
    """
    from PIL import Image

    from muscjax.colormap import overlay

    picture = overlay(image, anomaly_map, limits=limits)
    if legend and picture.shape[0] >= 128:
        picture = np.concatenate([picture, _legend(picture.shape[0], limits)], axis=1)
    with replaced(path) as file:
        Image.fromarray(picture).save(file, format="PNG", compress_level=6)


def _legend(height: int, limits: tuple[float, float]) -> np.ndarray:
    """(height, w, 3) uint8: the colours as they look on grey, the scores at both ends and in the middle."""
    from PIL import Image, ImageDraw, ImageFont

    from muscjax.colormap import overlay

    size = int(np.clip(height // 26, 11, 40))
    font = ImageFont.load_default(size)
    low, high = limits
    bar_width, gap, margin = size, size // 2, size * 2
    texts = [f"{v:#.3g}" for v in (high, (low + high) / 2, low)]
    width = int(3 * gap + bar_width + max(font.getlength(t) for t in texts))
    ramp = np.linspace(high, low, height - 2 * margin)[:, None].repeat(bar_width, 1)
    bar = overlay(np.full(ramp.shape, 110, np.uint8), ramp, limits=limits)
    strip = Image.new("RGB", (width, height), (24, 24, 27))
    strip.paste(Image.fromarray(bar), (gap, margin))
    draw = ImageDraw.Draw(strip)
    left = 2 * gap + bar_width
    for text, y in zip(texts, (margin, height // 2, height - margin), strict=True):
        draw.text((left, y), text, font=font, fill=(228, 228, 231), anchor="lm")
    return np.asarray(strip)


def score_rows(
    paths: Sequence[str | os.PathLike],
    scores: np.ndarray,
    before_rscon: np.ndarray,
    labels: Sequence[Any] | None = None,
    pred_labels: Sequence[Any] | np.ndarray | None = None,
) -> list[dict[str, Any]]:
    """Rows for `write_scores`, the most anomalous scan first; equal scores keep their order."""
    order = np.argsort(-np.asarray(scores, np.float64), kind="stable")
    return [
        {
            "path": os.fspath(paths[i]),
            "rank": rank,
            "score": scores[i],
            "score_before_rscon": before_rscon[i],
            **({} if pred_labels is None else {"pred_label": int(pred_labels[i])}),
            **({} if labels is None else {"label": labels[i]}),
        }
        for rank, i in enumerate(order.tolist(), start=1)
    ]


def write_scores(path: str | os.PathLike, rows: Iterable[Mapping[str, Any]]) -> None:
    """CSV with the columns of `SCORE_COLUMNS`; ``pred_label`` and ``label`` only where a row has one.

    Text that a spreadsheet would run as a formula (it starts with = + - @, a tab or a line end) gets an
    apostrophe in front; numbers stay numbers. An unknown value is an empty cell.
    """
    rows = list(rows)
    columns = [c for c in SCORE_COLUMNS if c not in _OPTIONAL or any(r.get(c) is not None for r in rows)]
    write_csv(path, columns, rows)


def write_csv(path: str | os.PathLike, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """A header and one line per row; text and unknown values as in `write_scores`."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(columns)
    writer.writerows([_cell(row.get(c)) for c in columns] for row in rows)
    with replaced(path) as file:
        file.write(text.getvalue().encode("utf-8", "backslashreplace"))


def _cell(value: Any) -> Any:
    value = plain(value)
    if isinstance(value, str) and value.startswith(_FORMULA_START):
        return "'" + value
    return value


def write_json(path: str | os.PathLike, obj: Any) -> None:
    """`plain` of ``obj`` as indented JSON; NaN and infinity become null, so that every reader accepts it."""
    text = json.dumps(plain(obj), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with replaced(path) as file:
        file.write(text.encode("utf-8", "backslashreplace"))


@contextlib.contextmanager
def count_compiles() -> Iterator[dict[str, float]]:
    """``{"seconds", "programs"}`` that grow while XLA compiles inside the block, in any thread.

    Seconds of lowering and of XLA itself; a program from the persistent cache counts with the time of its
    loading. Tracing is left out: nested functions would count twice.
    """
    import jax

    spent = {"seconds": 0.0, "programs": 0}

    def listen(event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event.endswith(("/jaxpr_to_mlir_module_duration", "/backend_compile_duration")):
            spent["seconds"] += duration_secs
            spent["programs"] += event.endswith("/backend_compile_duration")

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield spent
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def run_record(
    config: Any,
    *,
    seconds: Mapping[str, float],
    compiles: Mapping[str, float] | None = None,
    **details: Any,
) -> dict[str, Any]:
    """What run.json holds, so that a result can be explained and repeated.

    config: the frozen configuration. seconds: wall time per stage, compilation included. compiles: from
    `count_compiles`, given apart. details: whatever else the caller knows (options, counts, warnings).
    """
    from importlib.metadata import PackageNotFoundError, version

    import jax

    versions: dict[str, str | None] = {"python": sys.version.split()[0]}
    for package in ("muscjax", "jax", "jaxlib", "flax", "numpy", "scipy", "pillow", "tifffile"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    devices, peak = jax.devices(), peak_memory()
    return plain(
        {
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "versions": versions,
            "device": {
                "platform": devices[0].platform,
                "kind": devices[0].device_kind,
                "count": len(devices),
            },
            "config": config,
            "seconds": {name: round(float(value), 3) for name, value in seconds.items()},
            "compile": None
            if compiles is None
            else {
                "seconds": round(float(compiles["seconds"]), 3),
                "programs": int(compiles["programs"]),
            },
            "peak_host_memory_mib": None if peak is None else round(peak / (1 << 20), 1),
            **details,
        }
    )


def peak_memory() -> int | None:
    """Bytes of this process at their highest so far; None where the system does not say.

    Linux' ``ru_maxrss`` is also what a parent had when it started this process; ``VmHWM`` is not.
    """
    status = Path("/proc/self/status")
    if status.exists():
        found = re.search(r"^VmHWM:\s*(\d+) kB", status.read_text(), re.MULTILINE)
        if found is not None:
            return int(found[1]) << 10
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1 << 10)


def plain(obj: Any) -> Any:
    """Python's own types for JSON: arrays to lists, dataclasses and mappings to dicts, paths to text.

    A float32 becomes the shortest decimal that names it (0.1, not 0.10000000149011612); NaN and infinity
    become None. Raises TypeError for anything else.
    """
    if obj is None or isinstance(obj, bool | int | str):
        return obj
    if isinstance(obj, float) and not isinstance(obj, np.generic):
        return obj if math.isfinite(obj) else None
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        return {f.name: plain(getattr(obj, f.name)) for f in dataclasses.fields(obj)}
    if isinstance(obj, Mapping):
        return {str(k): plain(v) for k, v in obj.items()}
    if isinstance(obj, os.PathLike):
        return os.fspath(obj)
    if isinstance(obj, list | tuple | set | frozenset):
        return [plain(v) for v in obj]
    if isinstance(obj, np.floating):
        return float(str(obj)) if np.isfinite(obj) else None
    if isinstance(obj, np.generic):
        return plain(obj.item())
    if hasattr(obj, "__array__"):
        values = np.asarray(obj)
        return plain(values[()]) if values.ndim == 0 else [plain(v) for v in values]
    raise TypeError(f"{type(obj).__name__} has no JSON form")
