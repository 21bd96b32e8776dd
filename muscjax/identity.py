"""What a result depends on, as a number: digests of settings, arrays and backbones."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np


def digest(obj: Any) -> str:
    """SHA-256 of a JSON value, whatever the order of its keys: 64 hexadecimal digits."""
    return hashlib.sha256(json.dumps(obj, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def package_version() -> str:
    """Of this package, a part of what its results depend on; "" where it is not installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("muscjax")
    except PackageNotFoundError:
        return ""


def content_digest(*arrays: Any) -> str:
    """SHA-256 over the shapes, types and bytes of arrays; None counts as itself."""
    found = hashlib.sha256()
    for array in arrays:
        if array is None:
            found.update(b"none;")
            continue
        array = np.ascontiguousarray(array)
        found.update(f"{array.dtype.str}{array.shape};".encode())
        found.update(array.tobytes())
    return found.hexdigest()


def backbone_identity(backbone: Any) -> Any:
    """What tokens depend on: function and settings, or architecture and the hash of all weights."""
    import jax

    from muscjax.extract import Bound
    from muscjax.outputs import plain

    if isinstance(backbone, Bound):
        function = backbone.function
        return [function.__module__, getattr(function, "__qualname__", ""), plain(backbone.config)]
    leaves, structure = jax.tree.flatten(backbone)
    if leaves and all(hasattr(leaf, "shape") for leaf in leaves):
        return [str(structure), content_digest(*leaves)]
    return [getattr(backbone, "__module__", ""), getattr(backbone, "__qualname__", repr(backbone))]
