"""A corpus folder with further copies of its training utterances."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from hemstitch.errors import ConfigError, DataError
from hemstitch.speech._augment import AugmentOptions, add_noise, change_speed, change_volume, copy_name, warp_time
from hemstitch.speech._broken import Unusable
from hemstitch.speech._corpus import LEXICON, Corpus
from hemstitch.speech._files import new_folder
from hemstitch.speech._importers._audio import generator, write_wav
from hemstitch.speech._manifest import Utterance
from hemstitch.speech._media import StoredFeatures, read_audio

FEATURES = "features.npy"


def augmented_corpus(
    corpus: Corpus,
    target: Path | str,
    options: AugmentOptions,
    *,
    split: str = "train",
    seed: int = 0,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> Corpus:
    """Write a corpus folder with the utterances of ``corpus`` and, behind them, the copies of one split.

    A copy has the speaker, text and split of its original, the id ``ID@FACTOR`` and ``info`` with ``copy_of`` and
    ``speed``; its word times move with it. Copy utterances after dev has been cut out, or copies of training speakers
    get into it. Whole audio files of the originals are linked, not copied.

    Args:
        corpus: with audio or stored features.
        target: the corpus folder; must not exist yet.
        options: speed, volume and noise; what concerns masks is left to the training.
        split: which part is copied.
        seed: of volumes and noises: each is a function of the seed and the copy's id alone.
        overwrite: replace what is there.
        progress: called with (copies done, copies).

    Raises:
        ConfigError: volume or noise, and there is no audio.
        DataError: audio or features cannot be read, or the target not be written.

    Cost: disk space for the copies (16 bits a sample, or all features anew).
    """
    if corpus.sampling_rate is None and (options.volume or options.noise):
        raise ConfigError(f"corpus {corpus.name} has stored features: volume and noise need audio; speed warps them")
    progress = progress or (lambda done, total: None)
    tasks = [(u, factor) for factor in options.speed for u in corpus.select(split)]
    with new_folder(Path(target), overwrite=overwrite) as folder:
        for path in (corpus.lexicon, *sorted(corpus.folder.glob("*.arpa"))):
            shutil.copyfile(path, folder / (path.name if path != corpus.lexicon else LEXICON))
        write = _copy_audio if corpus.sampling_rate else _copy_features
        utterances = write(corpus, folder, tasks, options, seed, progress)
        replace(corpus, folder=folder, utterances=tuple(utterances), broken=()).save()
    return Corpus.load(target)


def _copy_audio(corpus: Corpus, folder: Path, tasks: list[tuple[Utterance, float]], options: AugmentOptions, seed: int,
                progress: Callable[[int, int], None]) -> list[Utterance]:
    (folder / "audio").mkdir()
    rate, originals, copies = corpus.sampling_rate or 0, [], []
    for number, utterance in enumerate(corpus):
        source = (corpus.folder / str(utterance.audio)).resolve()
        name = f"audio/{number:06d}{source.suffix}"
        (folder / name).symlink_to(source)
        originals.append(replace(utterance, audio=name))
    for done, (utterance, factor) in enumerate(tasks, start=1):
        copy = _copy_of(utterance, factor)
        try:
            samples = change_speed(read_audio(corpus.folder / str(utterance.audio), rate), rate, factor)
        except Unusable as error:
            raise DataError(f"{corpus.where(utterance)}: {error}") from None
        rng = generator(seed, copy.id)
        if options.noise:
            samples = add_noise(samples, float(rng.choice(options.noise)), rng)
        samples = change_volume(samples, rng.uniform(-options.volume, options.volume))
        copies.append(replace(copy, audio=f"audio/copy-{done:06d}.wav"))
        write_wav(folder / str(copies[-1].audio), samples, rate)
        if done % 32 == 0 or done == len(tasks):
            progress(done, len(tasks))
    return originals + copies


def _copy_features(corpus: Corpus, folder: Path, tasks: list[tuple[Utterance, float]], options: AugmentOptions,
                   seed: int, progress: Callable[[int, int], None]) -> list[Utterance]:
    stored = StoredFeatures(corpus.folder)
    pieces, utterances, first = [], [], 0
    wanted = [*((u, u, 1.0) for u in corpus), *((_copy_of(u, factor), u, factor) for u, factor in tasks)]
    for done, (copy, original, factor) in enumerate(wanted, start=1):
        try:
            rows = stored.rows(*original.features or ("", 0, 0))
        except Unusable as error:
            raise DataError(f"{corpus.where(original)}: {error}") from None
        pieces.append(warp_time(rows, factor) if factor != 1 else rows)
        utterances.append(replace(copy, features=(FEATURES, first, first + len(pieces[-1]))))
        first += len(pieces[-1])
        if done % 256 == 0 or done == len(wanted):
            progress(done, len(wanted))
    np.save(folder / FEATURES, np.concatenate(pieces))
    return utterances


def _copy_of(utterance: Utterance, factor: float) -> Utterance:
    times = tuple((word, round(start / factor, 6), round(end / factor, 6)) for word, start, end in utterance.word_times)
    info = {**utterance.info, "copy_of": utterance.id, "speed": factor}
    return replace(utterance, id=copy_name(utterance.id, factor), word_times=times, info=info)
