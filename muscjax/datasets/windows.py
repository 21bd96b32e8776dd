"""Every scan of a set cut to a window around its object, before it is brought to working size."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence

from muscjax.config import DEFAULT_IMAGE_SIZE
from muscjax.datasets import making, workers
from muscjax.datasets.making import Task
from muscjax.errors import InputError
from muscjax.preprocess import window


def windowed(
    tasks: Sequence[Task],
    margin: float,
    *,
    side: int | None = None,
    step: int = 16,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[list[Task], list[str]]:
    """The same tasks with windows of one size as their frames' crops; as they are where that gains nothing.

    * The window's side is the widest object's, and ``margin`` to spare (``preprocess.window``); or ``side``,
      that of a set which is there already, and a line about every scan whose object is wider.
    * Maps shrink with the window: their pixels, and the cloud's points, stay as far apart on the object as
      without it, so the cost of the points stays what it was.
    * The image keeps its side, and so shows the object larger at the same cost; but a side above the default
      is lowered to the window's own, up to the next multiple of ``step``: pixels that the photograph does not
      have are not paid for. A line says so.
    * Pictures of several sizes stay whole: one window would zoom them differently. A line says that too.

    Raises:
      InputError: what is wrong with the first of the scans whose object cannot be looked for.
    """
    extents: list[window.Extent | InputError | None] = [None] * len(tasks)
    processes = workers.process_count(len(tasks)) if any(task.clean for task in tasks) else 0
    with contextlib.closing(workers.spread(making.extent, tasks, processes=processes)) as looking:
        for done, (position, found) in enumerate(looking, start=1):
            extents[position] = found
            progress(done, len(tasks))
    errors = [found for found in extents if isinstance(found, InputError)]
    if errors:
        more = f" (first of {len(errors)} problems)" if len(errors) > 1 else ""
        raise InputError(f"{errors[0]}{more}")
    known = [found for found in extents if not isinstance(found, InputError)]
    wholes = [_whole(task) for task in tasks]
    if side is None and len({min(whole) for whole in wholes}) > 1:
        return list(tasks), ["pictures of several sizes: no window around the object"]
    side = window.common_side(known, margin) if side is None else side
    notes = [
        f"{making.about(task.scan)}: its object is {wide} pixels wide, the window {side}; the rest is cut off"
        for task, found in zip(tasks, known, strict=True)
        if (wide := window.common_side([found], 0.0)) > side
    ]
    crops = [window.window(e, side, whole) for e, whole in zip(known, wholes, strict=True)]
    if any(crop is None for crop in crops):
        return list(tasks), []
    size = max(8, *(round(t.frame.working_hw[0] * side / min(w)) for t, w in zip(tasks, wholes, strict=True)))
    native = -(-max(DEFAULT_IMAGE_SIZE, side) // step) * step
    if any(task.image_size > native for task in tasks):
        notes.append(f"the window is {side} pixels wide: images at {native} instead of {tasks[0].image_size}")
    return [_cut(task, crop, native, size) for task, crop in zip(tasks, crops, strict=True)], notes


def _whole(task: Task) -> tuple[int, int]:
    """Of the padded source."""
    top, bottom, left, right = task.frame.pad
    return top + task.frame.source_hw[0] + bottom, left + task.frame.source_hw[1] + right


def _cut(task: Task, crop: window.Crop | None, native: int, size: int) -> Task:
    frame = dataclasses.replace(task.frame, crop=crop, working_hw=(size, size))
    return dataclasses.replace(task, frame=frame, image_size=min(task.image_size, native))
