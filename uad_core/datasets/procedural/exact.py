"""Random numbers and elementary functions that give the same bits on every machine.

Drawing must not depend on the numpy version, the processor or the C library. Only operations
that IEEE 754 rounds exactly are used (+ - * / sqrt floor min max and integers); random numbers
come from integer hashes, and sine and cosine are short polynomials written here.
Scalars are Python floats and fields are float32 arrays, so that no promotion rule matters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

__all__ = ["Dice", "Field", "clip", "cos_turns", "direction", "fractal", "hash_cells", "noise", "per_index", "smooth"]

Field = np.ndarray  # (H, W) float32, or a shape that broadcasts to it

_MASK = (1 << 64) - 1


def _mix64(z: int) -> int:
    """The output function of splitmix64 (Steele, Lea and Flood 2014)."""
    z = (z + 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)


@dataclass(frozen=True)
class Dice:
    """Random numbers addressed by name: asking for one never changes another.

    The same key and name give the same number for ever, in whatever order they are asked for.
    """

    key: int

    def child(self, *names: str | int) -> Dice:
        """Return independent dice for a part of the scene."""
        key = self.key
        for name in names:
            for byte in f"{type(name).__name__}:{name}".encode():
                key = ((key ^ byte) * 0x100000001B3) & _MASK
            key = _mix64(key)
        return Dice(key)

    def unit(self, name: str) -> float:
        """Return a number in [0, 1)."""
        return (self.child(name).key >> 11) * 2.0**-53

    def uniform(self, name: str, low: float, high: float) -> float:
        """Return a number in [low, high)."""
        return low + (high - low) * self.unit(name)

    def integer(self, name: str, low: int, high: int) -> int:
        """Return an integer in [low, high]."""
        return low + self.child(name).key % (high - low + 1)

    def chance(self, name: str) -> bool:
        """Toss a coin."""
        return bool(self.child(name).key & 1)

    def sign(self, name: str) -> float:
        """Return -1.0 or 1.0."""
        return 1.0 if self.chance(name) else -1.0

    def seed(self, name: str) -> int:
        """Return 32 bits that start a hashed field."""
        return self.child(name).key >> 32


def clip(value: Field, low: float, high: float) -> Field:
    """Limit a field to [low, high]."""
    return np.minimum(np.maximum(value, low), high)


def smooth(low: float, high: float, value: Field) -> Field:
    """Return the cubic step that rises from 0 at ``low`` to 1 at ``high``."""
    t = clip((value - low) * (1.0 / (high - low)), 0.0, 1.0)
    return t * t * (3.0 - 2.0 * t)


def cos_turns(turns: Field | float) -> Field | float:
    """Return cos(2 pi turns), error below 1e-8 before rounding to float32, from a polynomial.

    The fold |frac - 1/2| - 1/4 maps the period to a quarter wave of the odd function sin.
    """
    if isinstance(turns, float):
        fold = abs(turns - math.floor(turns) - 0.5) - 0.25
    else:
        fold = np.abs(turns - np.floor(turns) - 0.5) - 0.25
    s = fold * fold
    return fold * (6.28318516 + s * (-41.34165507 + s * (81.60100639 + s * (-76.54983731 + s * 39.53713676))))


def direction(turns: float) -> tuple[float, float]:
    """Return the unit vector (cos, sin) at an angle given in turns."""
    return cos_turns(turns), cos_turns(turns - 0.25)


def hash_cells(i: np.ndarray, j: np.ndarray, seed: int) -> np.ndarray:
    """Return 32 random bits for each integer cell (i, j); int32 arrays that broadcast."""
    h = i.astype(np.int32).view(np.uint32) * np.uint32(0x85EBCA6B)
    h = h ^ (j.astype(np.int32).view(np.uint32) * np.uint32(0xC2B2AE35) + np.uint32(seed & 0xFFFFFFFF))
    h ^= h >> np.uint32(16)
    h *= np.uint32(0x7FEB352D)
    h ^= h >> np.uint32(15)
    h *= np.uint32(0x846CA68B)
    h ^= h >> np.uint32(16)
    return h


def _signed(bits: np.ndarray) -> Field:
    """Map 32 random bits to float32 in [-1, 1)."""
    return (bits >> np.uint32(8)).astype(np.float32) * 2.0**-23 - 1.0


def per_index(index: Field, seed: int) -> Field:
    """Return a random number in [-1, 1) for each whole number in ``index``."""
    whole = index.astype(np.int32)
    return _signed(hash_cells(whole, np.zeros_like(whole), seed))


def noise(x: Field, y: Field, seed: int) -> Field:
    """Return value noise in [-1, 1) with one random value per unit cell, smoothly joined."""
    fx, fy = np.floor(x), np.floor(y)
    tx, ty = x - fx, y - fy
    tx, ty = tx * tx * (3.0 - 2.0 * tx), ty * ty * (3.0 - 2.0 * ty)
    table, corner = _lattice(fx, fy, seed)
    width = table.shape[1]
    table = table.ravel()
    a, b = table[corner], table[corner + 1]
    c, d = table[corner + width], table[corner + (width + 1)]
    top = a + (b - a) * tx
    return top + ((c + (d - c) * tx) - top) * ty


def _lattice(fx: Field, fy: Field, seed: int) -> tuple[Field, np.ndarray]:
    """Return the random values of all cells in reach, and each pixel's flat index into them."""
    left, top = int(fx.min()), int(fy.min())
    columns = np.arange(left, int(fx.max()) + 2, dtype=np.int32)[None, :]
    rows = np.arange(top, int(fy.max()) + 2, dtype=np.int32)[:, None]
    corner = (fy - float(top)).astype(np.intp) * columns.size + (fx - float(left)).astype(np.intp)
    return _signed(hash_cells(columns, rows, seed)), corner


def fractal(x: Field, y: Field, seed: int, octaves: int = 4, gain: float = 0.5) -> Field:
    """Return a sum of ``octaves`` noises, each twice as fine, within [-1, 1]."""
    total, weight, scale = noise(x, y, seed), 1.0, 1.0
    norm = 1.0
    for octave in range(1, octaves):
        # An offset per octave keeps the lattices of all octaves from meeting at the origin.
        scale, weight = scale * 2.0, weight * gain
        total = total + weight * noise(x * scale + 17.3 * octave, y * scale - 9.7 * octave, seed + octave)
        norm += weight
    return total * (1.0 / norm)
