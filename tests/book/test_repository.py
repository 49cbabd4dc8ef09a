"""Files that say the same thing must keep saying the same thing."""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
import zipfile

import pytest
import yaml

from uad_core import tables

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@pytest.fixture(scope="module")
def project(repository):
    return tomllib.loads((repository / "pyproject.toml").read_text("utf-8"))["project"]


@pytest.fixture(scope="module")
def address_tool(repository):
    return runpy.run_path(str(repository / "tools" / "address.py"))


def read(repository, name):
    return (repository / name).read_text("utf-8")


# --- requirements --------------------------------------------------------------------------------


def test_conda_asks_for_what_pip_asks_for(repository, project):
    conda = yaml.safe_load(read(repository, "environment.yml"))["dependencies"]
    extras = project["optional-dependencies"]
    listed = next(entry["pip"] for entry in conda if isinstance(entry, dict))
    chosen = [requirement for name in ("book", "test", "export", "glad") for requirement in extras[name]]
    assert set(listed) == {*project["dependencies"], *chosen, "--editable ."}
    assert len(listed) == len(set(listed))
    assert f"python{project['requires-python']}" in conda


def test_package_gives_lower_bounds_only(project):
    extras = project["optional-dependencies"]
    for requirement in [*project["dependencies"], *extras["test"], *extras["export"], *extras["glad"]]:
        assert re.fullmatch(r"[\w.-]+>=[\d.]+( *; *python_version.*)?", requirement), requirement


def test_tool_chain_of_the_book_is_pinned(project):
    pinned = dict(re.findall(r"^([\w.-]+)==(\S+)$", "\n".join(project["optional-dependencies"]["book"]), re.M))
    assert {"jupyter-book", "sphinx-book-theme", "pydata-sphinx-theme", "Sphinx", "myst-nb", "jupytext"} <= set(pinned)
    assert not {"torch", "numpy"} & set(pinned)


