"""Work spread over processes that are neither forked nor given this program's main module.

A fork beside JAX's threads may hang, and ``multiprocessing``'s other start methods run the user's script
again in each process (without a ``__main__`` guard it starts over, from stdin it cannot be found). So a
worker is a plain ``python -c`` that is handed ``sys.path`` and then functions and arguments through its
standard input; it ends when that ends, however this process dies. It answers through its standard output and
imports only what unpickling asks for.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any, TypeVar

from muscjax.errors import InputError

Item = TypeVar("Item")
Result = TypeVar("Result")

PER_PROCESS = 12  # items that pay for the start of a process
_MOST = 32
_START_S = 60.0
_READY = b"muscjax worker\n"
# Isolated: the modules of the current folder must not stand in for the standard library's.
_COMMAND = (
    "-I",
    "-c",
    "import pickle, sys\n"
    "sys.path[:] = pickle.load(sys.stdin.buffer)\n"
    "from muscjax.datasets.workers import serve\n"
    "serve()",
)
_BLAS_THREADS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)


def cpu_count() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def process_count(items: int) -> int:
    """How many processes pay for ``items`` scans to be cleaned; 0 where this process's threads do as well.

    A start costs about as much as a dozen scans, and a single process works no faster than this one.
    """
    count = min(cpu_count(), items // PER_PROCESS, _MOST)
    return count if count > 1 else 0


def spread(
    function: Callable[[Item], Result], items: Sequence[Item], *, processes: int, threads: int = 2
) -> Generator[tuple[int, Result | InputError], None, None]:
    """(position, ``function(item)`` or the InputError it raised) of all items, as they are finished.

    Args:
      function, items: picklable, from modules; results are pickled too.
      processes: below one, ``threads`` of this process do the work, as they do where no worker starts.

    Closing the iterator, as an exception in its consumer's ``with contextlib.closing`` does, drops what is
    not begun and ends the processes. An exception of ``function`` that is not an InputError is raised here,
    as a RuntimeError with the worker's traceback.
    """
    workers = [_Worker() for _ in range(min(processes, len(items)))]
    idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    for worker in workers:
        idle.put(worker)

    def one(item: Item) -> Result | InputError:
        if not workers:
            return _tried(function, item)
        worker = idle.get()
        try:
            return worker.call(function, item)
        finally:
            idle.put(worker)

    pool = ThreadPoolExecutor(len(workers) or threads, thread_name_prefix="muscjax-prepare")
    try:
        positions = {pool.submit(one, item): i for i, item in enumerate(items)}
        for future in as_completed(positions):
            yield positions.pop(future), future.result()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in workers:
            worker.end()
        pool.shutdown(wait=True)
        for worker in workers:
            worker.close()


def _tried(function: Callable[[Item], Result], item: Item) -> Result | InputError:
    try:
        return function(item)
    except InputError as error:
        return error


class _Worker:
    """A process that is started by its first call, and again where it has died."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()  # between a start and ``end``
        self._ended = False

    def call(self, function: Callable[[Any], Any], item: Any) -> Any:
        process = self._process
        if process is None:
            process = self._start()
        if process is None:
            return InputError("interrupted") if self._ended else _tried(function, item)
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            pickle.dump((function, item), process.stdin)
            process.stdin.flush()
            done, result = pickle.load(process.stdout)
        except (EOFError, OSError, pickle.UnpicklingError):
            process.kill()
            code = process.wait()
            if self._ended:
                return InputError("interrupted")
            self.close()
            return InputError(
                f"{_named(item)}: the process that prepared it ended with status {code}; is memory short?"
            )
        if not done:
            raise RuntimeError(result)
        return result

    def _start(self) -> subprocess.Popen[bytes] | None:
        """A process that answered; None where there is none to be had, as in an embedded interpreter."""
        if not sys.executable:
            return None
        with self._lock:
            if self._ended:
                return None
            try:
                process = self._process = subprocess.Popen(
                    [sys.executable, *_COMMAND],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    env={**os.environ, **dict.fromkeys(_BLAS_THREADS, "1")},
                    # Ctrl-C is for the parent alone, which ends its workers.
                    start_new_session=os.name == "posix",
                    creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
                )
            except OSError:
                return None
        assert process.stdin is not None
        assert process.stdout is not None
        late = threading.Timer(_START_S, process.kill)
        late.daemon = True
        late.start()
        answer = b""
        with contextlib.suppress(OSError):
            pickle.dump([os.path.abspath(place) for place in sys.path], process.stdin)
            process.stdin.flush()
            answer = process.stdout.readline(len(_READY))
        late.cancel()
        if answer == _READY:
            return process
        process.kill()
        process.wait()
        self.close()
        return None

    def end(self) -> None:
        """End the process now, whatever it is doing."""
        with self._lock:
            self._ended = True
            process = self._process
        if process is not None:
            process.kill()
            process.wait()

    def close(self) -> None:
        """Forget a process that has ended; no call may be under way."""
        process, self._process = self._process, None
        for pipe in () if process is None else (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def _named(item: Any) -> str:
    return getattr(getattr(item, "scan", item), "name", "a scan")


def serve() -> None:
    """The life of a worker: answers calls from its standard input until that ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    calls = sys.stdin.buffer
    # What a library prints must not get among the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    answers.write(_READY)
    answers.flush()
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            function, item = pickle.load(calls)
            try:
                answer = pickle.dumps((True, _tried(function, item)))
            except Exception:
                answer = pickle.dumps((False, traceback.format_exc()))
            answers.write(answer)
            answers.flush()
    os._exit(0)  # nothing is left to flush, and nobody to read complaints
