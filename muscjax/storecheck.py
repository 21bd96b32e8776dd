"""A store that somebody else made, looked at by a process that may die of it.

HDF5 parses its files with a large library in C; what a crafted file does to it happens to a process with a
limit on time and memory that can write no file. It speaks JSON: nothing that it says is run here.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from muscjax import store
from muscjax.errors import InputError
from muscjax.store import Store

_START_S = 30.0
_BYTES_PER_S = 20e6  # that the slowest disk gives
_SAID = 1 << 26  # bytes of an answer
# Isolated: the modules of the current folder must not stand in for the standard library's.
_COMMAND = (
    "-I",
    "-c",
    "import json, sys\n"
    "task = json.load(sys.stdin)\n"
    "sys.path[:] = task['path']\n"
    "from muscjax.storecheck import answer\n"
    "answer(**task['about'])",
)
_THREADS = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


def apart(opened: Store, *, seconds: float | None = None, memory: int = 1 << 30) -> Mapping[str, str]:
    """The digests of all shards of the store, each of which another process has read to its end.

    Raises:
        InputError: what that process found wrong, or that it did not come back.
    """
    folder = opened.folder
    if seconds is None:
        total = len(opened.samples) * sum(field.nbytes for field in opened.fields.values())
        seconds = _START_S + total / _BYTES_PER_S
    about = {"folder": os.path.abspath(folder), "memory": memory, "seconds": math.ceil(seconds)}
    task = {"path": [os.path.abspath(place) for place in sys.path], "about": about}
    try:
        # No plugins: a filter that a file asks for must not load a library.
        done = subprocess.run(
            [sys.executable, *_COMMAND],
            input=json.dumps(task).encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=seconds,
            env={**os.environ, **_THREADS, "HDF5_PLUGIN_PATH": os.devnull},
            start_new_session=os.name == "posix",
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise InputError(f"{folder}: not read to its end within {seconds:.0f} s; not used") from None
    except OSError as error:
        raise InputError(f"{folder}: no process to look at it ({error.strerror}); not used") from None
    said: Any = None
    with contextlib.suppress(ValueError):
        said = json.loads(done.stdout[:_SAID])
    if not isinstance(said, dict) or done.returncode:
        raise InputError(
            f"{folder}: the process that looked at it ended with status {done.returncode}; not used"
        )
    if said.get("problem") is not None:
        raise InputError(" ".join(str(said["problem"]).split()))
    found = said.get("digests")
    if not isinstance(found, dict) or set(found) != {opened.path(i).name for i in range(opened.shards)}:
        raise InputError(f"{folder}: changed while it was looked at; not used")
    return {str(name): str(value) for name, value in found.items()}


def answer(folder: str, memory: int, seconds: int) -> None:
    """What the other process does: read everything, and print the digests or what is wrong."""
    import h5py
    import numpy as np

    del h5py, np  # loaded before the limits count
    _limit(memory, seconds)
    said: dict[str, Any] = {"problem": None}
    try:
        opened = store.load(folder)
        said["digests"] = {opened.path(i).name: _examined(opened, i) for i in range(opened.shards)}
    except InputError as error:
        said["problem"] = str(error)
    except MemoryError:
        said["problem"] = f"{folder}: needs more than {memory} bytes to be looked at; not used"
    except Exception as error:  # of any damaged file, h5py raises nearly anything
        said["problem"] = f"{folder}: not a readable store ({type(error).__name__}: {error})"
    json.dump(said, sys.stdout)
    sys.stdout.flush()
    os._exit(0)  # HDF5 tidies up at the end of a process, and may hang over what it was given


def _limit(memory: int, seconds: int) -> None:
    try:
        import resource
    except ImportError:
        return
    used = 0
    with contextlib.suppress(OSError), open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    for kind, value in (
        (resource.RLIMIT_AS, used + memory),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        with contextlib.suppress(OSError, ValueError):  # a lower one of the system's stays
            resource.setrlimit(kind, (value, value))


def _examined(opened: Store, shard: int) -> str:
    """The SHA-256 of a shard that holds what the manifest says, as ``store.write`` writes it."""
    import h5py
    import numpy as np

    path = opened.path(shard)
    try:
        content = store.read_regular(path, store.shard_limit(opened, shard))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    found = hashlib.sha256(content).hexdigest()
    if store.digests(opened).get(path.name) != found:
        raise InputError(f"{path}: not the bytes that its digest is of")
    access = h5py.h5p.create(h5py.h5p.FILE_ACCESS)
    access.set_fapl_core(backing_store=False)
    access.set_file_image(content)  # what was hashed, whatever becomes of the file
    with h5py.File(h5py.h5f.open(b"a shard", h5py.h5f.ACC_RDONLY, access)) as file:
        if set(file) != set(opened.fields) or len(file.attrs):
            raise InputError(f"{path}: found {len(file)} fields, expected {', '.join(opened.fields)} alone")
        for name, field in opened.fields.items():
            dataset = store.dataset_of(file, opened, shard, name)
            _check_layout(path, name, dataset)
            for row in range(len(dataset) if field.nbytes else 0):
                values = dataset[row]
                if values.dtype.kind == "f" and not np.isfinite(values).all():
                    raise InputError(f"{path}: {name} of sample {row} is not finite")
    return found


def _check_layout(path: Path, name: str, dataset: Any) -> None:
    """No filter but a checksum, and a chunk per sample: nothing unfolds to more than it should hold."""
    import h5py

    made = dataset.id.get_create_plist()
    filters = [made.get_filter(i)[0] for i in range(made.get_nfilters())]
    expected = [h5py.h5z.FILTER_FLETCHER32] if dataset.size else []
    if filters != expected or dataset.chunks != ((1, *dataset.shape[1:]) if dataset.size else None):
        raise InputError(
            f"{path}: {name} has filters {filters} and chunks {dataset.chunks}, expected a sample each"
        )
