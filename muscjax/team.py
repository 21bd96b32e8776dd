"""The processes of a run over many hosts: how they start, agree, and bring their results to the first.

Every function here is called by all processes alike, in the same order. What goes over the network are
arrays of numbers and texts; nothing that arrives is ever executed.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from muscjax.errors import InputError

PIECE = 4 << 20  # bytes of results that are under way at once
_AXIS = "processes"
_TOO_LARGE = "out of memory: lower --memory-budget or --image-size, or take more processes"


class Lost(Exception):
    """Another process is gone; nothing that needs it can go on. One line."""


@contextlib.contextmanager
def talking() -> Iterator[None]:
    """What JAX raises while data travel: that memory is short, or else that a process is gone.

    Raises:
        Lost: either.
    """
    try:
        yield
    except (RuntimeError, ValueError) as error:  # JAX raises either, with XLA's status in front
        reason = _first_line(error)
        short = "RESOURCE_EXHAUSTED" in reason
        raise Lost(
            _TOO_LARGE if short else f"another process is gone, see what it said ({reason})"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def join(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Become one of the processes of a run; before the first use of a device.

    Args:
        coordinator: HOST:PORT of process 0; None: JAX asks the cluster (Slurm, MPI, TPU pods, Kubernetes) or
            ``$JAX_COORDINATOR_ADDRESS``, ``$JAX_NUM_PROCESSES`` and ``$JAX_PROCESS_ID``. The same holds for
            the number of ``processes`` and of this ``process``.

    Raises:
        InputError: nobody says where the coordinator is, or it does not answer.
    """
    # CPU devices of several processes have no other way to talk; elsewhere the setting has no effect.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(coordinator, processes, process)
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"--distributed: {_first_line(error)}; expected a cluster that JAX knows, or "
            "--coordinator HOST:PORT --processes P --process I"
        ) from None


def size() -> int:
    """Processes of the run."""
    return jax.process_count()


def number() -> int:
    """Of this process; 0 is the one that writes."""
    return jax.process_index()


def gather(array: Any) -> np.ndarray:
    """(P, ...): the arrays of all processes, which have one shape and type."""
    from jax.experimental import multihost_utils

    array = np.asarray(array)
    with talking():
        found = np.asarray(multihost_utils.process_allgather(array))
    return found.reshape(size(), *array.shape)


def texts(text: str) -> list[str]:
    """The texts of all processes."""
    data = np.frombuffer(text.encode(), np.uint8)
    lengths = gather(np.asarray(len(data), np.int32))
    padded = np.zeros(int(lengths.max()), np.uint8)
    padded[: len(data)] = data
    return [
        row[:length].tobytes().decode() for row, length in zip(gather(padded), lengths.tolist(), strict=True)
    ]


def gather_rows(rows: Any, ids: np.ndarray, n: int) -> np.ndarray:
    """(n, ...): the rows of all samples; each process gives those of its own, which ``ids`` names."""
    most = int(gather(np.asarray(len(ids), np.int32)).max())
    rows = np.asarray(rows)
    padded = np.zeros((most, *rows.shape[1:]), rows.dtype)
    padded[: len(ids)] = rows
    numbers = np.full(most, -1, np.int32)
    numbers[: len(ids)] = ids
    numbers, found = gather(numbers), gather(padded)
    whole = np.zeros((n, *rows.shape[1:]), rows.dtype)
    whole[numbers[numbers >= 0]] = found[numbers >= 0]
    return whole


@contextlib.contextmanager
def together() -> Iterator[None]:
    """A part of the run that each process does alone: it ends well for all of them, or for none.

    Raises:
        InputError: what another process found. What the block itself raises goes through as it is.
        Lost: another process is gone.
    """
    error: Exception | None = None
    try:
        yield
    except Exception as caught:
        error = caught
    problem = "" if error is None else _first_line(error)
    try:
        problems = texts(problem)
    except Lost as lost:
        raise Lost(problem or str(lost)) from error
    if isinstance(error, jax.errors.JaxRuntimeError):  # else taken for a broken connection
        raise InputError(_TOO_LARGE if "RESOURCE_EXHAUSTED" in problem else problem) from error
    if error is not None:
        raise error
    for process, text in enumerate(problems):
        if text:
            raise InputError(f"process {process} of {size()}: {text}")


def bring(items: Iterable[bytes], lengths: Iterable[int]) -> Iterator[tuple[int, bytes]]:
    """To process 0, the items of all processes one after the other, as (process, item); nothing to others.

    At most ``PIECE`` bytes are on the way at once, and one item is held. Process 0 gets its own as they are.

    Args:
        items: of this process. lengths: theirs, in bytes.
    """
    here = list(lengths)
    counts = gather(np.asarray(len(here), np.int32))
    padded = np.zeros(int(counts.max(initial=0)), np.int64)
    padded[: len(here)] = here
    # As two halves: 64-bit integers do not travel where JAX has them switched off.
    halves = gather(np.stack([padded >> 31, padded & 0x7FFFFFFF]).astype(np.int32)).astype(np.int64)
    own = iter(items)
    for process in range(size()):
        for position in range(int(counts[process])):
            length = int((halves[process, 0, position] << 31) | halves[process, 1, position])
            data = next(own) if process == number() else b""
            if process == 0:
                arrived = data
            else:
                starts = range(0, length, PIECE)
                arrived = b"".join(_moved(data[start : start + PIECE], process) for start in starts)[:length]
            if number() == 0:
                yield process, arrived


def _moved(piece: bytes, source: int) -> bytes:
    """One piece from the process ``source`` to process 0, where it is returned; empty elsewhere."""
    mesh = _first_devices()
    padded = np.zeros(PIECE, np.uint8)
    padded[: len(piece)] = np.frombuffer(piece, np.uint8)
    sent = jax.make_array_from_process_local_data(
        NamedSharding(mesh, PartitionSpec(_AXIS)), padded[None], (size(), PIECE)
    )
    with talking():
        received = _move(sent, source=source, mesh=mesh)
        own = np.asarray(received.addressable_shards[0].data)
    return own.tobytes() if number() == 0 else b""


@functools.cache
def _first_devices() -> Mesh:
    """One device of each process."""
    first: dict[int, Any] = {}
    for device in jax.devices():
        first.setdefault(device.process_index, device)
    return Mesh(np.asarray([first[process] for process in sorted(first)]), (_AXIS,))


@functools.partial(jax.jit, static_argnames=("source", "mesh"))
def _move(data: jax.Array, *, source: int, mesh: Mesh) -> jax.Array:
    spec = PartitionSpec(_AXIS)
    move = jax.shard_map(
        lambda x: lax.ppermute(x, _AXIS, [(source, 0)]), mesh=mesh, in_specs=spec, out_specs=spec
    )
    return move(jnp.asarray(data))
