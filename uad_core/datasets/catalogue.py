"""The benchmarks as data: what each shows, how many images each category has, and how it is recognised.

Counts are the published ones: the MVTec AD, VisA, BTAD and MPDD papers, the README files of the
magnetic tile, PCB-Bank and ELPV data, and the label files of the one-class sets; where
nobody publishes a split, those of the rule that divides the set here.
Titles, licences, pages and addresses are in `sources`. Adding a benchmark means an entry
there, an entry here and a reader beside them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from uad_core.datasets import sources

__all__ = ["CATALOGUE", "Counts", "DatasetInfo"]


@dataclass(frozen=True)
class Counts:
    """How many images a category has: for training, for testing, and how many of the latter are anomalous."""

    train: int
    test: int
    anomalous: int


@dataclass(frozen=True)
class DatasetInfo:
    """One benchmark: facts for `uad list`, for the data cards and for the checks after unpacking.

    Attributes:
        citation: key in the book's bibliography; None for what is drawn here.
        how: how to get the data, as the end of an error message; may contain {category}.
        protocol: "inspection", "one_class", or "textures" (no defects, only a source of textures).
        aliases: names under which other people's archives unpack.
        marker: what the folder must contain to be this set; empty: the folders of its categories.
        present: the categories found under the root that was asked about.
    """

    name: str
    title: str
    summary: str
    categories: tuple[str, ...]
    licence: str
    homepage: str
    citation: str | None
    how: str
    protocol: str = "inspection"
    has_masks: bool = True
    counts: dict[str, Counts] = field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    marker: tuple[str, ...] = ()
    present: tuple[str, ...] = ()

    def instruction(self, category: str = "NAME") -> str:
        """Return how to get a category, a clause such as "run `uad data visa`"."""
        return self.how.format(category=category)


def _counts(table: str) -> dict[str, Counts]:
    rows = (line.split() for line in table.strip().splitlines())
    return {name: Counts(int(train), int(test), int(anomalous)) for name, train, test, anomalous in rows}


#                 train  test  of these anomalous
MVTEC_AD = _counts("""
    bottle        209    83    63
    cable         224   150    92
    capsule       219   132   109
    carpet        280   117    89
    grid          264    78    57
    hazelnut      391   110    70
    leather       245   124    92
    metal_nut     220   115    93
    pill          267   167   141
    screw         320   160   119
    tile          230   117    84
    toothbrush     60    42    30
    transistor    213   100    40
    wood          247    79    60
    zipper        240   151   119
""")
VISA = _counts("""
    candle        900   200   100
    capsules      542   160   100
    cashew        450   150   100
    chewinggum    453   150   100
    fryum         450   150   100
    macaroni1     900   200   100
    macaroni2     900   200   100
    pcb1          904   200   100
    pcb2          901   200   100
    pcb3          905   201   100
    pcb4          904   201   100
    pipe_fryum    450   150   100
""")
BTAD = _counts("""
    01            400    70    49
    02            399   230   200
    03           1000   441    41
""")
MPDD = _counts("""
    bracket_black 289    79    47
    bracket_brown 185    77    51
    bracket_white 110    60    30
    connector     128    44    14
    metal_plate    54    97    71
    tubes         122   101    69
""")
MTD = _counts("""
    mtd           762   582   392
""")
PCB_BANK = _counts("""
    pcb1          904   200   100
    pcb2          901   200   100
    pcb3          905   201   100
    pcb4          904   201   100
    pcb5          200   738   493
    pcb6          200   730   425
    pcb7          200   265    79
""")
MNIST = _counts("""
    0            5923 10000  9020
    1            6742 10000  8865
    2            5958 10000  8968
    3            6131 10000  8990
    4            5842 10000  9018
    5            5421 10000  9108
    6            5918 10000  9042
    7            6265 10000  8972
    8            5851 10000  9026
    9            5949 10000  8991
""")
DIGITS = tuple("0123456789")
FASHION_MNIST = {digit: Counts(6000, 10000, 9000) for digit in DIGITS}
CIFAR10 = {digit: Counts(5000, 10000, 9000) for digit in DIGITS}
ELPV = _counts("""
    mono          470   604   486
    poly          736   814   630
