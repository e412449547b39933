"""Removes what a process leaves behind, when it is gone: run as a program of its own.

When a training process is killed the system ends the engine's servers with it, and workers end within seconds; but two
of the engine's agents wait a minute for a server that is no more. So this small process (no library but Python's own)
reads its standard input: a line with a folder (of the engine's session, or one that is temporary), then nothing until
the other process ends, however it does. The engine's processes that still use the folder are then killed (on Linux;
elsewhere none is found), and the folder is removed.
"""

import contextlib
import os
import shutil
import signal
import sys
import time
from pathlib import Path

PATIENCE_SECONDS = 10.0
TITLE = b"ray::"            # how the engine calls its workers and agents, instead of the command they were started with


def processes_of(folder: str) -> list[int]:
    """The processes that use a folder, by their command or, of the engine's, by a file that they have open."""
    return [int(process.name) for process in Path("/proc").glob("[0-9]*") if _belongs_to(folder, process)]


def _belongs_to(folder: str, process: Path) -> bool:
    with contextlib.suppress(OSError):                      # it has ended, or is somebody else's
        command = (process / "cmdline").read_bytes()
        return folder.encode() in command or (command.startswith(TITLE) and any(
            file.startswith(folder) for file in _open_files(process)))
    return False


def _open_files(process: Path) -> list[str]:
    files = []
    for file in (process / "fd").iterdir():
        with contextlib.suppress(OSError):
            files.append(os.readlink(file))
    return files


def main() -> None:
    """Wait for the end of the input, then kill until there is nobody left, and remove the folder."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)            # Ctrl-C is for the other process, which ends in order
    folder = sys.stdin.readline().strip()
    sys.stdin.read()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while folder and (left := processes_of(folder)) and time.monotonic() < deadline:
        for pid in left:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    if folder:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
