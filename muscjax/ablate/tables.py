"""The paper's ablations as data: Tables III-VIII, Fig. 10 and 11. Each row is a configuration.

What the figures hold is taken from the list of section 9 of the method's description, whose figure numbers
are not certain: ``fig10`` is what the scans and their neighbourhood decide (RsCon's window k; normal scans
cut to 1/h), ``fig11`` the numbers of the method (X of the interval average, K_iter and C_thr of IPG).
"""

from __future__ import annotations

import dataclasses
from typing import Literal

Weight = Literal["exp", "uniform", "distance"]
Need = Literal["any", "points", "both"]

SEEDS = 10  # of the paper, wherever scans are divided at random
CUT_SEEDS = 5  # for the choice of the normal scans that stay; the paper does not say

CLASSIFICATION = ("auroc_cls", "f1_max_cls", "ap_cls")
SEGMENTATION = ("f1_max_seg", "ap_seg")
EXTRA = ("foreground_ap", "hit_rate")  # not in the paper: what a trivial map does not reach
TIME = ("time_ms", "cpu_ms")  # per scan; a processor's time does not grow when other programs run
BOTH = (*CLASSIFICATION, *SEGMENTATION, *EXTRA)


@dataclasses.dataclass(frozen=True)
class Pooling:
    """How a token and its neighbours become one feature.

    weight: of a neighbour. ``exp`` is Eq. 5, ``uniform`` average pooling. ``distance`` is Eq. 5 without its
    exp, |-‖f_j - f_c‖|, divided by the sum like the others: the *less* similar weigh more. It is the literal
    reading, and the published row lies below average pooling, as this one must.
    apart: every degree is scored on its own and the scores are averaged (LNAMD); else SNAMD's one feature.
    """

    weight: Weight = "exp"
    apart: bool = False


@dataclasses.dataclass(frozen=True)
class Draw:
    """Which scans are scored together. Seeds choose where chance has a part in it.

    parts: g balanced parts. batch: parts of at most so many scans. cut: 1/h of the normal scans stay, chosen
    at random, and the others are taken out of the set; 0 leaves none.
    """

    parts: int = 1
    batch: int = 0
    cut: int = 1


@dataclasses.dataclass(frozen=True)
class Variant:
    """One row of a table."""

    setting: str
    overrides: tuple[str, ...] = ()  # of the configuration
    pooling: Pooling = Pooling()
    draw: Draw = Draw()
    seeds: int = 1
    modality: Literal["image", "points", "both"] | None = None  # None: all that the run uses
    method: Literal["MuSc-V2", "MuSc"] = "MuSc-V2"
    need: Need = "any"  # what the run must use for the row to differ from others
    timed: bool = False
    axis: str = ""  # of a figure: the panel
    x: float | None = None  # and the place in it; None: at its end, under the setting's name


@dataclasses.dataclass(frozen=True)
class Table:
    """A table or figure of the paper."""

    name: str
    title: str
    variants: tuple[Variant, ...]
    metrics: tuple[str, ...] = BOTH


def _pooling(setting: str, weight: Weight, *, apart: bool = False, degrees: str = "") -> Variant:
    overrides = (f"snamd.degrees={degrees}",) if degrees else ()
    return Variant(setting, overrides, Pooling(weight, apart))


def _swept(axis: str, field: str, values: tuple[float, ...], need: Need = "any") -> tuple[Variant, ...]:
    return tuple(
        Variant(f"{axis}={value:g}", (f"{field}={value:g}",), need=need, axis=axis, x=value)
        for value in values
    )


def _subsets(modality: Literal["image", "points", "both"]) -> tuple[Variant, ...]:
    return tuple(
        Variant(f"g={g}", draw=Draw(parts=g), seeds=1 if g == 1 else SEEDS, modality=modality, timed=True)
        for g in (1, 2, 3)
    )


TABLES: dict[str, Table] = {
    table.name: table
    for table in (
        Table(
            "III",
            "iterative point grouping",
            (
                Variant("w/o IPG", ("ipg.expansion=none",), need="points"),
                Variant("w IPG", need="points"),
            ),
        ),
        Table(
            "IV",
            "mutual scoring",
            (
                Variant("w/o IA", ("scoring.average=mean",)),
                Variant("w/o CAE", ("cae.enabled=false",), need="both"),
                Variant("w/o lambda", ("cae.confidence=false",), need="both"),
                Variant("Ours"),
            ),
        ),
        Table(
            "V",
            "neighbourhood aggregation",
            (
                _pooling("LNA", "uniform", degrees="[3]"),
                _pooling("LNA+SWPooling", "exp", degrees="[3]"),
                _pooling("LNAMD", "uniform", apart=True),
                _pooling("LNAMD+SWPooling", "exp", apart=True),
                _pooling("SNAMD (r=1)", "exp", degrees="[1]"),
                _pooling("SNAMD (r=3)", "exp", degrees="[3]"),
                _pooling("SNAMD (r=5)", "exp", degrees="[5]"),
                _pooling("SNAMD (w/o exp)", "distance"),
                _pooling("SNAMD (w/o SWPooling)", "uniform"),
                _pooling("SNAMD (Ours)", "exp"),
            ),
        ),
        Table(
            "VI",
            "re-scoring",
            (Variant("w/o RsCon", ("rscon.enabled=false",)), Variant("w RsCon")),
            CLASSIFICATION,
        ),
        Table(
            "VII",
            "batch size",
            (
                Variant("batch=All"),
                *(Variant(f"batch={size}", draw=Draw(batch=size), seeds=SEEDS) for size in (9, 7, 5)),
            ),
        ),
        Table(
            "VIII",
            "subsets and time per scan",
            (
                Variant("MuSc", modality="image", method="MuSc", timed=True),
                *_subsets("image"),
                *_subsets("points"),
                *_subsets("both"),
            ),
            (*BOTH, *TIME),
        ),
        Table(
            "fig10",
            "window of RsCon, share of normal scans",
            (
                *(Variant(f"k={k}", (f"rscon.windows=[{k}]",), axis="k of RsCon", x=k) for k in range(2, 10)),
                # A window of all scans: the weighted mean over the whole set.
                Variant("no window", ("rscon.windows=[1000000]",), axis="k of RsCon"),
                *(
                    Variant(
                        f"normals 1/{h}",
                        draw=Draw(cut=h),
                        seeds=1 if h == 1 else CUT_SEEDS,
                        axis="normals cut to 1/h",
                        x=h,
                    )
                    for h in range(1, 6)
                ),
                Variant("no normals", draw=Draw(cut=0), axis="normals cut to 1/h"),
            ),
            (*BOTH, "ap_seg_defective"),
        ),
        Table(
            "fig11",
            "interval average and point grouping",
            (
                *_swept("X", "scoring.interval", (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)),
                *_swept("K_iter", "ipg.initial_size", (20, 40, 60, 80, 100, 120), "points"),
                *_swept("C_thr", "ipg.curvature_threshold", (0.002, 0.005, 0.01, 0.02, 0.05, 0.1), "points"),
            ),
        ),
    )
}
