"""Put the tables that follow from the package between their marks in README.md: the methods, and the results."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

from uad_core import tables
from uad_core.files import replacing
from uad_core.methods import METHODS

ROOT = Path(__file__).resolve().parents[1]

__all__ = ["main", "methods_table", "renewed"]


def renewed(readme: str, ledger: Path = ROOT / "results") -> str:
    """`readme` with the methods as their classes describe them, and the results as the ledger has them now."""
    results = tables.table("compare", ledger, "md").split("\n\n", 1)[1]  # the title is README's own
    for name, body in (("methods", methods_table()), ("results", results)):
        place = re.compile(rf"(?<=<!-- {name}:start -->\n).*?(?=<!-- {name}:end -->)", re.S)
        readme = place.sub(lambda _, body=body: f"\n{body}\n\n", readme)
    return readme


def methods_table() -> str:
    """One row for each method of the book, as its class describes it, and a line about those to come."""
    slug = "/".join(runpy.run_path(str(ROOT / "tools" / "address.py"))["address"]().split("/")[-2:])
    rows = [("Method", "Paper", "It reconstructs", "from", "with", "Chapter", ""), ("---",) * 7]
    for name, kind in METHODS.items():
        if kind.paper:
            p, file = kind.paper, f"notebooks/{kind.paper.chapter}.ipynb"
            badge = f"[Colab](https://colab.research.google.com/github/{slug}/blob/main/{file})"
            paper = f"[arXiv:{p.arxiv}](https://arxiv.org/abs/{p.arxiv})"
            rows.append((name.upper(), paper, p.reconstructs, p.source, p.means, f"[chapter]({file})", badge))
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def main(path: Path = ROOT / "README.md") -> None:
    """Renew the file in place."""
    text = renewed(path.read_text("utf-8"))
    with replacing(path) as part:
        part.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
