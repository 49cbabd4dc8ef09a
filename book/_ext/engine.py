"""onnxruntime-web, which runs exported detectors in the reader's browser, beside the drawing page."""

from __future__ import annotations

import gzip
from pathlib import Path

import npm
from sphinx.application import Sphinx
from sphinx.util import logging

__all__ = ["bring_engine"]

PACKAGE = "onnxruntime-web@1.17.3"
FILES = {
    "dist/ort.wasm.min.js": "654435ead2d823e56d5893ec53be49f6ddb7e827096561aae63501071470cf23",
    "dist/ort-wasm-simd.wasm": "6783fcd6647ce1b426a527c31412a9c40894552faa609e9c931b3239a3438071",
}


def bring_engine(app: Sphinx) -> None:
    """Fetch the engine before the static files are copied; without it the book is built, and the page says so.

    The program is 10.6 MB and a quarter of that compressed, so it is kept and served compressed.
    """
    folder = Path(app.srcdir, "book", "_static", "live", "engine")
    packed = folder / "ort-wasm-simd.wasm.gz"
    if packed.is_file():
        return
    try:
        for path in npm.fetch(PACKAGE, FILES, folder):
            if path.suffix == ".wasm":
                packed.write_bytes(gzip.compress(path.read_bytes(), 9, mtime=0))
                path.unlink()
    except npm.Missing as missing:
        logging.getLogger(__name__).info("the drawing page will not run: %s", missing)
