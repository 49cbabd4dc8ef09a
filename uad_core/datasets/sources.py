"""Where each benchmark comes from: addresses, hashes, sizes, counts, licences. Data, no code that fetches.

A benchmark is a few *pieces* under the data root: folders (`Tree`) or single files (`RawFile`) that are complete or are
to be brought. A piece with an `Archive` can be downloaded; a piece without one comes from a browser, and
`Benchmark.by_hand` says how. Counts are the published numbers of files; a folder that differs is never taken for whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from uad_core.errors import UserError

__all__ = ["BENCHMARKS", "Archive", "Benchmark", "RawFile", "Tree", "find"]

MB = 1_000_000


@dataclass(frozen=True)
class Archive:
    """One file of a publisher.

    Attributes:
        file: its name in the folder for downloads, and behind the address of a mirror.
        urls: addresses in the order they are tried; none if it can only be had by hand.
        digest: "sha256:..." or "md5:...", None where nobody has published one.
        about: its size in bytes, roughly, None where unknown.
        size: its size in bytes, exactly, where known.
    """

    file: str
    urls: tuple[str, ...]
    digest: str | None
    about: int | None = None
    size: int | None = None


@dataclass(frozen=True)
class Tree:
    """A folder with published counts.

    Attributes:
        folder: where it belongs under the data root.
        marker: a path inside it by which it is recognised in an archive.
        counts: glob pattern inside it -> number of files.
        archive: what it is unpacked from, None where it comes by hand only.
        rearranged: category inside it -> the counts that hold instead where a person has that category in MVTec layout.
    """

    folder: str
    marker: str
    counts: Mapping[str, int]
    archive: Archive | None = None
    rearranged: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The last part of the folder: the category, where each category is a tree of its own."""
        return self.folder.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class RawFile:
    """A file that is kept as it was published; its decompressed form, `plain_size` bytes, is as good."""

    folder: str
    archive: Archive
    plain_size: int


@dataclass(frozen=True)
class Benchmark:
    """A published set of images.

    Attributes:
        name: as on the command line, and the folder under the data root.
        page: where a person reads about it and downloads it.
        licence: its terms, and who says so where sources disagree.
        categories: names that `--category` takes; empty where the data are not filed by category.
        whole: an archive that holds every piece, accepted when a person puts it there.
        by_hand: what a person has to do in a browser, where no address can be fetched.
    """

    name: str
    title: str
    page: str
    licence: str
    pieces: tuple[Tree | RawFile, ...]
    categories: tuple[str, ...] = ()
    whole: Archive | None = None
    by_hand: str = ""

    def pieces_of(self, category: str | None) -> tuple[Tree | RawFile, ...]:
        """Return the pieces that `category` needs; all of them for None or where they are not split by category.

        Raises:
            UserError: if there is no such category.
        """
        if category is None or not self.categories:
            return self.pieces
        if category not in self.categories:
            known = ", ".join(self.categories)
            raise UserError(f"--category {category}: {self.name} has no such category; choose one of {known}")
        own = tuple(p for p in self.pieces if p.folder == f"{self.name}/{category}")
        return own or self.pieces


