"""What the book takes from the npm registry: pinned, checked, and missed politely."""

from __future__ import annotations

import hashlib
import io
import os
import sys
import tarfile
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "book" / "_ext"))

import npm  # noqa: E402

CONTENT = b"a program"
FILES = {"dist/part.js": hashlib.sha256(CONTENT).hexdigest()}


@pytest.fixture
def registry(tmp_path, monkeypatch):
    """A client `npm` that packs an archive as the real one does, and notes that it was called."""
    with tarfile.open(tmp_path / "made.tgz", "w:gz") as archive:
        about = tarfile.TarInfo("package/dist/part.js")
        about.size = len(CONTENT)
        archive.addfile(about, io.BytesIO(CONTENT))
    client = tmp_path / "bin" / "npm"
    client.parent.mkdir()
    client.write_text(f"#!/bin/sh\necho called >> {tmp_path}/calls\ncp {tmp_path}/made.tgz .\n")
    client.chmod(0o755)
    monkeypatch.setenv("PATH", f"{client.parent}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


@pytest.mark.skipif(os.name == "nt", reason="the client is a shell script")
def test_files_are_fetched_once(registry):
    for _ in range(2):
        assert npm.fetch("part@1", FILES, registry / "out") == [registry / "out" / "part.js"]
    assert (registry / "out" / "part.js").read_bytes() == CONTENT
    assert (registry / "calls").read_text().count("called") == 1


@pytest.mark.skipif(os.name == "nt", reason="the client is a shell script")
def test_other_content_is_not_taken(registry):
    with pytest.raises(npm.Missing, match="not the file that the book names"):
        npm.fetch("part@1", dict.fromkeys(FILES, "0" * 64), registry / "out")
    assert not (registry / "out").exists()


@pytest.mark.skipif(os.name == "nt", reason="the client is a shell script")
def test_without_a_network_one_line_says_so(registry):
    (registry / "bin" / "npm").write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(npm.Missing, match="is there a network"):
        npm.fetch("part@1", FILES, registry / "out")


def test_without_npm_one_line_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(npm.Missing, match="npm is not installed"):
        npm.fetch("part@1", FILES, tmp_path / "out")
