"""Kaldi data directories: wav.scp, text, utt2spk, and segments where utterances are parts of longer recordings.

Format: https://kaldi-asr.org/doc/data_prep.html.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from hemstitch.errors import DataError
from hemstitch.speech._broken import BrokenUtterance
from hemstitch.speech._corpus import Corpus
from hemstitch.speech._importers._assemble import Media, Progress, Sound, assemble
from hemstitch.speech._importers._parts import choose_parts
from hemstitch.speech._importers._recording import Recording
from hemstitch.speech._importers._text import read_text
from hemstitch.speech._importers._words import Words


class Line(NamedTuple):
    """What a line of a table says after its key, and ``file:line``."""

    value: str
    where: str


def import_kaldi(
    source: Path,
    target: Path,
    *,
    lexicon: str = "",
    lm: str = "",
    root: str = "",
    parts: str = "",
    stress: bool = False,
    media: Media = "copy",
    sampling_rate: int = 0,
    tolerance: float = 0.0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Corpus:
    """Make a corpus folder of one Kaldi data directory, or of several beside each other (data/train, data/test).

    wav.scp must name audio files: commands ("sph2pipe ... |") are not run, and parts of archives (a.ark:42) not read.

    Args:
        source: a data directory, or the folder that holds them.
        target: the corpus folder; must not exist yet.
        lexicon: lexicon.txt, lexiconp.txt or the dict folder with them; or a CMUdict file; or "letters".
        lm: ARPA file; without, lm.arpa holds the word frequencies of the training part.
        root: folder that relative paths in wav.scp begin in; without, the source and the current folder are tried.
        parts: data directories to import, parted by commas, each maybe with its split: "train_100,eval=test".
        stress: keep the stress marks of ARPAbet vowels.
        media: copy audio files, or make symbolic links to them; parts of files are always cut out.
        sampling_rate: in Hz, others are converted; 0: that of the first file.
        tolerance: largest share of unusable utterances that is left out.
        overwrite: replace what is there.
        progress: called with (utterances done, utterances).

    Raises:
        ConfigError: no lexicon, or no such part.
        DataError: a file is missing or not as expected; names file and line.
    """
    source = Path(source)
    folders = _data_folders(source)
    roots = [Path(root)] if root else [source, source.parent, Path()]
    dictionary, silence = _dictionary(lexicon)
    recordings: list[Recording] = []
    broken: list[BrokenUtterance] = []
    for name, split in choose_parts(parts, list(folders), source).items():
        for entry in _read_folder(folders[name], split, roots):
            (recordings if isinstance(entry, Recording) else broken).append(entry)  # type: ignore[arg-type]
    return assemble(
        Path(target), recordings, broken=broken, tolerance=tolerance, overwrite=overwrite, progress=progress,
        words=Words(lexicon=dictionary, lm=lm, stress=stress, silence=silence),
        sound=Sound(media=media, sampling_rate=sampling_rate),
        about={"name": source.resolve().name, "description": f"from Kaldi data in {source}"},
    )


def _data_folders(source: Path) -> Mapping[str, Path]:
    if (source / "wav.scp").is_file():
        return {source.resolve().name: source}
    found = {path.parent.name: path.parent for path in sorted(source.glob("*/wav.scp"))}
    if not found:
        raise DataError(f"{source}: no wav.scp here or one folder below: give a Kaldi data directory or their parent")
    return found


def _dictionary(lexicon: str) -> tuple[str, str]:
    """The lexicon file, and the silence phone that the dict folder names."""
    folder = Path(lexicon)
    if not lexicon or not folder.is_dir():
        return lexicon, "SIL"
    for name in ("lexiconp.txt", "lexicon.txt"):
        if (folder / name).is_file():
            silence = folder / "optional_silence.txt"
            return str(folder / name), silence.read_text(encoding="utf-8").strip() if silence.is_file() else "SIL"
    raise DataError(f"{folder} has neither lexiconp.txt nor lexicon.txt: give the dict folder or the file itself")


def _read_folder(folder: Path, split: str, roots: list[Path]) -> Iterator[Recording | BrokenUtterance]:
    """Utterances in the order of ``text``, then what has no transcript."""
    audio = {name: _audio(line, roots) for name, line in _table(folder / "wav.scp").items()}
    text, speakers = _table(folder / "text", may_be_empty=True), _table(folder / "utt2spk")
    has_segments = (folder / "segments").is_file()
    segments = _table(folder / "segments") if has_segments else {}
    for name, line in text.items():
        listed = segments.get(name) if has_segments else line
        recording, begin, end = _segment(listed) if has_segments and listed else (name, 0.0, None)
        problem = ("" if line.value else "has no words") or ("" if name in speakers else "is not in utt2spk")
        problem = problem or ("" if listed else "is not in segments")
        problem = problem or ("" if recording in audio else f"needs the recording {recording}, not in wav.scp")
        if problem:
            yield BrokenUtterance(name, line.where, problem)
            continue
        yield Recording(id=name, speaker=speakers[name].value, text=" ".join(line.value.split()), split=split,
                        audio=audio[recording], begin=begin, end=end, where=line.where)
    for name, line in (segments if has_segments else _table(folder / "wav.scp")).items():
        if name not in text:
            yield BrokenUtterance(name, line.where, f"has no transcript in {folder / 'text'}")


def _table(path: Path, may_be_empty: bool = False) -> Mapping[str, Line]:
    """Key -> rest of the line."""
    lines = read_text(path, "a Kaldi data directory needs wav.scp, text and utt2spk").splitlines()
    table: dict[str, Line] = {}
    for number, text in enumerate(lines, start=1):
        key, *rest = text.split(maxsplit=1)[:2] or [""]
        value, where = rest[0].strip() if rest else "", f"{path}:{number}"
        if not key:
            raise DataError(f"{where}: empty line: remove it")
        if key in table:
            raise DataError(f"{where}: {key} is already in line {table[key].where.rpartition(':')[2]}: remove one")
        if not value and not may_be_empty:
            raise DataError(f"{where}: nothing after {key}: expected a key and its value")
        table[key] = Line(value, where)
    return table


def _audio(line: Line, roots: list[Path]) -> Path:
    name = line.value
    if name.endswith("|"):
        raise DataError(f"{line.where}: {name!r} is a command, and commands are not run. Run it once into a WAV file "
                        "and name that file here")
    if name.rpartition(":")[2].isdigit():
        raise DataError(f"{line.where}: {name!r} is a place in an archive. Write the recording to a WAV file of its "
                        "own (for example with Kaldi's wav-copy) and name that file here")
    return next((root / name for root in roots if (root / name).is_file()), roots[0] / name)


def _segment(line: Line) -> tuple[str, float, float | None]:
    """Recording, begin, end (seconds); a negative end is that of the recording."""
    fields = line.value.split()
    try:
        recording, begin, end = fields
        times = float(begin), float(end)
    except ValueError:
        raise DataError(f"{line.where}: expected UTTERANCE RECORDING BEGIN END with times in seconds, got "
                        f"{len(fields)} fields after the utterance: {line.value!r}. (A recording with several "
                        "channels must be taken apart first.)") from None
    return recording, times[0], times[1] if times[1] >= 0 else None
