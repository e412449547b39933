"""Connected digits from the Free Spoken Digit Dataset: clips of one speaker, joined.

The clips are cut tightly and recorded at different levels. A string is 3 to 7 of them, each at the same root mean
square and with 10 ms fades, parted by 0 to 200 ms and with 100 to 200 ms at both ends; white noise at -50 dB of full
scale lies under everything, so that no frame is digital silence. The joins give exact word times.
"""

from __future__ import annotations

import io
import lzma
import re
import tarfile
import wave
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from hemstitch.errors import ConfigError, DataError
from hemstitch.speech._corpus import LEXICON, Corpus
from hemstitch.speech._files import new_folder
from hemstitch.speech._importers._audio import faded, generator, join, levelled, noisy, seconds, write_wav
from hemstitch.speech._importers._digits import DIGITS, write_digit_lexicon, write_uniform_lm
from hemstitch.speech._manifest import Utterance

RATE = 8000
TEST_TAKES = 5
SHORTEST, LONGEST = 3, 7
GAP, ENDS = (0.0, 0.2), (0.1, 0.2)
FADE = 0.01
NOISE_DECIBEL = -50.0
UNSEEN = "unseen-speaker"

Clip = tuple[str, int, int, np.ndarray]
"""Speaker, digit, take, samples."""


