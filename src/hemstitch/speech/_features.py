"""From audio (or stored features) to the frames that a network sees.

Each utterance gives log mel energies ("fbank"), mel cepstra ("mfcc", with c0 in place of the energy) or the stored
features as they are ("given"); then come deltas, then normalisation. A window of ``frame_length_ms`` that
does not fit any more gives no frame. There is no dither, so the same audio always gives the same bits.
"""

from __future__ import annotations

import array
import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from hemstitch.errors import DataError
from hemstitch.speech._broken import BrokenUtterance, Unusable, enforce_tolerance
from hemstitch.speech._corpus import Corpus, Utterance
from hemstitch.speech._feature_options import FeatureOptions, check_fit
from hemstitch.speech._feature_set import FeatureSet, Statistics
from hemstitch.speech._media import StoredFeatures, read_audio, require
from hemstitch.speech._normalise import normalise, with_deltas

CACHE_VERSION = 1


def compute_features(
    corpus: Corpus,
    options: FeatureOptions | None = None,
    *,
    statistics: Statistics | None = None,
    tolerance: float = 0.0,
    cache: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> FeatureSet:
    """Features of all utterances of ``corpus``, in its order.

    Args:
        corpus: utterances with audio or stored features.
        options: what to compute.
        statistics: for normalisation "global"; without, they come from the split "train" of ``corpus``.
        tolerance: largest share of unusable utterances accepted; these are left out and listed in ``broken``.
        cache: folder of feature files; one is read if manifest, options and the files' sizes and times are as before.
        progress: called with (utterances done, utterances) now and then.

    Raises:
        ConfigError: options do not fit the corpus.
        DataError: audio or stored features cannot be used; or the cache cannot be written.

    Cost: about 1/1000 of the duration of the audio on one core; 4 bytes per value.
    """
    options = options or FeatureOptions()
    check_fit(corpus, options, statistics is not None)
    file = cache and Path(cache) / f"{_cache_key(corpus, options, statistics)}.safetensors"
    if file and file.is_file():
        try:
            features = FeatureSet.load(file)
        except DataError:
            file.unlink()
        else:
            enforce_tolerance(features.broken, len(corpus), tolerance)
            return features
    features = _compute(corpus, options, statistics, tolerance, progress or (lambda done, total: None))
    if file:
        features.save(file)
    return features


def _compute(corpus: Corpus, options: FeatureOptions, statistics: Statistics | None, tolerance: float,
             progress: Callable[[int, int], None]) -> FeatureSet:
    extract = _extractor(corpus, options)
    used: list[Utterance] = []
    pieces: list[np.ndarray] = []
    broken: list[BrokenUtterance] = []
    for index, utterance in enumerate(corpus.utterances):
        try:
            pieces.append(_checked(extract(utterance), pieces))
            used.append(utterance)
        except Unusable as error:
            broken.append(BrokenUtterance(utterance.id, corpus.where(utterance), str(error)))
        if index % 16 == 15 or index + 1 == len(corpus):
            progress(index + 1, len(corpus))
    enforce_tolerance(broken, len(corpus), tolerance)
    if not used:
        raise DataError(f"corpus {corpus.name}: no usable utterance: {broken[0]}")
    offsets = np.cumsum([0, *(len(piece) for piece in pieces)], dtype=np.int64)
    frames = with_deltas(pieces, options.deltas)
    frame_shift = corpus.frame_shift if options.kind == "given" else options.frame_shift_ms / 1000
    assert frame_shift is not None
    statistics = normalise(frames, offsets, used, options, statistics)
    return FeatureSet(frames=frames, offsets=offsets, ids=tuple(u.id for u in used), frame_shift=frame_shift,
                      statistics=statistics, broken=tuple(broken))


def _checked(frames: np.ndarray, before: list[np.ndarray]) -> np.ndarray:
    if before and before[0].shape[1] != frames.shape[1]:
        raise Unusable(f"features have {frames.shape[1]} values per frame, those before have {before[0].shape[1]}")
    if not np.isfinite(frames).all():
        raise Unusable("holds NaN or infinite values: replace the audio or features")
    return frames


def _extractor(corpus: Corpus, options: FeatureOptions) -> Callable[[Utterance], np.ndarray]:
    """A function from an utterance to its frames (time, dim)."""
    if options.kind == "given":
        stored = StoredFeatures(corpus.folder)
        return lambda utterance: stored.rows(*utterance.features or ("", 0, 0))
    rate = corpus.sampling_rate
    assert rate is not None
    make = _online_features(options, rate)
    shortest = options.frame_length_ms / 1000

    def extract(utterance: Utterance) -> np.ndarray:
        samples = read_audio(corpus.folder / str(utterance.audio), rate)
        online = make()
        online.accept_waveform(rate, array.array("f", samples.tobytes()))  # a list of floats takes longer
        online.input_finished()
        count = online.num_frames_ready
        if count == 0:
            raise Unusable(f"{len(samples) / rate:.3f} s of audio are too short for one frame of {shortest:g} s: "
                           "remove the line")
        return np.concatenate([online.get_frame(i) for i in range(count)]).reshape(count, -1)

    return extract


def _online_features(options: FeatureOptions, sampling_rate: int) -> Callable[[], Any]:
    knf = require("kaldi_native_fbank")
    settings = knf.FbankOptions() if options.kind == "fbank" else knf.MfccOptions()
    settings.frame_opts.samp_freq = sampling_rate
    settings.frame_opts.frame_length_ms = options.frame_length_ms
    settings.frame_opts.frame_shift_ms = options.frame_shift_ms
    settings.frame_opts.dither = 0.0
    settings.mel_opts.num_bins = options.num_mel_bins
    settings.mel_opts.low_freq = options.low_freq
    settings.mel_opts.high_freq = options.high_freq
    if options.kind == "fbank":
        return lambda: knf.OnlineFbank(settings)
    settings.num_ceps = options.num_cepstra
    settings.use_energy = False
    return lambda: knf.OnlineMfcc(settings)


def _cache_key(corpus: Corpus, options: FeatureOptions, statistics: Statistics | None) -> str:
    """Changes with the manifest, the options, and the size or time of any file behind them."""
    files = {u.audio or (u.features or ("",))[0] for u in corpus}
    stamps = [(name, path.stat().st_size, path.stat().st_mtime_ns) if (path := corpus.folder / name).is_file()
              else (name, -1, -1) for name in sorted(files)]
    library = getattr(require("kaldi_native_fbank"), "__version__", "") if options.kind != "given" else ""
    content = json.dumps([CACHE_VERSION, library, dataclasses.asdict(options), corpus.sampling_rate, corpus.frame_shift,
                          [(u.to_json(), u.line) for u in corpus], stamps])
    key = hashlib.sha256(content.encode())
    if statistics is not None:
        key.update(statistics.mean.tobytes() + statistics.std.tobytes())
    return key.hexdigest()[:24]
