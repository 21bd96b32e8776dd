"""Readers against hostile files, in a child process that has little memory and is watched.

A ``Reader`` is a function of a path and a few valid files. Each case is one of these files, damaged byte by
byte (``mutated``), or a file that a hypothesis strategy made up, which knows the format. Whatever comes of it
must be an ``InputError`` of one line that names the file, or a result that the reader's own checks accept.
Anything else is a fault: another exception, a warning, more memory or time than is allowed, a process
started, an address asked, or a file touched outside of the case's output folder.

    python -m tests.fuzz.engine images 200 FOLDER      # what ``run`` starts; a line of JSON per reader
"""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import importlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

FAMILIES = ("images", "clouds", "texts", "weights", "stores", "trees")
CASES = int(os.environ.get("MUSCJAX_FUZZ_CASES", "0")) or None  # per reader; None: what the test says
CASE_S = 10.0  # of one case; none takes a tenth of a second
MEMORY = 3 << 29  # bytes of address space beyond what the process has before the first case
_MADE_UP = 4  # every fourth case is the strategy's, where a reader has one
_NUMBERS = (b"-1", b"0", b"1e999", b"nan", b"1000000000", b"99999999999999999999", b"4294967295", b"0.5", b"")
_HUGE = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 10**9, 0x7FFFFFFF, 0xFFFFFFFF, 10**12, 2**63 - 1, 2**64 - 1)


@dataclasses.dataclass(frozen=True)
class Reader:
    """One way in: what the package does with a file that it did not write."""

    name: str
    file: str  # what the file is called in the case's folder
    read: Callable[[Path], object]  # raises AssertionError where what was read cannot be right
    seeds: Sequence[bytes]  # valid files
    beside: Callable[[Path], None] = lambda folder: None  # makes the folder's other files, once
    strategy: Any = None  # of bytes
    before: Callable[[Path], None] = lambda path: None  # what the case itself does first, unwatched
    repair: Callable[[bytes], bytes] | None = None  # makes checksums fit again, for half of the cases
    tokens: Sequence[bytes] = ()  # words of the format, for the dictionary
    refusals: tuple[str, ...] = ("InputError",)  # by name, so that no family imports more than it needs
    killable: bool = (
        False  # in use it runs in a process of its own, with limits: to die of a file is to refuse
    )


@dataclasses.dataclass
class Counts:
    """What became of a reader's cases."""

    family: str
    reader: str
    cases: int = 0
    accepted: int = 0  # with a result that is right
    refused: int = 0  # in one line
    died: int = 0  # of the refused, where a process of its own died of the file
    faults: list[str] = dataclasses.field(default_factory=list)
    seconds: float = 0.0
    peak_mib: float = 0.0  # by which the process had grown


