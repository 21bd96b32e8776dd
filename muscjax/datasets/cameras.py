"""Camera files: ``fx, fy, cx, cy, width, height`` as JSON or YAML, or MVTec's ``camera_parameters.json``."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from muscjax.camera import Camera
from muscjax.datasets.decoding import MOST_POINTS
from muscjax.errors import InputError, shown
from muscjax.texts import MOST_SETTINGS

NAMES = (
    "camera.json",
    "camera.yaml",
    "camera.yml",
    "camera_parameters.json",
    "calibration/camera_parameters.json",
)
LARGEST_SIDE = 1 << 14
_PINHOLE = ("fx", "fy", "cx", "cy", "width", "height")
_MVTEC = ("focus", "sx", "sy", "cx", "cy", "image_width", "image_height")


def decode_camera(content: bytes, path: Path) -> Camera:
    """The camera that a file describes; ``path`` names it in messages and tells JSON from YAML.

    Either ``fx``, ``fy``, ``cx``, ``cy`` in pixels and ``width``, ``height``, or the calibration that MVTec
    3D-AD ships (``focus``, ``sx``, ``sy``, ``cx``, ``cy``, ``kappa``, ``image_width``, ``image_height`` of
    HALCON's division model). In both, ``extrinsic`` may be the 4×4 matrix that takes points of the cloud
    into the camera's frame, or ``pose`` its inverse, with translations in the cloud's units.

    Raises:
      InputError: no such file format, a missing or unusable number.
    """
    fields = mapping(content, path)
    extrinsic = _extrinsic(fields, path)
    if "focus" in fields:
        focus, sx, sy, cx, cy, width, height = (_number(fields, name, path) for name in _MVTEC)
        kappa = _number(fields, "kappa", path) if "kappa" in fields else 0.0
        if min(focus, sx, sy) <= 0:
            raise InputError(f"{path}: focus, sx and sy: found {focus}, {sx}, {sy}, expected positive metres")
        fx, fy, kappa = focus / sx, focus / sy, kappa * focus * focus
    else:
        fx, fy, cx, cy, width, height = (_number(fields, name, path) for name in _PINHOLE)
        kappa = 0.0
    if not all(map(math.isfinite, (fx, fy, kappa))):
        raise InputError(f"{path}: found a focal length of {fx:g}×{fy:g} pixels, distortion {kappa:g}")
    if min(fx, fy) <= 0:
        raise InputError(f"{path}: fx and fy: found {fx} and {fy}, expected positive pixels")
    for name, value in (("width", width), ("height", height)):
        if value != int(value) or not 1 <= value <= LARGEST_SIDE:
            raise InputError(f"{path}: {name}: found {value:g}, expected whole pixels, 1 to {LARGEST_SIDE}")
    if width * height > MOST_POINTS:
        raise InputError(
            f"{path}: found {width:g}×{height:g} pixels, expected at most {MOST_POINTS} altogether"
        )
    return Camera(fx, fy, cx, cy, int(width), int(height), kappa, extrinsic)


def mapping(content: bytes, path: Path) -> dict[str, Any]:
    """The top level of a small JSON or YAML file.

    Raises:
      InputError: too large, unreadable, or no mapping.
    """
    import yaml

    class Plain(yaml.SafeLoader):
        """Without references: a few lines of them stand for any number of values."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError("it refers to other places of itself")
            return super().compose_node(parent, index)

    if len(content) > MOST_SETTINGS:
        raise InputError(f"{path}: found {len(content)} bytes, expected a short text of numbers")
    try:
        text = content.decode("utf-8-sig")
        found = json.loads(text) if path.suffix.lower() == ".json" else yaml.load(text, Plain)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        kind = "JSON" if path.suffix.lower() == ".json" else "YAML"
        raise InputError(f"{path}: not a readable {kind} file: {reason}") from None
    if not isinstance(found, dict):
        raise InputError(f"{path}: found {type(found).__name__}, expected names with values")
    return found


def rigid(matrix: np.ndarray, path: Path, what: str) -> np.ndarray:
    """The (4, 4) matrix again, or InputError where it is no rotation with a translation."""
    if matrix.shape != (4, 4):
        raise InputError(f"{path}: {what}: found shape {matrix.shape}, expected 4×4 numbers")
    turn = matrix[:3, :3]
    proper = np.isfinite(matrix).all() and np.allclose(matrix[3], [0, 0, 0, 1], atol=1e-6)
    if not (proper and np.allclose(turn @ turn.T, np.eye(3), atol=1e-3) and np.linalg.det(turn) > 0):
        raise InputError(f"{path}: {what}: found no rotation with a translation, expected a rigid 4×4 matrix")
    return matrix


def _number(fields: dict[str, Any], name: str, path: Path) -> float:
    if name not in fields:
        raise InputError(f"{path}: {name} is missing, expected a camera with {', '.join(_PINHOLE)}")
    value = fields[name]
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not abs(value) < 1e300:  # also of a whole number that no float can hold
        raise InputError(f"{path}: {name}: found {shown(value)}, expected a finite number")
    return float(value)


def _extrinsic(fields: dict[str, Any], path: Path) -> tuple[tuple[float, ...], ...] | None:
    given = [name for name in ("extrinsic", "pose") if fields.get(name) is not None]
    if not given:
        return None
    if len(given) > 1:
        raise InputError(f"{path}: found extrinsic and pose, expected one of them")
    try:
        matrix = np.array(fields[given[0]], np.float64)
    except (ValueError, TypeError, OverflowError):
        raise InputError(f"{path}: {given[0]}: found no table of numbers, expected 4×4 numbers") from None
    matrix = rigid(matrix, path, given[0])
    matrix = np.linalg.inv(matrix) if given[0] == "pose" else matrix
    return tuple(tuple(float(value) for value in row) for row in matrix)
