"""AN4 as CMU hands it out with audio: etc/an4_train.fileids and .transcription, wav/.../*.sph, etc/an4.dic."""

from __future__ import annotations

import re
from pathlib import Path

from hemstitch.errors import DataError
from hemstitch.speech._corpus import Corpus
from hemstitch.speech._importers._assemble import Media, Progress, Sound, assemble
from hemstitch.speech._importers._recording import Recording
from hemstitch.speech._importers._text import read_text
from hemstitch.speech._importers._words import Words

SUFFIXES = (".sph", ".wav", ".flac")
LINE = re.compile(r"(?:<s>)?(?P<text>.*?)(?:</s>)?\s*\((?P<id>[^()\s]+)\)\s*$")


def import_an4_audio(
    source: Path,
    target: Path,
    *,
    lm: str = "",
    media: Media = "copy",
    sampling_rate: int = 0,
    tolerance: float = 0.0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Corpus:
    """Make a corpus folder of AN4 with audio.

    Args:
        source: the folder an4 of the distribution in Sphere (or WAV) format, with etc and wav in it.
        target: the corpus folder; must not exist yet.
        lm: ARPA file; without, etc/an4.ug.lm if it is there, else the word frequencies of the training part.
        media: copy audio files, or make symbolic links to them.
        sampling_rate: in Hz; 0: 16000, as it is.
        tolerance: largest share of unusable utterances that is left out.
        overwrite: replace what is there.
        progress: called with (utterances done, utterances).

    Raises:
        DataError: ``source`` is not as expected; names file and line.
    """
    source = Path(source)
    needed = ["an4.dic", *(f"an4_{split}.{kind}" for split in ("train", "test") for kind in ("fileids",
                                                                                           "transcription"))]
    if missing := [name for name in needed if not (source / "etc" / name).is_file()]:
        raise DataError(f"{source} is not AN4 as expected: {', '.join(missing)} missing in its folder etc")
    unigram = source / "etc" / "an4.ug.lm"
    return assemble(
        Path(target), [r for split in ("train", "test") for r in _recordings(source, split)],
        words=Words(lexicon=str(source / "etc" / "an4.dic"), lm=lm or (str(unigram) if unigram.is_file() else "")),
        sound=Sound(media=media, sampling_rate=sampling_rate), tolerance=tolerance, overwrite=overwrite,
        progress=progress,
        about={"name": "an4-audio", "description": "AN4 with audio, close-talking microphone",
               "licence": "free for use for any purpose (commercial or otherwise)",
               "attribution": "AN4 database, (c) 1991-2005 Carnegie Mellon University"},
    )


def _recordings(source: Path, split: str) -> list[Recording]:
    transcripts, files = (source / "etc" / f"an4_{split}.{kind}" for kind in ("transcription", "fileids"))
    texts = read_text(transcripts).splitlines()
    paths = read_text(files).split()
    if len(texts) != len(paths):
        raise DataError(f"{transcripts} has {len(texts)} lines, {files} has {len(paths)}: they do not belong together")
    recordings = []
    for number, (line, path) in enumerate(zip(texts, paths), start=1):
        where = f"{transcripts}:{number}"
        match = LINE.match(line)
        if not match or match["id"] != Path(path).name:
            raise DataError(f"{where}: expected 'WORDS ({Path(path).name})' as in line {number} of {files}, got "
                            f"{line!r}")
        base = source / "wav" / path
        audio = next((p for s in SUFFIXES if (p := base.with_name(base.name + s)).is_file()),
                     base.with_name(base.name + SUFFIXES[0]))
        recordings.append(Recording(
            id=match["id"], speaker=Path(path).parent.name, text=" ".join(match["text"].split()), split=split,
            audio=audio, where=where))
    return recordings
