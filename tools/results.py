"""Put the table of results, computed from the ledger, between its two marks in README.md."""

from __future__ import annotations

import os
import re
from pathlib import Path

from uad_core import tables

ROOT = Path(__file__).resolve().parents[1]
PLACE = re.compile(r"(?<=<!-- results:start -->\n).*?(?=<!-- results:end -->)", re.S)

__all__ = ["main", "renewed"]


def renewed(readme: str, ledger: Path = ROOT / "results") -> str:
    """`readme` with the table as the ledger has it now."""
    table = tables.table("compare", ledger, "md")
    body = table.split("\n\n", 1)[1]  # the title is README's own
    return PLACE.sub(lambda _: f"\n{body}\n\n", readme)


def main(path: Path = ROOT / "README.md") -> None:
    """Renew the file in place."""
    part = path.with_name(path.name + ".part")
    part.write_text(renewed(path.read_text("utf-8")), "utf-8")
    os.replace(part, path)


if __name__ == "__main__":
    main()
