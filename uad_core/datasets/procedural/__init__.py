"""The built-in benchmark: six products drawn by code, with exact masks and nothing to download.

`draw` gives one picture, `load` a category as the rest of the package wants it, `write` a folder
in MVTec layout for other tools. The same seed gives the same pixels on every machine.
"""

from uad_core.datasets.procedural.scenes import CATEGORIES, DEFECTS, draw
from uad_core.datasets.procedural.sets import load, write

__all__ = ["CATEGORIES", "DEFECTS", "draw", "load", "write"]
