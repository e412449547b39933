"""Files and folders that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from hemstitch.errors import DataError


@contextlib.contextmanager
def new_folder(target: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Give a temporary folder beside ``target`` to fill, and rename it to ``target`` at the end.

    Nothing is left behind if filling it fails.

    Raises:
        DataError: ``target`` is there already and ``overwrite`` is not set, or it cannot be written.
    """
    target = Path(target)
    if target.exists() and not overwrite and (not target.is_dir() or any(target.iterdir())):
        raise DataError(f"{target} exists already. Remove it, choose another folder, or overwrite it (overwrite=True).")
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
        try:
            yield partial
            partial.chmod(0o755)
            if target.is_dir():
                shutil.rmtree(target)
            else:
                target.unlink(missing_ok=True)
            partial.rename(target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def new_file(target: Path) -> Iterator[Path]:
    """Give a temporary path beside ``target`` to write, and rename it to ``target`` at the end."""
    target = Path(target)
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(target: Path) -> Iterator[None]:
    """Turn a full disk, a read-only mount and the like into an error that names ``target``."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"cannot write {target}: {error.strerror or error}. Free space there or choose another folder."
        ) from error
