"""From a raw scan to its object (METHOD sections 0 and 9), and a cache of what comes out.

NumPy and SciPy only, so that processes without JAX can do it. Everything is deterministic: the one random
draw, RANSAC's, comes from its own generator with a fixed seed. Nothing is ever written into the data set.
"""

from muscjax.preprocess import cache, eyecandies, window
from muscjax.preprocess.cluster import clusters, largest_cluster
from muscjax.preprocess.ground import CleanConfig, plane, valid_points
from muscjax.preprocess.pixels import pad_to_square, removed_pixels
from muscjax.preprocess.scan import Foreground, find_foreground, foreground

__all__ = [
    "CleanConfig",
    "Foreground",
    "cache",
    "clusters",
    "eyecandies",
    "find_foreground",
    "foreground",
    "largest_cluster",
    "pad_to_square",
    "plane",
    "removed_pixels",
    "valid_points",
    "window",
]
