from types import SimpleNamespace
from typing import Any

import numpy as np

from benchmarks import subsets
from muscjax import config, pairs, pipeline
from muscjax.types import Features, PointGroups

N, M, G, C = 12, 16, 8, 5
SHAPE = {"grid_hw": (4, 4), "map_hw": (32, 32)}


def test_any_choice_of_columns_scores_as_the_scans_alone_would():
    rng = np.random.default_rng(0)
    image, points = (rng.normal(size=(s, N, m, C)).astype(np.float32) for s, m in ((2, M), (1, G)))
    fields = {
        "indices": np.zeros((N, G, 0), np.int32),
        "centers": np.zeros((N, G, 3), np.float32),
        "center_index": np.zeros((N, G), np.int32),
        "curvature": np.zeros((N, G), np.float32),
        "pixel": rng.integers(0, 1024, (N, G)).astype(np.int32),
        "valid": rng.random((N, G)) > 0.2,
    }
    chosen = config.released()
    features = Features(image, points)
    distances = pairs.Distances(
        pairs.measure(image, chosen), pairs.measure(points, chosen, valid=fields["valid"])
    )
    extracted: Any = SimpleNamespace(groups=PointGroups(**fields), **SHAPE)
    of = subsets.Measured("both", features, distances, extracted, None, chosen)  # pyright: ignore
    for ids, width in ((np.arange(N), N), (np.asarray([1, 4, 5, 7, 8, 9, 10, 11]), N)):
        found = subsets.score(of, ids, ids, width)
        part = Features(image[:, ids], points[:, ids])
        groups = PointGroups(**{name: values[ids] for name, values in fields.items()})
        expected = pipeline.score(part, groups, chosen, **SHAPE)
        np.testing.assert_allclose(found[0], expected.image, rtol=1e-5)
        np.testing.assert_allclose(found[1], expected.points, rtol=1e-5, atol=1e-6)
