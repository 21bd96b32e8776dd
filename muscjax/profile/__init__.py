"""Where the time goes: HLO before and after optimisation, a trace, and every stage against its floor.

``muscjax profile scoring|grouping|backbone|pipeline`` prints the table and writes the rest.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from muscjax import workloads
from muscjax.errors import InputError

if TYPE_CHECKING:
    from rich.console import Console

# What each target profiles where no workload is named.
TARGETS = {
    "scoring": "cae-vitb8",
    "grouping": "grouping-20k",
    "backbone": "backbone-vitb8",
    "pipeline": "pipeline-2d3d-vitb8-n50",
}
_WHOLE = "whole"
_KINDS: dict[str, tuple[type, ...]] = {
    "scoring": (workloads.Scoring, workloads.Fusing),
    "grouping": (workloads.Grouping,),
    "backbone": (workloads.ImageNetwork, workloads.PointNetwork),
    "pipeline": (workloads.Pipeline,),
}


def choose(target: str, name: str | None = None, samples: int | None = None) -> workloads.Workload:
    """The workload of a target, with ``samples`` of them where it has samples.

    Raises:
        InputError: an unknown target or workload, one that does not belong together, too few samples.
    """
    if target not in TARGETS:
        raise InputError(f"profile {target!r}: expected one of {', '.join(TARGETS)}")
    name = name or TARGETS[target]
    fitting = [w.name for w in workloads.WORKLOADS.values() if isinstance(w, _KINDS[target])]
    if name not in fitting:
        raise InputError(f"--workload {name!r}: expected one of {', '.join(fitting)}")
    workload = workloads.WORKLOADS[name]
    if samples is None or not hasattr(workload, "n"):
        return workload
    if samples < 2:
        raise InputError(f"--scans {samples}: mutual scoring needs at least 2")
    more: Any = {"n": samples}
    return dataclasses.replace(workload, **more)


def profile(
    workload: workloads.Workload,
    out: Path,
    *,
    precision: str = "float32",
    rounds: int = 5,
    least: float = 0.05,
    trace: bool = True,
    bandwidth_bytes: int = 1 << 28,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Measure a workload and the stages it is made of; the record is also written to ``out/profile.json``.

    ``out`` further gets ``hlo/<stage>.before.txt`` and ``.after.txt``, and the profiler's files in ``trace``,
    of which ``trace.json.gz`` opens in ui.perfetto.dev.
    """
    from muscjax import outputs
    from muscjax.profile import program, rates, roofline
    from muscjax.profile import trace as tracing
    from muscjax.profile.parts import parts_of
    from muscjax.profile.stages import stage_of

    say("plain products and memory traffic")
    best = rates.measure(precision, rounds=rounds, size=bandwidth_bytes)
    say("stages")
    whole = stage_of(workload, precision=precision)
    stages = list(parts_of(workload, precision=precision))
    if whole.compiled:  # it takes its turns beside the stages
        stages.append(dataclasses.replace(whole, name=_WHOLE))
    rows, built, times = roofline.measured_rows(stages, best, rounds=rounds, least=least)
    call: Callable[..., Any] = functools.partial(whole.function, *whole.arguments)
    if whole.compiled:
        rows, call, spent = rows[:-1], built[_WHOLE], times[_WHOLE]
    else:
        say("the whole")
        spent = program.interleaved({_WHOLE: call}, rounds=1, least=0)[_WHOLE]
    for name, one in built.items():
        for when, text in (("before", one.before), ("after", one.after)):
            with outputs.replaced(out / "hlo" / f"{_slug(name)}.{when}.txt") as file:
                file.write(text.encode())
    traced = None
    if trace:
        say("trace")
        hlo = built[_WHOLE].after if whole.compiled else ""
        traced = tracing.record(call, out / "trace", hlo=hlo, steps=not whole.compiled)
    record = outputs.run_record(
        None,
        seconds={},
        workload={"name": workload.name, **workload.sizes},
        precision=precision,
        rates=dataclasses.asdict(best),
        stages=roofline.plain_rows(rows),
        whole=program.summary(spent),
        trace=traced and str(traced.relative_to(out)),
    )
    del record["config"], record["compile"], record["seconds"]
    outputs.write_json(out / "profile.json", record)
    return record | {"rows": rows, "best": best}


def show(console: Console, record: dict[str, Any]) -> None:
    """Print the table of a record of ``profile``."""
    from muscjax.profile.roofline import print_table

    whole = statistics.median(record["whole"]["rounds"])
    print_table(console, record["rows"], record["best"], whole, record["workload"]["name"])


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
