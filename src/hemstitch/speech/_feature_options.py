"""The options of features, and whether they fit a corpus."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hemstitch.errors import ConfigError, DataError
from hemstitch.speech._corpus import Corpus


@dataclass(frozen=True, kw_only=True)
class FeatureOptions:
    """What to compute.

    Attributes:
        kind: log mel energies, mel cepstra, or the stored features of a corpus without audio.
        num_mel_bins: mel filters.
        num_cepstra: cepstra kept, c0 included (mfcc).
        frame_length_ms: length of the analysis window.
        frame_shift_ms: from one frame to the next.
        low_freq: lower edge of the lowest mel filter in Hz.
        high_freq: upper edge of the highest mel filter in Hz; 0 or less: that far from half the sampling rate.
        deltas: 0: none, 1: slopes, 2: slopes and their slopes.
        normalisation: subtract the mean of each utterance, of each speaker (within a split), of the training part, or
            nothing.
        normalise_variance: divide by the standard deviation too.
    """

    kind: Literal["fbank", "mfcc", "given"] = "fbank"
    num_mel_bins: int = 40
    num_cepstra: int = 13
    frame_length_ms: float = 25.0
    frame_shift_ms: float = 10.0
    low_freq: float = 20.0
    high_freq: float = 0.0
    deltas: int = 0
    normalisation: Literal["utterance", "speaker", "global", "none"] = "utterance"
    normalise_variance: bool = False

    def __post_init__(self) -> None:
        for name, choices in (("kind", ("fbank", "mfcc", "given")), ("deltas", (0, 1, 2)),
                              ("normalisation", ("utterance", "speaker", "global", "none"))):
            if getattr(self, name) not in choices:
                raise ConfigError(f"{name} must be one of {choices}, got {getattr(self, name)!r}")
        for name in ("frame_length_ms", "frame_shift_ms"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} must be positive, got {getattr(self, name)}")
        if self.num_mel_bins < 3:
            raise ConfigError(f"num_mel_bins must be at least 3, got {self.num_mel_bins}")
        if not 1 <= self.num_cepstra <= self.num_mel_bins:
            raise ConfigError(f"num_cepstra must be 1 to num_mel_bins = {self.num_mel_bins}, got {self.num_cepstra}")
        if self.normalise_variance and self.normalisation == "none":
            raise ConfigError("normalise_variance needs a normalisation: utterance, speaker or global")


def check_fit(corpus: Corpus, options: FeatureOptions, has_statistics: bool) -> None:
    """Refuse options that cannot be computed from this corpus."""
    if not corpus.utterances:
        raise DataError(f"corpus {corpus.name}: no utterances to compute features of")
    if (options.kind == "given") != (corpus.sampling_rate is None):
        has, kind = ("stored features", "'given'") if corpus.sampling_rate is None else ("audio", "'fbank' or 'mfcc'")
        raise ConfigError(f"features.kind = {options.kind!r}, but corpus {corpus.name} has {has}: set kind to {kind}")
    nyquist = (corpus.sampling_rate or 0) / 2
    high = options.high_freq if options.high_freq > 0 else nyquist + options.high_freq
    if options.kind != "given" and not 0 <= options.low_freq < high <= nyquist:
        raise ConfigError(f"low_freq = {options.low_freq:g} and high_freq = {options.high_freq:g} leave no band below "
                          f"{nyquist:g} Hz, half the sampling rate of corpus {corpus.name}")
    if options.normalisation == "global" and not has_statistics and "train" not in corpus.splits:
        raise ConfigError("normalisation = 'global' takes its mean from the split 'train', which this corpus lacks "
                          f"(it has {', '.join(corpus.splits)}): pass the statistics of the training features")
