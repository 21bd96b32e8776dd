"""Process-wide JAX settings that the command line wants and a library must not impose."""

from __future__ import annotations

import os
from typing import Any

from muscjax.errors import InputError


def prepare() -> None:
    """Keep compiled programs between runs; call it before the first array.

    They lie in ``$MUSCJAX_CACHE/programs`` (``~/.cache/muscjax/programs``). JAX's own
    ``JAX_COMPILATION_CACHE_DIR`` has precedence. Device memory is taken as it is needed.
    """
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import jax

    from muscjax.files import cache_root

    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(cache_root() / "programs"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def local_devices(count: int | None) -> list[Any]:
    """The first ``count`` devices of this host, of the kind that JAX uses; None: all of them.

    Raises:
        InputError: there are fewer.
    """
    import jax

    there = jax.local_devices()
    if count is not None and not 1 <= count <= len(there):
        raise InputError(
            f"--devices {count}: expected 1 to {len(there)}, the {there[0].platform} devices here"
        )
    return there[:count]
