"""Circular Fourier HOG from its definition, float64: one explicit complex kernel per place and order.

The harmonic of order k under a Gaussian is (u + i·v)^k·exp(-(u² + v²)/2) with u, v in standard deviations: no
derivatives, no Hermite polynomials, no separable products.
"""

import math

import numpy as np


def mirrored(line, reach):
    return np.pad(line, reach, mode="symmetric")


def window(shape, place, sigma):
    """Offsets (v, u) in standard deviations of a mirrored image's pixels from a place, and the Gaussian."""
    h, w = shape
    reach = math.ceil(7 * sigma) + 1
    v = (np.arange(-reach, h + reach) - place[0]) / sigma
    u = (np.arange(-reach, w + reach) - place[1]) / sigma
    gauss = np.outer(np.exp(-v * v / 2), np.exp(-u * u / 2))
    return v[:, None], u[None, :], gauss / gauss.sum(), reach


def fields(gray, *, gradient, contrast, orders):
    """(H, W) -> (orders + 1, H, W) complex128."""
    root = np.sqrt(np.asarray(gray, np.float64))
    out = np.zeros((orders + 1, *root.shape), complex)
    for y in range(root.shape[0]):
        for x in range(root.shape[1]):
            v, u, gauss, reach = window(root.shape, (y, x), gradient)
            slope = ((u + 1j * v) * gauss * mirrored(root, reach)).sum()  # gx + i·gy
            r = math.hypot(abs(slope), 1e-6)
            for m in range(orders + 1):
                out[m, y, x] = r / (r + contrast) * (slope / r) ** m
    return out


def projection(field, place, sigma, k):
    """On the harmonic of order k, which may be negative."""
    v, u, gauss, reach = window(field.shape, place, sigma)
    circle = u + 1j * v if k >= 0 else u - 1j * v
    kernel = circle ** abs(k) * gauss / math.sqrt(2 ** abs(k) * math.factorial(abs(k)))
    return (kernel * mirrored(field, reach)).sum()


def describe(image, *, stride, gradient, windows, orders, contrast, root, colour, floor, gain):
    """(H, W, 3) in [0, 1] -> (h·w, C)."""
    gray = np.asarray(image, np.float64).mean(axis=-1)
    red, green, blue = np.moveaxis(np.asarray(image, np.float64), -1, 0)
    shares = [x / (red + green + blue + 1.0) for x in (red - green, blue - (red + green) / 2)]
    angular = fields(gray, gradient=gradient, contrast=contrast, orders=orders)
    sides = [max(1, round(side / stride)) for side in gray.shape]
    places = [
        np.linspace(0, side - 1, count) if count > 1 else [(side - 1) / 2]
        for side, count in zip(gray.shape, sides, strict=True)
    ]
    rows = []
    for y in places[0]:
        for x in places[1]:
            values = []
            for sigma in windows:
                row = []
                for m in range(orders + 1):
                    for k in range(orders + 1):
                        z = projection(angular[m], (y, x), sigma, k)
                        row.append(z.real if m == k == 0 else abs(z))
                    for k in range(1, orders + 1) if m else ():
                        z = projection(angular[m], (y, x), sigma, -k)
                        row += [z.real, z.imag] if k == m else [abs(z)]
                row = [value / math.sqrt(abs(value) + root) for value in row]
                row += [colour * projection(share, (y, x), sigma, 0).real for share in shares]
                values += row
            rows.append([gain * value for value in [*values, floor]])
    return np.array(rows)
