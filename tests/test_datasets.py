"""Data sets by name and by folder: splits, counts, roots, and what is said about what is not there."""

from __future__ import annotations

import ast
import hashlib
import sys
from pathlib import Path

import pytest

from uad_core import datasets
from uad_core.datasets import access, sources
from uad_core.datasets.catalogue import CATALOGUE
from uad_core.datasets.splits import fixed_split

sys.path.append(str(Path(__file__).parent))

from miniatures import draw, make_mvtec, message, miniature  # noqa: E402


def test_the_fixed_split_is_what_its_rule_says() -> None:
    names = [f"{i:03d}" for i in range(101)]
    train, rest = fixed_split(names, 0.8, 0)
    assert len(train) == 81 and sorted(train + rest) == names and train == sorted(train)
    ordered = sorted(names, key=lambda name: hashlib.sha256(f"0:{name}".encode()).hexdigest())
    assert set(train) == set(ordered[:81])
    # Frozen: a division that changes would silently change every number measured with it.
    assert fixed_split(names[:8], 0.5, 0)[0] == ["000", "004", "005", "007"]
    assert fixed_split(names, 0.8, 1)[0] != train
    # The order in which a file system lists the names does not matter.
    assert set(fixed_split(names[::-1], 0.8, 0)[0]) == set(train)


def test_published_counts_add_up() -> None:
    def total(name: str) -> tuple[int, int, int]:
        counts = datasets.INFOS[name].counts.values()
        return sum(c.train for c in counts), sum(c.test for c in counts), sum(c.anomalous for c in counts)

    assert total("mvtec_ad") == (3629, 1725, 1258)
    assert total("visa") == (8659, 2162, 1200) and 8659 + 2162 - 1200 == 9621
    assert total("btad") == (1799, 741, 290)
    assert total("mpdd") == (888, 458, 282)
    assert total("mtd") == (762, 582, 392) and 762 == round(0.8 * 952)
    train, test, anomalous = total("pcb_bank")
    assert (train + test - anomalous, anomalous) == (5352, 1397)
    for name in ("mnist", "fashion_mnist"):
        assert total(name) == (60_000, 100_000, 90_000)
    assert total("cifar10") == (50_000, 100_000, 90_000)
    assert total("elpv") == (1206, 1418, 1116) and 1206 + 1418 == 2624


@pytest.mark.parametrize("info", CATALOGUE, ids=lambda info: info.name)
def test_every_entry_of_the_catalogue_is_complete(info: datasets.DatasetInfo) -> None:
    assert info.title and info.summary.endswith(".") and info.licence
    assert info.protocol in ("inspection", "one_class", "textures")
    if info.name == "procedural":
        return
    assert info.homepage.startswith("http") and info.citation and info.categories
    assert set(info.counts) == (set(info.categories) if info.protocol != "textures" else set())
    assert "\n" not in info.instruction() and "{" not in info.instruction("x")
    if info.name in sources.BENCHMARKS:
        filed = sources.find(info.name).categories
        assert not filed or set(filed) == set(info.categories)


def test_unknown_names_are_answered_with_the_known_ones(tmp_path: Path) -> None:
    make_mvtec(tmp_path / "set/alpha")
    make_mvtec(tmp_path / "set/beta")
    said = message(lambda: datasets.load("mvtec_da", "bottle"))
    assert said.startswith("no data set or folder is called mvtec_da: did you mean mvtec_ad? Known: procedural, mvtec")
    said = message(lambda: datasets.load("mvtec_ad", "Bottel", root=tmp_path))
    assert said.startswith("no category of mvtec_ad is called Bottel: did you mean bottle? Known: bottle, cable, ")
    said = message(lambda: datasets.load(str(tmp_path / "set"), "alpa"))
    assert said == f"no category of {tmp_path / 'set'} is called alpa: did you mean alpha? Known: alpha, beta"
    for odd in ("../alpha", "", ".", "alpha/train", "x" * 4000, "a\0b"):
        assert message(lambda odd=odd: datasets.load(str(tmp_path / "set"), odd)).endswith("Known: alpha, beta")
    for odd in ("", "x" * 4000, "a\0b", str(tmp_path / "set/nothing")):
        assert "Known: procedural, " in message(lambda odd=odd: datasets.load(odd, "alpha"))


def test_data_that_are_not_there_are_asked_for_with_the_way_to_get_them(tmp_path: Path) -> None:
    way = "or name another folder by --root or UAD_DATA"
    expected = f"mvtec_ad/cable is not in {tmp_path}: run `uad data mvtec_ad --category cable`, {way}"
    assert message(lambda: datasets.load("mvtec_ad", "cable", root=tmp_path)) == expected
    assert message(lambda: datasets.load("mtd", "all", root=tmp_path)).startswith(
        f"mtd/mtd is not in {tmp_path}: run `uad data mtd`"
    )
    expected = f"mpdd/tubes is not in {tmp_path}: run `uad data mpdd`, which says what to download by hand, {way}"
    assert message(lambda: datasets.load("mpdd", "tubes", root=tmp_path)) == expected