def import_fsdd_strings(
    source: Path,
    target: Path,
    *,
    train_passes: int = 2,
    test_passes: int = 2,
    dev_takes: int = 4,
    leave_out: str = "",
    seed: int = 0,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Corpus:
    """Make a corpus folder of digit strings: takes 0-4 are split "test", the next are "dev", then "train".

    Each pass uses every clip once, in a new order.

    Args:
        source: folder with recordings.tar.xz, or with recordings/DIGIT_SPEAKER_TAKE.wav.
        target: the corpus folder; must not exist yet.
        train_passes: passes over the training clips.
        test_passes: passes over the dev and test clips.
        dev_takes: takes (from 5 on) that are held back from training as split "dev"; may be 0.
        leave_out: speaker of whom nothing is in train, dev or test; all his takes are the split "unseen-speaker".
        seed: of order, lengths and gaps.
        overwrite: replace what is there.
        progress: called with (strings written, strings).

    Raises:
        ConfigError: there is no such speaker, or nothing is left to train on.
        DataError: ``source`` is not as expected.
    """
    clips = list(_read_clips(Path(source)))
    speakers = sorted({clip[0] for clip in clips})
    if leave_out and leave_out not in speakers:
        raise ConfigError(f"leave_out = {leave_out!r}: the speakers of {source} are {', '.join(speakers)}")
    parts: dict[tuple[str, str], list[Clip]] = {}
    for clip in sorted(clips, key=lambda clip: clip[:3]):
        parts.setdefault((_split_of(clip, dev_takes, leave_out), clip[0]), []).append(clip)
    plan = [
        (split, speaker, drawn)
        for (split, speaker), members in sorted(parts.items())
        for drawn in _strings(members, train_passes if split == "train" else test_passes,
                              generator(seed, split, speaker))
    ]
    if not any(split == "train" for split, _, _ in plan):
        raise ConfigError(f"nothing is left to train on: {source} has takes up to {max(c[2] for c in clips)}, "
                          f"dev_takes = {dev_takes}, train_passes = {train_passes}")
    with new_folder(target, overwrite=overwrite) as folder:
        (folder / "audio").mkdir()
        utterances = []
        for number, (split, speaker, drawn) in enumerate(plan, start=1):
            utterances.append(_write_string(folder, f"{speaker}-{split}-{number:05d}", split, drawn, seed))
            if progress and (number % 32 == 0 or number == len(plan)):
                progress(number, len(plan))
        write_digit_lexicon(folder / LEXICON)
        write_uniform_lm(folder / "lm.arpa", DIGITS, mean_length=(SHORTEST + LONGEST) / 2)
        Corpus(
            folder=folder, name="fsdd-strings", sampling_rate=RATE, utterances=tuple(utterances),
            licence="CC BY-SA 4.0",
            attribution="Free Spoken Digit Dataset (FSDD), Zohar Jackson and contributors, CC BY-SA 4.0; "
                        "clips levelled, faded and joined to strings",
            description=f"connected digits joined from single ones; seed {seed}",
        ).save()
    return Corpus.load(target)


def _split_of(clip: Clip, dev_takes: int, leave_out: str) -> str:
    speaker, _, take, _ = clip
    if speaker == leave_out:
        return UNSEEN
    return "test" if take < TEST_TAKES else "dev" if take < TEST_TAKES + dev_takes else "train"


def _read_clips(source: Path) -> Iterator[Clip]:
    found = False
    for name, content in _read_files(source):
        if match := re.search(r"(\d)_(\w+?)_(\d+)\.wav$", name):
            found = True
            yield match[2], int(match[1]), int(match[3]), _samples(name, content)
    if not found:
        raise DataError(f"{source}: no file named DIGIT_SPEAKER_TAKE.wav found")


def _read_files(source: Path) -> Iterator[tuple[str, bytes]]:
    archive, folder = source / "recordings.tar.xz", source / "recordings"
    if folder.is_dir():
        yield from ((path.name, path.read_bytes()) for path in sorted(folder.glob("*.wav")))
    elif archive.is_file():
        try:
            with tarfile.open(archive, "r:xz") as tar:
                for member in tar:  # in order: going back in an xz stream is slow
                    if member.isfile() and (file := tar.extractfile(member)):
                        yield member.name, file.read()
        except (tarfile.TarError, lzma.LZMAError, EOFError, OSError) as error:
            raise DataError(f"{archive} cannot be unpacked: {error}. Copy it anew.") from None
    else:
        raise DataError(f"{source} has neither recordings.tar.xz nor a folder recordings: give the folder of FSDD")


def _samples(name: str, content: bytes) -> np.ndarray:
    try:
        with wave.open(io.BytesIO(content)) as file:
            form = file.getframerate(), file.getnchannels(), file.getsampwidth()
            samples = np.frombuffer(file.readframes(file.getnframes()), "<i2")
    except (wave.Error, EOFError, ValueError) as error:
        raise DataError(f"{name} is not a WAV file: {error}. Copy it anew.") from None
    if form != (RATE, 1, 2) or not len(samples):
        raise DataError(f"{name}: expected {RATE} Hz, 1 channel, 2 bytes, got {form} and {len(samples)} samples")
    return samples.astype(np.float32) / 32768


def _strings(clips: list[Clip], passes: int, rng: np.random.Generator) -> Iterator[list[Clip]]:
    """The clips in strings of 3 to 7; each pass uses each clip once."""
    for _ in range(passes):
        order = rng.permutation(len(clips))
        while len(order):
            left = len(order)
            lengths = [n for n in range(SHORTEST, LONGEST + 1) if left - n == 0 or left - n >= SHORTEST] or [left]
            count = int(rng.choice(lengths))
            yield [clips[i] for i in order[:count]]
            order = order[count:]


def _write_string(folder: Path, name: str, split: str, drawn: list[Clip], seed: int) -> Utterance:
    rng = generator(seed, name)
    gaps = [int(RATE * rng.uniform(*(ENDS if i in (0, len(drawn)) else GAP))) for i in range(len(drawn) + 1)]
    samples, spans = join([faded(levelled(clip[3]), int(FADE * RATE)) for clip in drawn], gaps)
    write_wav(folder / "audio" / f"{name}.wav", noisy(samples, NOISE_DECIBEL, rng), RATE)
    words = [DIGITS[digit] for _, digit, _, _ in drawn]
    return Utterance(
        id=name, speaker=drawn[0][0], text=" ".join(words), split=split, audio=f"audio/{name}.wav",
        word_times=seconds(spans, words, RATE),
        info={"clips": [f"{digit}_{speaker}_{take}" for speaker, digit, take, _ in drawn]},
    )
