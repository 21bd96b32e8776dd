"""Parameters on disk: one safetensors file with flat names and a header that describes the network.

The header's fields, all strings: ``format``, ``kind`` (image or points), ``architecture`` (the spec as
JSON), ``family``, ``layout``, ``source``, ``source_sha256``, ``license``, ``mean``, ``std``, ``size`` and
``converter``. Nothing is trusted without it: the architecture says which names and shapes must be there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np

from muscjax.backbones import point_mae, vit
from muscjax.config import typed
from muscjax.errors import InputError, shown
from muscjax.files import replacing

FORMAT = "muscjax-1"
Kind = Literal["image", "points"]
Spec = vit.Spec | point_mae.Spec


class Loaded(NamedTuple):
    params: dict[str, Any]
    spec: Spec
    metadata: dict[str, str]


def kind_of(spec: Spec) -> Kind:
    return "image" if isinstance(spec, vit.Spec) else "points"


@lru_cache(maxsize=64)
def shapes(spec: Spec) -> dict[str, tuple[int, ...]]:
    """Every flat name and shape of an architecture."""
    return vit.shapes(spec) if isinstance(spec, vit.Spec) else point_mae.shapes(spec)


def header(spec: Spec, **fields: str) -> dict[str, str]:
    """The metadata of a file; ``fields`` are source, source_sha256, license, layout and converter."""
    out = {
        "format": FORMAT,
        "kind": kind_of(spec),
        "family": spec.family,
        "architecture": json.dumps(dataclasses.asdict(spec)),
        **fields,
    }
    if isinstance(spec, vit.Spec):
        out |= {"mean": json.dumps(spec.mean), "std": json.dumps(spec.std), "size": str(spec.input_size)}
    return out


def save(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Write flat tensors and a header under a temporary name, then rename."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    with replacing(path) as temporary:
        try:
            save_file(
                {name: np.ascontiguousarray(a) for name, a in tensors.items()}, temporary, dict(metadata)
            )
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path}: cannot be written ({_one_line(error)})") from None


def metadata(path: str | os.PathLike) -> dict[str, str]:
    """The header of a converted file; raises :class:`InputError` where it is none."""
    with _open(Path(path)) as file:
        return _header(Path(path), file.metadata())


def load(path: str | os.PathLike, *, kind: Kind, dtype=jnp.float32) -> Loaded:
    """Parameters of a converted file as a nested dictionary of arrays on the default device.

    Tensors are read one by one, so that no more than the largest is held twice.

    Args:
      path: a file written by ``muscjax convert``.
      kind: the sort of backbone that is expected.
      dtype: what the parameters are stored as on the device, float32 or bfloat16.

    Raises:
      InputError: no such file, damaged, not converted, of the other kind, or not what its header says.
    """
    path = Path(path)
    with _open(path) as file:
        fields = _header(path, file.metadata())
        found = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        found = {name: (tuple(part.get_shape()), part.get_dtype()) for name, part in found.items()}
    if fields.get("kind") != kind:
        raise InputError(f"{path}: holds a backbone for {fields.get('kind')}, expected one for {kind}")
    spec = _spec(path, fields)
    try:
        wanted = shapes(spec)
    except Exception as error:  # of fields that are well each, and do not go together
        raise InputError(f"{path}: header describes no network ({_one_line(error)})") from None
    wrong = [
        *(f"{name} missing" for name in sorted(wanted.keys() - found.keys())),
        *(f"{name} unexpected" for name in sorted(found.keys() - wanted.keys())),
        *(
            f"{name} is {found[name][1]} of shape {found[name][0]}, expected F32 of shape {wanted[name]}"
            for name in sorted(found.keys() & wanted.keys())
            if found[name] != (wanted[name], "F32")
        ),
    ]
    if wrong:
        raise InputError(f"{path}: not the {spec.family[:80]} network of its header: {listed(wrong)}")
    params: dict[str, Any] = {}
    for name, array in _arrays(path):
        *parents, leaf = name.split(".")
        node = params
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = jax.device_put(array.astype(jnp.dtype(dtype), copy=False))
    return Loaded(params, spec, fields)


def _arrays(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """The float32 tensors of a file that has been checked, one at a time.

    The library maps the file into memory, where its pages count once more beside the arrays.
    """
    with open(path, "rb") as file:
        start = int.from_bytes(file.read(8), "little") + 8
        entries = json.loads(file.read(start - 8))
        entries.pop("__metadata__", None)
        for name, entry in entries.items():
            file.seek(start + entry["data_offsets"][0])
            shape = tuple(entry["shape"])
            yield name, np.fromfile(file, "<f4", math.prod(shape)).reshape(shape)


def sha256(path: Path) -> str:
    """Hash of a file's bytes, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _open(path: Path):
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise InputError(f"{path}: no such weights file")
    try:
        file = safe_open(path, framework="numpy")
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable safetensors file ({_one_line(error)})") from None
    try:
        with file:
            yield file
    except SafetensorError as error:
        raise InputError(f"{path}: damaged safetensors file ({_one_line(error)})") from None