def test_the_root_is_the_argument_then_the_variable_then_the_cache(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("UAD_DATA", "~/some")
    assert datasets.data_root(tmp_path) == tmp_path
    assert datasets.data_root() == Path.home() / "some"
    monkeypatch.delenv("UAD_DATA")
    assert datasets.data_root().name == "uad-core"


def test_a_folder_may_hold_categories_or_be_one(tmp_path: Path) -> None:
    make_mvtec(tmp_path / "set/alpha")
    make_mvtec(tmp_path / "set/beta")
    (tmp_path / "set/notes").mkdir()
    assert datasets.categories(str(tmp_path / "set")) == ["alpha", "beta"]
    assert datasets.categories(str(tmp_path / "set/alpha")) == ["alpha"]
    assert datasets.protocol(str(tmp_path / "set")) == datasets.protocol(str(tmp_path / "set/alpha")) == "inspection"
    assert datasets.protocol("mnist") == "one_class" and datasets.protocol("dtd") == "textures"
    held = datasets.load(str(tmp_path / "set"), "alpha", image_size=8)
    for name in ("alpha", "all"):
        alone = datasets.load(str(tmp_path / "set/alpha"), name, image_size=8)
        assert (alone.test.sha256, alone.category) == (held.test.sha256, "alpha")
    assert (held.dataset, held.protocol, held.train.split, held.test.split) == ("set", "inspection", "train", "test")
    said = message(lambda: datasets.categories(str(tmp_path / "set/notes")))
    remedy = "put normal images into NAME/train/good, or see `uad list` for named data sets"
    assert said == f"{tmp_path / 'set/notes'}: no folder in it has train/good: {remedy}"
    assert message(lambda: datasets.load(str(tmp_path / "set/notes"), "x")) == said


def test_images_without_folders_are_sent_where_they_belong(tmp_path: Path) -> None:
    draw(tmp_path / "part/7.png")
    expected = f"{tmp_path / 'part/7.png'} lies directly in part: put normal images into part/train/good"
    for call in (datasets.categories, lambda path: datasets.load(path, "all")):
        assert message(lambda call=call: call(str(tmp_path / "part"))) == expected
    (tmp_path / "part/train").mkdir()
    (tmp_path / "part/7.png").rename(tmp_path / "part/train/7.png")
    expected = f"{tmp_path / 'part/train/7.png'} lies directly in train: put it into part/train/good"
    assert message(lambda: datasets.load(str(tmp_path / "part"), "all")) == expected


def test_the_order_is_that_of_the_names_whatever_the_file_system_says(tmp_path: Path, monkeypatch) -> None:
    make_mvtec(tmp_path / "part")
    expected = datasets.load(str(tmp_path), "part").test.paths
    assert expected == sorted(expected)
    entries = Path.iterdir
    monkeypatch.setattr(Path, "iterdir", lambda path: reversed(sorted(entries(path))))
    assert datasets.load(str(tmp_path), "part").test.paths == expected


def test_the_catalogue_lists_what_is_present(tmp_path: Path) -> None:
    make_mvtec(tmp_path / "mvtec_ad/bottle")
    make_mvtec(tmp_path / "MPDD/tubes")
    (tmp_path / "mtd/MT_Free").mkdir(parents=True)
    present = {info.name: info.present for info in datasets.catalogue(tmp_path)}
    assert present["mvtec_ad"] == ("bottle",) and present["mpdd"] == ("tubes",) and present["mtd"] == ("mtd",)
    assert present["visa"] == () and present["fashion_mnist"] == () and present["dtd"] == ()
    assert len(present["procedural"]) == 6


def test_counts_that_differ_warn_on_loading_and_fail_on_verification(tmp_path: Path) -> None:
    make_mvtec(tmp_path / "mvtec_ad/bottle")
    found = miniature("mvtec_ad", "bottle", tmp_path)
    assert found.train.paths == [f"train/good/{i:03d}.png" for i in range(3)]
    said = message(lambda: datasets.verify("mvtec_ad", "bottle", tmp_path))
    assert said == (
        "mvtec_ad/bottle has 3 train and 4 test images (2 anomalous) instead of 209 and 83 (63): "
        f"remove {tmp_path / 'mvtec_ad'}/bottle and get it again"
    )


def test_what_was_fetched_is_counted(tmp_path: Path, monkeypatch) -> None:
    from uad_core.datasets import download

    calls = []
    monkeypatch.setattr(download, "fetch", lambda *args: calls.append(args) or tmp_path)
    make_mvtec(tmp_path / "mpdd/tubes")
    assert "instead of 122 and 101" in message(lambda: datasets.fetch("mpdd", "tubes", tmp_path, progress=False))
    assert calls == [("mpdd", "tubes", tmp_path, False)]
    assert datasets.fetch("dtd", root=tmp_path) == tmp_path
    assert "did you mean mpdd?" in message(lambda: datasets.fetch("mpd"))
    assert "no category of mpdd" in message(lambda: datasets.fetch("mpdd", "tube"))
    assert message(lambda: datasets.fetch("procedural")).startswith("procedural is drawn when it is used")


def test_importing_the_data_sets_imports_no_heavy_library() -> None:
    heavy = {"torchvision", "pandas", "matplotlib", "pooch", "scipy", "timm"}
    for name in ("__init__", "base", "catalogue", "folder", "images", "one_class", "splits", *access.READERS):
        path = Path(datasets.__file__).with_name(f"{name}.py")
        if path.exists():
            at_the_top = ast.parse(path.read_text()).body
            imports = [node for node in at_the_top if isinstance(node, ast.Import | ast.ImportFrom)]
            modules = {getattr(node, "module", None) or node.names[0].name for node in imports}
            assert not heavy & {module.split(".")[0] for module in modules}, path
