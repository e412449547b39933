"""LibriSpeech and what is laid out like it: PART/SPEAKER/CHAPTER/SPEAKER-CHAPTER-NUMBER.flac and .trans.txt.

Reference: V. Panayotov, G. Chen, D. Povey, S. Khudanpur, "Librispeech: an ASR corpus based on public domain audio
books", ICASSP 2015.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from hemstitch.errors import DataError
from hemstitch.speech._broken import BrokenUtterance
from hemstitch.speech._corpus import Corpus
from hemstitch.speech._importers._assemble import Media, Progress, Sound, assemble
from hemstitch.speech._importers._parts import choose_parts
from hemstitch.speech._importers._recording import Recording
from hemstitch.speech._importers._text import read_text
from hemstitch.speech._importers._words import Words

TRANSCRIPTS = "*/*/*.trans.txt"
AUDIO = (".flac", ".wav", ".ogg")


def import_librispeech(
    source: Path,
    target: Path,
    *,
    lexicon: str = "",
    lm: str = "",
    parts: str = "",
    stress: bool = False,
    media: Media = "copy",
    sampling_rate: int = 0,
    tolerance: float = 0.0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Corpus:
    """Make a corpus folder of LibriSpeech, Mini LibriSpeech or a tree of the same form.

    Args:
        source: the folder LibriSpeech, with train-clean-5 and so on in it; or one of these.
        target: the corpus folder; must not exist yet.
        lexicon: CMUdict file, or LibriSpeech's librispeech-lexicon.txt; or "letters".
        lm: ARPA file; without, lm.arpa holds the word frequencies of the training part.
        parts: which to import, parted by commas, each maybe with its split: "train-clean-5,dev-clean-2=test".
        stress: keep the stress marks of ARPAbet vowels.
        media: copy audio files, or make symbolic links to them.
        sampling_rate: in Hz, others are converted; 0: that of the first file.
        tolerance: largest share of unusable utterances that is left out.
        overwrite: replace what is there.
        progress: called with (utterances done, utterances).

    Raises:
        ConfigError: no lexicon, or no such part.
        DataError: it is not laid out like that; names file and line.
    """
    source = Path(source)
    folders = _parts(source)
    recordings: list[Recording] = []
    broken: list[BrokenUtterance] = []
    for name, split in choose_parts(parts, list(folders), source).items():
        for entry in _read_part(folders[name], split):
            (recordings if isinstance(entry, Recording) else broken).append(entry)  # type: ignore[arg-type]
    return assemble(
        Path(target), recordings, broken=broken, tolerance=tolerance, overwrite=overwrite, progress=progress,
        words=Words(lexicon=lexicon, lm=lm, stress=stress),
        sound=Sound(media=media, sampling_rate=sampling_rate),
        about={"name": "librispeech", "description": f"read audio books from {source}: {parts or ', '.join(folders)}",
               "licence": "CC BY 4.0", "attribution": "LibriSpeech, V. Panayotov et al. 2015, from LibriVox"},
    )


def _parts(source: Path) -> Mapping[str, Path]:
    if any(source.glob(TRANSCRIPTS)):
        return {source.resolve().name: source}
    found = {path.name: path for path in sorted(source.glob("*")) if path.is_dir() and any(path.glob(TRANSCRIPTS))}
    if not found:
        raise DataError(f"{source}: no PART/SPEAKER/CHAPTER/SPEAKER-CHAPTER.trans.txt below it: give the folder "
                        "LibriSpeech, or one of its parts such as train-clean-5")
    return found


def _read_part(part: Path, split: str) -> Iterator[Recording | BrokenUtterance]:
    for transcripts in sorted(part.glob(TRANSCRIPTS)):
        for number, line in enumerate(read_text(transcripts).splitlines(), start=1):
            if not line.strip():
                continue
            name, _, text = line.strip().partition(" ")
            where = f"{transcripts}:{number}"
            audio = next((p for s in AUDIO if (p := transcripts.with_name(name + s)).is_file()), None)
            if audio is None or not text.strip():
                problem = "has no words" if audio else f"no {name}{AUDIO[0]} beside the transcript"
                yield BrokenUtterance(name, where, problem)
                continue
            yield Recording(id=name, speaker=transcripts.parent.parent.name, text=" ".join(text.split()), split=split,
                            audio=audio, where=where, info={"part": part.name})