""")


def _published(name: str, **facts) -> DatasetInfo:
    """Return the entry of a benchmark whose title, terms and page are known to `sources`."""
    known = sources.find(name)
    how = f"run `uad data {name}`" + ", which says what to download by hand" * bool(known.by_hand)
    about = {"title": known.title, "licence": known.licence, "homepage": known.page, "how": how}
    return DatasetInfo(name=name, **(about | facts))


CATALOGUE: tuple[DatasetInfo, ...] = (
    DatasetInfo(
        name="procedural",
        title="Procedural",
        summary="Six drawn categories, three textures and three objects, with exact masks; nothing to download.",
        categories=(),  # asked of the module that draws them
        licence="Apache-2.0",
        homepage="",
        citation=None,
        how="it is drawn when it is needed",
    ),
    _published(
        "mvtec_ad",
        summary="Five textures and ten objects from inspection, 73 kinds of defects, each outlined.",
        categories=tuple(MVTEC_AD),
        counts=MVTEC_AD,
        citation="bergmann2021mvtec",
        how="run `uad data mvtec_ad --category {category}`",
        aliases=("mvtec_anomaly_detection", "mvtec", "MVTec"),
    ),
    _published(
        "visa",
        summary="Twelve products: circuit boards, several things in one view, and single things.",
        categories=tuple(VISA),
        counts=VISA,
        citation="zou2022spot",
        aliases=("VisA", "VisA_20220922", "VisA_pytorch/1cls"),
    ),
    _published(
        "btad",
        summary="Three industrial products with defects of their body and surface.",
        categories=tuple(BTAD),
        counts=BTAD,
        citation="mishra2021vtadl",
        aliases=("BTech_Dataset_transformed", "BTAD"),
    ),
    _published(
        "mpdd",
        summary="Six kinds of painted metal parts, several in one view, in changing poses.",
        categories=tuple(MPDD),
        counts=MPDD,
        citation="jezek2021mpdd",
        aliases=("MPDD",),
    ),
    _published(
        "mtd",
        summary="Grey views of magnetic tiles of many sizes: blowholes, breaks, cracks, frays, uneven grinding.",
        categories=tuple(MTD),
        counts=MTD,
        citation="huang2020mtd",
        aliases=("Magnetic-tile-defect-datasets.-master",),
        marker=("MT_Free",),
    ),
    _published(
        "pcb_bank",
        summary="Seven circuit boards gathered from VisA, Real-IAD and VISION.",
        categories=tuple(PCB_BANK),
        counts=PCB_BANK,
        citation="yao2024glad",
        aliases=("PCB-Bank", "PCB_Bank", "PCB-Bank-1cls/1cls"),
    ),
    _published(
        "mnist",
        summary="Handwritten digits, 28x28, grey; one digit is normal, the others are anomalous.",
        categories=DIGITS,
        counts=MNIST,
        protocol="one_class",
        has_masks=False,
        citation="lecun1998gradient",
        marker=("MNIST",),
    ),
    _published(
        "fashion_mnist",
        summary="Articles of clothing, 28x28, grey; one kind is normal, the others are anomalous.",
        categories=DIGITS,
        counts=FASHION_MNIST,
        protocol="one_class",
        has_masks=False,
        citation="xiao2017fashion",
        marker=("FashionMNIST",),
    ),
    _published(
        "cifar10",
        summary="Small photographs, 32x32; one kind of thing is normal, the others are anomalous.",
        categories=DIGITS,
        counts=CIFAR10,
        protocol="one_class",
        has_masks=False,
        citation="krizhevsky2009learning",
        marker=("cifar-10-batches-py",),
    ),
    _published(
        "dtd",
        summary="5640 photographs of 47 kinds of textures, from which synthetic defects take their look.",
        categories=("textures",),
        protocol="textures",
        has_masks=False,
        citation="cimpoi2014describing",
        aliases=("dtd",),
        marker=("images",),
    ),
    DatasetInfo(
        name="elpv",
        title="ELPV solar cells",
        summary="Electroluminescence images of solar cells, each with a probability of being defective, no masks.",
        categories=tuple(ELPV),
        counts=ELPV,
        has_masks=False,
        licence="CC BY-NC-SA 4.0",
        homepage="https://github.com/zae-bayern/elpv-dataset",
        citation="buerhop2018elpv",
        how="run `pip install elpv-dataset`",
        marker=("labels.csv",),
    ),
)
