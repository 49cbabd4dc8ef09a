"""Carry the repository's address from `_config.yml` to every file that shows it.

`_config.yml` is the one place where the address is edited. `CITATION.cff` remembers the address that the other
files still carry; this replaces it everywhere, together with the shorter `owner/name` in Colab's addresses.
"""

from __future__ import annotations

import re
from pathlib import Path

from uad_core.files import replacing

ROOT = Path(__file__).resolve().parents[1]
CARRIERS = ("README.md", "CITATION.cff", "pyproject.toml", "book/*.md", "notebooks/*.py", "notebooks/*.ipynb")

__all__ = ["ROOT", "address", "carriers", "cited_address", "main"]


def address(root: Path = ROOT) -> str:
    """The address that `_config.yml` gives, without a slash at its end."""
    return re.search(r"^repository:\n\s+url:\s*(\S+?)/?$", (root / "_config.yml").read_text("utf-8"), re.M).group(1)


def cited_address(root: Path = ROOT) -> str:
    """The address that `CITATION.cff` gives."""
    return re.search(r'^repository-code:\s*"(\S+?)"$', (root / "CITATION.cff").read_text("utf-8"), re.M).group(1)


def carriers(root: Path = ROOT) -> list[Path]:
    """Every file that may show the address."""
    return sorted(path for pattern in CARRIERS for path in root.glob(pattern))


def main(root: Path = ROOT) -> list[Path]:
    """Replace the old address and its `github/owner/name` form; return the files that changed."""
    old, new = cited_address(root), address(root)
    pairs = [(old, new)] + [(f"/github/{_slug(old)}", f"/github/{_slug(new)}")]
    changed = []
    for path in carriers(root):
        before = path.read_text("utf-8")
        after = before
        for left, right in pairs:
            after = re.sub(re.escape(left) + r"(?![\w-])", lambda _, right=right: right, after)
        if after != before:
            with replacing(path) as part:
                part.write_text(after, "utf-8")
            changed.append(path)
    return changed


def _slug(url: str) -> str:
    return "/".join(url.split("/")[-2:])


if __name__ == "__main__":
    for path in main():
        print("address renewed in", path.relative_to(ROOT))
