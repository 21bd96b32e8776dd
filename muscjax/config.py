"""One frozen dataclass per stage; every field names the paper's symbol and the released default.

``released()`` is what the authors' code computes and the default; ``paper()`` is the literal equations.
All of them are hashable, so a configuration can be a static argument of ``jax.jit``.
"""

from __future__ import annotations

import dataclasses
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from muscjax.errors import InputError, shown
from muscjax.texts import MOST_SETTINGS, read_bytes

_LARGEST = 2.0**63  # of any number; NaN is not below it
DEFAULT_IMAGE_SIZE = 224  # where neither the user nor a backbone says otherwise


@dataclasses.dataclass(frozen=True)
class InputConfig:
    image_size: int | None = (
        None  # side of the image that the backbone sees, pixels; None: the backbone's own
    )
    image_step: int = 16  # sides that a window lowers are multiples of it; a network sets its patch here
    map_size: int | None = None  # H = W of XYZ, masks and maps; None: image_size, at most the XYZ's own side
    # object: each scan is cut to a square around its object, found by depth, or by the plain backdrop of its
    # photograph where images are used alone; sets without such a backdrop stay whole.
    window: Literal["whole", "object"] = "whole"
    window_margin: float = 0.06  # how much wider that square is than the widest object of the set
    window_side: int | None = None  # of that square in the scans' own pixels; None: from the set


@dataclasses.dataclass(frozen=True)
class NetworkConfig:
    """How an image network is used; the weight-free texture descriptor has its own fields."""

    depths: tuple[float, ...] = ()  # shares of the depth after which tokens are tapped; (): the network's own
    join: bool = False  # one token per patch, the mean of the tapped unit tokens, instead of a stage per tap
    # Patches every half side; full: four passes, four times as many patches; quincunx: every second one of
    # these, as on the five of a die; auto: full beside points, quincunx for images alone.
    overlap: Literal["none", "quincunx", "full", "auto"] = "none"


@dataclasses.dataclass(frozen=True)
class GroupConfig:
    """Farthest points and iterative point grouping (III-A, Eq. 1-4)."""

    groups: int = 1024  # G
    group_size: int = 128  # K
    initial_size: int = 80  # K_iter, also the number of points added per expansion
    curvature_threshold: float = 0.01  # C_thr; at or above it the group is curved
    expansion: Literal["released", "paper", "none"] = "released"
    skip_origin: bool = True  # the CUDA op never selects points with |p|^2 <= 1e-3 after the first


@dataclasses.dataclass(frozen=True)
class SnamdConfig:
    """Similarity neighbourhood aggregation with multiple degrees (III-B, Eq. 5-7)."""

    degrees: tuple[int, ...] = (1, 3, 5)  # r
    image: bool = True
    points: bool = True
    divide_by: Literal["weights", "count"] = "weights"  # Eq. 6 divides by the neighbourhood's size
    combine_grid: Literal["mean", "pool"] = "mean"  # 2D degrees to C: plain mean, or concatenate and pool
    zero_padding: bool = True  # 2D: cells outside the grid count as zero tokens
    place_distance: float = 0.0  # 3D: weight of how far from the cloud's middle a group lies (`place`)
    place_facing: float = 0.0  # 3D: weight of which way its surface faces, seen from there


@dataclasses.dataclass(frozen=True)
class ScoringConfig:
    """Mutual scoring and the interval average (III-C, Eq. 8-9)."""

    interval: float = 0.3  # X, share of the smallest reference distances that are averaged
    average: Literal["interval", "mean"] = "interval"  # mean: over all references (ablation)
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    implementation: Literal["xla"] = "xla"
    refine: bool = False  # recompute each winning pair directly
    window: int | None = None  # nearest of the patches so many rows and columns away; None: of all

    @property
    def kernel(self) -> dict[str, Any]:
        """The keywords of ``distances.min_distances`` and its relatives."""
        names = ("precision", "implementation", "refine", "window")
        return {name: getattr(self, name) for name in names}


@dataclasses.dataclass(frozen=True)
class CaeConfig:
    """Cross-modal anomaly enhancement (III-C, Eq. 10-11)."""

    enabled: bool = True
    confidence: bool = True  # lambda; False: 1 everywhere
    rescale: Literal["rank", "range"] = "rank"  # rank matching, or per patch onto the own row's range
    confidence_from: Literal["aligned", "rescaled"] = "aligned"
    combine: Literal["rank_mean", "sum"] = "rank_mean"  # (org + rank_match(E)) / 2, or org + E


