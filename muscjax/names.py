"""Names of the layouts that ``datasets`` reads, for help texts that must not import it."""

from __future__ import annotations

# In the order of recognition; ``datasets.layouts.LAYOUTS`` has exactly these keys
LAYOUTS = ("mvtec3d", "eyecandies", "visa", "mpdd", "btad", "mvtec", "folder")
LAYOUT_HELP = f"auto, {', '.join(LAYOUTS[:-1])} or {LAYOUTS[-1]}."
