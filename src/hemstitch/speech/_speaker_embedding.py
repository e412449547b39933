r"""A vector that tells speakers (and channels) apart, as further input of an acoustic model.

The papers append an i-vector to each frame. This is a small stand-in for it: no mixture model, only the mean and
covariance of cepstra, shrunk, whitened and reduced. With mu and Sigma = L L' the mean and covariance of all training
frames, z = L^-1 (x - mu), and n frames of a speaker,

    m = sum z / (n + tau),    S = sum (z z' - I) / (n + tau),    v = [m ; vech S],

where vech takes the entries on and below the diagonal, those below times sqrt 2, and tau pulls what few frames say
towards the average speaker: with no frames v = 0. The embedding is y = P v, where P projects on the directions of
largest variance of v over the training utterances, each scaled to variance one. All of mu, L and P come from the
training part.

What differs from i-vectors: one Gaussian in place of hundreds, so it sees voice and channel, not how single sounds are
said; and principal components in place of a factor analysis, so nothing tells apart what varies between speakers and
within one. Covariances depend on what is said, too: expect less of it, the shorter the utterances.

References: N. Dehak et al., "Front-end factor analysis for speaker verification", IEEE TASLP 19 (2011); as input of
acoustic models: G. Saon et al., "Speaker adaptation of neural network acoustic models using i-vectors", ASRU 2013; the
shrinkage is that of MAP adaptation, D. Reynolds et al., Digital Signal Processing 10 (2000), equation 13.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from hemstitch.errors import DataError, MisuseError
from hemstitch.speech._feature_set import FeatureSet
from hemstitch.speech._files import new_file

SMALLEST_SHARE = 1e-6
"""Variance of a direction below which, as a share of the largest one, it counts as noise."""


@dataclass(frozen=True, kw_only=True)
class SpeakerEmbedding:
    """The map from frames to a vector; make one with :meth:`fit`.

    Attributes:
        mean: (cepstrum,) mu.
        whitening: (cepstrum, cepstrum) L^-1, lower triangular.
        projection: (dim, cepstrum + cepstrum (cepstrum + 1) / 2) P.
        prior_frames: tau.
    """

    mean: np.ndarray
    whitening: np.ndarray
    projection: np.ndarray
    prior_frames: float

    @classmethod
    def fit(cls, features: FeatureSet, ids: Iterable[str], *, dim: int = 24, prior_frames: float = 100.0
            ) -> SpeakerEmbedding:
        """Learn the map from training utterances.

        Args:
            features: cepstra as they come: no deltas, and normalisation "none" (else the mean says nothing).
            ids: the training utterances.
            dim: length of the vector; 20 to 30 is usual.
            prior_frames: tau > 0, frames of the average speaker that are added; 100 is a second.

        Raises:
            MisuseError: ``dim`` or ``prior_frames`` is out of range.
            DataError: there are too few utterances, or a feature does not vary.

        Cost: one pass over the frames.
        """
        ids = list(ids)
        if dim < 1 or not prior_frames > 0:
            raise MisuseError(f"speaker embedding: expected dim >= 1 and prior_frames > 0, got {dim}, {prior_frames}")
        if len(ids) <= dim:
            raise DataError(f"speaker embedding: {len(ids)} training utterances are too few for {dim} dimensions")
        count = sum(len(features[name]) for name in ids)
        mean = sum(features[name].sum(0, dtype=np.float64) for name in ids) / count
        covariance = sum((x := features[name] - mean).T @ x for name in ids) / count
        try:
            whitening = np.linalg.inv(np.linalg.cholesky(covariance))
        except np.linalg.LinAlgError:
            raise DataError("speaker embedding: the covariance of the training frames is singular: a feature is "
                            "constant, or a combination of others; use cepstra without deltas") from None
        size = len(mean) + len(mean) * (len(mean) + 1) // 2
        unreduced = cls(mean=mean, whitening=whitening, projection=np.eye(size), prior_frames=prior_frames)
        vectors = np.stack([unreduced(features[name]) for name in ids])
        # The average speaker, zero, stays zero: variance is taken around it.
        _, scale, directions = np.linalg.svd(vectors / np.sqrt(len(ids)), full_matrices=False)
        if len(scale) < dim or scale[dim - 1] ** 2 < SMALLEST_SHARE * scale[0] ** 2:
            raise DataError(f"speaker embedding: the training utterances vary in fewer than {dim} directions; ask for "
                            "fewer")
        directions *= np.where(directions.sum(1) < 0, -1.0, 1.0)[:, None]  # the sign is arbitrary: fix it
        return replace(unreduced, projection=directions[:dim] / scale[:dim, None])

    @property
    def dim(self) -> int:
        """Length of the vector."""
        return len(self.projection)

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        """The vector of some frames, offline: (time, cepstrum) -> (dim,) float64; zero for no frames."""
        return self.projection @ self._shrunk(self._statistics(frames).sum(0), len(frames))

    def online(self, frames: np.ndarray, period: int = 10) -> np.ndarray:
        """The vector of the utterance so far, at each frame: (time, cepstrum) -> (time, dim) float64.

        It is renewed every ``period`` frames from all frames up to then, so frame t sees none after it.
        """
        if period < 1:
            raise MisuseError(f"speaker embedding: expected period >= 1, got {period}")
        sums = np.cumsum(self._statistics(frames), axis=0)
        known = np.arange(len(frames)) // period * period  # the last frame that is used
        counts = known + 1
        return self._shrunk(sums[known], counts[:, None]) @ self.projection.T

    def save(self, path: Path | str) -> None:
        """Write a safetensors file, whole or not at all."""
        from safetensors.numpy import save_file

        tensors = {name: np.ascontiguousarray(getattr(self, name)) for name in ("mean", "whitening", "projection")}
        with new_file(Path(path)) as partial:
            save_file(tensors, partial, metadata={"speaker_embedding": json.dumps({"prior_frames": self.prior_frames})})

    @classmethod
    def load(cls, path: Path | str) -> SpeakerEmbedding:
        """Read what :meth:`save` wrote.

        Raises:
            DataError: the file is missing, damaged or something else.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="numpy") as file:
                tensors = {name: file.get_tensor(name) for name in ("mean", "whitening", "projection")}
                about = json.loads(file.metadata()["speaker_embedding"])
            return cls(**tensors, prior_frames=float(about["prior_frames"]))
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path} is no readable speaker embedding ({type(error).__name__}: {error}): delete it and "
                            "fit it anew") from error

    def _statistics(self, frames: np.ndarray) -> np.ndarray:
        """(time, size): z and vech(z z' - I) of each frame."""
        z = (frames - self.mean) @ self.whitening.T
        row, column = np.tril_indices(len(self.mean))
        weight = np.where(row == column, 1.0, np.sqrt(2.0))
        return np.concatenate([z, (z[:, row] * z[:, column] - (row == column)) * weight], axis=1)

    def _shrunk(self, sums: np.ndarray, counts: np.ndarray | int) -> np.ndarray:
        return sums / (counts + self.prior_frames)