@dataclasses.dataclass(frozen=True)
class MapConfig:
    neighbours: int = 3  # centres in the inverse-distance interpolation
    blur: Literal["uint8", "float", "none"] = "uint8"  # uint8: Pillow's GaussianBlur(4), exactly
    # 2D: bilinear with aligned corners, or a Gaussian for each patch; bricks: for those of a quincunx, which
    # sets it.
    cells: Literal["corners", "gaussian", "bricks"] = "corners"
    spread: float = 0.65  # its standard deviation in rows of the patch grid
    balance: Literal["none", "calm"] = "none"  # both maps by what calm scans reach, squares added


@dataclasses.dataclass(frozen=True)
class RsconConfig:
    """Re-scoring with constrained neighbourhood (III-D, Eq. 12-15)."""

    enabled: bool = True
    windows: tuple[int, ...] = (1, 7)  # k, the sample itself counted
    normalise: bool = True  # min-max over the set first
    form: Literal["windows", "half"] = "windows"  # mean over k, or Eq. 15's (D^-1 (M o W) C + C) / 2


@dataclasses.dataclass(frozen=True)
class DecisionConfig:
    """Labels without labels: the threshold that the law of the normal scores gives (`muscjax.decision`)."""

    false_alarm_rate: float = 0.05  # share of the normal scans that may be called defective
    score: Literal["map_max", "pred_score"] = "map_max"  # what is labelled: before or after RsCon
    order: float = 2.0  # k of the law of a k-th highest value; 1: Gumbel's, more: a shorter upper tail


@dataclasses.dataclass(frozen=True)
class FpfhConfig:
    """Fast point feature histograms (Rusu et al., ICRA 2009), the weight-free point backbone."""

    unit: Literal["metres", "relative"] = "metres"  # relative: radii in units of the cloud's own radius
    normal_radius: float = 0.004
    normal_neighbours: int = 30
    feature_radius: float = 0.010
    feature_neighbours: int = 100
    full_resolution: bool = False  # the sensor's own grid instead of the working one


@dataclasses.dataclass(frozen=True)
class TextureConfig:
    """Circular Fourier HOG (Skibbe and Reisert, ISBI 2012), the weight-free image backbone; in pixels."""

    stride: float = 6.0  # between descriptors
    gradient: float = 1.5  # standard deviation of the Gaussian under the gradient
    windows: tuple[float, ...] = (2.5, 5.0)  # of those that gather gradients around a place
    orders: int = 4  # highest harmonic of the gradient's direction, and of the place in the window
    contrast: float = 0.05  # gradient of the root of the brightness at which its magnitude counts half
    root: float = 0.01  # magnitudes below it count linearly, above it by their roots
    colour: float = 8.0  # of the two chromaticities beside the shapes; 0: brightness alone
    floor: float = 1.0  # the constant channel: how much structure a patch must have to look different
    gain: float = 100.0  # of the whole descriptor; at 100 SNAMD leaves it alone, at 1 it averages neighbours


@dataclasses.dataclass(frozen=True)
class RunConfig:
    memory_budget: int = 4 << 30  # bytes for one stage's arrays; features beyond it stay on the disk
    features: Literal["float32", "float16"] = "float32"  # as the disk has them, and so as they are scored
    subsets: int = 1  # g, parts that are scored apart
    seed: int = 0  # of the subset draw, the only randomness


@dataclasses.dataclass(frozen=True)
class Config:
    preset: str = "released"
    input: InputConfig = InputConfig()
    network: NetworkConfig = NetworkConfig()
    ipg: GroupConfig = GroupConfig()
    snamd: SnamdConfig = SnamdConfig()
    scoring: ScoringConfig = ScoringConfig()
    cae: CaeConfig = CaeConfig()
    maps: MapConfig = MapConfig()
    rscon: RsconConfig = RsconConfig()
    decision: DecisionConfig = DecisionConfig()
    fpfh: FpfhConfig = FpfhConfig()
    texture: TextureConfig = TextureConfig()
    run: RunConfig = RunConfig()


def released() -> Config:
    """What the authors' released code computes; it produced the published tables."""
    return Config()


def paper() -> Config:
    """The literal equations of arXiv 2511.10047."""
    return Config(
        preset="paper",
        ipg=GroupConfig(expansion="paper", skip_origin=False),
        snamd=SnamdConfig(divide_by="count", combine_grid="pool", zero_padding=False),
        cae=CaeConfig(rescale="range", confidence_from="rescaled", combine="sum"),
        maps=MapConfig(blur="float"),
        rscon=RsconConfig(windows=(7,), normalise=False, form="half"),
    )


