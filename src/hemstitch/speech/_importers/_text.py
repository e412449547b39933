"""Text files of a source, read or refused with a reason."""

from __future__ import annotations

from pathlib import Path

from hemstitch.errors import DataError


def read_text(path: Path, hint: str = "give the folder that holds it") -> str:
    """The content of a UTF-8 file, with or without a byte order mark.

    Raises:
        DataError: it is missing (then ``hint`` says what to do) or not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}: {hint}") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 at byte {error.start}: convert it with iconv") from None
