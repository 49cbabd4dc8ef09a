"""What is inspected: benchmarks by name, any folder in MVTec layout, and built-in drawn images."""

from __future__ import annotations

from uad_core.datasets.base import ArraySource, Category, DataWarning, ImageSet, Source

__all__ = ["ArraySource", "Category", "DataWarning", "ImageSet", "Source"]
