"""`hemstitch reproduce`: tables and figures of the papers."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import rich.table

from hemstitch.commands._show import _print
from hemstitch.errors import ConfigError, HemstitchError
from hemstitch.report import write_whole
from hemstitch.report._text import duration
from hemstitch.reproduce import (
    Scale,
    catalogue,
    complete_list,
    markdown,
    read_outcomes,
    run_entry,
    select,
    tally,
    write_page,
)
from hemstitch.reproduce._combinations import matrix, matrix_markdown
from hemstitch.reproduce._engine import outcome_path
from hemstitch.train import Console, Interrupted


def list_entries(out: Path, scale: Scale) -> int:
    """What there is, what it costs, what came out."""
    outcomes = complete_list(read_outcomes(out / scale), catalogue())
    grid = rich.table.Table("entry", "what", "CPU", "verdict", box=None)
    for entry, outcome in zip(catalogue(), outcomes):
        cost = duration(60 * entry.minutes) if entry.minutes else ""
        grid.add_row(entry.key, entry.title, cost, "not had" if entry.unavailable else outcome["verdict"])
    _print(grid)
    minutes = sum(entry.minutes for entry in catalogue())
    print(f"{len(catalogue())} entries, {duration(60 * minutes)} of CPU time at laptop scale; {tally(outcomes)}")
    print("run: hemstitch reproduce ENTRY (or paper-5, or all) [--scale smoke|laptop|paper]")
    return 0


def reproduce(names: Sequence[str], scale: Scale, out: Path, keep: Path | None, quiet: bool) -> int:
    """Run entries, write the page. An entry that fails is told and does not keep the others from running."""
    entries = select(catalogue(), names)
    console, failed = Console(quiet=quiet), 0
    for entry in entries:
        try:
            outcome = run_entry(entry, scale, out, console)
        except Interrupted:
            print("stopped; everything is saved. Give the same command again to continue.")
            return 130
        except HemstitchError as error:
            failed += 1
            print(f"{entry.key}: failed: {error}")
            continue
        print(f"{entry.key}: {outcome['verdict']}. {outcome['summary']}")
        if keep is not None:
            target = outcome_path(keep, scale, entry)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(outcome_path(out, scale, entry), target)
    print(f"page: {write_page(out / scale, catalogue(), scale)}")
    return 1 if failed else 0


def write_markdown(folder: Path, target: Path) -> int:
    """The results page as Markdown, from outcome files."""
    outcomes = read_outcomes(folder)
    if not outcomes:
        raise ConfigError(f"{folder}: no outcome of `hemstitch reproduce` in it (paper-1/NAME.json and so on)")
    print(write_whole(markdown(complete_list(outcomes, catalogue()), folder.name), target))
    return 0


def write_combinations(target: Path) -> int:
    """Try every combination of parts and write the matrix."""
    with tempfile.TemporaryDirectory() as folder:
        outcomes = matrix(Path(folder), print)
    print(write_whole(matrix_markdown(outcomes), target))
    return 0
