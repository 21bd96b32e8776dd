"""METHOD section 6 with loops: float64, and plain integers for the blur in 8 bit."""

import numpy as np


def patch_of_pixel(pixel, image_hw, grid_hw):
    row, column = divmod(int(pixel), image_hw[1])
    return (row * grid_hw[0] // image_hw[0]) * grid_hw[1] + column * grid_hw[1] // image_hw[1]


def _between(position, values):
    """Linear between the two nearest whole positions, the outermost value beyond them."""
    position = min(max(position, 0.0), len(values) - 1.0)
    low = min(int(position), max(len(values) - 2, 0))
    high = min(low + 1, len(values) - 1)
    return values[low] + (position - low) * (values[high] - values[low])


def upsample_grid(grid, hw):
    grid = np.asarray(grid, np.float64)
    out = np.empty(hw)
    for i in range(hw[0]):
        y = i * (grid.shape[0] - 1) / (hw[0] - 1) if hw[0] > 1 else 0.0
        line = np.array([_between(y, grid[:, x]) for x in range(grid.shape[1])])
        for j in range(hw[1]):
            out[i, j] = _between(j * (grid.shape[1] - 1) / (hw[1] - 1) if hw[1] > 1 else 0.0, line)
    return out


def gaussian_grid(grid, hw, spread):
    """Each pixel the mean of all cells' values, weighted by a Gaussian of the way to the cell's middle.

    A cell that holds NaN is not there.
    """
    grid = np.asarray(grid, np.float64)
    out = np.empty(hw)
    for i in range(hw[0]):
        for j in range(hw[1]):
            total = weights = 0.0
            for a in range(grid.shape[0]):
                for b in range(grid.shape[1]):
                    if np.isnan(grid[a, b]):
                        continue
                    away = []
                    for at, size, n, cell in ((i, hw[0], grid.shape[0], a), (j, hw[1], grid.shape[1], b)):
                        middle = min(max((at + 0.5) * n / size - 0.5, 0.0), n - 1.0)
                        away.append((middle - cell) / spread)
                    weight = np.exp(-0.5 * (away[0] ** 2 + away[1] ** 2))
                    total += weight * grid[a, b]
                    weights += weight
            out[i, j] = total / weights
    return out


def brick_grid(grid, hw, spread):
    """A quincunx: even rows hold the even places of twice as many columns, odd rows the odd ones."""
    every = np.full((grid.shape[0], 2 * grid.shape[1]), np.nan)
    every[0::2, 0::2] = grid[0::2]
    every[1::2, 1::2] = grid[1::2]
    return gaussian_grid(every, hw, spread)


def interpolate_points(scores, centers, centers_valid, points, valid, neighbours=3):
    scores, centers, points = (np.asarray(x, np.float64) for x in (scores, centers, points))
    usable = np.flatnonzero(centers_valid)
    out = np.zeros(len(points))
    for p in np.flatnonzero(valid):
        squared = ((centers[usable] - points[p]) ** 2).sum(axis=1)
        nearest = np.argsort(squared, kind="stable")[:neighbours]
        weights = 1 / (squared[nearest] + 1e-8)
        if len(nearest):
            out[p] = (weights * scores[usable[nearest]]).sum() / weights.sum()
    return out


def scatter_to_grid(values, pixel, valid, hw):
    grid: dict[int, float] = {}
    for value, where, there in zip(values, pixel, valid, strict=True):
        if there:
            grid[int(where)] = max(float(value), grid.get(int(where), -np.inf))
    return np.array([grid.get(k, 0.0) for k in range(hw[0] * hw[1])]).reshape(hw)


def box_line_uint8(line):
    whole_weight = int((1 << 24) / 7.875)
    share = ((1 << 24) - 7 * whole_weight) // 2
    line, last = [int(v) for v in line], len(line) - 1

    def at(k):
        return line[min(max(k, 0), last)]

    return [
        (whole_weight * sum(at(k + d) for d in range(-3, 4)) + share * (at(k - 4) + at(k + 4)) + (1 << 23))
        >> 24
        for k in range(len(line))
    ]


def box_line_float(line):
    last = len(line) - 1

    def at(k):
        return line[min(max(k, 0), last)]

    return [
        (sum(at(k + d) for d in range(-3, 4)) + 0.4375 * (at(k - 4) + at(k + 4))) / 7.875
        for k in range(len(line))
    ]


def blur(image, box_line):
    """Three passes along rows, then three along columns."""
    image = np.asarray(image)
    for transposed in (False, True):
        image = image.T if transposed else image
        for _ in range(3):
            image = np.array([box_line(line) for line in image])
        image = image.T if transposed else image
    return image


def to_source(image, frame):
    """Bilinear between pixel centres for a crop that is not smaller than the map; pixel by pixel."""
    image = np.asarray(image, np.float64)
    top, bottom, left, right = frame.pad
    (height, width), (rows, columns) = frame.source_hw, image.shape
    y0, x0, h, w = frame.crop or (0, 0, top + height + bottom, left + width + right)
    out = np.zeros(frame.source_hw)
    for i in range(height):
        for j in range(width):
            y, x = i + top - y0, j + left - x0
            if 0 <= y < h and 0 <= x < w:
                v, u = (y + 0.5) * rows / h - 0.5, (x + 0.5) * columns / w - 0.5
                out[i, j] = _between(u, np.array([_between(v, image[:, k]) for k in range(columns)]))
    return out
