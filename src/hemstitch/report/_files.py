"""Writing files whole or not at all."""

import os
import tempfile
from pathlib import Path

from hemstitch.errors import RunError


def write_whole(text: str, path: str | Path) -> Path:
    """Write a text file so that a reader sees the old one or the new one, never a half.

    Raises:
        RunError: The place cannot be written to.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:100]}-")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as stream:
                stream.write(text)
            os.chmod(name, 0o644)
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise
    except OSError as error:
        raise RunError(f"cannot write {path} ({error.strerror}): name another place, or make room there") from None
    return path
