"""Checkpoint files as flat dictionaries of tensors; nothing in them is executed."""

from __future__ import annotations

import dataclasses
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from muscjax.errors import InputError
from weights_convert.rules import Shape

# Where trainers put the weights: Point-MAE; DeiT, timm; DINO's full checkpoints; the rest.
CONTAINERS = ("base_model", "model", "teacher", "state_dict", "model_state_dict")


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Shapes of every tensor, and a function that reads one as float32."""

    shapes: Mapping[str, Shape]
    read: Callable[[str], np.ndarray]
    others: tuple[str, ...] = ()  # entries that are no tensors


def open_checkpoint(path: Path) -> Checkpoint:
    """Read a safetensors or PyTorch file; the content decides, not the name.

    Raises:
      InputError: no such file, neither format, damaged, a pickle that asks for code, or torch absent.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint")
    with open(path, "rb") as file:
        start = file.read(16)
    if start[:4] == b"PK\x03\x04" or start[:1] == b"\x80":
        return _open_torch(path)
    if start[8:9] == b"{":
        return _open_safetensors(path)
    raise InputError(f"{path}: neither safetensors nor a PyTorch checkpoint (begins with {start[:8]!r})")


def _open_safetensors(path: Path) -> Checkpoint:
    from safetensors import SafetensorError, safe_open

    try:
        file = safe_open(path, framework="numpy")
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path}: damaged safetensors file ({_one_line(error)})") from None

    def read(name: str) -> np.ndarray:
        try:
            return _float32(path, name, file.get_tensor(name))
        except (SafetensorError, TypeError) as error:
            raise InputError(f"{path}: {name} cannot be read ({_one_line(error)})") from None

    return Checkpoint(shapes, read)


def _open_torch(path: Path) -> Checkpoint:
    try:
        import torch
    except ImportError:
        raise InputError(
            f"{path}: a PyTorch checkpoint needs torch to be read; pip install 'muscjax[convert]', "
            "or convert the safetensors file of the same weights"
        ) from None
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 6):
        # Before 2.6 a crafted file gets past weights_only (CVE-2025-32434).
        raise InputError(f"{path}: torch {torch.__version__} cannot read it safely, expected 2.6 or newer")
    _check_archive(path)
    try:
        with torch.serialization.safe_globals(_plain_containers()):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InputError(f"{path}: refused or damaged: {_refusal(error)}; nothing was executed") from None
    except Exception as error:  # a damaged pickle can raise anything at all
        raise InputError(f"{path}: damaged PyTorch checkpoint ({_one_line(error)})") from None
    tensors = _unwrap(path, loaded, torch.Tensor)
    found = {name: t for name, t in tensors.items() if isinstance(t, torch.Tensor)}
    shapes = {name: tuple(t.shape) for name, t in found.items()}
    odd = next((name for name, t in found.items() if t.layout != torch.strided or t.is_quantized), None)
    if odd is not None:
        raise InputError(f"{path}: {odd[:200]} is no plain tensor, expected numbers in a row")
    # A view may repeat one number any number of times; shared weights are stored once and named twice.
    claimed = sum(t.numel() * t.element_size() for t in found.values())
    held = 2 * path.stat().st_size
    if claimed > held:
        raise InputError(f"{path}: its tensors claim {claimed} bytes, expected at most {held}")

    def read(name: str) -> np.ndarray:
        tensor = tensors[name].detach()
        if not tensor.is_floating_point():
            raise InputError(f"{path}: {name} has dtype {tensor.dtype}, expected floating point")
        return _float32(path, name, tensor.to(torch.float32).numpy())

    return Checkpoint(shapes, read, tuple(name for name in tensors if name not in shapes))


def _plain_containers() -> list[Any]:
    """What trainers pickle beside tensors: scalars of numpy and command line arguments, data only."""
    import argparse

    from numpy.dtypes import Float32DType, Float64DType, Int64DType

    scalar = np.float64(0).__reduce__()[0]
    return [
        argparse.Namespace,
        np.dtype,
        Float32DType,
        Float64DType,
        Int64DType,
        scalar,
        (scalar, "numpy.core.multiarray.scalar"),
    ]


def _check_archive(path: Path) -> None:
    """InputError where a zip archive is damaged, holds code, or would grow when it is unpacked."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise InputError(f"{path}: damaged PyTorch checkpoint ({_one_line(error)})") from None
    if any(e.filename.endswith("/constants.pkl") or "/code/" in e.filename for e in entries):
        raise InputError(f"{path}: a TorchScript archive, which holds code; save its state_dict instead")
    if any(e.compress_type != zipfile.ZIP_STORED for e in entries) or (
        sum(e.file_size for e in entries) > path.stat().st_size
    ):
        raise InputError(f"{path}: a compressed archive, which torch.save never writes; save it again")


def _unwrap(path: Path, loaded: Any, tensor: type) -> dict[str, Any]:
    while isinstance(loaded, Mapping) and not any(isinstance(value, tensor) for value in loaded.values()):
        inner = next((name for name in CONTAINERS if isinstance(loaded.get(name), Mapping)), None)
        if inner is None:
            break
        loaded = loaded[inner]
    if not isinstance(loaded, Mapping) or not any(isinstance(value, tensor) for value in loaded.values()):
        found = ", ".join(map(str, loaded))[:200] if isinstance(loaded, Mapping) else type(loaded).__name__
        raise InputError(f"{path}: no state_dict in it (found {found}; looked in {', '.join(CONTAINERS)})")
    return {str(name): value for name, value in loaded.items()}


def _float32(path: Path, name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "fV":  # V: bfloat16, which NumPy knows through ml_dtypes only
        raise InputError(f"{path}: {name} has dtype {array.dtype}, expected floating point")
    out = array.astype(np.float32, copy=False)
    if not np.isfinite(out).all():
        raise InputError(f"{path}: {name} holds values that are not finite")
    return out


def _refusal(error: Exception) -> str:
    """The first sentence that says what was asked for; torch's advice to trust the file is left out."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = [line for line in lines if "GLOBAL" in line or "Unsupported" in line]
    return " ".join((named or lines or ["not a pickle of tensors"])[0].split())[:200]


def _one_line(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]