def run(family: str, cases: int, scratch: Path, *, first: str | None = None) -> list[Counts]:
    """All readers of a family, each ``cases`` times; a child that dies is a fault, and the next one goes on.

    ``first``: begin with the reader of that name.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    (scratch / "at.json").unlink(missing_ok=True)
    found: list[Counts] = []
    start: tuple[str, int, int] | None = (first, 0, 0) if first else None
    while True:
        command = [sys.executable, "-m", "tests.fuzz.engine", family, str(cases), str(scratch)]
        command += [] if start is None else [str(part) for part in start]
        place = {
            "HOME": str(scratch),
            "MUSCJAX_CACHE": str(scratch / "cache"),
            "MALLOC_ARENA_MAX": "2",
            "PYTHONDONTWRITEBYTECODE": "1",
            "JAX_PLATFORMS": "cpu",
            "HF_HUB_OFFLINE": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "OMP_NUM_THREADS": "1",
        }
        root = Path(__file__).resolve().parents[2]
        done = subprocess.run(
            command, env={**os.environ, **place}, cwd=root, capture_output=True, text=True, check=False
        )
        for line in done.stdout.splitlines():
            if line.startswith('{"family"'):
                counts = Counts(**json.loads(line))
                if found and found[-1].reader == counts.reader:  # the rest after a death
                    counts = _sum(found.pop(), counts)
                found.append(counts)
        if done.returncode == 0:
            return found
        at = scratch / "at.json"
        if not at.exists():
            raise RuntimeError(f"{family} did not start: {done.stderr[-2000:]}")
        state = json.loads(at.read_text())
        at.unlink()
        counts = Counts(**state["counts"])
        counts.cases += 1
        if state["killable"]:
            counts.refused += 1
            counts.died += 1
        else:
            counts.faults.append(
                f"{counts.reader} case {state['case']}: the process died ({done.returncode}): "
                f"{done.stderr[-300:]!r}"
            )
        if found and found[-1].reader == counts.reader:
            counts = _sum(found.pop(), counts)
        found.append(counts)
        start = (counts.reader, state["case"] + 1, counts.cases)


def _sum(a: Counts, b: Counts) -> Counts:
    peak = max(a.peak_mib, b.peak_mib)
    added = {
        name: getattr(a, name) + getattr(b, name)
        for name in ("cases", "accepted", "refused", "died", "faults", "seconds")
    }
    return dataclasses.replace(b, peak_mib=peak, **added)


def mutated(seeds: Sequence[bytes], rng: random.Random, tokens: Sequence[bytes] = ()) -> bytes:
    """One of the files with a few of its bytes flipped, cut, repeated, replaced or taken from another."""
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        at = rng.randrange(len(data) + 1)
        kind = rng.randrange(11)
        if kind == 0 and data:
            data[at % len(data)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[at : at + 1] = bytes([rng.choice((0, 1, 0x7F, 0x80, 0xFF, 0x0A, 0x22))])
        elif kind == 2:
            width = rng.choice((1, 2, 4, 8))
            value = rng.choice(_HUGE) % (1 << (8 * width))
            data[at : at + width] = value.to_bytes(width, rng.choice(("little", "big")))
        elif kind == 3:
            del data[at:]
        elif kind == 4:
            data[at:at] = rng.randbytes(rng.choice((1, 2, 7, 300)))
        elif kind == 5:
            del data[at : at + rng.choice((1, 2, 16, 200))]
        elif kind == 6:
            piece = bytes(data[at : at + rng.choice((4, 32, 400))])
            data[at:at] = piece * rng.choice((1, 1, 3, 40))
        elif kind == 7:
            other = rng.choice(seeds)
            cut = rng.randrange(len(other) + 1)
            data[at:] = other[cut:]
        elif kind == 8:  # a number in text: counts, shapes, offsets, values
            places = list(re.finditer(rb"-?\d+(\.\d+)?(e[+-]?\d+)?", data))
            if places:
                number = rng.choice(places)
                data[number.start() : number.end()] = rng.choice(_NUMBERS)
        elif kind == 9 and tokens:
            data[at : at + rng.choice((0, 0, 4))] = rng.choice(tokens)
        elif kind == 10 and len(data) > 8:  # the header more often than the rest
            data[rng.randrange(min(len(data), 64))] = rng.choice((0, 0xFF, 0x80, rng.randrange(256)))
    return bytes(data)


class Hang(BaseException):
    """A case that took longer than it may; nothing catches it by accident."""


class _Watch:
    """Notes whatever the process does to the world while it is on."""

    _TOUCH = frozenset(
        {"os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod"}
        | {"os.chown", "os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.Popen"}
        | {"socket.connect", "socket.getaddrinfo", "urllib.Request", "shutil.rmtree", "shutil.move"}
    )

    def __init__(self, allowed: Sequence[Path]) -> None:
        self.allowed = [os.path.realpath(path) + os.sep for path in allowed]
        self.seen: list[str] = []
        self.on = False
        sys.addaudithook(self._hook)

    def _hook(self, event: str, args: tuple) -> None:
        if not self.on:
            return
        if event == "open":
            path, _, flags = args
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC)
            if writes and not isinstance(path, int) and not self._inside(path):
                self.seen.append(f"open {path!r} for writing")
        elif event in self._TOUCH:
            paths = [a for a in args if isinstance(a, (str, bytes, os.PathLike))]
            if not paths or not all(self._inside(path) for path in paths):
                self.seen.append(f"{event} {args!r}"[:200])

    def _inside(self, path: Any) -> bool:
        # the folder is resolved, its last part not: a link may be removed
        folder, name = os.path.split(os.fsdecode(path))
        place = os.path.join(os.path.realpath(folder), name) + os.sep
        return any(place.startswith(allowed) for allowed in self.allowed)


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    """``Hang`` after ``CASE_S`` in Python's code, the end of the process a little later in any other."""

    def late(*_: object) -> None:
        raise Hang

    signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, CASE_S)
    faulthandler.dump_traceback_later(CASE_S + 5, exit=True)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()


