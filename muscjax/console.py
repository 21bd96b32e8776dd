"""What a person sees while a run goes on: one bar per stage with its rate, and the seconds of each stage."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from muscjax.errors import one_line


class Observer(Protocol):
    """Told of every step (stage, done, total) and of every remark; keeps the seconds per stage."""

    seconds: dict[str, float]

    def __call__(self, stage: str, done: int, total: int) -> None: ...

    def say(self, message: str, /) -> None: ...


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if not speed else f"{speed:.1f}/s" if speed >= 1 else f"{1 / speed:.1f} s each")


class Stages:
    """An ``Observer`` that counts seconds and hands the steps on."""

    def __init__(self, show: Callable[[str, int, int], None], say: Callable[[str], None]) -> None:
        self.seconds: dict[str, float] = {}
        self.say = say
        self._show = show
        self._since = time.perf_counter()

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._since
        self._since = now
        self._show(stage, done, total)


@contextlib.contextmanager
def watch(console: Console, *, quiet: bool) -> Iterator[Stages]:
    """Bars on the console while the block runs; ``quiet`` shows neither bars nor remarks."""
    if quiet:
        yield Stages(lambda stage, done, total: None, lambda message: None)
        return
    columns = (
        TextColumn("{task.description:<16}"),
        BarColumn(24),
        MofNCompleteColumn(),
        _Rate(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as bars:
        tasks: dict[str, int] = {}

        def show(stage: str, done: int, total: int) -> None:
            task = tasks.get(stage)
            if task is None or bars.tasks[task].finished:
                task = tasks[stage] = bars.add_task(stage, total=total)
            bars.update(bars.tasks[task].id, completed=done, total=total)

        yield Stages(
            show,
            lambda message: bars.console.print(
                one_line(message), markup=False, emoji=False, highlight=False, soft_wrap=True
            ),
        )
