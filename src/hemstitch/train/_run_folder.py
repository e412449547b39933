"""The run folder: everything that a run knows, in files that other programs can read.

===================  ==================================================================
config.json          ``section.field`` -> value and origin
environment.json     versions, machine, threads, device
kept.json            preparations that need not be repeated: the decision trees of tied states
metrics.jsonl        the truth: one measured value a line, against every x-axis
events.jsonl         what happened: skipped data, realignments, non-finite steps, resumes
checkpoints/         ``step-00001234.safetensors``; the newest few and the best
diagrams/            pictures of the newest state, such as ages of gradients
decode/              recognised words of each utterance
result.json          the summary at the end
report.html          the report
===================  ==================================================================

A resumed run cuts metrics and events back to where its checkpoint was taken, so that no step is counted twice.
"""

from __future__ import annotations

import json
import os
import platform
import re
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

import hemstitch
from hemstitch.errors import RunError
from hemstitch.train._checkpoint import cannot_write, load_checkpoint, save_checkpoint, write_atomically

CONFIG, ENVIRONMENT, RESULT, KEPT = "config.json", "environment.json", "result.json", "kept.json"
METRICS, EVENTS, CHECKPOINTS, DIAGRAMS = "metrics.jsonl", "events.jsonl", "checkpoints", "diagrams"


class JsonLines:
    """A file of one JSON object a line, appended to and cut back to a saved length."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, entries: Iterable[dict[str, Any]]) -> None:
        """Write the entries in one call and flush them to the system."""
        text = "".join(json.dumps(entry, allow_nan=True) + "\n" for entry in entries)
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise cannot_write(self.path, error) from None

    def length(self) -> int:
        """Bytes written so far."""
        return self.path.stat().st_size if self.path.exists() else 0

    def cut(self, length: int) -> None:
        """Forget everything after the first ``length`` bytes."""
        if self.length() > length:
            os.truncate(self.path, length)


class RunFolder:
    """One run's folder, for writing.

    Use :meth:`create` for a new run and :meth:`open` for an existing one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics, self.events = JsonLines(path / METRICS), JsonLines(path / EVENTS)

    @classmethod
    def create(cls, path: Path, config: dict[str, Any]) -> RunFolder:
        """Make the folder and write config and environment.

        Raises:
            RunError: it exists and holds something, or cannot be written.
        """
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            if (path / CONFIG).exists():
                raise RunError(f"{path} is a run already: `hemstitch resume` it, or give another folder with --run.")
            raise RunError(f"{path} exists and is not a run: give another folder with --run.")
        try:
            (path / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(path, error) from None
        write_json(path / ENVIRONMENT, environment())
        write_json(path / CONFIG, config)
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """An existing run.

        Raises:
            RunError: the folder is missing, foreign or was killed before its configuration was written.
        """
        if not path.is_dir():
            raise RunError(f"{path}: no such run folder.")
        if not (path / CONFIG).is_file():
            raise RunError(
                f"{path}: not a run folder (no {CONFIG} in it). Expected a folder made by `hemstitch train`."
            )
        return cls(path)

    def config(self) -> dict[str, dict[str, Any]]:
        """``section.field`` -> value and origin."""
        return read_json(self.path / CONFIG)

    def keep(self, preparations: dict[str, Any]) -> None:
        """Write kept.json, if there is anything to keep."""
        if preparations:
            write_json(self.path / KEPT, preparations)

    def kept(self) -> dict[str, Any] | None:
        """What :meth:`keep` wrote, empty if nothing; ``None`` before the first checkpoint: prepare again."""
        if not self.checkpoints():
            return None
        return read_json(self.path / KEPT) if (self.path / KEPT).exists() else {}

    def checkpoints(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return sorted((self.path / CHECKPOINTS).glob("step-*.safetensors"))

    def save_checkpoint(self, step: int, state: dict[str, Any], *, keep: int, best_step: int | None) -> Path:
        """Write the checkpoint of ``step`` and drop old ones, but not the newest ``keep`` and the best."""
        path = self.checkpoint_path(step)
        state = {**state, "metrics_length": self.metrics.length(), "events_length": self.events.length()}
        save_checkpoint(path, state)
        for old in self.checkpoints()[:-keep]:
            if _step_of(old) != best_step:
                old.unlink(missing_ok=True)
        return path

    def checkpoint_path(self, step: int) -> Path:
        """Where the checkpoint of ``step`` is or would be."""
        return self.path / CHECKPOINTS / f"step-{step:08d}.safetensors"

    def load_newest(self) -> tuple[dict[str, Any], list[str]] | None:
        """The newest checkpoint that can be read, and complaints about newer ones that cannot; ``None``: there is none.

        Raises:
            RunError: there are checkpoints but none can be read.
        """
        complaints: list[str] = []
        for path in reversed(self.checkpoints()):
            try:
                return load_checkpoint(path), complaints
            except RunError as error:
                complaints.append(str(error))
        if complaints:
            raise RunError("no checkpoint can be read:\n" + "\n".join(complaints))
        return None

    def load_best(self) -> dict[str, Any]:
        """The checkpoint that was best on dev; the newest one before the first look.

        Raises:
            RunError: there is no checkpoint that can be read.
        """
        found = self.load_newest()
        if found is None:
            raise RunError(f"{self.path}: no checkpoint yet. `hemstitch resume` it first.")
        best = self.checkpoint_path(found[0]["progress"]["best_step"])
        return load_checkpoint(best) if best.exists() else found[0]

    def rewind(self, state: dict[str, Any] | None) -> None:
        """Cut metrics and events back to a checkpoint (or to nothing)."""
        self.metrics.cut(state["metrics_length"] if state else 0)
        self.events.cut(state["events_length"] if state else 0)

    def write_result(self, result: dict[str, Any]) -> None:
        """Write result.json."""
        write_json(self.path / RESULT, result)

    def write_diagram(self, name: str, diagram: dict[str, Any]) -> None:
        """Write a picture of the run's state, for the report: see ``hemstitch.report``; replaces the former one."""
        (self.path / DIAGRAMS).mkdir(exist_ok=True)
        write_json(self.path / DIAGRAMS / f"{name}.json", diagram)

    def write_lines(self, name: str, rows: Iterable[dict[str, Any]]) -> Path:
        """Write ``name`` (a path in the folder) as one JSON object a line, all or nothing."""
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, "".join(json.dumps(row) + "\n" for row in rows).encode())
        return path


def next_run_path(root: Path, name: str) -> Path:
    """``root/name-1``, or the next free number; what does not go into file names becomes a hyphen."""
    name = re.sub(r"[^\w .,=+()-]+", "-", name).strip(".- ")[:100] or "run"
    taken = [int(m[1]) for p in root.glob("*") if (m := re.fullmatch(rf"{re.escape(name)}-(\d+)", p.name))]
    return root / f"{name}-{max(taken, default=0) + 1}"


def environment() -> dict[str, Any]:
    """What this process runs on."""
    return {
        "hemstitch": hemstitch.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
    }


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file atomically."""
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read a JSON file that holds an object; a damaged one is an error that names it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path}: cannot be read as JSON ({error}). Was the run killed while it was created?") from None
    if not isinstance(content, dict):
        raise RunError(f"{path}: damaged: expected a JSON object, found {type(content).__name__}")
    return content


def _step_of(path: Path) -> int:
    return int(path.stem.removeprefix("step-"))
