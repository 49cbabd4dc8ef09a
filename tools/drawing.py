"""Make the detectors of the drawing page: files as `uad export --half` writes them, compressed, and good images.

    python tools/drawing.py     fit the methods where no finished run is there, and write book/_static/live/models

The detectors are those of the explorer (`tools/explorer.py`), of one product. `models.js` says what the page needs of
each: its residual maps by name, its threshold and what the threshold rests on.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from explorer import RUNS, SEED, fitted, write
from PIL import Image

from uad_core.datasets import procedural
from uad_core.export import export, session
from uad_core.methods import METHODS

MODELS = Path(__file__).resolve().parents[1] / "book" / "_static" / "live" / "models"
PRODUCT = "jar"
DRAWN = ("hfr", "sgfr")  # which are exported, and look at an image in well under a second
GOOD = range(100, 104)  # scenes that no detector has learned from

__all__ = ["main"]


def model_file(method: str, folder: Path) -> dict[str, Any]:
    """Export a method's detector, and return what its metadata say to a page."""
    fitted(method, PRODUCT, RUNS)
    with TemporaryDirectory() as work:
        file = export(RUNS / method / PRODUCT, Path(work) / "model.onnx", "half").file
        (folder / f"{method}.onnx.gz").write_bytes(gzip.compress(file.read_bytes(), 9, mtime=0))
        about = session(file, 1).get_modelmeta().custom_metadata_map
    told = ("names", "threshold", "false_alarm_rate", "held_out", "image_size", "map_size")
    found = {key: json.loads(about[key]) for key in told}
    chapter = METHODS[method].paper.chapter
    return {"method": method, "chapter": chapter, "code_version": about["code_version"], **found}


def good_images() -> list[str]:
    """Normal images of the product, as WebP without loss, base64."""
    found = procedural.load(PRODUCT, n_train=GOOD.stop, seed=SEED).train
    texts = []
    for i in GOOD:
        buffer = io.BytesIO()
        Image.fromarray(found.source.image(i)).save(buffer, "WEBP", lossless=True, method=6)
        texts.append(base64.b64encode(buffer.getvalue()).decode())
    return texts


def main(folder: Path = MODELS) -> None:
    """Write everything into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"product": PRODUCT, "images": good_images(), "models": [model_file(name, folder) for name in DRAWN]}
    write("models", content, folder)
    for path in sorted(folder.iterdir()):
        print(f"{path.name}: {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    sys.exit(main())
