"""A folder of audio files with transcripts: beside each file (a.wav, a.txt), or all in one table.

The table is ``transcripts.csv`` or ``transcripts.tsv`` with a header that names at least the columns ``audio`` and
``text``, maybe also ``speaker``, ``split`` and ``id``; or ``transcripts.txt`` with lines ``path words ...``. The path
is relative to the source; its suffix may be left out.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

from hemstitch.errors import ConfigError, DataError
from hemstitch.speech._broken import BrokenUtterance
from hemstitch.speech._corpus import Corpus, _shuffled
from hemstitch.speech._importers._assemble import Media, Progress, Sound, assemble
from hemstitch.speech._importers._parts import split_named
from hemstitch.speech._importers._recording import Recording
from hemstitch.speech._importers._text import read_text
from hemstitch.speech._importers._words import Words
from hemstitch.speech._manifest import unknown_key

AUDIO = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".sph", ".aiff")
TABLES = ("transcripts.csv", "transcripts.tsv", "transcripts.txt")
BESIDE = (".txt", ".lab")
COLUMNS = ("audio", "text", "speaker", "split", "id")
Case = Literal["keep", "upper", "lower"]


class Entry(NamedTuple):
    """What the source says of an audio file."""

    audio: Path
    text: str
    where: str
    speaker: str = ""
    split: str = ""
    id: str = ""


def import_wav_tree(
    source: Path,
    target: Path,
    *,
    lexicon: str = "",
    lm: str = "",
    speaker: str = "folder",
    test_share: float = 0.1,
    case: Case = "keep",
    punctuation: bool = False,
    stress: bool = False,
    media: Media = "copy",
    sampling_rate: int = 0,
    tolerance: float = 0.0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Corpus:
    """Make a corpus folder of audio files and their transcripts.

    The split is that of the table, or that which the topmost folder is named after (train, dev, test); otherwise whole
    speakers are drawn for split "test" (utterances, where there is but one speaker), always the same ones.

    Args:
        source: folder with audio files, at any depth.
        target: the corpus folder; must not exist yet.
        lexicon: CMUdict file, or lines WORD PHONE PHONE ...; or "letters".
        lm: ARPA file; without, lm.arpa holds the word frequencies of the training part.
        speaker: folder: the folder that the file is in; else a regular expression on the path relative to the source,
            whose first group is the speaker. A column ``speaker`` goes before.
        test_share: share of the speakers in split "test", where the source has no splits; 0: everything is "train".
        case: change transcripts to upper or lower case.
        punctuation: keep punctuation; without, all but letters, digits, marks within words ('-) is dropped.
        stress: keep the stress marks of ARPAbet vowels.
        media: copy audio files, or make symbolic links to them.
        sampling_rate: in Hz, others are converted; 0: that of the first file.
        tolerance: largest share of unusable utterances that is left out.
        overwrite: replace what is there.
        progress: called with (utterances done, utterances).

    Raises:
        ConfigError: no lexicon, or a setting that cannot be used.
        DataError: no audio, a damaged table; names file and line.
    """
    source = Path(source)
    if not source.is_dir():
        raise DataError(f"{source}: no such folder: give the folder that holds audio files and transcripts")
    if not 0 <= test_share < 1:
        raise ConfigError(f"test_share must be in [0, 1), got {test_share:g}")
    pattern = _pattern(speaker)
    recordings, broken = [], []
    for entry in _entries(source):
        text = _normalised(entry.text, case, punctuation)
        path = entry.audio.relative_to(source)
        name = entry.id or path.with_suffix("").as_posix().replace("/", "-").replace(" ", "_")
        who = entry.speaker or _speaker(path, pattern)
        problem = "" if text else "the transcript is empty"
        problem = problem or ("" if who else f"no speaker: the pattern {speaker!r} does not match {path.as_posix()!r}")
        if problem or not entry.audio.is_file():
            broken.append(BrokenUtterance(name, entry.where, problem or f"audio file {entry.audio} is missing"))
            continue
        split = entry.split or (split_named(path.parts[0]) if len(path.parts) > 1 else None) or ""
        recordings.append(Recording(id=name, speaker=who, text=text, split=split, audio=entry.audio,
                                    where=entry.where))
    return assemble(
        Path(target), _with_splits(recordings, test_share), broken=broken, tolerance=tolerance, overwrite=overwrite,
        progress=progress, words=Words(lexicon=lexicon, lm=lm, stress=stress),
        sound=Sound(media=media, sampling_rate=sampling_rate),
        about={"name": source.resolve().name, "description": f"audio and transcripts from {source}"},
    )


def _entries(source: Path) -> Iterator[Entry]:
    table = next((source / name for name in TABLES if (source / name).is_file()), None)
    if table is not None:
        yield from _rows(table) if table.suffix != ".txt" else _lines(table)
        return
    found = False
    for audio in sorted(path for path in source.rglob("*") if path.suffix.lower() in AUDIO):
        found = True
        beside = next((p for s in BESIDE if (p := audio.with_suffix(s)).is_file()), audio.with_suffix(BESIDE[0]))
        if beside.is_file():
            yield Entry(audio, read_text(beside), str(beside))
        else:
            yield Entry(audio, "", f"{beside} (missing)")
    if not found:
        raise DataError(f"{source}: no audio file ({', '.join(AUDIO)}) and no {', '.join(TABLES)} in it")


def _rows(table: Path) -> Iterator[Entry]:
    """The rows of a table with a header."""
    delimiter = "\t" if table.suffix == ".tsv" else ","
    rows = csv.DictReader(io.StringIO(read_text(table), newline=""), delimiter=delimiter, strict=True)
    header = rows.fieldnames or []
    for column in header:
        if column not in COLUMNS:
            raise DataError(f"{table}:1: {unknown_key(column, COLUMNS)}".replace("unknown key", "unknown column"))
    if not {"audio", "text"} <= set(header):
        raise DataError(f"{table}:1: needs a header with the columns audio and text, got {', '.join(header)}")
    while True:
        try:
            row = next(rows, None)
        except csv.Error as error:
            raise DataError(f"{table}:{rows.line_num}: {error}: quote fields that hold the separator") from None
        if row is None:
            return
        where = f"{table}:{rows.line_num}"
        if None in row or None in row.values():
            raise DataError(f"{where}: expected {len(header)} fields as in the header, got another number")
        yield Entry(_find(table.parent, row.pop("audio")), where=where, **row)


def _lines(table: Path) -> Iterator[Entry]:
    """Lines ``path words ...``."""
    for number, line in enumerate(read_text(table).splitlines(), start=1):
        if line.strip():
            name, _, text = line.strip().partition(" ")
            yield Entry(_find(table.parent, name), text, f"{table}:{number}")


def _find(source: Path, name: str) -> Path:
    """The audio file of that name, with or without suffix."""
    path = source / name
    if path.is_file() or path.suffix.lower() in AUDIO:
        return path
    return next((p for suffix in AUDIO if (p := path.with_name(path.name + suffix)).is_file()), path)


def _pattern(speaker: str) -> re.Pattern[str] | None:
    if speaker == "folder":
        return None
    try:
        pattern = re.compile(speaker)
    except re.error as error:
        raise ConfigError(f"speaker = {speaker!r} is no regular expression: {error}") from None
    if pattern.groups < 1:
        raise ConfigError(f"speaker = {speaker!r} has no group: put the part that is the speaker in parentheses")
    return pattern


def _speaker(path: Path, pattern: re.Pattern[str] | None) -> str:
    if pattern is None:
        return path.parent.name or "speaker"
    match = pattern.search(path.as_posix())
    return match[1] or "" if match else ""


def _normalised(text: str, case: Case, punctuation: bool) -> str:
    if not punctuation:
        text = re.sub(r"[^\w'-]|_|(?<!\w)['-]|['-](?!\w)", " ", text.replace("’", "'"))
    text = {"keep": str, "upper": str.upper, "lower": str.lower}[case](text)
    return " ".join(text.split())


def _with_splits(recordings: list[Recording], test_share: float) -> list[Recording]:
    """Split "test" drawn by speaker where nothing says otherwise; what has no split then is "train"."""
    test: set[str] = set()
    by_speaker = len({r.speaker for r in recordings}) > 1
    key: Mapping[str, str] = {r.id: r.speaker if by_speaker else r.id for r in recordings}
    if test_share and not any(r.split for r in recordings) and len(set(key.values())) > 1:
        order = _shuffled(set(key.values()), 0)
        test = set(order[: max(1, round(test_share * len(order)))])
    return [r if r.split else replace(r, split="test" if key[r.id] in test else "train") for r in recordings]