def muscjax() -> Config:
    """Better on real scans than what was published: see README, "The preset muscjax"."""
    return Config(
        preset="muscjax",
        input=InputConfig(window="object"),
        network=NetworkConfig(depths=(1 / 6, 0.25, 1 / 3, 5 / 12, 0.5), join=True, overlap="auto"),
        ipg=GroupConfig(group_size=64, initial_size=64, expansion="none"),
        snamd=SnamdConfig(image=False, points=False, place_distance=1.5, place_facing=0.9),
        scoring=ScoringConfig(interval=0.05),
        cae=CaeConfig(enabled=False),
        maps=MapConfig(blur="float", cells="gaussian", balance="calm"),
        rscon=RsconConfig(enabled=False),
        texture=TextureConfig(windows=(3.5, 7.0)),  # larger, as the object in its window is
    )


PRESETS = {"released": released, "paper": paper, "muscjax": muscjax}


def override(config: Config, *assignments: str) -> Config:
    """Apply assignments such as ``"cae.confidence=false"`` or ``"snamd.degrees=[1,3]"``, in order.

    The value is TOML; a bare word stands for a string.

    Raises:
        InputError: an unknown stage or field, or a value of another type; the message lists the choices.
    """
    for assignment in assignments:
        key, found, text = assignment.partition("=")
        if not found:
            raise InputError(f"--set {assignment!r}: expected stage.field=value")
        try:
            value = tomllib.loads(f"v = {text.strip()}")["v"]
        except (ValueError, RecursionError):  # also of a number with too many digits
            value = text.strip()
        stage, _, field = key.strip().partition(".")
        config = _merge(config, {stage: {field: value}} if field else {stage: value}, f"--set {assignment}")
    return _validated(config, "--set")


def from_toml(path: str | Path) -> Config:
    """Read a configuration file: an optional ``preset`` and one table per stage.

    Raises:
        InputError: the file cannot be read, is not TOML, or names an unknown preset, stage or field.
    """
    try:
        tree = tomllib.loads(read_bytes(Path(path), most=MOST_SETTINGS).decode("utf-8"))
    except (ValueError, RecursionError) as error:  # also of a number with too many digits
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not a TOML file ({error})") from None
    return from_tree(tree, str(path))


def from_tree(tree: Mapping[str, Any], where: str) -> Config:
    """The configuration of nested mappings, such as a parsed file or what run.json records.

    Raises:
        InputError: an unknown preset, stage or field, or a value of another type; ``where`` names the source.
    """
    rest = {stage: values for stage, values in tree.items() if stage != "preset"}
    return _validated(_merge(preset(tree.get("preset", "released"), f"{where}: "), rest, where), where)


