"""The kinds of workloads: their sizes, and which inputs each needs."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from muscjax.workloads import data

if TYPE_CHECKING:
    from muscjax.backbones import point_mae, vit


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload:
    """What all of them have: a name, and arrays made by ``inputs(seed)``."""

    name: str
    stage: ClassVar[str] = ""

    def inputs(self, seed: int = 0) -> dict[str, Any]:
        """Arrays (NumPy, float32 unless stated) by name; the same for the same seed."""
        raise NotImplementedError

    @property
    def sizes(self) -> dict[str, Any]:
        """Every field but the name, for a record."""
        return {k: v for k, v in dataclasses.asdict(self).items() if k != "name"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scoring(Workload):
    """Mutual scoring of one stage: features (N, M, C) to patch scores (N, M)."""

    n: int
    patches: int  # M
    channels: int  # C
    refine: bool = False  # each winning pair computed again, directly
    stage: ClassVar[str] = "scoring"

    @property
    def ordered_pair_flop(self) -> int:
        """2·M²·C for each of the N (N - 1) ordered pairs; symmetry makes half of them enough."""
        return 2 * self.n * (self.n - 1) * self.patches**2 * self.channels

    def inputs(self, seed: int = 0) -> dict[str, Any]:
        return {"features": data.features(self.n, self.patches, self.channels, seed=seed)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Averaging(Workload):
    """The interval average of rows of distances (rows, references)."""

    rows: int
    references: int
    stage: ClassVar[str] = "average"

    def inputs(self, seed: int = 0) -> dict[str, Any]:
        rng = np.random.default_rng(seed)
        return {"distances": 0.2 + 0.1 * rng.random((self.rows, self.references), np.float32)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fusing(Workload):
    """The CAE path of one stage: distances of both modalities, enhancement, interval average."""

    n: int
    grid: tuple[int, int]
    channels: int  # of the image features
    groups: int
    point_channels: int
    map_side: int = 224
    stage: ClassVar[str] = "cae"

    def inputs(self, seed: int = 0) -> dict[str, Any]:
        """image (N, M, C), points (N, G, C'), and groups: centres' pixels (N, G) int32."""
        m = self.grid[0] * self.grid[1]
        rng = np.random.default_rng(seed + 2)
        # Centres on the object only: about half of the patches hold none, and those rows are all 0.
        inside = np.flatnonzero(data.disc(self.map_side, round(0.45 * self.map_side**2)))
        return {
            "image": data.features(self.n, m, self.channels, seed=seed),
            "points": data.features(self.n, self.groups, self.point_channels, seed=seed + 1),
            "pixel": rng.choice(inside, (self.n, self.groups)).astype(np.int32),
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grouping(Workload):
    """Farthest points, neighbours of the centres, iterative point grouping, of one cloud."""

    points: int
    groups: int = 1024
    group_size: int = 128
    initial_size: int = 80
    side: int = 224
    stage: ClassVar[str] = "grouping"

    def inputs(self, seed: int = 0) -> dict[str, Any]:
        return {"cloud": data.cloud(self.points, self.side, seed=seed)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pooling(Workload):
    """SNAMD of the tapped tokens (S, h, w, C) of one image."""

    grid: tuple[int, int]
    channels: int
    stages: int = 3
    stage: ClassVar[str] = "snamd"

    def inputs(self, seed: int = 0) -> dict[str, Any]:
        tokens = 6 * data.features(self.stages, self.grid[0] * self.grid[1], self.channels, seed=seed)
        return {"tokens": tokens.reshape(self.stages, *self.grid, self.channels)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class GroupPooling(Workload):
    """SNAMD of the tapped tokens (S, G, C) of one cloud's groups."""

    points: int
    groups: int = 1024
    channels: int = 384
    stages: int = 3
    side: int = 224
    stage: ClassVar[str] = "snamd"

    def inputs(self, seed: int = 0) -> dict[str, Any]:
        scan = data.cloud(self.points, self.side, seed=seed)
        tokens = 6 * data.features(self.stages, self.groups, self.channels, seed=seed)
        return {"tokens": tokens, "groups": data.nearest_groups(scan, self.groups, 8, seed=seed)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interpolating(Workload):
    """Scores of group centres spread over all points of a cloud by their three nearest centres."""

    points: int
    centers: int = 1024
    side: int = 224
    stage: ClassVar[str] = "maps"

    def inputs(self, seed: int = 0) -> dict[str, Any]:
        rng = np.random.default_rng(seed)
        scan = data.cloud(self.points, self.side, seed=seed, padded=False)
        chosen = np.sort(rng.choice(self.points, self.centers, replace=False))
        points = np.asarray(scan.points)
        return {
            "scores": rng.random(self.centers, np.float32),
            "centers": points[chosen],
            "points": points,
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageNetwork(Workload):
    """A vision transformer's forward pass on ``batch`` images; random weights."""

    family: str  # dino, deit or clip
    patch: int
    width: int
    depth: int
    heads: int
    image_size: int
    stored_size: int  # side that the stored positions belong to
    taps: tuple[int, ...]
    batch: int = 1
    stage: ClassVar[str] = "backbone"

    @property
    def grid(self) -> tuple[int, int]:
        side = self.image_size // self.patch
        return side, side

    def spec(self) -> vit.Spec:
        from muscjax.backbones import vit

        fields: dict[str, Any] = {"name": self.name, "family": self.family, "input_size": self.image_size}
        if self.family == "clip":
            fields |= {
                "activation": "quick_gelu", "pre_norm": True, "patch_bias": False, "eps": 1e-5,
                "interpolation": "half_pixel", "final_norm": False,
                "mean": vit.CLIP_MEAN, "std": vit.CLIP_STD,
            }  # fmt: skip
        return vit.Spec(
            self.patch, self.width, self.depth, self.heads, self.stored_size, taps=self.taps, **fields
        )

    def inputs(self, seed: int = 0) -> dict[str, Any]:
        return {"images": data.images(self.batch, self.image_size, seed=seed)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PointNetwork(Workload):
    """Point-MAE's group encoder and blocks on one cloud; random weights."""

    points: int
    groups: int = 1024
    group_size: int = 128
    width: int = 384
    depth: int = 12
    heads: int = 6
    taps: tuple[int, ...] = (3, 7, 11)
    side: int = 224
    stage: ClassVar[str] = "backbone"

    def spec(self) -> point_mae.Spec:
        from muscjax.backbones import point_mae

        return point_mae.Spec(
            width=self.width, depth=self.depth, heads=self.heads, taps=self.taps, name=self.name
        )

    def inputs(self, seed: int = 0) -> dict[str, Any]:
        scan = data.cloud(self.points, self.side, seed=seed)
        return {"cloud": scan, "groups": data.nearest_groups(scan, self.groups, self.group_size, seed=seed)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pipeline(Workload):
    """``muscjax.detect`` on ``n`` scans without I/O: networks, grouping, scoring, maps, re-scoring."""

    n: int
    image: ImageNetwork | None = None
    points: PointNetwork | None = None
    stage: ClassVar[str] = "pipeline"

    @property
    def map_side(self) -> int:
        if self.points is not None:
            return self.points.side
        assert self.image is not None
        return self.image.image_size

    def inputs(self, seed: int = 0) -> dict[str, Any]:
        """images (N, H, W, 3) uint8 or None, and N clouds or None."""
        made: dict[str, Any] = {"images": None, "clouds": None}
        if self.image is not None:
            made["images"] = data.images(self.n, self.image.image_size, seed=seed)
        if self.points is not None:
            p = self.points
            made["clouds"] = [data.cloud(p.points, p.side, seed=seed + i) for i in range(self.n)]
        return made
