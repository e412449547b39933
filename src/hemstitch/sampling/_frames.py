"""Frames with their context out of one contiguous array, without copying the array.

Each utterance is padded by repeating its first and last frame, and all are laid one after the other. The window of
``left + 1 + right`` frames around a frame is then a contiguous run of memory, so that gathering a minibatch of
windows is one ``index_select`` on an overlapping view.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hemstitch.errors import DataError


class FrameWindows:
    """Windows of frames of a set of utterances.

    Args:
        features: (frame, feature) float32, all utterances one after the other.
        offsets: (utterance + 1,) first frame of each utterance, and the end.
        left, right: context frames on either side.

    Cost: one padded copy of the features, ``utterances * (left + right)`` frames larger.
    """

    def __init__(self, features: Tensor | np.ndarray, offsets: Tensor | np.ndarray, left: int, right: int) -> None:
        features = torch.as_tensor(features, dtype=torch.float32)
        self.offsets = torch.as_tensor(offsets, dtype=torch.int64)
        lengths = self.offsets.diff()
        if features.ndim != 2 or self.offsets[-1] != len(features) or (lengths < 1).any():
            raise DataError(
                f"offsets must cut the {tuple(features.shape)} features into non-empty utterances, "
                f"got {self.offsets.numel() - 1} utterances ending at {int(self.offsets[-1])}"
            )
        self.left, self.right = left, right
        self.num_frames, self.num_features = features.shape
        utterance = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
        self._row = torch.arange(self.num_frames) + utterance * (left + right)  # first row of each frame's window
        self._padded = _pad(features, self.offsets, left, right)
        window = left + 1 + right
        self._windows = self._padded.as_strided(
            (len(self._padded) - window + 1, window * self.num_features), (self.num_features, 1)
        )

    def __len__(self) -> int:
        return self.num_frames

    def select(self, frames: Tensor) -> Tensor:
        """(batch,) frame numbers -> (batch, left + 1 + right, feature)."""
        rows = self._windows.index_select(0, self._row[frames])
        return rows.view(len(frames), self.left + 1 + self.right, self.num_features)

    def utterance(self, index: int) -> Tensor:
        """(left + time + right, feature): one padded utterance, a view."""
        start = int(self.offsets[index]) + index * (self.left + self.right)
        length = int(self.offsets[index + 1] - self.offsets[index])
        return self._padded[start : start + self.left + length + self.right]

    def to(self, device: torch.device | str) -> FrameWindows:
        """The same windows with the features on ``device``."""
        moved = object.__new__(FrameWindows)
        moved.__dict__.update(self.__dict__)
        moved._padded, moved._row = self._padded.to(device), self._row.to(device)
        moved._windows = moved._padded.as_strided(self._windows.shape, self._windows.stride())
        return moved


def _pad(features: Tensor, offsets: Tensor, left: int, right: int) -> Tensor:
    pieces = []
    for start, end in zip(offsets[:-1].tolist(), offsets[1:].tolist()):
        utterance = features[start:end]
        pieces += [utterance[:1].expand(left, -1), utterance, utterance[-1:].expand(right, -1)]
    return torch.cat(pieces)
