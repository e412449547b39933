"""Connected digits spoken by a synthesiser: a corpus made of nothing, offline and the same each time.

The voices are those of espeak-ng (accent, variant, pitch and speed make a speaker) where the package espeakng-loader is
installed and works, else a plain one written in numpy. No voice variant is in both train and test.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from hemstitch.errors import ConfigError, DataError
from hemstitch.speech._corpus import LEXICON, Corpus
from hemstitch.speech._files import new_folder
from hemstitch.speech._importers._audio import faded, generator, levelled, noisy, seconds, write_wav
from hemstitch.speech._importers._digits import DIGITS, PRONUNCIATIONS, write_digit_lexicon, write_uniform_lm
from hemstitch.speech._importers._espeak import ACCENTS, VARIANTS, Espeak, EspeakJob, EspeakUnavailable, Spoken
from hemstitch.speech._importers._plain_voice import PlainVoice, say
from hemstitch.speech._manifest import Utterance
from hemstitch.speech._resample import resample

log = logging.getLogger("hemstitch.speech")

ENDS = (0.1, 0.2)
"""Seconds of background before and after the words."""
NOISE_DECIBEL = (-58.0, -46.0)
"""Level of the background noise, of full scale; speech is at -24 dB."""
FADE = 0.005
AUDIBLE = 0.003
"""Samples below this share of full scale at the end count as silence."""


@dataclass(frozen=True)
class _Line:
    """An utterance to be spoken; the speaker is a number within the split."""

    id: str
    split: str
    speaker: int
    words: tuple[str, ...]


Voiced = tuple[np.ndarray, Sequence[int]]
"""Samples at the sampling rate of the corpus, and the first sample of each word."""


def import_synthetic_digits(
    target: Path,
    *,
    num_train: int = 600,
    num_test: int = 150,
    train_speakers: int = 60,
    test_speakers: int = 15,
    shortest: int = 2,
    longest: int = 5,
    sampling_rate: int = 8000,
    voices: Literal["auto", "espeak", "plain"] = "auto",
    seed: int = 0,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Corpus:
    """Make a corpus folder of synthesised digit strings.

    Args:
        target: the corpus folder; must not exist yet.
        num_train, num_test: utterances.
        train_speakers, test_speakers: speakers, different ones.
        shortest, longest: words per utterance.
        sampling_rate: 8000 or 16000 Hz.
        voices: espeak-ng, the plain voice, or espeak-ng if it can be had ("auto"; says so if not).
        seed: of texts, voices and noise.
        overwrite: replace what is there.
        progress: called with (utterances done, utterances).

    Raises:
        ConfigError: a value out of range.
        DataError: espeak-ng is asked for and cannot be had, or the folder cannot be written.

    Cost: about 5 ms per utterance.
    """
    _check(num_train, num_test, train_speakers, test_speakers, shortest, longest)
    if sampling_rate not in (8000, 16000):
        raise ConfigError(f"synthetic-digits: sampling_rate must be 8000 or 16000, got {sampling_rate}")
    if voices not in ("auto", "espeak", "plain"):
        raise ConfigError(f"synthetic-digits: voices must be auto, espeak or plain, got {voices!r}")
    lines = [*_script("train", num_train, train_speakers, (shortest, longest), seed),
             *_script("test", num_test, test_speakers, (shortest, longest), seed)]
    progress = progress or (lambda done, total: None)
    with new_folder(target, overwrite=overwrite) as folder:
        utterances, origin = _speak_all(folder, lines, voices, sampling_rate, seed, progress)
        write_digit_lexicon(folder / LEXICON)
        write_uniform_lm(folder / "lm.arpa", DIGITS, mean_length=(shortest + longest) / 2)
        Corpus(
            folder=folder, name="synthetic-digits", sampling_rate=sampling_rate, utterances=tuple(utterances),
            licence="generated, no recordings of people", attribution=f"synthesised by {origin}",
            description=f"connected digits synthesised by {origin}; seed {seed}",
        ).save()
    return Corpus.load(target)


def _check(num_train: int, num_test: int, train_speakers: int, test_speakers: int, shortest: int, longest: int) -> None:
    if min(num_train, num_test, train_speakers, test_speakers, shortest) < 1 or longest < shortest:
        raise ConfigError("synthetic-digits: numbers of utterances, speakers and words must be at least 1, and "
                          f"longest ({longest}) at least shortest ({shortest})")


def _script(split: str, count: int, speakers: int, lengths: tuple[int, int], seed: int) -> Iterator[_Line]:
    rng = generator(seed, "script", split)
    for number in range(count):
        words = rng.choice(DIGITS, size=rng.integers(lengths[0], lengths[1] + 1))
        yield _Line(f"{split}-{number % speakers:03d}-{number:05d}", split, number % speakers, tuple(map(str, words)))


def _speak_all(folder: Path, lines: Sequence[_Line], voices: str, sampling_rate: int, seed: int,
               progress: Callable[[int, int], None]) -> tuple[list[Utterance], str]:
    """Write the audio of all lines, all in one kind of voice; also returns what that is."""
    if voices != "plain":
        try:
            with Espeak([_espeak_job(line, seed) for line in lines]) as espeak:
                spoken = _resampled(espeak, sampling_rate)
                return _write_all(folder, lines, spoken, sampling_rate, seed, progress), f"espeak-ng {espeak.version}"
        except EspeakUnavailable as error:
            if voices == "espeak":
                raise DataError(f"espeak-ng cannot be had: {error}. Set voices to auto or plain.") from None
            log.warning("espeak-ng cannot be had (%s): the digits are spoken by the plain voice instead.", error)
    plain = (_plain(line, sampling_rate, seed) for line in lines)
    return _write_all(folder, lines, plain, sampling_rate, seed, progress), "hemstitch's plain voice"


def _resampled(spoken: Iterable[Spoken], sampling_rate: int) -> Iterator[Voiced]:
    for answer in spoken:
        starts = [start * sampling_rate // answer.sampling_rate for start in answer.starts]
        yield resample(answer.samples, answer.sampling_rate, sampling_rate), starts


def _espeak_job(line: _Line, seed: int) -> EspeakJob:
    """Every fifth variant is for test speakers; more speakers than variants use them again in another accent."""
    shuffled = [VARIANTS[i] for i in generator(seed, "variants").permutation(len(VARIANTS))]
    own = [name for i, name in enumerate(shuffled) if (i % 5 == 0) == (line.split == "test")]
    again, index = divmod(line.speaker, len(own))
    rng = generator(seed, "speaker", line.split, str(line.speaker))
    accent = ACCENTS[(int(rng.integers(len(ACCENTS))) + again) % len(ACCENTS)]
    pitch, rate = int(rng.integers(30, 71)), int(rng.integers(140, 201))
    own_rate = rate + int(generator(seed, "rate", line.id).integers(-10, 11))
    voice = f"{accent}+{own[index]}"
    return EspeakJob(text=" ".join(line.words), voice=voice, rate=own_rate, pitch=pitch, seed=seed + 1)


def _plain(line: _Line, sampling_rate: int, seed: int) -> Voiced:
    """Pitch and vocal tract go together, as in people; the test speakers' own values lie among those in train."""
    rng = generator(seed, "speaker", line.split, str(line.speaker))
    size = rng.uniform(0.0, 1.0)
    voice = PlainVoice(
        pitch=(95 + 130 * size) * rng.uniform(0.9, 1.1), scale=(0.95 + 0.2 * size) * rng.uniform(0.97, 1.03),
        speed=rng.uniform(0.85, 1.25),
    )
    return say([PRONUNCIATIONS[word] for word in line.words], voice, sampling_rate, generator(seed, "plain", line.id))


