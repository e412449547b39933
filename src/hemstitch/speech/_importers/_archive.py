"""Files handed out as a tar archive, with checksums where the source lists them."""

from __future__ import annotations

import contextlib
import hashlib
import lzma
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hemstitch.errors import DataError
from hemstitch.speech._importers._text import read_text
from hemstitch.speech._manifest import json_object


@contextlib.contextmanager
def unpacked(candidates: Sequence[Path], suffixes: tuple[str, ...]) -> Iterator[Mapping[str, Path]]:
    """The files with these suffixes in the first of the candidates that exists: a folder, or a tar archive.

    Folders inside are left aside. An archive is unpacked to a temporary folder.

    Returns:
        Name of a file -> where it is.

    Raises:
        DataError: none of the candidates is there, or the archive is damaged.
    """
    place = next((path for path in candidates if path.exists()), None)
    if place is None:
        raise DataError(f"none of {', '.join(map(str, candidates))} is there: give the folder that holds one of them")
    if place.is_dir():
        yield {path.name: path for path in sorted(place.rglob("*")) if path.suffix.lower() in suffixes}
        return
    with tempfile.TemporaryDirectory(prefix="hemstitch-") as folder:
        found = {}
        for name, content in _members(place):
            if Path(name).suffix.lower() in suffixes:
                found[Path(name).name] = path = Path(folder) / Path(name).name
                path.write_bytes(content)
        yield found


def _members(archive: Path) -> Iterator[tuple[str, bytes]]:
    try:
        with tarfile.open(archive) as tar:
            for member in tar:  # in order: going back in a compressed stream is slow
                if member.isfile() and (file := tar.extractfile(member)):
                    yield member.name, file.read()
    except (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, OSError) as error:
        raise DataError(f"{archive} cannot be unpacked: {error}. Fetch it anew.") from None


def read_manifest(path: Path, files: Mapping[str, Path], keys: Sequence[str]) -> Iterator[tuple[dict[str, Any], str]]:
    """The entries of a JSON-lines file about ``files``, each with its ``file:line``.

    The key ``path`` names the file; with a key ``sha256`` its content is compared.

    Raises:
        DataError: a line is damaged or lacks one of the keys, or a file is missing or has another checksum.
    """
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        where = f"{path}:{number}"
        try:
            entry = json_object(line)
        except ValueError as error:
            raise DataError(f"{where}: {error}. Copy the file anew.") from None
        if lacking := [key for key in ("path", *keys) if key not in entry]:
            raise DataError(f"{where}: key {lacking[0]!r} is missing. Copy the file anew.")
        file = files.get(Path(str(entry["path"])).name)
        if file is None:
            raise DataError(f"{where}: {entry['path']} is not in the archive. Copy it anew.")
        if entry.get("sha256", found := hashlib.sha256(file.read_bytes()).hexdigest()) != found:
            raise DataError(f"{where}: {entry['path']} has SHA-256 {found}, expected {entry['sha256']}. Copy the "
                            "archive anew.")
        yield entry, where