def _header(path: Path, found: dict[str, str] | None) -> dict[str, str]:
    if not found or not found.get("format", "").startswith("muscjax-"):
        raise InputError(f"{path}: not converted yet; run: muscjax convert {path.name} DEST.safetensors")
    if found["format"] != FORMAT:
        raise InputError(f"{path}: format {found['format']}, expected {FORMAT}; convert it again")
    return found


def _spec(path: Path, fields: dict[str, str]) -> Spec:
    kinds: dict[str | None, type[Spec]] = {"image": vit.Spec, "points": point_mae.Spec}
    where = f"{path}: header field architecture cannot be read"
    try:
        return checked(json.loads(fields["architecture"]), kinds[fields["kind"]], where)
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise InputError(f"{where} ({_one_line(error)})") from None


_HINTS = {spec: get_type_hints(spec) for spec in (vit.Spec, point_mae.Spec)}
# Far beyond any published network, and small enough that listing the parameters takes no time.
_MOST = {
    "patch_size": 1024,
    "width": 1 << 16,
    "depth": 1000,
    "heads": 1 << 12,
    "image_size": 1 << 14,
    "input_size": 1 << 14,
    "registers": 1 << 12,
    "projection": 1 << 16,
    "mlp_ratio": 64.0,
    "eps": 1.0,
}


def checked(values: Mapping[str, Any], kind: type[Spec], where: str) -> Spec:
    """The architecture of these fields; InputError, which begins with ``where``, for one that cannot be."""
    hints = _HINTS[kind]
    unknown = sorted(values.keys() - hints.keys())
    if unknown:
        raise InputError(f"{where} (unknown field {unknown[0][:80]!r})")
    fields = {name: typed(value, hints[name], f"{where} ({name})") for name, value in values.items()}
    try:
        spec = kind(**fields)
    except TypeError as error:  # of a field that is missing
        raise InputError(f"{where} ({_one_line(error)})") from None
    for name, most in _MOST.items():
        value = getattr(spec, name, most)
        low = value >= 0 if name in ("registers", "projection") else value > 0
        if not (low and value <= most):
            raise InputError(f"{where} ({name}: found {shown(value)}, expected at most {most})")
    if spec.width % spec.heads:
        raise InputError(f"{where} (width {spec.width} is no multiple of {spec.heads} heads; state heads)")
    if not spec.taps or not all(0 <= tap < spec.depth for tap in spec.taps):
        raise InputError(f"{where} (taps: found {shown(spec.taps)}, expected blocks 0 to {spec.depth - 1})")
    if isinstance(spec, vit.Spec) and (
        len(spec.mean) != 3 or len(spec.std) != 3 or min(spec.std) <= 0 or spec.grid < 1
    ):
        raise InputError(f"{where} (mean, std: expected three numbers each; a patch in the image)")
    return spec


def listed(lines: Sequence[str], most: int = 400) -> str:
    """Lines as one, and how many there are beyond ``most``."""
    more = f"; and {len(lines) - most} more" if len(lines) > most else ""
    return "; ".join(lines[:most]) + more


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
