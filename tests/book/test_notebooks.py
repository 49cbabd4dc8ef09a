"""The chapters: both files of a pair agree, stored outputs are current, and every rule of hand is kept."""

from __future__ import annotations

import runpy
import shutil
from pathlib import Path

import pytest

jupytext = pytest.importorskip("jupytext", reason="the tool chain of the book is not installed: pip install .[book]")
nbformat = pytest.importorskip("nbformat")

ROOT = Path(__file__).resolve().parents[2]
TOOL = runpy.run_path(str(ROOT / "tools" / "notebooks.py"))
PAIRS = TOOL["pairs"](ROOT)
NAMES = [script.stem for script, _ in PAIRS]
LONGEST_CELL = 25

each_pair = pytest.mark.parametrize(("script", "notebook"), PAIRS, ids=[script.stem for script, _ in PAIRS])


def code_cells(notebook):
    return [cell for cell in nbformat.read(notebook, as_version=4).cells if cell.cell_type == "code"]


@each_pair
def test_both_files_of_a_pair_hold_the_same_cells(script, notebook):
    assert TOOL["cells"](script) == TOOL["cells"](notebook), "run `make sync` (text) or `make notebooks` (code)"


@each_pair
def test_stored_outputs_come_from_the_present_code(script, notebook):
    assert not TOOL["stale"](script, notebook, ROOT), "run `make notebooks`"


@each_pair
def test_every_cell_was_run_in_order_without_an_error(script, notebook):
    counts = [cell.execution_count for cell in code_cells(notebook) if cell.source.strip()]
    assert counts == list(range(1, len(counts) + 1))
    kinds = {output.output_type for cell in code_cells(notebook) for output in cell.outputs}
    assert "error" not in kinds


@each_pair
def test_stored_outputs_name_no_folder_of_the_machine_and_no_progress_bar(script, notebook):
    for cell in code_cells(notebook):
        for output in cell.outputs:
            assert output.get("name") != "stderr"
            assert str(ROOT) not in str(output) and str(Path.home()) + "/" not in str(output)


@each_pair
def test_cells_are_short_and_import_at_the_top(script, notebook):
    code = [cell for cell in code_cells(notebook) if cell.source.strip()]
    importing = [any(line.startswith(("import ", "from ")) for line in cell.source.splitlines()) for cell in code]
    assert max(len(cell.source.splitlines()) for cell in code) <= LONGEST_CELL
    assert not any(importing[3:]), "imports belong into the first cells"


@each_pair
def test_a_check_of_outputs_is_asked_for(script, notebook):
    """Without the tag nbval runs the cells and compares nothing."""
    assert any("nbval-check-output" in cell.metadata.get("tags", ()) for cell in code_cells(notebook))


@each_pair
def test_on_colab_the_first_cell_installs_the_package(script, notebook):
    address = runpy.run_path(str(ROOT / "tools" / "address.py"))["address"]()
    first = code_cells(notebook)[0].source
    assert "UAD_REPO" in first and address in first


# --- the tool itself --------------------------------------------------------------------------------


@pytest.fixture
def small_tree(tmp_path):
    """A package of one module and a chapter of two cells."""
    (tmp_path / "uad_core").mkdir()
    (tmp_path / "uad_core" / "a.py").write_text('"""Doc."""\n\nX = 1\n', "utf-8")
    (tmp_path / "notebooks").mkdir()
    script = tmp_path / "notebooks" / "x.py"
    text = "# %% [markdown]\n# A chapter.\n\n# %%\nimport os\nif os.environ.get('NEVER'):\n    import uad_core.a\n"
    text += "print(6 * 7, os.environ.get('UAD_DATASET'))\n"
    script.write_text(text, "utf-8")
    (tmp_path / "uad_core" / "__init__.py").touch()
    return tmp_path, script, script.with_suffix(".ipynb")


def test_running_stores_outputs_and_a_change_of_code_makes_them_stale(small_tree, monkeypatch):
    root, script, notebook = small_tree
    monkeypatch.setenv("UAD_DATASET", "somebodys_own")
    assert TOOL["stale"](script, notebook, root)
    TOOL["execute"](script, notebook, root)
    assert code_cells(notebook)[0].outputs[0].text == "42 None\n"
    assert not TOOL["stale"](script, notebook, root)
    assert TOOL["cells"](script) == TOOL["cells"](notebook)
    assert [path.name for path in notebook.parent.iterdir() if path.suffix == ".part"] == []

    module = root / "uad_core" / "a.py"
    module.write_text('"""Another doc."""\n\n# a comment\nX = 1\n', "utf-8")
    assert not TOOL["stale"](script, notebook, root)
    module.write_text('"""Doc."""\n\nX = 2\n', "utf-8")
    assert TOOL["stale"](script, notebook, root)


def test_a_new_result_makes_the_tables_of_a_chapter_stale(small_tree):
    root, script, _ = small_tree
    script.write_text("# %%\ntables.table('hfr', format='html')\n", "utf-8")
    before = TOOL["fingerprint"](script, root)
    run = next((ROOT / "results").glob("hfr-*.json"))
    (root / "results").mkdir()
    (root / "results" / run.name).write_text(run.read_text("utf-8"), "utf-8")
    assert TOOL["fingerprint"](script, root) != before


def test_a_change_of_text_keeps_the_outputs(small_tree):
    root, script, notebook = small_tree
    TOOL["execute"](script, notebook, root)
    script.write_text(script.read_text("utf-8").replace("A chapter.", "The chapter."), "utf-8")
    assert not TOOL["stale"](script, notebook, root)
    merged = TOOL["merged"](script, notebook)
    assert merged.cells[0].source == "The chapter." and merged.cells[1].outputs[0].text == "42 None\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changed", "stale"),
    [
        ("uad_core/methods/hfr.py", {"01_hfr", "02_sgfr", "04_hlgfa", "06_own_images", "08_gallery"}),
        ("uad_core/plots/curves.py", set(NAMES)),
        ("uad_core/methods/windows.py", {"03_rlr", "06_own_images", "08_gallery"}),  # the export knows all methods
        ("uad_core/probing.py", {"f2_frozen_features"}),
        ("uad_core/diffusion.py", {"05_glad", "08_gallery"}),
        ("uad_core/cli.py", {"06_own_images"}),
        ("uad_core/prediction.py", {"06_own_images"}),
        ("uad_core/visualisation.py", {"03_rlr"}),
    ],
)
def test_a_change_of_one_module_makes_only_the_chapters_stale_that_reach_it(tmp_path, changed, stale):
    for folder in ("uad_core", "notebooks"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("*.ipynb", "__pycache__"))
    before = {script.stem: TOOL["fingerprint"](script, tmp_path) for script, _ in TOOL["pairs"](tmp_path)}
    (tmp_path / changed).write_text((tmp_path / changed).read_text("utf-8") + "\n\nCHANGED = 1\n", "utf-8")
    after = {script.stem: TOOL["fingerprint"](script, tmp_path) for script, _ in TOOL["pairs"](tmp_path)}
    assert {name for name in before if before[name] != after[name]} == stale


def test_chapters_can_be_run_one_by_one(monkeypatch, capsys):
    ran = []
    monkeypatch.setitem(TOOL["main"].__globals__, "execute", lambda script, notebook: ran.append(script.stem) or 1.0)
    assert TOOL["main"](["run", "01_hfr"]) == 0 and ran == ["01_hfr"]
    with pytest.raises(SystemExit):
        TOOL["main"](["run", "99_none"])
    assert "no such notebook among 00_data" in capsys.readouterr().err
