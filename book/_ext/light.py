"""Light pages: pictures of the built book as WebP, without loss where that is smaller than with a little."""

from __future__ import annotations

import re
from io import BytesIO
from pathlib import Path

from pages import rewrite
from PIL import Image
from sphinx.application import Sphinx

__all__ = ["lighten"]

QUALITY = 88  # of 100: text in figures stays crisp, and photographs take a sixth of what they take as PNG


def lighten(app: Sphinx, error: Exception | None) -> None:
    """Exchange the PNG pictures of all pages for WebP ones."""
    if error is not None or app.builder.format != "html":
        return
    out = Path(app.outdir)
    for picture in (out / "_images").glob("*.png"):
        light = picture.with_suffix(".webp")
        if not light.is_file():  # the name of a picture is the hash of its content
            light.write_bytes(_webp(picture))
        picture.unlink()
    names = {path.stem for path in (out / "_images").glob("*.webp")}
    name = r"(_images/([\w.-]+))\.png"
    rewrite(out, lambda text: re.sub(name, lambda m: f"{m[1]}.webp" if m[2] in names else m[0], text))


def _webp(picture: Path) -> bytes:
    """The smaller of both forms."""
    image = Image.open(picture)
    image = image if image.mode in ("RGB", "RGBA") else image.convert("RGBA")
    forms = []
    for options in (dict(lossless=True, quality=50, method=3), dict(quality=QUALITY, method=4)):
        content = BytesIO()
        image.save(content, "WEBP", **options)
        forms.append(content.getvalue())
    return min(forms, key=len)
