"""GLAD's pseudo-code word by word: one sample at a time, loops over places, double precision, no shared code."""

from __future__ import annotations

import math

import numpy as np


def alphas_cumprod(low: float = 0.00085, high: float = 0.012, levels: int = 1000) -> list[float]:
    product, found = 1.0, []
    for t in range(levels):
        beta = (math.sqrt(low) + (math.sqrt(high) - math.sqrt(low)) * t / (levels - 1)) ** 2
        product *= 1 - beta
        found.append(product)
    return found


def ddim_ladder(t0: int, steps: int) -> list[int]:
    r = t0 // steps
    found = []
    for i in range(steps):
        found.append(r * (steps - 1 - i) + 1)
    return found


def distances(f: np.ndarray, g: np.ndarray) -> np.ndarray:
    """min_q 1 - cos(f_p, g_q), for features (C, h, w) -> (h, w)."""
    _, height, width = f.shape
    found = np.empty((height, width))
    for row in range(height):
        for column in range(width):
            a = f[:, row, column]
            cosines = [
                float(a @ g[:, y, x]) / math.sqrt(float(a @ a) * float(g[:, y, x] @ g[:, y, x]))
                for y in range(height)
                for x in range(width)
            ]
            found[row, column] = min(1 - cosine for cosine in cosines)
    return found


def mean_of_largest(values: np.ndarray) -> float:
    k = max(1, round(10 * values.size / 4096))
    return sum(sorted(values.flatten().tolist())[-k:]) / k


def denoise(za, noise, t0, steps, delta, t_min, predict, features, resize):
    """Section "TEST (ADS + SAFF)" for one latent (C, h, w); returns the reconstruction, the stop, and s_t by t."""
    ab, levels = alphas_cumprod(), ddim_ladder(t0, steps)

    def f(z, eps, t):
        return (z - math.sqrt(1 - ab[t]) * eps) / math.sqrt(ab[t])

    zh = math.sqrt(ab[levels[0]]) * za + math.sqrt(1 - ab[levels[0]]) * noise
    stop, scores = None, {}
    for i, t in enumerate(levels):
        eh = predict(zh, t)
        xr = f(zh, eh, t)
        x0 = xr
        if stop is None:
            zi = math.sqrt(ab[t]) * za + math.sqrt(1 - ab[t]) * noise
            xi = f(zi, eh, t)
            d = distances(features(xi), features(xr))
            scores[t] = mean_of_largest(d)
            if scores[t] > delta:
                m = 1 / (1 + np.exp(-resize(d)))
                x0, stop = m * xr + (1 - m) * xi, t
            elif t < t_min:
                x0, stop = xi, t
        before = ab[levels[i + 1]] if i + 1 < len(levels) else ab[0]
        zh = math.sqrt(before) * x0 + math.sqrt(1 - before) * eh
    return zh, stop, scores
