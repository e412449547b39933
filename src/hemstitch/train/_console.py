"""What the user sees while a run goes on: a progress bar on a terminal, a line per look elsewhere."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import rich.console
import rich.progress


class Bar:
    """A progress bar, or nothing."""

    def __init__(self, progress: rich.progress.Progress | None, task: Any = None) -> None:
        self._progress, self._task = progress, task

    def update(self, completed: int, description: str) -> None:
        """Move to ``completed``."""
        if self._progress is not None:
            self._progress.update(self._task, completed=completed, description=description)


class Console:
    """Messages and progress of a run.

    Args:
        quiet: say nothing.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.console = rich.console.Console(stderr=True, quiet=quiet, highlight=False)

    @contextlib.contextmanager
    def progress(self, total: int, description: str = "") -> Iterator[Bar]:
        """A bar up to ``total``, shown on terminals only."""
        if not self.console.is_terminal or self.console.quiet:
            yield Bar(None)
            return
        columns = (
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TimeRemainingColumn(),
        )
        with rich.progress.Progress(*columns, console=self.console, transient=True) as progress:
            yield Bar(progress, progress.add_task(description, total=total))

    def say(self, message: str) -> None:
        """A plain line."""
        self.console.print(message, markup=False)

    def look(self, epoch: int, epochs: int, step: int, values: dict[str, float]) -> None:
        """The result of a look at the dev part."""
        shown = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
        self.say(f"epoch {epoch}/{epochs}  step {step}  dev: {shown}")

    def event(self, level: str, message: str) -> None:
        """Something happened."""
        self.console.print(
            message if level == "info" else f"{level}: {message}",
            markup=False,
            style={"warning": "yellow", "error": "red"}.get(level),
        )