def judged(reader: Reader, path: Path, watch: _Watch, folder: Path) -> tuple[str, str]:
    """("accepted" | "refused" | "fault", why)."""
    reader.before(path)
    watch.seen.clear()
    watch.on = True
    outcome, why = "accepted", ""
    try:
        with _limited():
            reader.read(path)
    except Hang:
        outcome, why = "fault", f"took more than {CASE_S:g} s"
    except AssertionError as error:
        outcome, why = "fault", f"wrong result: {error}"
    except BaseException as error:
        watch.on = False
        message = str(error)
        if _memory(error):
            outcome, why = "fault", f"ran out of memory: {message[:200]}"
        elif type(error).__name__ not in reader.refusals and not any(
            base.__name__ in reader.refusals for base in type(error).__mro__
        ):
            frames = traceback.extract_tb(error.__traceback__)[-3:]
            place = " < ".join(f"{Path(f.filename).name}:{f.lineno}" for f in reversed(frames))
            outcome, why = "fault", f"{type(error).__name__}: {message[:200]!r} at {place}"
        elif "Damaged" in reader.refusals:
            outcome = "refused"
        elif not message or not message.isprintable():
            outcome, why = "fault", f"not one printable line: {message[:300]!r}"
        elif path.name not in message and folder.name not in message:
            outcome, why = "fault", f"does not name the file: {message[:300]!r}"
        else:
            outcome = "refused"
    finally:
        watch.on = False
    if watch.seen:
        outcome, why = "fault", "; ".join(watch.seen[:3])
    return outcome, why


def _memory(error: BaseException | None) -> bool:
    """Is it, or was it in answer to, a MemoryError?"""
    while error is not None:
        if isinstance(error, MemoryError) or "std::bad_alloc" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _grown(since: int) -> float:
    import resource

    return max(0.0, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - since) / 1024)


def loop(
    reader: Reader, cases: int, scratch: Path, family: str, watch: _Watch, *, start: int = 0, done: int = 0
) -> Counts:
    """All cases of one reader from number ``start`` on; ``done`` were counted by a process that died."""
    import resource

    folder = scratch / reader.name.replace(" ", "_")
    path = folder / reader.file
    path.parent.mkdir(parents=True, exist_ok=True)
    reader.beside(folder)
    counts = Counts(family, reader.name)
    for seed in reader.seeds:
        path.write_bytes(seed)
        reader.before(path)
        reader.read(path)  # also imports what is imported late
    since = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()

    def measure() -> None:
        counts.seconds = round(time.process_time() - began, 2)
        counts.peak_mib = round(_grown(since), 1)

    def one(number: int, content: bytes) -> None:
        measure()
        path.write_bytes(content)
        state = {"case": number, "counts": dataclasses.asdict(counts), "killable": reader.killable}
        (scratch / "at.json").write_text(json.dumps(state))
        # a warning is refused in half of the cases, and passed over in the others, as it is in use
        warnings.simplefilter("ignore" if number % 2 else "error")
        outcome, why = judged(reader, path, watch, folder)
        if outcome == "fault" and reader.killable and why.startswith(("took more", "ran out")):
            outcome = "refused"
        counts.cases += 1
        counts.accepted += outcome == "accepted"
        counts.refused += outcome == "refused"
        if outcome == "fault":
            counts.faults.append(f"{reader.name} case {number}: {why}")
            (folder.parent / f"fault {reader.name} {number}").write_bytes(content)

    made_up = cases // _MADE_UP if reader.strategy is not None else 0
    for number in range(start, cases - made_up):
        rng = random.Random(f"{reader.name} {number}")
        content = mutated(reader.seeds, rng, reader.tokens)
        if reader.repair is not None and rng.random() < 0.5:
            with contextlib.suppress(Exception):
                content = reader.repair(content)
        one(number, content)
    if made_up and start <= cases - made_up:
        _strategy(reader, made_up, lambda i, content: one(cases - made_up + i, content))
    number = cases
    while done + counts.cases < cases:  # a strategy may have had fewer examples
        if number >= start:
            one(number, mutated(reader.seeds, random.Random(f"{reader.name} {number}"), reader.tokens))
        number += 1
    measure()
    return counts


def _strategy(reader: Reader, cases: int, one: Callable[[int, bytes], None]) -> None:
    """``cases`` examples of the reader's strategy; nothing is shrunk, as faults are kept as files."""
    from hypothesis import HealthCheck, Phase, given, settings

    number = 0

    @settings(
        max_examples=cases,
        database=None,
        deadline=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(reader.strategy)
    def example(content: bytes) -> None:
        nonlocal number
        one(number, content)
        number += 1

    example()


def main(
    family: str, cases: str, scratch: str, first: str | None = None, start: str = "0", done: str = "0"
) -> None:
    import resource

    warnings.simplefilter("error")
    faulthandler.enable()
    place = Path(scratch).resolve()
    readers = importlib.import_module(f"tests.fuzz.{family}").READERS
    out = place / "out"
    out.mkdir(exist_ok=True)
    watch = _Watch([out, place / "cache"])
    names = [reader.name for reader in readers]
    begin = names.index(first) if first in names else 0
    for position in range(begin, len(readers)):
        reader = readers[position]
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, hard))
        rest = {"start": int(start), "done": int(done)} if position == begin else {}
        counts = loop(reader, int(cases), place, family, watch, **rest)
        print(json.dumps(dataclasses.asdict(counts)), flush=True)
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