def find(name: str) -> Benchmark:
    """Return the benchmark of that name. Raises `UserError` with the known names."""
    if name not in BENCHMARKS:
        raise UserError(f"{name}: no benchmark of this name is known; choose one of {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name]


# Category: share and file number at mydrive.ch, size in MB, published (train, test) counts, sha256 of the archive.
_MVTEC = {
    "bottle": ("150452/132a93367fb17cdf968dfb5c4013f6e7", "420937370-1629958698", 148, 209, 83,
               "726512129cb3b1f47d4f6cd7c7fc9170db7fc209132249c788fec06029cb5dc3"),
    "cable": ("150453/10f960e07fec2838b2cd512586633a32", "420937413-1629958794", 481, 224, 150,
              "1e3d59b80a6a8da5adf32fb0cf311c7b964cde146d6920aef9ca66380999a9cd"),
    "capsule": ("150454/e0ce6dd74eb150f46c0d98131b3703f2", "420937454-1629958872", 385, 219, 132,
                "f6a41cb11f1589d552888fe9c43a1adcbcae15b70073e19093322f836d00a2b6"),
    "carpet": ("150455/eac7fbce84d93a5094e13f391170eca4", "420937484-1629959013", 705, 280, 117,
               "d9dd5064515a20bd75cf24d223c570579141abd72388beef892780b74dbaa85d"),
    "grid": ("150456/bb0b2e3dc804ccb8b4485e01f8e4493b", "420937487-1629959044", 153, 264, 78,
             "d94a9a651cbfaee22c94d06cf8fa8204a590c872362de0489eb34f1645328de8"),
    "hazelnut": ("150457/51d49f65e84bdc100ff8035d7dd783ea", "420937545-1629959162", 588, 391, 110,
                 "a7f4e7d65a60a235def7236a46fcb854d62e6c6917c16b1ec9cb4ff089d3b0da"),
    "leather": ("150458/923030ce14e10a7d147e95d0f8885f6b", "420937607-1629959262", 500, 245, 124,
                "704ffa48b1dc2fc44824aa50442d9febc399dd92a5d6fd8156f8aa0373d15f24"),
    "metal_nut": ("150459/c68856a21dca589b0f8ff6d4ee0f18f4", "420937637-1629959294", 157, 220, 115,
                  "86e3c8e163ceb19146ad3ddc408e85cc34ae02e0da430e07a73bac6bbb48532a"),
    "pill": ("150460/d4f1c04da67034ccc8d8b5fa3e73f244", "420938129-1629960351", 262, 267, 167,
             "ac6ce9ec4ec2a5d67c906d82147bd7431980cf00b78f25d63201a5f17e3a2038"),
    "screw": ("150461/242f454cc6385e5693c4fd4b94567d1e", "420938130-1629960389", 186, 320, 160,
              "0a27a365a21e472d19b9fb48cb8e4002b49fabe083bff7f4c16fa57d78154f10"),
    "tile": ("150462/5479f0fdc97bc6fa16eab0cb0cf0109f", "420938133-1629960456", 335, 230, 117,
             "392228153b96d0db9f179d3f7c2d63e131e907154883b57309fcbf798643173c"),
    "toothbrush": ("150463/895a1a5fb84b958f07417784b060434b", "420938134-1629960477", 104, 60, 42,
                   "fe72a34b4b0d074f84e844be7ef8c4f64f7f02f20e25f19c9e3b4a231c8bea77"),
    "transistor": ("150464/99b8ea0332438d64fcc2475ee73f9c29", "420938166-1629960554", 384, 213, 100,
                   "146b2166c35a1d0cf37ded091366ac01a50338b4ac704632f1239890eaca4449"),
    "wood": ("150465/d5b4115b720cdb54d217e75636e6e374", "420938383-1629960649", 474, 247, 79,
             "3757297ac2a266072eb4f25a97f805f5b37fd583492b20bd709f310736c1ea47"),
    "zipper": ("150466/bd155b557520edaf692d9bfdb915c24a", "420938385-1629960680", 152, 240, 151,
               "7ab46e0e195da145db30052baea3d3a5d14c5f0e710137c968e0423f02cb942d"),
}  # fmt: skip

# Category: train/good, test/good and defective test images [Jezek et al. 2021].
_MPDD = {
    "bracket_black": (289, 32, 47), "bracket_brown": (185, 26, 51), "bracket_white": (110, 30, 30),
    "connector": (128, 30, 14), "metal_plate": (54, 26, 71), "tubes": (122, 32, 69),
}  # fmt: skip

# Object: normal images to learn from, normal and defective ones to judge [READMEs and one-class tables of
# amazon-science/spot-diff and SSRheart/PCB-Bank].
_VISA_PCB = {"pcb1": (904, 100, 100), "pcb2": (901, 100, 100), "pcb3": (905, 101, 100), "pcb4": (904, 101, 100)}
_VISA = {
    "candle": (900, 100, 100), "capsules": (542, 60, 100), "cashew": (450, 50, 100), "chewinggum": (453, 50, 100),
    "fryum": (450, 50, 100), "macaroni1": (900, 100, 100), "macaroni2": (900, 100, 100), **_VISA_PCB,
    "pipe_fryum": (450, 50, 100),
}  # fmt: skip
_PCB_BANK = {**_VISA_PCB, "pcb5": (200, 245, 493), "pcb6": (200, 305, 425), "pcb7": (200, 186, 79)}

_MTD = {"Free": 952, "Blowhole": 115, "Break": 85, "Crack": 57, "Fray": 32, "Uneven": 103}

# File: md5 for MNIST, md5 for Fashion-MNIST, bytes when decompressed (a header of 16 or 8, then one byte per value).
_IDX = {
    "train-images-idx3-ubyte.gz": (
        "f68b3c2dcbeaaa9fbdd348bbdeb94873", "8d4fb7e6c68d591d4c3dfef9ec88bf0d", 16 + 60_000 * 784),
    "train-labels-idx1-ubyte.gz": (
        "d53e105ee54ea40749a09fcbcd1e9432", "25c81989df183df01b3e8a0aad5dffbe", 8 + 60_000),
    "t10k-images-idx3-ubyte.gz": (
        "9fb629c4189551a2d022fa330f9573f3", "bef4ecab320f06d8554ea6380940ec79", 16 + 10_000 * 784),
    "t10k-labels-idx1-ubyte.gz": (
        "ec29112dd5afa0611ce80d1b7f02629c", "bb300cfdad3c16e7a12a480ee83cd310", 8 + 10_000),
}  # fmt: skip


def _mvtec_tree(category: str) -> Tree:
    share, number, megabytes, train, test, sha256 = _MVTEC[category]
    file = f"{category}.tar.xz"
    url = f"https://www.mydrive.ch/shares/{share}/download/{number}/{file}"
    archive = Archive(file, (url,), f"sha256:{sha256}", megabytes * MB)
    return Tree(f"mvtec_ad/{category}", "train/good", {"train/good/*": train, "test/*/*": test}, archive)


def _mpdd_tree(category: str) -> Tree:
    return Tree(f"mpdd/{category}", "train/good", _counts_by_split(*_MPDD[category]))


def _counts_by_split(train: int, good: int, defective: int, top: str = "") -> dict[str, int]:
    return {f"{top}train/good/*": train, f"{top}test/good/*": good, f"{top}test/*/*": good + defective}


def _objects_tree(
    folder: str, table: Mapping[str, tuple[int, int, int]], others: Mapping[str, int], archive: Archive | None = None
) -> Tree:
    """Return VisA or what is laid out like it: every object in one tree, normal and defective images apart."""
    counts = dict(others)
    for name, (train, good, defective) in table.items():
        counts[f"{name}/Data/Images/Normal/*"] = train + good
        counts[f"{name}/Data/Images/Anomaly/*"] = defective
    rearranged = {name: _counts_by_split(*row, top=f"{name}/") for name, row in table.items()}
    return Tree(folder, f"{next(iter(table))}/Data/Images", counts, archive, rearranged)


def _idx_files(folder: str, bases: tuple[str, ...], column: int) -> tuple[RawFile, ...]:
    return tuple(
        RawFile(folder, Archive(file, tuple(base + file for base in bases), f"md5:{row[column]}"), row[2])
        for file, row in _IDX.items()
    )


_ALL = (
    Benchmark(
        "mvtec_ad", "MVTec AD", "https://www.mvtec.com/company/research/datasets/mvtec-ad/downloads",
        "CC BY-NC-SA 4.0", tuple(map(_mvtec_tree, _MVTEC)), tuple(_MVTEC),
        whole=Archive(
            "mvtec_anomaly_detection.tar.xz", (),
            "sha256:cf4313b13603bec67abb49ca959488f7eedce2a9f7795ec54446c649ac98cd3d", size=5_264_982_680),
    ),
    Benchmark(
        "visa", "VisA", "https://github.com/amazon-science/spot-diff", "CC BY 4.0 (README of the publisher)",
        (_objects_tree("visa", _VISA, {"split_csv/1cls.csv": 1}, Archive(
            "VisA_20220922.tar", ("https://amazon-visual-anomaly.s3.us-west-2.amazonaws.com/VisA_20220922.tar",),
            "sha256:2eb8690c803ab37de0324772964100169ec8ba1fa3f7e94291c9ca673f40f362", 1900 * MB)),),
        tuple(_VISA),
    ),
    Benchmark(
        "btad", "BTAD", "https://github.com/pankajmishra000/VT-ADL", "CC BY-SA (README of the publisher)",
        (Tree("btad", "01/train/ok", {"*/train/ok/*": 1799, "*/test/*/*": 741}, Archive(
            "btad.zip", ("https://avires.dimi.uniud.it/papers/btad/btad.zip",),
            "sha256:461c9387e515bfed41ecaae07c50cf6b10def647b36c9e31d239ab2736b10d2a")),),
        ("01", "02", "03"),
    ),
    Benchmark(
        "mpdd", "MPDD", "https://github.com/stepanje/MPDD", "none stated by the publisher",
        tuple(map(_mpdd_tree, _MPDD)), tuple(_MPDD),
        by_hand="follow the download link in its README with a browser",
    ),
    Benchmark(
        "mtd", "Magnetic tile defects (MTD)", "https://github.com/abin24/Magnetic-tile-defect-datasets.",
        "free to use with a citation (README of the publisher)",
        (Tree("mtd", "MT_Free/Imgs", {f"MT_{name}/Imgs/*.jpg": n for name, n in _MTD.items()}, Archive(
            "Magnetic-tile-defect-datasets.-master.zip",
            ("https://github.com/abin24/Magnetic-tile-defect-datasets./archive/refs/heads/master.zip",), None)),),
    ),
    Benchmark(
        "pcb_bank", "PCB-Bank", "https://github.com/SSRheart/PCB-Bank",
        "CC BY 4.0 (README of the publisher; parts come from VisA, Real-IAD and VISION)",
        (_objects_tree("pcb_bank", _PCB_BANK, {}),), tuple(_PCB_BANK),
        by_hand="follow its README (a Baidu link with a code, one part on request by e-mail)",
    ),
    Benchmark(
        "mnist", "MNIST", "http://yann.lecun.com/exdb/mnist/", "CC BY-SA 3.0",
        _idx_files("mnist/MNIST/raw",
                   ("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/"), 0),
    ),
    Benchmark(
        "fashion_mnist", "Fashion-MNIST", "https://github.com/zalandoresearch/fashion-mnist", "MIT",
        _idx_files("fashion_mnist/FashionMNIST/raw",
                   ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",), 1),
    ),
    Benchmark(
        "cifar10", "CIFAR-10", "https://www.cs.toronto.edu/~kriz/cifar.html", "none stated by the publisher",
        (Tree("cifar10/cifar-10-batches-py", "data_batch_1", {"data_batch_*": 5, "test_batch": 1}, Archive(
            "cifar-10-python.tar.gz", ("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",),
            "md5:c58f30108f718f92721af3b95e74349a", 171 * MB)),),
    ),
    Benchmark(
        "dtd", "Describable textures (DTD)", "https://www.robots.ox.ac.uk/~vgg/data/dtd/", "for research purposes",
        (Tree("dtd", "images", {"images/*/*.jpg": 47 * 120}, Archive(
            "dtd-r1.0.1.tar.gz", ("https://www.robots.ox.ac.uk/~vgg/data/dtd/download/dtd-r1.0.1.tar.gz",),
            "md5:fff73e5086ae6bdbea199a49dfb8a4c1", 600 * MB)),),
    ),
)  # fmt: skip

BENCHMARKS: dict[str, Benchmark] = {benchmark.name: benchmark for benchmark in _ALL}
