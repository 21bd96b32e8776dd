"""A workload as a call of PyTorch on the arrays that our stage is given, on the same kind of device."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch

from benchmarks.peers import torch_networks, torch_released, torch_strong
from benchmarks.suite import cores, patches_of
from muscjax import workloads
from muscjax.errors import InputError
from muscjax.profile.stages import Stage, settings

PEERS = ("torch", "torch-strong")


def setup(threads: int | None = None) -> dict[str, Any]:
    """Give torch as many threads as XLA's pool has; say what it has."""
    torch.set_num_threads(threads or cores())
    torch.set_float32_matmul_precision("highest")
    return {"version": torch.__version__, "threads": torch.get_num_threads(), "device": device()}


def device() -> str:
    """torch's name of the device that JAX uses.

    Raises:
        InputError: torch has no such device.
    """
    backend = jax.default_backend()
    if backend == "cpu":
        return "cpu"
    if backend == "gpu" and torch.cuda.is_available():
        return "cuda"
    raise InputError(f"--peer: jax runs on {backend}, which this torch {torch.__version__} cannot use")


def with_shared_weights(workload: workloads.Workload, stage: Stage, precision: str) -> tuple[Stage, Any]:
    """The stage on a torch model's weights, and that model; of other workloads the stage itself, and None."""
    if isinstance(workload, workloads.ImageNetwork):
        model, backbone = torch_networks.image_pair(workload, precision)
    elif isinstance(workload, workloads.PointNetwork):
        model, backbone = torch_networks.point_pair(workload, precision)
    else:
        return stage, None
    return dataclasses.replace(stage, arguments=(backbone, *stage.arguments[1:])), model


def call_of(
    kind: str, workload: workloads.Workload, stage: Stage, model: Any, precision: str
) -> Callable[[], Any] | None:
    """A call that returns when its result is there; None where this peer has no such stage.

    Lower precisions reach networks and products as torch has them: bfloat16 operands, or TF32 allowed.
    """
    where = device()
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    if where == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        torch.backends.cudnn.allow_tf32 = precision == "tf32"

    def moved(array: Any) -> torch.Tensor:
        return torch_networks.moved(array, where)

    run = _released(workload, stage, moved) if kind == "torch" else None
    if kind == "torch-strong" and isinstance(workload, workloads.Scoring):
        features = moved(stage.arguments[0])
        block = torch_strong.fastest_block(features)
        run = lambda: torch_strong.scoring(features, block)  # noqa: E731
    if model is not None:
        model = model.to(where, dtype)
        run = _network(kind, workload, stage, model, moved, dtype)
    if run is None:
        return None

    def ready() -> Any:
        with torch.inference_mode():
            found = run()
        if where == "cuda":
            torch.cuda.synchronize()
        return found

    return ready


def _network(
    kind: str, workload: Any, stage: Stage, model: Any, moved: Callable, dtype: torch.dtype
) -> Callable[[], Any]:
    if kind == "torch-strong":
        torch_networks.fused(model)
    if isinstance(workload, workloads.ImageNetwork):
        images = moved(stage.arguments[1])
        return lambda: torch_networks.image_tokens(model, workload, images, dtype)
    cloud, groups = stage.arguments[1:]
    local = np.asarray(cloud.points)[groups.indices] - np.asarray(groups.centers)[:, None]
    neighbourhood, centers = moved(local).to(dtype), moved(groups.centers).to(dtype)
    return lambda: torch_networks.point_tokens(model, workload, neighbourhood, centers)


def _released(workload: Any, stage: Stage, moved: Callable) -> Callable[[], Any] | None:
    given = stage.arguments
    if isinstance(workload, workloads.Scoring):
        features = moved(given[0])
        return lambda: torch_released.scoring(features)
    if isinstance(workload, workloads.Averaging):
        rows = moved(given[0])
        return lambda: torch_released.average(rows)
    if isinstance(workload, workloads.Fusing):
        n = workload.n
        image, points, patch = moved(given[0][:n]), moved(given[1][:n]), moved(patches_of(workload, stage))
        return lambda: torch_released.cae(image, points, patch)
    if isinstance(workload, workloads.Grouping):
        cloud = given[0]
        points = moved(np.asarray(cloud.points)[np.asarray(cloud.valid)])
        config = settings(workload).ipg
        return lambda: torch_released.grouping(points, config)
    if isinstance(workload, workloads.Pooling):
        tokens = moved(given[0])
        return lambda: torch_released.pool_grid(tokens)
    if isinstance(workload, workloads.GroupPooling):
        threshold = settings(workload).ipg.curvature_threshold
        tokens, groups = moved(given[0]), given[1]
        centers, curved = moved(groups.centers), moved(groups.curvature >= np.float32(threshold))
        return lambda: torch_released.pool_groups(tokens, centers, curved)
    if isinstance(workload, workloads.Interpolating):
        scores, centers, points = (moved(given[i]) for i in (0, 1, 3))
        return lambda: torch_released.interpolate(scores, centers, points)
    return None