@pytest.mark.slow
def test_an_installed_package_carries_every_module_and_the_ledger(repository, tmp_path):
    """What Colab installs has no source tree beside it, and its chapters show the tables all the same."""
    for name in ("pyproject.toml", "README.md", "uad_core", "results"):
        copy = shutil.copytree if (repository / name).is_dir() else shutil.copy
        copy(repository / name, tmp_path / name)
    wheel = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet", "-w", tmp_path / "w"]
    subprocess.run([*wheel, tmp_path], check=True)
    with zipfile.ZipFile(next((tmp_path / "w").iterdir())) as archive:
        archive.extractall(tmp_path / "installed")
    found = {path.relative_to(tmp_path / "installed") for path in (tmp_path / "installed").rglob("*.py")}
    assert found == {path.relative_to(repository) for path in (repository / "uad_core").rglob("*.py")}
    command = "from uad_core import tables; print(tables.table('hfr', format='csv'))"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    run = [sys.executable, "-c", command]
    shown = subprocess.run(run, cwd=tmp_path / "w", env=environment, capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == tables.table("hfr", repository / "results", "csv")


# --- the repository's address ----------------------------------------------------------------------


def test_every_file_shows_the_same_address(repository, project, address_tool):
    address = address_tool["address"]()
    owner_and_name = "/".join(address.split("/")[-2:])
    name = re.escape(address.split("/")[-1])
    assert address_tool["cited_address"]() == address
    assert project["urls"]["Repository"] == address
    for path in address_tool["carriers"]():
        for found in re.findall(rf"git(?:hub)?(?:\.com)?/([\w.-]+/{name})(?![\w-])", path.read_text("utf-8")):
            assert found == owner_and_name, path


def test_a_new_address_reaches_every_file(repository, address_tool, tmp_path):
    for name in ("_config.yml", "CITATION.cff", "README.md", "pyproject.toml"):
        shutil.copy(repository / name, tmp_path)
    (tmp_path / "notebooks").mkdir()
    old, new = address_tool["address"](), "https://github.com/someone/their-book"
    colab = "https://colab.research.google.com/github/{}/blob/main/notebooks/x.ipynb"
    slug = "/".join(old.split("/")[-2:])
    cell = tmp_path / "notebooks" / "x.py"
    cell.write_text(f"# {colab.format(slug)}\n# git+{old}\n# {old}-of-another\n", "utf-8")
    config = tmp_path / "_config.yml"
    config.write_text(config.read_text("utf-8").replace(old, new), "utf-8")
    changed = address_tool["main"](tmp_path)
    assert {path.name for path in changed} >= {"CITATION.cff", "pyproject.toml", "x.py"}
    assert cell.read_text("utf-8") == f"# {colab.format('someone/their-book')}\n# git+{new}\n# {old}-of-another\n"
    assert address_tool["cited_address"](tmp_path) == new
    assert address_tool["main"](tmp_path) == []


# --- citation, licence, commands --------------------------------------------------------------------


def test_citation_agrees_with_the_package(repository, project):
    citation = yaml.safe_load(read(repository, "CITATION.cff"))
    assert (citation["version"], citation["license"]) == (project["version"], project["license"]["text"])
    licence = read(repository, "LICENSE")
    assert "Apache License" in licence and "Version 2.0, January 2004" in licence


def test_every_make_command_in_the_text_exists(repository):
    targets = set(re.findall(r"^([a-z]+):", read(repository, "Makefile"), re.M))
    pages = [repository / "README.md", *(repository / "book").rglob("*.md")]
    used = {
        target
        for page in pages
        for target in re.findall(r"(?:`|^)make (?:[A-Z_]+=\S+ )?([a-z]+)", page.read_text("utf-8"), re.M)
    }
    assert used and used <= targets


def test_workflows_are_valid_and_run_what_a_person_runs(repository):
    files = sorted((repository / ".github" / "workflows").glob("*.yml"))
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", *files]
    done = subprocess.run(check, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    jobs = [job for file in files for job in yaml.safe_load(file.read_text("utf-8"))["jobs"].values()]
    lines = {step["run"] for job in jobs for step in job["steps"] if "run" in step}
    targets = set(re.findall(r"^([a-z-]+):", read(repository, "Makefile"), re.M))
    assert {"make test", "make book", "make links"} <= lines
    assert {line.removeprefix("make ") for line in lines} <= targets


def test_nothing_is_misspelt(repository):
    """Against codespell's list of common mistakes: text, comments and names."""
    places = ["README.md", "book", "notebooks", "uad_core", "tools", "tests", "benchmarks", "results"]
    check = [sys.executable, "-m", "codespell_lib", "--toml", "pyproject.toml", *places]
    done = subprocess.run(check, cwd=repository, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_readme_shows_what_the_ledger_says(repository):
    tool = runpy.run_path(str(repository / "tools" / "results.py"))
    readme = read(repository, "README.md")
    assert tool["renewed"](readme) == readme, "run `make results`"
    assert "| image AUROC |" in readme


def test_continuous_integration_passes_the_exit_status_through(repository, tmp_path):
    """With a `make` that fails with status 7, so does `.ci/run`; and it asks for nothing but `make test`."""
    make = tmp_path / "make"
    make.write_text('#!/bin/sh\necho "$@" "CI=$CI" > "$0.said"\nexit 7\n', "utf-8")
    make.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    run = subprocess.run([repository / ".ci" / "run"], env=environment, stdin=subprocess.DEVNULL, check=False)
    assert run.returncode == 7
    assert (tmp_path / "make.said").read_text("utf-8").split() == ["test", "CI=true"]


def test_an_old_python_is_told_what_to_do(repository, monkeypatch):
    tool = runpy.run_path(str(repository / "tools" / "check_python.py"))
    assert tool["problem"]() == ""
    monkeypatch.setattr(sys, "version_info", (3, 9, 1))
    assert "make PYTHON=" in tool["problem"]()
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "ensurepip", None)  # what Debian does without python3-venv
    assert "-venv" in tool["problem"]()
