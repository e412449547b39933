"""The last step of importers: recordings, words and what is known about them become a corpus folder.

Audio is copied as it is, or linked; utterances inside longer files are cut out into WAV files of 16 bits, and so are
files of another sampling rate than the one asked for. Whatever cannot be used is left out as far as the tolerance
allows, and listed in ``left-out.txt``; words without pronunciation are in ``out-of-vocabulary.txt``.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from hemstitch.errors import DataError
from hemstitch.speech._broken import BrokenUtterance, Unusable, enforce_tolerance
from hemstitch.speech._corpus import LEXICON, Corpus
from hemstitch.speech._files import new_folder
from hemstitch.speech._importers._audio import write_wav
from hemstitch.speech._importers._recording import Recording
from hemstitch.speech._importers._words import Words, summary, without_pronunciation
from hemstitch.speech._manifest import Utterance
from hemstitch.speech._media import check_audio, own_rate, read_audio, require
from hemstitch.speech._resample import resample

OVERSHOOT = 0.05
"""Seconds that the end of an utterance may lie behind the end of its file: rounding in the source."""

Progress = Callable[[int, int], None]
Media = Literal["copy", "link"]


@dataclass(frozen=True, kw_only=True)
class Sound:
    """How audio gets into the corpus folder.

    Attributes:
        media: copy whole files, or make symbolic links to them.
        sampling_rate: in Hz, others are converted; 0: that of the first file, others are refused.
    """

    media: Media = "copy"
    sampling_rate: int = 0


def assemble(
    target: Path,
    recordings: Sequence[Recording],
    *,
    words: Words,
    sound: Sound,
    about: Mapping[str, str],
    broken: Sequence[BrokenUtterance] = (),
    tolerance: float = 0.0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Corpus:
    """Write a corpus folder, whole or not at all.

    Args:
        target: the corpus folder.
        recordings: the utterances, in order.
        words: lexicon and language model.
        sound: copied or linked, and its sampling rate.
        about: name, licence, attribution and description.
        broken: what the importer could not use.
        tolerance: largest share of unusable utterances accepted.
        overwrite: replace what is there.
        progress: called with (utterances done, utterances) now and then.

    Raises:
        DataError: too much cannot be used, nothing is left, or the target cannot be written.
    """
    total = len(recordings) + len(broken)
    recordings, doubled = _once_each(recordings)
    lexicon, missing = words.pronounce(recordings)
    mute = without_pronunciation(recordings, missing)
    broken = [*broken, *doubled, *mute]
    try:
        enforce_tolerance(broken, total, tolerance)
    except DataError as error:
        raise DataError(f"{error}\n{summary(missing)}" if mute else str(error)) from None
    unsaid = {entry.id for entry in mute}
    recordings = [r for r in recordings if r.id not in unsaid]
    rate = sound.sampling_rate or _rate_of(recordings)
    with new_folder(target, overwrite=overwrite) as folder:
        utterances, unreadable = _bring_all(folder, recordings, rate, sound, progress or (lambda done, total: None))
        broken += unreadable
        enforce_tolerance(broken, total, tolerance)
        if not utterances:
            raise DataError(f"nothing to import: {broken[0] if broken else 'no utterance was found'}")
        lexicon.write(folder / LEXICON)
        kept = {u.id for u in utterances}
        words.write_language_model(folder / "lm.arpa", (r for r in recordings if r.id in kept))
        _write_lists(folder, broken, missing)
        Corpus(folder=folder, sampling_rate=rate, utterances=tuple(utterances), silence=words.silence, **about).save()
    return Corpus.load(target)


def _once_each(recordings: Sequence[Recording]) -> tuple[list[Recording], list[BrokenUtterance]]:
    first: dict[str, Recording] = {}
    doubled = []
    for recording in recordings:
        if (other := first.setdefault(recording.id, recording)) is not recording:
            doubled.append(BrokenUtterance(recording.id, recording.where, f"the id is already used in {other.where}"))
    return list(first.values()), doubled


def _rate_of(recordings: Sequence[Recording]) -> int:
    """The sampling rate of the first file that has one."""
    rate = next(filter(None, (own_rate(recording.audio) for recording in recordings)), 0)
    if not rate:
        raise DataError(f"no readable audio: tried {len(recordings)} files, the first is "
                        f"{recordings[0].audio if recordings else 'missing'}")
    return rate


def _bring_all(folder: Path, recordings: Sequence[Recording], rate: int, sound: Sound,
               progress: Progress) -> tuple[list[Utterance], list[BrokenUtterance]]:
    (folder / "audio").mkdir()
    utterances, broken = [], []
    for done, r in enumerate(recordings, start=1):
        try:
            audio = _bring(folder, r, rate, sound)
            utterances.append(Utterance(id=r.id, speaker=r.speaker, text=r.text, split=r.split, audio=audio,
                                        info=r.info))
        except Unusable as error:
            broken.append(BrokenUtterance(r.id, r.where, str(error)))
        if done % 32 == 0 or done == len(recordings):
            progress(done, len(recordings))
    return utterances, broken


def _bring(folder: Path, recording: Recording, rate: int, sound: Sound) -> str:
    """Put the audio of one utterance into the folder; returns its path there."""
    source = recording.audio
    found = own_rate(source) if sound.sampling_rate else rate
    try:
        check_audio(source, found)
    except Unusable as error:
        hint = " (or let the importer do it: sampling_rate=HERTZ)" if "has a sampling rate of" in str(error) else ""
        raise Unusable(f"{error}{hint}") from None
    stem = recording.id.replace("%", "%25").replace("/", "%2F")
    if found == rate and recording.is_whole_file:
        name = f"audio/{stem}{source.suffix.lower()}"
        if sound.media == "link":
            (folder / name).symlink_to(source.resolve())
        else:
            shutil.copyfile(source, folder / name)
        return name
    name = f"audio/{stem}.wav"
    if found == rate:
        require("soundfile").write(folder / name, _cut(recording, rate, "int16"), rate, subtype="PCM_16")
    else:
        write_wav(folder / name, resample(_cut(recording, found, "float32"), found, rate), rate)
    return name


def _cut(recording: Recording, rate: int, dtype: str) -> np.ndarray:
    """The samples of an utterance."""
    if recording.is_whole_file:
        return read_audio(recording.audio, rate)
    with require("soundfile").SoundFile(str(recording.audio)) as file:
        seconds = file.frames / rate
        end = seconds if recording.end is None else min(recording.end, seconds)
        if not 0 <= recording.begin < end or (recording.end or 0) > seconds + OVERSHOOT:
            raise Unusable(f"from {recording.begin:g} s to {end if recording.end is None else recording.end:g} s is "
                           f"no part of the {seconds:g} s of {recording.audio}: correct the times")
        first = round(recording.begin * rate)
        file.seek(first)
        return file.read(max(1, round(end * rate) - first), dtype=dtype)


def _write_lists(folder: Path, broken: Sequence[BrokenUtterance], missing: Counter[str]) -> None:
    if broken:
        (folder / "left-out.txt").write_text("".join(f"{entry}\n" for entry in broken), encoding="utf-8")
    if missing:
        ordered = sorted(missing.items(), key=lambda item: (-item[1], item[0]))
        text = "".join(f"{word} {count}\n" for word, count in ordered)
        (folder / "out-of-vocabulary.txt").write_text(text, encoding="utf-8")
