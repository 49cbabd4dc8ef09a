"""Files and folders that appear whole or not at all, and that are never lost while they are replaced."""

from __future__ import annotations

import os
import shutil
import stat

import pytest

from uad_core import files
from uad_core.files import new_folder, replacing


def content(folder) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("before", [None, "old"])
def test_a_file_takes_its_place_at_the_end(tmp_path, before) -> None:
    path = tmp_path / "a.txt"
    if before:
        path.write_text(before)
    with replacing(path) as part:
        part.write_text("new")
        assert (path.read_text() if path.exists() else None) == before
    assert content(tmp_path) == {"a.txt": "new"}
    assert os.name != "posix" or stat.S_IMODE(path.stat().st_mode) == 0o644


@pytest.mark.parametrize("error", [OSError(28, "full"), KeyboardInterrupt()])
def test_a_failed_file_leaves_the_old_one(tmp_path, error) -> None:
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(type(error)), replacing(tmp_path / "a.txt") as part:
        part.write_text("half")
        raise error
    assert content(tmp_path) == {"a.txt": "old"}


@pytest.mark.parametrize("before", [None, "old"])
def test_a_folder_takes_its_place_at_the_end(tmp_path, before) -> None:
    path = tmp_path / "deep" / "model"
    if before:
        path.mkdir(parents=True)
        (path / "a").write_text(before)
    with new_folder(path) as work:
        (work / "b").write_text("new")
    assert content(tmp_path) == {"deep/model/b": "new"} and len(list(path.parent.iterdir())) == 1
    assert os.name != "posix" or stat.S_IMODE(path.stat().st_mode) == 0o755


@pytest.mark.parametrize("when", ["filling", "replacing"])
def test_a_failed_folder_leaves_the_old_one(tmp_path, monkeypatch, when: str) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/a").write_text("old")
    replace = os.replace

    def full(source, target):
        if os.path.basename(target) == "model" and not str(source).endswith(".old"):
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises((OSError, ValueError)), new_folder(tmp_path / "model") as work:
        (work / "b").write_text("half")
        if when == "filling":
            raise ValueError
    assert content(tmp_path) == {"model/a": "old"} and [p.name for p in tmp_path.iterdir()] == ["model"]


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="this system has no links")
def test_a_link_to_a_folder_is_replaced_and_what_it_led_to_stays(tmp_path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real/a").write_text("mine")
    os.symlink(tmp_path / "real", tmp_path / "model")
    with new_folder(tmp_path / "model") as work:
        (work / "b").write_text("new")
    assert not (tmp_path / "model").is_symlink() and content(tmp_path / "model") == {"b": "new"}
    assert content(tmp_path / "real") == {"a": "mine"}
    shutil.rmtree(tmp_path / "model")
