"""One run under the profiler, as a Perfetto trace whose slices carry the names of the stages.

XLA's CPU backend names the slices of a trace after its own fusions, and a run of several programs after
nothing. The stage of each instruction stands in the optimised HLO, so it is written into the trace here; the
steps of a run that says how far it is get a track of their own.
"""

from __future__ import annotations

import gzip
import json
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from muscjax import outputs

_MARK = "muscjax run"
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = .*op_name=\"([^\"]+)\"", re.MULTILINE)
_SCOPE = re.compile(r"(?:^|/)([a-z_]+\.[a-z_.]+)(?=/|$)")
_TRACK = 1_000_000  # a thread number of its own

Span = tuple[str, float, float]  # name, begin and end, seconds of time.perf_counter


def scopes_of(hlo: str) -> dict[str, str]:
    """Instruction to its stages, outermost first: ``{"fusion.3": "ipg.group/neighbours.nearest"}``."""
    found = {}
    for instruction, path in _INSTRUCTION.findall(hlo):
        stages = _SCOPE.findall(path)
        if stages:
            found[instruction] = "/".join(dict.fromkeys(stages))
    return found


class Steps:
    """A progress callback that keeps when each step ended."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self._since = time.perf_counter()

    def __call__(self, stage: str, done: int, total: int) -> None:
        del done, total
        now = time.perf_counter()
        self.spans.append((stage, self._since, now))
        self._since = now


def record(call: Callable[..., Any], folder: Path, *, hlo: str = "", steps: bool = False) -> Path:
    """Run ``call`` once under the profiler.

    Args:
        folder: gets the profiler's own files and ``trace.json.gz``, which opens in ui.perfetto.dev.
        hlo: optimised HLO of the program that runs.
        steps: ``call`` takes ``progress``.

    Returns:
        The path of the Perfetto trace.
    """
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # every Python call would bury the stages
    spans: list[Span] = []
    with jax.profiler.trace(folder, create_perfetto_trace=True, profiler_options=options):
        begun = time.perf_counter()
        with jax.profiler.TraceAnnotation(_MARK):
            progress = Steps()
            jax.block_until_ready(call(progress=progress) if steps else call())
            spans = progress.spans
    source = max(folder.rglob("perfetto_trace.json.gz"), key=lambda path: path.stat().st_mtime)
    with gzip.open(source, "rt", encoding="utf-8") as file:
        trace = json.load(file)
    named(trace, scopes_of(hlo), spans, begun)
    path = folder / "trace.json.gz"
    with outputs.replaced(path) as out:
        out.write(gzip.compress(json.dumps(trace).encode(), mtime=0))
    return path


def named(trace: dict[str, Any], scopes: Mapping[str, str], spans: list[Span], begun: float) -> None:
    """Write stages into the events of a trace, and ``spans`` as slices beside them, in place.

    begun: ``time.perf_counter`` where the run's own slice begins.
    """
    events = trace["traceEvents"]
    for event in events:
        scope = scopes.get(event.get("name", ""))
        if scope is not None and event.get("ph") == "X":
            event["args"] = {**event.get("args", {}), "instruction": event["name"], "stage": scope}
            event["name"] = f"{scope.rsplit('/', 1)[-1]} ({event['name']})"
    mark = next((event for event in events if event.get("name") == _MARK and "ts" in event), None)
    if mark is None or not spans:
        return
    track = {"pid": mark["pid"], "tid": _TRACK}
    events.append({"ph": "M", "name": "thread_name", "args": {"name": "steps of the run"}, **track})
    for name, start, end in spans:
        where = {"ts": mark["ts"] + 1e6 * (start - begun), "dur": 1e6 * (end - start)}
        events.append({"ph": "X", "name": name, **where, **track})