def _write_all(folder: Path, lines: Sequence[_Line], spoken: Iterator[Voiced], sampling_rate: int, seed: int,
               progress: Callable[[int, int], None]) -> list[Utterance]:
    (folder / "audio").mkdir(exist_ok=True)
    utterances = []
    for number, (line, (samples, starts)) in enumerate(zip(lines, spoken, strict=True), start=1):
        utterances.append(_write(folder, line, samples, starts, sampling_rate, generator(seed, "noise", line.id)))
        if number % 32 == 0 or number == len(lines):
            progress(number, len(lines))
    return utterances


def _write(folder: Path, line: _Line, samples: np.ndarray, starts: Sequence[int], sampling_rate: int,
           rng: np.random.Generator) -> Utterance:
    """Trim, level, set between two stretches of background, and write one utterance."""
    audible = np.flatnonzero(np.abs(samples) > AUDIBLE * np.abs(samples).max())
    samples = faded(levelled(samples[: audible[-1] + 1]), int(FADE * sampling_rate))
    before, after = (int(sampling_rate * rng.uniform(*ENDS)) for _ in range(2))
    padded = np.pad(samples, (before, after))
    name = f"audio/{line.id}.wav"
    write_wav(folder / name, noisy(padded, rng.uniform(*NOISE_DECIBEL), rng), sampling_rate)
    known = len(starts) == len(line.words)
    spans = list(zip([before + s for s in starts], [before + s for s in [*starts[1:], len(samples)]])) if known else []
    return Utterance(
        id=line.id, speaker=f"{line.split}-{line.speaker:03d}", text=" ".join(line.words), split=line.split, audio=name,
        word_times=seconds(spans, line.words, sampling_rate),
    )
