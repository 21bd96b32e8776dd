"""Every scan of a set cut to a window around its object, before it is brought to working size."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from muscjax.config import DEFAULT_IMAGE_SIZE
from muscjax.datasets import making
from muscjax.datasets.making import Task
from muscjax.preprocess import window

_EMPTY_SHARE = 0.2  # of photographs with nothing on them: missing parts are rarer, a texture's good scans not


def windowed(
    tasks: Sequence[Task],
    told: Sequence[window.Extent | str | None],
    margin: float,
    *,
    side: int | None = None,
    step: int = 16,
) -> tuple[list[Task], list[str]]:
    """The same tasks with windows of one size as their frames' crops; as they are where that gains nothing.

    ``told`` is what ``making.extent`` says about each of them.

    * The window's side is the widest object's, and ``margin`` to spare (``preprocess.window``); or ``side``,
      that of a set which is there already, and a line about every scan whose object is wider.
    * Maps shrink with the window: their pixels, and the cloud's points, stay as far apart on the object as
      without it, so the cost of the points stays what it was.
    * The image keeps its side, and so shows the object larger at the same cost; but a side above the default
      is lowered to the window's own, up to the next multiple of ``step``: pixels that the photograph does not
      have are not paid for. A line says so.
    * Pictures of several sizes stay whole: one window would zoom them differently. A line says that too.
    * Where it would be no smaller than the pictures, they stay whole. A line names the scan with the widest
      object, which may be a scratch across the table, or says that every object fills its picture.
    * Images alone are cut by their photographs. Where one of these cannot tell the object from the rest, or
      too many show none, the set is of textures or fills the frame: it stays whole, and a line names the
      first such scan. With ``side`` they are cut in the middle, as every scan without an object is.
    """
    known = [None if isinstance(found, str) else found for found in told]
    wholes = [_whole(task) for task in tasks]
    why = _undecided(tasks, told)
    if side is None:
        stays = why or _gains_nothing(tasks, known, wholes, margin)
        side = window.common_side(known, margin)
    else:
        stays = _too_small(tasks, wholes, side)
    if stays:
        return list(tasks), [f"{stays}: no window around the object"]
    notes = [
        f"{making.about(task.scan)}: its object is {wide} pixels wide, the window {side}; the rest is cut off"
        for task, found in zip(tasks, known, strict=True)
        if (wide := _width(found)) > side
    ]
    if why and any(isinstance(found, str) for found in told):
        notes.append(f"{why}: cut in the middle")
    crops = [window.window(e, side, whole) for e, whole in zip(known, wholes, strict=True)]
    size = max(8, *(round(t.frame.working_hw[0] * side / min(w)) for t, w in zip(tasks, wholes, strict=True)))
    native = -(-max(DEFAULT_IMAGE_SIZE, side) // step) * step
    if any(task.image_size > native for task in tasks):
        notes.append(f"the window is {side} pixels wide: images at {native} instead of {tasks[0].image_size}")
    return [_cut(task, crop, native, size) for task, crop in zip(tasks, crops, strict=True)], notes


def _undecided(tasks: Sequence[Task], told: Sequence[window.Extent | str | None]) -> str:
    """Why photographs do not tell objects from the rest, naming the first that does not; empty: they do.

    A faint texture may pass for a plain backdrop, and its defects for objects. Its good scans show none.
    """
    unclear = [i for i, found in enumerate(told) if isinstance(found, str)]
    empty = [i for i, found in enumerate(told) if found is None and tasks[i].kind == "image"]
    if unclear:
        more = f" (first of {len(unclear)})" if len(unclear) > 1 else ""
        return f"{tasks[unclear[0]].scan.image}: {told[unclear[0]]}{more}"
    if len(empty) > _EMPTY_SHARE * len(tasks):
        shown = f"nothing but backdrop in {len(empty)} of {len(tasks)} photographs"
        return f"{tasks[empty[0]].scan.image}: {shown}"
    return ""


def _gains_nothing(
    tasks: Sequence[Task],
    known: Sequence[window.Extent | None],
    wholes: Sequence[tuple[int, int]],
    margin: float,
) -> str:
    """Why no window of one size is smaller than every picture; empty: there is one."""
    sides = {min(whole) for whole in wholes}
    if len(sides) > 1:
        return "pictures of several sizes"
    shown = [i for i, found in enumerate(known) if found is not None]
    filling = [
        i for i in shown if window.window(None, window.common_side([known[i]], margin), wholes[i]) is None
    ]
    if shown and not filling:
        return ""
    if filling == shown:
        return "every object fills its picture" if shown else "no object in any scan"
    widest = max(filling, key=lambda i: _width(known[i]))
    more = f" (the widest of {len(filling)} such)" if len(filling) > 1 else ""
    wide = f"its object is {_width(known[widest])} pixels wide, the picture {min(sides)}"
    return f"{making.about(tasks[widest].scan)}: {wide}{more}"


def _too_small(tasks: Sequence[Task], wholes: Sequence[tuple[int, int]], side: int) -> str:
    """The first picture that a window of that side does not make smaller; empty: there is none."""
    for task, whole in zip(tasks, wholes, strict=True):
        if window.window(None, side, whole) is None:
            return f"{making.about(task.scan)}: the picture is {min(whole)} pixels wide, the window {side}"
    return ""


def _width(found: window.Extent | None) -> int:
    """The longer side of an object, 0 without one."""
    return window.common_side([found], 0.0)


def _whole(task: Task) -> tuple[int, int]:
    """Of the padded source."""
    top, bottom, left, right = task.frame.pad
    return top + task.frame.source_hw[0] + bottom, left + task.frame.source_hw[1] + right


def _cut(task: Task, crop: window.Crop | None, native: int, size: int) -> Task:
    frame = dataclasses.replace(task.frame, crop=crop, working_hw=(size, size))
    return dataclasses.replace(task, frame=frame, image_size=min(task.image_size, native))
