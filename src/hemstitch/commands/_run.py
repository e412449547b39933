"""Commands that train, resume, decode and score."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hemstitch.commands._details import NOTHING, Details, add_details, decode_settings
from hemstitch.errors import DataError, RunError
from hemstitch.report import write_report
from hemstitch.train import Console, Interrupted, load_trained
from hemstitch.train import resume as resume_run
from hemstitch.train import train as train_run
from hemstitch.train._recipe_files import read
from hemstitch.train._run_folder import RESULT, read_json


def train(name: str, settings: Sequence[str], path: Path | None, quiet: bool) -> int:
    """Train, test, report."""
    return _finish(lambda console: train_run(read(name, settings), path, console), quiet)


def resume(path: Path, quiet: bool) -> int:
    """Continue a run, test, report."""
    return _finish(lambda console: resume_run(path, console), quiet)


def _finish(run: Any, quiet: bool) -> int:
    console = Console(quiet=quiet)
    try:
        path = run(console)
    except Interrupted as stop:
        print(f"stopped; everything is saved. Continue with: hemstitch resume {stop.path}")
        return 130
    if int(os.environ.get("RANK", 0)) > 0 and "TORCHELASTIC_RUN_ID" in os.environ:
        return 0  # the first worker reports
    report = write_report(path)
    result = read_json(path / RESULT)
    try:
        lines = headline(result)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(f"{path / RESULT}: damaged ({type(error).__name__}: {error}). Delete it and `hemstitch resume "
                       f"{path}`: the test is done again.") from None
    print("\n".join(lines))
    print(f"report: {report}")
    if quiet:
        return 0
    print("next:")
    after = {f"hemstitch compare {path} OTHER-RUN": "two runs side by side (try another --update.kind or --seed)"}
    if "wer" in result:
        after[f"hemstitch decode {path} --decode.beam 16"] = "recognise again with other settings"
    after["hemstitch list"] = "what else there is to try"
    for command, purpose in after.items():
        print(f"  {command:{max(map(len, after))}}  {purpose}")
    return 0


def headline(result: dict[str, Any]) -> list[str]:
    """The result of a run in a line or two."""
    lines = []
    for part, wer in result.get("wer", {}).items():
        lines.append(
            f"{part} WER {wer['rate']:.2%}  (95 %: {wer['low']:.2%} to {wer['high']:.2%}; {wer['words']} words: "
            f"{wer['substitutions']} substituted, {wer['deletions']} deleted, {wer['insertions']} inserted)"
        )
    lines += [f"{part} accuracy {value:.2%}" for part, value in result.get("accuracy", {}).items()]
    lines += [f"{part} perplexity {value:.2f}" for part, value in result.get("perplexity", {}).items()]
    if summary := result.get("summary"):
        lines.append(
            f"{summary['parameters']:,} parameters, {summary['steps']:,} steps, {summary['wall_seconds']:.0f} s"
        )
    return lines


def decode(path: Path, part: str, settings: Sequence[str], details: Details = NOTHING) -> int:
    """Recognise a part with the best network of a run."""
    run, folder = load_trained(path, Console(), decode_settings("decode", settings))
    if not hasattr(run.task, "decode"):
        raise RunError(f"{path} is not a speech run: there is nothing to decode.")
    result = run.task.decode(run.model, folder, (part,), run.console)
    for line in headline(result):
        print(line)
    if details.wanted:
        add_details(run, folder, part, result["decode"], details)
    print(f"words of each utterance: {folder.path / 'decode' / (part + '.jsonl')}")
    return 0


def score(reference: Path, hypothesis: Path | None) -> int:
    """Word error rate of one transcript file against another, or of the decoded parts of a run."""
    from hemstitch.speech import word_error_rate

    pairs = {"": (_transcript(reference), _transcript(hypothesis))} if hypothesis else _decoded(reference)
    for name, (references, hypotheses) in pairs.items():
        result = word_error_rate(references, hypotheses)
        print(f"{name} {result}".strip())
    return 0


def _decoded(path: Path) -> dict[str, tuple[dict[str, str], dict[str, str]]]:
    found = {}
    for file in sorted((path / "decode").glob("*.jsonl")):
        try:
            rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
            found[file.stem] = tuple({str(r["id"]): str(r[side]) for r in rows} for side in ("reference", "hypothesis"))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RunError(f"{file}: damaged ({type(error).__name__}: {error}). `hemstitch decode {path} --part "
                           f"{file.stem}` writes it anew.") from None
    if not found:
        raise RunError(f"{path}: no decoded words there. Give a run folder that was decoded, or two transcript files.")
    return found


def _transcript(path: Path) -> dict[str, str]:
    rows: dict[str, str] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"{path}: cannot be read as a transcript ({why}). Expected a text file: utterance id, then the "
                        "words; or, alone, a run folder.") from None
    for number, line in enumerate(lines, start=1):
        identifier, _, words = line.strip().partition(" ")
        if not identifier:
            continue
        if identifier in rows:
            raise DataError(f"{path}:{number}: utterance {identifier!r} appears twice.")
        rows[identifier] = words.strip()
    return rows
