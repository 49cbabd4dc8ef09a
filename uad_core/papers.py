"""Published numbers, each with what vouches for it: all that could be read of the five papers and of their neighbours.

The papers' full texts were not at hand, only their abstracts, captions, public code and what others report of them.
A number that is not here was not found, and tables say so; none is estimated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from uad_core.methods import METHODS

__all__ = ["ABLATIONS", "MARKS", "NOT_PUBLISHED", "PAPERS", "PUBLISHED", "Published", "peers",
           "published"]

MARKS = {
    "F": "stated by the authors, or read in their public code",
    "F2": "somebody else's account of the paper or of its code",
    "N": "read in public code of the field",
    "M": "general knowledge, not checked",
}
"""What the letter behind a published number means."""

NOT_PUBLISHED = "not published in what we could read"

PAPERS = {name: f"arXiv {kind.paper.arxiv}" for name, kind in METHODS.items() if kind.paper}
"""The papers of the book, by the names of their methods: each class says which is its own."""


@dataclass(frozen=True)
class Published:
    """One set of published numbers.

    Attributes:
        method: a method of this book, or the name of another.
        dataset: as `uad list` names it.
        category: "mean" over all categories, or one of them.
        metrics: name as in `ledger.METRICS` -> fraction.
        mark: a key of `MARKS`.
        source: where it can be read.
        setting: what distinguishes it, such as one model for all categories.
        own: whether it is the paper's own claim, not somebody's run of its code.
    """

    method: str
    dataset: str
    category: str
    metrics: Mapping[str, float]
    mark: str
    source: str
    setting: str = ""
    own: bool = False


def _percent(**values: float) -> Mapping[str, float]:
    """Metrics as printed, in percent, as fractions without the noise of the division."""
    return MappingProxyType({name: round(value / 100, 6) for name, value in values.items()})


def _image_pixel(image: float, pixel: float, aupro: float | None = None) -> Mapping[str, float]:
    """The metrics that most papers print: image AUROC, pixel AUROC and sometimes AUPRO, in percent."""
    extra = {} if aupro is None else {"aupro": aupro}
    return _percent(image_auroc=image, pixel_auroc=pixel, **extra)


def _seven(*values: float) -> Mapping[str, float]:
    """All seven metrics in percent, in the order of GLAD's tables: image AUROC, AP, F1; pixel AUROC, AP, F1; PRO."""
    names = ("image_auroc", "image_ap", "image_f1max", "pixel_auroc", "pixel_ap", "pixel_f1max", "aupro")
    return _percent(**dict(zip(names, values, strict=True)))


_S7 = "GLAD, Table S7, as a reader reports it"
_ISSUE_9 = "GLAD's repository, issue #9: a user's run of the authors' weights"
_RERUN = "a third party's training with GLAD's official code, 20k steps, 2026"
_PADIM = "README of xiahaifeng1995/PaDiM, a re-implementation"
_ALL, _EACH = "one model for all categories", "one model per category"
_RD4AD = "general knowledge"

