"""Wall time of ``muscjax detect`` on a folder of scans, in a new process with an empty cache.

    python -m benchmarks.scans path/to/cable_gland --out scans.json -- --image-backbone deit.safetensors

I/O, compilation and every file that a run leaves are part of it. What stands after ``--`` goes to ``detect``.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.run import environment
from muscjax import outputs
from muscjax.errors import InputError


def timed(path: Path, more: Sequence[str]) -> dict[str, Any]:
    """Seconds of the whole command, and its own record.

    Raises:
        InputError: the command failed; its last line says why.
    """
    with tempfile.TemporaryDirectory() as folder:
        hidden = ("MUSCJAX_CACHE", "JAX_COMPILATION_CACHE_DIR")
        variables = {k: v for k, v in os.environ.items() if k not in hidden}
        variables["MUSCJAX_CACHE"] = str(Path(folder) / "cache")
        results = Path(folder) / "results"
        command = [
            sys.executable,
            "-m",
            "muscjax",
            "detect",
            str(path),
            "--out",
            str(results),
            "--quiet",
            *more,
        ]
        begun = time.perf_counter()
        done = subprocess.run(command, env=variables, capture_output=True, text=True)
        seconds = time.perf_counter() - begun
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise InputError(f"detect {path}: {reason}")
        records = sorted(results.rglob("run.json"))
        runs = [json.loads(found.read_text(encoding="utf-8")) for found in records]
    return {"seconds": seconds, "options": list(more), "runs": runs}


def main(argv: Sequence[str] | None = None) -> None:
    given = list(sys.argv[1:] if argv is None else argv)
    cut = given.index("--") if "--" in given else len(given)
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scans",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("path", type=Path)
    parser.add_argument("--out", type=Path, default=Path("scans.json"))
    options = parser.parse_args(given[:cut])
    record = environment(()) | {"kind": "muscjax-scans", "scans": timed(options.path, given[cut + 1 :])}
    outputs.write_json(options.out, record)
    stages = {k: v for run in record["scans"]["runs"] for k, v in run["seconds"].items()}
    print(
        f"{record['scans']['seconds']:.1f} s in all; " + ", ".join(f"{k} {v:.1f}" for k, v in stages.items())
    )


def entry() -> None:
    try:
        main()
    except InputError as error:
        sys.exit(f"benchmarks: {error}")


if __name__ == "__main__":
    entry()
