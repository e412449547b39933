"""Ends what is left of an embedded engine when the process that started it is gone: run as a program of its own.

When a training process is killed the system ends the engine's servers with it, and workers end within seconds; but two
of the engine's agents wait a minute for a server that is no more. So this small process (no library but Python's own)
reads its standard input: a line with the folder of the engine's session, then nothing until the other process ends,
however it does. What then still runs of the session is killed. Linux only; elsewhere it does nothing.
"""

import contextlib
import os
import signal
import sys
import time
from pathlib import Path

PATIENCE_SECONDS = 10.0
TITLE = b"ray::"            # how the engine calls its workers and agents, instead of the command they were started with


def processes_of(session: str) -> list[int]:
    """The engine's processes of a session, by their command or by a log that they have open."""
    return [int(process.name) for process in Path("/proc").glob("[0-9]*") if _belongs_to(session, process)]


def _belongs_to(session: str, process: Path) -> bool:
    with contextlib.suppress(OSError):                      # it has ended, or is somebody else's
        command = (process / "cmdline").read_bytes()
        return session.encode() in command or (command.startswith(TITLE) and any(
            file.startswith(session) for file in _open_files(process)))
    return False


def _open_files(process: Path) -> list[str]:
    files = []
    for file in (process / "fd").iterdir():
        with contextlib.suppress(OSError):
            files.append(os.readlink(file))
    return files


def main() -> None:
    """Wait for the end of the input, then kill until there is nobody left."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)            # Ctrl-C is for the other process, which ends in order
    session = sys.stdin.readline().strip()
    sys.stdin.read()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while session and (left := processes_of(session)) and time.monotonic() < deadline:
        for pid in left:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


if __name__ == "__main__":
    main()