PUBLISHED: tuple[Published, ...] = (
    Published("hlgfa", "mvtec_ad", "mean", _image_pixel(97.5, 97.9), "F", "HLGFA, abstract", own=True),
    Published("sgfr", "mtd", "mean", _percent(pixel_ap=34.1), "F2", "SGFR, from a leaderboard page", own=True),
    Published("glad", "mvtec_ad", "mean", _image_pixel(99.3, 98.6), "F2",
              "GLAD, Table 6, as a reader reports it", _EACH, own=True),
    Published("glad", "mvtec_ad", "mean", _seven(97.5, 99.1, 96.6, 97.4, 60.8, 60.7, 93.0), "F2",
              _S7, f"{_ALL}, 256 px", own=True),
    Published("glad", "visa", "mean", _percent(image_auroc=99.2), "F2",
              "GLAD, from a third party's spreadsheet; low confidence", _EACH, own=True),
    Published("GLAD, authors' weights", "mvtec_ad", "mean", _seven(97.61, 99.14, 96.47, 97.29, 60.59, 61.02, 93.17),
              "F2", _ISSUE_9, _ALL),
    Published("GLAD, authors' weights", "mvtec_ad", "mean", _seven(98.74, 99.41, 97.53, 98.53, 69.76, 67.40, 94.88),
              "F2", _ISSUE_9, _EACH),
    Published("GLAD, authors' weights", "mvtec_ad", "carpet", _seven(97.55, 99.36, 97.7, 98.56, 74.13, 71.52, 93.39),
              "F2", _ISSUE_9, _EACH),
    Published("GLAD, authors' weights", "mvtec_ad", "grid", _seven(100, 100, 100, 98.89, 36.07, 33.96, 95.9),
              "F2", _ISSUE_9, _EACH),
    Published("GLAD, authors' weights", "mvtec_ad", "leather", _seven(99.97, 99.99, 99.46, 99.75, 67.9, 64.66, 98.65),
              "F2", _ISSUE_9, _EACH),
    Published("GLAD, trained again", "mvtec_ad", "mean", _seven(85.4, 91.6, 90.5, 91.9, 37.3, 41.2, 80.4),
              "F2", _RERUN, _ALL),
    Published("DiAD", "mvtec_ad", "mean", _seven(97.2, 99.0, 96.5, 96.8, 52.6, 55.5, 90.7), "F2", _S7, _ALL),
    Published("UniAD", "mvtec_ad", "mean", _image_pixel(96.7, 96.8), "F", "README of UniAD", f"{_ALL}, 8 x V100"),
    Published("UniAD", "mvtec_ad", "mean", _image_pixel(97.6, 97.0), "F", "README of UniAD", f"{_ALL}, 1 x 1080Ti"),
    Published("RLR, authors' code", "mvtec_ad", "wood", _image_pixel(96.05, 92.27), "F2",
              "RLR's repository, issue #1: a user's run", "30 epochs"),
    Published("RLR, authors' code", "mvtec_ad", "screw", _image_pixel(47.2, 87.1), "F2",
              "RLR's repository, issue #1: a user's run", "30 epochs"),
    Published("PatchCore", "mvtec_ad", "mean", _image_pixel(99.2, 98.1, 94.4), "N",
              "README of amazon-science/patchcore-inspection", "WRN50, 224 crop, 10 % bank"),
    Published("GTrans", "mvtec_ad", "mean", _image_pixel(99.0, 97.9), "F", "arXiv 2305.14880, abstract"),
    Published("RD4AD", "mvtec_ad", "mean", _image_pixel(98.5, 97.8, 93.9), "M", _RD4AD, "WRN50, 256 px"),
    Published("RD4AD", "mnist", "mean", _percent(image_auroc=99.3), "M", _RD4AD, "ResNet18"),
    Published("RD4AD", "fashion_mnist", "mean", _percent(image_auroc=95.0), "M", _RD4AD, "ResNet18"),
    Published("RD4AD", "cifar10", "mean", _percent(image_auroc=86.5), "M", _RD4AD, "ResNet18"),
    Published("PaDiM", "mvtec_ad", "mean", _image_pixel(90.5, 96.5), "N", _PADIM, "R18-Rd100"),
    Published("PaDiM", "mvtec_ad", "mean", _image_pixel(95.5, 97.3), "N", _PADIM, "WRN50-Rd550"),
    *(
        Published("PaDiM", "mvtec_ad", category, _image_pixel(image, pixel), "N", _PADIM, "WRN50-Rd550")
        for category, image, pixel in (
            ("carpet", 99.9, 99.0), ("grid", 95.7, 96.5), ("leather", 100, 98.9), ("tile", 97.4, 93.9),
            ("wood", 98.8, 94.1), ("bottle", 99.8, 98.2), ("cable", 92.2, 96.8), ("capsule", 91.5, 98.6),
            ("hazelnut", 93.3, 97.9), ("metal_nut", 99.2, 97.1), ("pill", 94.4, 96.1), ("screw", 84.4, 98.3),
            ("toothbrush", 97.2, 98.7), ("transistor", 97.8, 97.5), ("zipper", 90.9, 98.4),
        )
    ),
)

ABLATIONS: dict[str, tuple[Published, ...]] = {
    "glad": tuple(
        Published("glad", "mvtec_ad", "mean", _image_pixel(image, pixel), "F2", "GLAD, Table 6, as a reader reports it",
                  setting, own=True)
        for setting, image, pixel in (
            ("LDM baseline", 98.3, 98.0), ("ADS", 99.0, 98.5), ("ATP", 98.7, 98.5), ("ADS + ATP", 99.2, 98.3),
            ("ADS + ATP + SAFF", 99.3, 98.6),
        )
    )
}
"""Ablation tables of the papers; the pixel value of GLAD's ADS + ATP looks odd between its neighbours."""


def published(method: str, dataset: str) -> tuple[Published, ...]:
    """What the paper of `method` itself claims for `dataset`; empty where nothing could be read."""
    return tuple(p for p in PUBLISHED if p.own and (p.method, p.dataset) == (method, dataset))


def peers(dataset: str, category: str = "mean") -> tuple[Published, ...]:
    """What others report for `dataset`: other methods, and other people's runs of the papers' code."""
    return tuple(p for p in PUBLISHED if not p.own and (p.dataset, p.category) == (dataset, category))
