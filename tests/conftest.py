"""Strict numerics for every test, and the recorded arrays that tests read from beside the checkout."""

from __future__ import annotations

import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import hypothesis
import jax
import numpy as np
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

hypothesis.settings.register_profile("fixed", deadline=None, derandomize=True, max_examples=15)
hypothesis.settings.load_profile("fixed")

SHARED = Path(__file__).resolve().parents[2] / "shared"


def shared(*parts: str) -> Path:
    """A file or folder beside the checkout; the test is skipped, with the reason, where it is absent."""
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs {'/'.join(parts)} of the shared folder beside the checkout")
    return path


@pytest.fixture(scope="session")
def golden():
    """``golden("ipg")`` gives the arrays of ipg.npz as a dictionary; they are loaded once."""
    loaded: dict[str, dict[str, np.ndarray]] = {}

    def load(name: str) -> dict[str, np.ndarray]:
        if name not in loaded:
            with np.load(shared("golden", f"{name}.npz")) as arrays:
                loaded[name] = dict(arrays)
        return loaded[name]

    return load