def preset(name: str, where: str = "") -> Config:
    """The preset of that name; InputError, which begins with ``where``, lists the names otherwise."""
    if not isinstance(name, str) or name not in PRESETS:
        raise InputError(f"{where}preset {shown(name)} is unknown; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]()


def _merge(config: Config, tree: dict[str, Any], where: str) -> Config:
    stages = {field.name for field in dataclasses.fields(config)} - {"preset"}
    for stage, values in tree.items():
        if stage not in stages or not isinstance(values, dict):
            known = ", ".join(sorted(stages))
            raise InputError(f"{where}: {shown(stage)} is no stage of the configuration; choose {known}")
        current = getattr(config, stage)
        kinds = typing.get_type_hints(type(current))
        for name, value in values.items():
            if name not in kinds:
                raise InputError(
                    f"{where}: {stage}.{name} is unknown; {stage} has {', '.join(sorted(kinds))}"
                )
            current = dataclasses.replace(
                current, **{name: typed(value, kinds[name], f"{where}: {stage}.{name}")}
            )
        config = dataclasses.replace(config, **{stage: current})
    return config


def typed(value: Any, kind: Any, where: str) -> Any:
    """The value as the field's type, or InputError; an integer is welcome where a float is wanted."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        if value in arguments:
            return value
        raise InputError(f"{where}: found {shown(value)}, expected one of {', '.join(map(str, arguments))}")
    if origin in (types.UnionType, typing.Union):
        if value is None or value == "none":
            return None
        return typed(value, next(a for a in arguments if a is not types.NoneType), where)
    if origin is tuple:
        items = value if isinstance(value, (list, tuple)) else [value]
        return tuple(typed(item, arguments[0], where) for item in items)
    if kind is float and type(value) is int and abs(value) < _LARGEST:
        return float(value)
    if type(value) is not kind:
        raise InputError(f"{where}: found {shown(value)}, expected {kind.__name__}")
    if kind in (int, float) and not abs(value) < _LARGEST:
        raise InputError(f"{where}: found {shown(value)}, expected a number below 2^63")
    return value


def _validated(config: Config, where: str) -> Config:
    """Numbers that no stage could use are refused here, once."""
    ipg, scoring, texture = config.ipg, config.scoring, config.texture
    rules = (
        (
            config.input.image_size is None or config.input.image_size >= 8,
            "input.image_size must be at least 8",
        ),
        (config.input.map_size is None or config.input.map_size >= 8, "input.map_size must be at least 8"),
        (config.input.image_step >= 1, "input.image_step must be at least 1"),
        (0.0 <= config.input.window_margin <= 1.0, "input.window_margin must lie in [0, 1]"),
        (
            config.input.window_side is None or config.input.window_side >= 8,
            "input.window_side must be at least 8",
        ),
        (all(0.0 < d <= 1.0 for d in config.network.depths), "network.depths must lie in (0, 1]"),
        (0.1 <= config.maps.spread <= 10.0, "maps.spread must lie in 0.1..10"),
        (ipg.groups >= 1, "ipg.groups must be at least 1"),
        (ipg.group_size >= 3, "ipg.group_size must be at least 3"),
        (1 <= ipg.initial_size <= ipg.group_size, "ipg.initial_size must lie in 1..ipg.group_size"),
        (0.0 < scoring.interval <= 1.0, "scoring.interval must lie in (0, 1]"),
        (scoring.window is None or scoring.window >= 0, "scoring.window must not be negative"),
        (config.maps.neighbours >= 1, "maps.neighbours must be at least 1"),
        (all(r >= 1 and r % 2 for r in config.snamd.degrees), "snamd.degrees must be odd and positive"),
        (len(config.snamd.degrees) > 0 and max(config.snamd.degrees) < 64, "snamd.degrees must lie in 1..63"),
        (
            min(config.snamd.place_distance, config.snamd.place_facing) >= 0,
            "snamd.place_distance and place_facing must not be negative",
        ),
        (len(config.rscon.windows) > 0, "rscon.windows must not be empty"),
        (all(k >= 1 for k in config.rscon.windows), "rscon.windows must be positive"),
        (config.run.subsets >= 1, "run.subsets must be at least 1"),
        (config.run.seed >= 0, "run.seed must not be negative"),
        (config.run.memory_budget >= 64 << 20, "run.memory_budget must be at least 64 MiB"),
        (config.fpfh.normal_radius > 0 and config.fpfh.feature_radius > 0, "fpfh radii must be positive"),
        (
            config.fpfh.normal_neighbours >= 3 and config.fpfh.feature_neighbours >= 3,
            "fpfh needs at least 3 neighbours",
        ),
        (0.0 < config.decision.false_alarm_rate <= 0.5, "decision.false_alarm_rate must lie in (0, 0.5]"),
        (1.0 <= config.decision.order <= 100.0, "decision.order must lie in 1..100"),
        (texture.stride >= 1, "texture.stride must be at least 1"),
        (
            len(texture.windows) > 0 and min(texture.gradient, *texture.windows) >= 0.5,
            "texture.gradient and texture.windows must be at least 0.5",
        ),
        (1 <= texture.orders <= 8, "texture.orders must lie in 1..8"),
        (
            min(texture.contrast, texture.root, texture.floor, texture.gain) > 0,
            "texture.contrast, root, floor and gain must be positive",
        ),
        (texture.colour >= 0, "texture.colour must not be negative"),
    )
    for holds, message in rules:
        if not holds:
            raise InputError(f"{where}: {message}")
    return config


def parse_bytes(text: str, *, name: str = "--memory-budget") -> int:
    """``"4GiB"``, ``"500 MB"`` or ``"1073741824"`` in bytes; ``name`` is what a message calls it.

    Raises:
        InputError: no number, or an unknown unit.
    """
    units = {"": 1, "b": 1}
    for power, prefix in enumerate("kmgt", start=1):
        units |= {prefix + "ib": 1024**power, prefix + "b": 1000**power, prefix: 1024**power}
    number = text.strip().rstrip("bBiIkKmMgGtT ")
    unit = text.strip()[len(number) :].strip().lower()
    try:
        return int(float(number) * units[unit])
    except (ValueError, KeyError, OverflowError):
        raise InputError(f"{name} {text!r}: expected a number of bytes such as 4GiB or 500MB") from None
