"""Compiling a function ahead of time, what the compiler says of it, and timing it fairly."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled function with its arguments in place on the device."""

    compiled: Any
    arguments: tuple[Any, ...]
    before: str  # HLO text as traced
    lower_s: float
    compile_s: float

    def __call__(self) -> Any:
        return self.compiled(*self.arguments)

    @property
    def after(self) -> str:
        """HLO text as optimised for the device."""
        return self.compiled.as_text()

    def cost(self) -> dict[str, float | None]:
        """FLOP and bytes as the compiler counts them; it takes the body of a loop once."""
        try:
            found = self.compiled.cost_analysis() or {}
        except (NotImplementedError, RuntimeError):  # not every device has one
            found = {}
        found = found[0] if isinstance(found, list) else found
        return {"flops": found.get("flops"), "bytes": found.get("bytes accessed")}

    def memory(self) -> dict[str, int | None]:
        """Bytes of arguments, results and intermediates; ``peak`` is their sum less what they share."""
        try:
            found = self.compiled.memory_analysis()
        except (NotImplementedError, RuntimeError):
            found = None
        if found is None:
            return dict.fromkeys(("arguments", "results", "intermediates", "peak"))
        sizes = {
            "arguments": int(found.argument_size_in_bytes),
            "results": int(found.output_size_in_bytes),
            "intermediates": int(found.temp_size_in_bytes),
        }
        return {**sizes, "peak": sum(sizes.values()) - int(found.alias_size_in_bytes)}


def build(function: Callable[..., Any], arguments: Sequence[Any]) -> Program:
    """Lower and compile ``function`` for these arguments, which are put on the device first."""
    placed = jax.block_until_ready(tuple(jax.device_put(argument) for argument in arguments))
    begun = time.perf_counter()
    lowered = jax.jit(function).lower(*placed)
    middle = time.perf_counter()
    compiled = lowered.compile()
    ended = time.perf_counter()
    return Program(compiled, placed, lowered.as_text(dialect="hlo"), middle - begun, ended - middle)


def seconds(call: Callable[[], Any]) -> float:
    """Wall time of one call, its results included."""
    begun = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - begun


def interleaved(
    calls: Mapping[str, Callable[[], Any]], *, rounds: int, least: float = 0.05, settle: float = 0.0
) -> dict[str, list[float]]:
    """Seconds per call of every candidate in every round, after one call to warm up.

    All candidates take their turn within a round, and the order turns round from one round to the next: noise
    of the machine then meets all of them, and ratios within a round are fair.

    Args:
        calls: name to candidate; a result that is no JAX array must be ready on return.
        least: seconds that one turn lasts at least; a shorter call is repeated and averaged.
            0: never repeated.
        settle: seconds of rest before each turn, for the worker threads of the one before.
    """
    repeats = {}
    for name, call in calls.items():
        jax.block_until_ready(call())
        repeats[name] = max(1, math.ceil(least / max(seconds(call), 1e-7))) if least else 1
    found: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds):
        for name in list(calls)[:: 1 if turn % 2 == 0 else -1]:
            if settle:
                time.sleep(settle)
            spent = sum(seconds(calls[name]) for _ in range(repeats[name]))
            found[name].append(spent / repeats[name])
    return found


def summary(times: Sequence[float]) -> dict[str, Any]:
    """Median, quartiles and extremes; every single value too."""
    low, _, high = statistics.quantiles(times, n=4) if len(times) > 1 else [times[0]] * 3
    return {
        "median": statistics.median(times),
        "iqr": [low, high],
        "min": min(times),
        "rounds": list(times),
    }


def device_peak() -> int | None:
    """Bytes in use at their highest since the process began, on the first device; None on a CPU."""
    stats = jax.local_devices()[0].memory_stats() if jax.default_backend() != "cpu" else None
    return (stats or {}).get("peak_bytes_in_use")
