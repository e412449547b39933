"""Running entries: part by part, each result kept, so that a stopped ``reproduce`` goes on where it was.

Below the output folder, for each scale::

    laptop/paper-5/figure-5.json            the outcome: what the results page is made of
    laptop/paper-5/figure-5/PART.json       the result of a part
    laptop/paper-5/figure-5/PART/           what the part needs to go on (run folders)
    laptop/index.html                       the page
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hemstitch.errors import ConfigError
from hemstitch.reproduce._entry import Entry, Outcome, Scale, group
from hemstitch.train import Console
from hemstitch.train._config import nearest
from hemstitch.train._experiments._runs import folder_name
from hemstitch.train._run_folder import environment, read_json, write_json


def select(entries: Sequence[Entry], names: Sequence[str]) -> list[Entry]:
    """The entries of these names, in the order of the catalogue: "all", "paper-5", an entry, or what its title names.

    Raises:
        ConfigError: a name fits nothing; says the nearest.
    """
    chosen: set[str] = set()
    for name in names:
        found = [e.key for e in entries if name in ("all", e.key, group(e.paper), *e.shows)]
        if not found:
            papers = sorted({group(e.paper) for e in entries})
            raise ConfigError(f"no entry {name!r}: {nearest(name, ['all', *papers, *(e.key for e in entries)])} "
                              "(`hemstitch reproduce --list` shows all)")  # fmt: skip
        chosen.update(found)
    return [e for e in entries if e.key in chosen]


def outcome_path(out: Path, scale: Scale, entry: Entry) -> Path:
    """Where the outcome of an entry stands."""
    return out / scale / group(entry.paper) / f"{entry.name}.json"


def run_entry(entry: Entry, scale: Scale, out: Path, console: Console) -> dict[str, Any]:
    """Do what is not done yet of an entry; returns what its outcome file holds.

    Raises:
        HemstitchError: a part failed; the finished ones are kept.
        Interrupted: stopped; give the same command again to go on.
    """
    path = outcome_path(out, scale, entry)
    if entry.unavailable or entry.parts is None or entry.conclude is None:
        return write_outcome(path, entry, scale, Outcome(verdict="not run", summary=entry.unavailable), 0.0, 0.0)
    parts = entry.parts(scale)
    done: dict[str, dict[str, Any]] = {}
    for number, (name, part) in enumerate(parts.items(), start=1):
        kept = path.with_suffix("") / f"{folder_name(name)}.json"
        if not kept.is_file():
            console.say(f"{entry.key}: part {number} of {len(parts)}, {name}")
            folder = kept.with_suffix("")
            folder.mkdir(parents=True, exist_ok=True)
            begin = time.perf_counter(), time.process_time()
            result = part(folder)
            seconds = {"wall": time.perf_counter() - begin[0], "cpu": time.process_time() - begin[1]}
            write_json(kept, {"result": finite_or_none(result), "seconds": seconds})
        done[name] = read_json(kept)
    wall, cpu = (math.fsum(d["seconds"][k] for d in done.values()) for k in ("wall", "cpu"))
    outcome = entry.conclude({name: d["result"] for name, d in done.items()})
    return write_outcome(path, entry, scale, outcome, wall, cpu)


def write_outcome(path: Path, entry: Entry, scale: Scale, outcome: Outcome, wall: float, cpu: float) -> dict[str, Any]:
    """Write and return the outcome with what was asked, what it cost and where it ran."""
    content = {
        "key": entry.key,
        "paper": entry.paper,
        "title": entry.title,
        "paper_says": entry.paper_says,
        "scale": scale,
        **finite_or_none(asdict(outcome)),
        "wall_seconds": round(wall, 1),
        "cpu_seconds": round(cpu, 1),
        "command": f"hemstitch reproduce {entry.key} --scale {scale}",
        "environment": {k: v for k, v in environment().items() if k != "command"},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, content)
    return content


def finite_or_none(content: Any) -> Any:
    """JSON without NaN: what is not finite becomes null; numbers keep six digits."""
    if isinstance(content, dict):
        return {str(key): finite_or_none(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [finite_or_none(value) for value in content]
    if isinstance(content, float):
        return float(f"{content:.6g}") if math.isfinite(content) else None
    return content


def read_outcomes(folder: Path) -> list[dict[str, Any]]:
    """The outcomes below a folder of one scale, in the order of the papers."""
    found = []
    for path in sorted(folder.glob("*/*.json")):
        content = read_json(path)
        if "verdict" in content:
            found.append(content)
    return found
