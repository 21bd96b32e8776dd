"""The Point-MAE encoder in float64 NumPy, from the equations, one group at a time."""

from __future__ import annotations

import numpy as np

from tests.reference.vit import Params, block, gelu, layer_norm


def features(
    p: Params, groups: np.ndarray, centers: np.ndarray, valid: np.ndarray, spec, mode: str
) -> list[np.ndarray]:
    """Tokens of the tapped blocks (G, C) from groups (G, K, 3) relative to their centres (G, 3)."""

    def dense(x: np.ndarray, name: str) -> np.ndarray:
        return x @ p[f"{name}.kernel"] + p.get(f"{name}.bias", 0.0)

    def batch_norm(x: np.ndarray, name: str) -> np.ndarray:
        mean, var = p[f"{name}.mean"], p[f"{name}.var"]
        if mode == "cloud":
            kept = x[valid].reshape(-1, x.shape[-1])
            mean, var = kept.mean(0), kept.var(0)
        return (x - mean) / np.sqrt(var + spec.eps) * p[f"{name}.scale"] + p[f"{name}.bias"]

    local = dense(
        np.maximum(batch_norm(dense(groups, "encoder.first_1"), "encoder.first_norm"), 0), "encoder.first_2"
    )
    joined = np.concatenate([np.broadcast_to(local.max(1, keepdims=True), local.shape), local], axis=-1)
    kernel = np.concatenate([p["encoder.second_global.kernel"], p["encoder.second_local.kernel"]])
    hidden = joined @ kernel + p["encoder.second_global.bias"]
    hidden = np.maximum(batch_norm(hidden, "encoder.second_norm"), 0)
    x = dense(hidden, "encoder.second_2").max(1)
    position = dense(gelu(dense(centers, "position_1")), "position_2")
    seen = {}
    for i in range(spec.depth):
        x = block(x + position, p, f"block_{i}", spec.heads, spec.eps, gelu, valid)
        seen[i] = layer_norm(x, p["norm.scale"], p["norm.bias"], spec.eps) if spec.final_norm else x
    return [seen[i] for i in spec.taps]
