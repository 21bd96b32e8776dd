"""Promises about the package itself: who imports whom, and what is never imported."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import muscjax

PACKAGE = Path(muscjax.__file__).parent
# Each core module and the core modules below it; `types`, `config` and `errors` are everybody's.
CORE = {
    "ordering": set(),
    "kernels": set(),
    "batching": set(),
    "distances": {"kernels"},
    "selection": set(),
    "neighbours": {"selection"},
    "grids": set(),
    "camera": set(),
    "geometry": {"camera", "grids", "neighbours"},
    "ipg": {"geometry", "selection"},
    "place": set(),
    "snamd": {"geometry", "place"},
    "scoring": {"distances", "ordering"},
    "cae": {"ordering"},
    "rscon": set(),
    "maps": {"geometry"},
    "balance": {"maps"},
    "rows": {"batching", "maps"},
    "extract": {"batching", "ipg", "snamd"},
    "detection": {"balance", "batching", "extract", "geometry", "maps", "rscon"},
    "ring": {"distances", "scoring"},
    "parallel": {"distances", "ring", "scoring"},
    "pipeline": {
        "cae",
        "detection",
        "extract",
        "geometry",
        "ipg",
        "maps",
        "parallel",
        "rows",
        "rscon",
        "scoring",
        "snamd",
        "stages",
        "streaming",
        "totals",
    },
    "stages": {"parallel", "rows", "scoring"},
    "totals": {"extract", "streaming"},
    "ahead": set(),
    "streaming": {"ahead", "distances", "rows", "scoring"},
    "pairs": {"cae", "extract", "pipeline", "rows", "scoring", "stages"},
    "baseline": {"rscon", "snamd"},
}
EVERYBODYS = {"types", "config", "errors"}


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "muscjax":
            parts = node.module.split(".")
            rooms |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        if isinstance(node, ast.Import):
            rooms |= {a.name.split(".")[1] for a in node.names if a.name.startswith("muscjax.")}
    return rooms


@pytest.mark.parametrize("room", CORE)
def test_core_imports_only_downwards(room):
    path = PACKAGE / room
    files = path.rglob("*.py") if path.is_dir() else [path.with_suffix(".py")]
    for file in files:
        assert imported_rooms(file) - {room} <= CORE[room] | EVERYBODYS, file.name


def test_the_core_neither_prints_nor_opens_nor_reads_a_clock():
    forbidden = {"print", "open", "input"}
    modules = {"os", "time", "logging", "pathlib", "random"}
    for room in set(CORE) | {"types"}:
        path = PACKAGE / room
        for file in path.rglob("*.py") if path.is_dir() else [path.with_suffix(".py")]:
            tree = ast.parse(file.read_text())
            called = {
                n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)
            }
            names = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
            assert not called & forbidden, file.name
            assert not names & modules, file.name


def loaded_after(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in done.stdout.split()}


def test_importing_the_package_loads_nothing_heavy():
    heavy = {"jax", "numpy", "scipy", "sklearn", "flax", "transformers", "torch", "optax", "PIL", "rich"}
    assert not loaded_after("import muscjax") & heavy


def test_help_loads_nothing_heavy():
    statement = (
        "from typer.testing import CliRunner\nfrom muscjax.cli import app\n"
        "assert CliRunner().invoke(app, ['detect', '--help']).exit_code == 0"
    )
    assert not loaded_after(statement) & {
        "jax",
        "numpy",
        "scipy",
        "sklearn",
        "flax",
        "transformers",
        "torch",
        "PIL",
    }


def test_running_imports_no_other_framework():
    statement = """
import numpy as np, muscjax
import muscjax.run, muscjax.cli, muscjax.backbones.registry, muscjax.outputs, muscjax.metrics
z = np.random.default_rng(0).random((3, 16, 16, 3)).astype(np.float32)
network = lambda x: x.reshape(len(x), 4, 4, 4, 4, 3).mean((2, 4)).reshape(1, len(x), 16, 3)
muscjax.detect(z, image_backbone=network)
"""
    assert not loaded_after(statement) & {"torch", "timm", "cv2", "open3d"}


def test_no_source_imports_torch_or_optax_outside_the_converter():
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {n.split(".")[0] for n in names} & {"torch", "optax", "timm", "cv2", "open3d"}, path


def test_every_public_name_is_there():
    for name in muscjax.__all__:
        assert getattr(muscjax, name) is not None
    assert not set(dir(muscjax)) - set(muscjax.__all__)
    with pytest.raises(AttributeError, match="no attribute 'detekt'"):
        _ = muscjax.detekt
