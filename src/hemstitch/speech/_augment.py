"""Training data made to vary: speed, volume, noise, and masks in time and frequency.

Speed, volume and noise make further copies of utterances, once, before training. At f times the speed a copy is
x'(t) = x(f t): audio is resampled, which moves pitch and formants too; stored features, whose audio is gone, are
interpolated along time, which moves neither. Masks are drawn anew whenever a window or utterance is used.

Everything is a function of seed, name (or frame numbers) and the data: nothing depends on what was drawn before, so a
run that is resumed, or a step that looks twice at its batch, sees the same.

References: T. Ko et al., "Audio augmentation for speech recognition", Interspeech 2015 (speed); D. S. Park et al.,
"SpecAugment: a simple data augmentation method for automatic speech recognition", Interspeech 2019 (masks, without the
time warp).
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from hemstitch.errors import ConfigError
from hemstitch.speech._feature_options import FeatureOptions
from hemstitch.speech._feature_set import FeatureSet
from hemstitch.speech._resample import resample


@dataclass(frozen=True, kw_only=True)
class AugmentOptions:
    """How training data are varied. The dev and test parts stay as they are.

    Attributes:
        speed: each factor gives one more copy of each training utterance, (0.9, 1.1) is usual; 1 is of use with noise.
        volume: copies are made louder or softer by up to so many decibel.
        noise: candidate signal-to-noise ratios in decibel, one is drawn for each copy; none: no noise is added.
        time_masks: stretches of frames that are hidden in each window or utterance.
        time_mask_frames: longest of them.
        time_mask_share: longest of them as a share of the window or utterance.
        frequency_masks: bands of neighbouring mel filters that are hidden.
        frequency_mask_bins: widest of them.
    """

    speed: tuple[float, ...] = ()
    volume: float = 0.0
    noise: tuple[float, ...] = ()
    time_masks: int = 0
    time_mask_frames: int = 20
    time_mask_share: float = 0.2
    frequency_masks: int = 0
    frequency_mask_bins: int = 8

    def __post_init__(self) -> None:
        if not all(0.5 <= factor <= 2 for factor in self.speed):
            raise ConfigError(f"speed: expected factors between 0.5 and 2, got {self.speed}")
        if len(set(self.speed)) < len(self.speed):
            raise ConfigError(f"speed: each factor may occur once, got {self.speed}")
        if (self.volume or self.noise) and not self.speed:
            raise ConfigError("volume and noise change the copies that speed makes: set speed = [1.0] for one copy")
        if not 0 <= self.volume <= 60:
            raise ConfigError(f"volume must be 0 to 60 decibel, got {self.volume}")
        for name in ("time_masks", "time_mask_frames", "frequency_masks", "frequency_mask_bins"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must not be negative, got {getattr(self, name)}")
        if not 0 <= self.time_mask_share <= 1:
            raise ConfigError(f"time_mask_share must be in [0, 1], got {self.time_mask_share}")

    @property
    def masks(self) -> bool:
        """Whether anything is hidden."""
        return self.time_masks * self.time_mask_frames > 0 or self.frequency_masks * self.frequency_mask_bins > 0

    def check(self, features: FeatureOptions) -> None:
        """Refuse what these features do not allow.

        Raises:
            ConfigError: volume or noise without audio, or bands of what are no filters.
        """
        if features.kind == "given" and (self.volume or self.noise):
            raise ConfigError("volume and noise need audio, and this corpus has stored features: leave them out (speed "
                              "warps stored features along time)")
        if features.kind == "mfcc" and self.frequency_masks:
            raise ConfigError("frequency_masks hide neighbouring mel filters, and features.kind = 'mfcc' has cepstra: "
                              "set it to 'fbank', or mask in time only")


def copy_name(utterance: str, factor: float) -> str:
    """The id of the copy of an utterance at ``factor`` times its speed."""
    return f"{utterance}@{factor:g}"


# -- audio -----------------------------------------------------------------------------------------------------------


def change_speed(samples: np.ndarray, sampling_rate: int, factor: float) -> np.ndarray:
    """Speech at ``factor`` times its speed and pitch: (samples / factor,) float32.

    The factor is rounded to a whole number of Hz of the sampling rate.
    """
    return resample(samples, round(sampling_rate * factor), sampling_rate)


def change_volume(samples: np.ndarray, decibel: float) -> np.ndarray:
    """Samples times 10^(decibel / 20)."""
    return samples * np.float32(10 ** (decibel / 20))


def add_noise(samples: np.ndarray, decibel: float, rng: np.random.Generator, noise: np.ndarray | None = None
              ) -> np.ndarray:
    """Samples with noise at a signal-to-noise ratio, powers being means over the whole utterance.

    Args:
        samples: (sample,); if they are all zero they stay so.
        decibel: 10 log10 of the ratio of powers.
        rng: draws white noise, or the place in ``noise``.
        noise: (n,) a recording of noise, repeated if it is too short; ``None``: white noise.
    """
    count = len(samples)
    if noise is None:
        drawn = rng.standard_normal(count, dtype=np.float32)
    else:
        first = int(rng.integers(len(noise)))
        drawn = np.resize(np.roll(noise, -first), count).astype(np.float32)
    power, noise_power = (float(np.mean(np.square(x, dtype=np.float64))) for x in (samples, drawn))
    if power == 0 or noise_power == 0:
        return samples
    return samples + drawn * np.float32(np.sqrt(power / noise_power * 10 ** (-decibel / 10)))


# -- stored features -------------------------------------------------------------------------------------------------


def warp_time(frames: np.ndarray, factor: float, deltas: int = 0) -> np.ndarray:
    """Frames at ``factor`` times their speed, y_t = x(factor t), interpolated linearly.

    Args:
        frames: (time, feature).
        factor: > 1: fewer frames.
        deltas: order of the slopes that follow the static values in each frame; a slope of order k grows by factor^k.

    Returns:
        (round(time / factor), feature) float32, at least one frame.
    """
    time, dim = frames.shape
    at = np.minimum(np.arange(max(1, round(time / factor))) * factor, time - 1)
    left = np.minimum(at.astype(np.int64), max(0, time - 2))
    share = (at - left).astype(np.float32)[:, None]
    right = np.minimum(left + 1, time - 1)
    scale = np.repeat(np.float32(factor) ** np.arange(deltas + 1, dtype=np.float32), dim // (deltas + 1))
    return ((1 - share) * frames[left] + share * frames[right]).astype(np.float32) * scale


def speed_perturbed(features: FeatureSet, factors: Sequence[float], ids: Sequence[str] | None = None, deltas: int = 0
                    ) -> FeatureSet:
    """The features with a warped copy of each utterance for each factor, behind the originals.

    Args:
        features: of any utterances.
        factors: of the copies; 1 gives a plain copy.
        ids: utterances to copy; ``None``: all.
        deltas: order of the slopes in the frames, see :func:`warp_time`.

    Returns:
        A feature set whose further ids are ``ID@FACTOR``, factor by factor.
    """
    ids = features.ids if ids is None else tuple(ids)
    copies = [warp_time(features[name], factor, deltas) for factor in factors for name in ids]
    offsets = features.offsets[-1] + np.cumsum([0, *map(len, copies)])[1:]
    return replace(
        features,
        frames=np.concatenate([features.frames, *copies]),
        offsets=np.concatenate([features.offsets, offsets]).astype(np.int64),
        ids=(*features.ids, *(copy_name(name, factor) for factor in factors for name in ids)),
    )


# -- masks -----------------------------------------------------------------------------------------------------------


def mask_windows(windows: Tensor, items: Tensor, options: AugmentOptions, seed: int, *, epoch: int | None = None,
                 deltas: int = 0) -> Tensor:
    """Windows (or padded utterances) with stretches of time and bands of filters set to zero, the mean.

    What is hidden is a function of seed, epoch and item alone, whatever else is in the batch. Where no epoch is at
    hand, the batch takes its place: shuffled frames meet others in each epoch, and the same batch is masked alike.

    Args:
        windows: (batch, time, feature), normalised; left as it is.
        items: (batch,) numbers of the frames or utterances.
        options: how many masks, and how large.
        seed: of the run.
        epoch: counted from anywhere; ``None``: see above.
        deltas: order of the slopes in the features: a band is hidden in all of them.

    Returns:
        A new tensor on the same device, or ``windows`` itself if the options hide nothing.
    """
    if not options.masks:
        return windows
    numbers = np.ascontiguousarray(items.cpu().numpy(), dtype=np.int64)
    epoch = zlib.crc32(numbers.tobytes()) if epoch is None else epoch
    hidden_time, hidden_bins = draw_masks(
        _keys(numbers, seed, epoch), windows.shape[1], windows.shape[2] // (deltas + 1), options)
    hidden = torch.from_numpy(hidden_time)[:, :, None] | torch.from_numpy(np.tile(hidden_bins, deltas + 1))[:, None]
    return windows.masked_fill(hidden.to(windows.device), 0.0)


def draw_masks(keys: np.ndarray, time: int, num_bins: int, options: AugmentOptions) -> tuple[np.ndarray, np.ndarray]:
    """What is hidden: (batch, time) and (batch, num_bins), bool.

    A mask has a width drawn uniformly from 0 to the largest allowed, at a place drawn uniformly.

    Args:
        keys: (batch,) uint64: what is drawn is a function of an item's key.
        time: frames.
        num_bins: mel filters.
        options: how many masks, and how large.
    """
    longest = min(options.time_mask_frames, int(options.time_mask_share * time))
    widest = min(options.frequency_mask_bins, num_bins)
    drawn = _uniform(keys, 2 * (options.time_masks + options.frequency_masks))
    return (_spans(drawn[:, : 2 * options.time_masks], time, longest),
            _spans(drawn[:, 2 * options.time_masks :], num_bins, widest))


def _spans(drawn: np.ndarray, length: int, widest: int) -> np.ndarray:
    """(batch, length): the union of the masks that two uniform numbers each describe."""
    width = (drawn[:, 0::2, None] * (widest + 1)).astype(np.int64)
    first = (drawn[:, 1::2, None] * (length - width + 1)).astype(np.int64)
    place = np.arange(length)
    return ((first <= place) & (place < first + width)).any(axis=1)


def _keys(items: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """(batch,) uint64 from (batch,) integers."""
    with np.errstate(over="ignore"):
        key = _mixed(np.uint64(seed % 2**64) * _STEP + np.uint64(epoch))
        return _mixed(items.astype(np.uint64) * _STEP + key)


def _uniform(keys: np.ndarray, count: int) -> np.ndarray:
    """(batch, count) numbers in [0, 1), by SplitMix64 (Steele, Lea and Flood 2014) from each key."""
    with np.errstate(over="ignore"):
        bits = _mixed(keys[:, None] + np.arange(1, count + 1, dtype=np.uint64) * _STEP)
    return (bits >> np.uint64(11)) * 2.0**-53


_STEP = np.uint64(0x9E3779B97F4A7C15)


def _mixed(bits: np.ndarray) -> np.ndarray:
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        bits = (bits ^ (bits >> np.uint64(shift))) * np.uint64(factor)
    return bits ^ (bits >> np.uint64(31))