def append_embedding(
    features: FeatureSet,
    cepstra: FeatureSet,
    embedding: SpeakerEmbedding,
    speakers: Mapping[str, str],
    mode: Literal["online", "utterance", "speaker"] = "online",
) -> FeatureSet:
    """Features with the speaker's vector at the end of each frame.

    Train and test alike: what is fitted to whole speakers does not do with the beginnings of utterances. "speaker"
    takes all utterances of a speaker that are in ``features``, with no regard to order: one learns from the future.

    Args:
        features: of the network.
        cepstra: what the embedding was fitted on, with the same utterances and frames.
        embedding: from :meth:`SpeakerEmbedding.fit`.
        speakers: id -> speaker; used in mode "speaker". Prefix it with the split to keep parts apart.
        mode: from the utterance so far, from the whole utterance, or from all of the speaker.

    Raises:
        DataError: an utterance is missing in ``cepstra``, or has another number of frames.
    """
    for index, name in enumerate(features.ids):
        count = len(cepstra[name]) if name in cepstra.position else 0
        if count != len(features[index]):
            raise DataError(f"speaker embedding: utterance {name!r} has {len(features[index])} frames of features and "
                            f"{count} of cepstra: compute both with the same frame length and shift")
    pieces = _embedded(features.ids, cepstra, embedding, speakers, mode)
    vectors = np.concatenate(pieces).astype(np.float32)
    return replace(features, frames=np.concatenate([features.frames, vectors], axis=1))


def _embedded(ids: Sequence[str], cepstra: FeatureSet, embedding: SpeakerEmbedding, speakers: Mapping[str, str],
              mode: str) -> list[np.ndarray]:
    """(time, dim) of each utterance."""
    if mode == "online":
        return [embedding.online(cepstra[name]) for name in ids]
    group = {name: speakers[name] if mode == "speaker" else name for name in ids}
    members: dict[str, list[np.ndarray]] = {}
    for name in ids:
        members.setdefault(group[name], []).append(cepstra[name])
    vectors = {key: embedding(np.concatenate(frames)) for key, frames in members.items()}
    return [np.tile(vectors[group[name]], (len(cepstra[name]), 1)) for name in ids]
