"""Utterances, or chunks of them, as training items of equal lengths.

An item is a stretch of an utterance, first frame and number of frames. It may reach beyond the end, where the last
frame is repeated; so does the context around it on both sides. Chunks overlap rather than leave a rest: an utterance is
cut into as few as cover it, evenly spread, and a frame that k chunks share counts 1/k in each.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hemstitch.criteria import overlap_weights


@dataclass(frozen=True, eq=False)
class Pieces:
    """The items of a part of the corpus.

    Attributes:
        utterance: (item,) number of the utterance.
        first: (item,) first frame in it.
        frames: (item,) number of frames.
        weights: (output,) factor on the derivative of each output frame, by item; ``None``: 1 everywhere.
    """

    utterance: Tensor
    first: Tensor
    frames: Tensor
    weights: list[Tensor] | None = None


def whole_utterances(lengths: Tensor, step: int) -> Pieces:
    """One item for each utterance, prolonged to a multiple of ``step`` frames.

    Args:
        lengths: (utterance,) frames.
        step: in frames.
    """
    padded = (lengths + step - 1) // step * step
    return Pieces(torch.arange(len(lengths)), torch.zeros_like(lengths), padded)


def chunks(lengths: Tensor, size: int, subsampling: int) -> Pieces:
    """Chunks of one size that cover every utterance; shorter utterances are prolonged.

    Args:
        lengths: (utterance,) frames.
        size: of a chunk, in frames, a multiple of ``subsampling``.
        subsampling: input frames per output frame; chunks begin at multiples of it.
    """
    size, utterance, first, weights = size // subsampling, [], [], []
    for number, outputs in enumerate((-(-lengths // subsampling)).tolist()):
        count = -(-outputs // size)
        starts = torch.linspace(0, max(0, outputs - size), count).round().long()
        utterance += [number] * count
        first += (starts * subsampling).tolist()
        weights += list(overlap_weights(starts.tolist(), size, outputs))
    frames = torch.full((len(first),), size * subsampling)
    return Pieces(torch.tensor(utterance), torch.tensor(first), frames, weights)


class Stretches:
    """Stretches of utterances with context around them, out of one array.

    Args:
        features: (frame, feature), all utterances one after the other.
        offsets: (utterance + 1,) first frame of each utterance, and the end.
        left, right: context frames on either side.
    """

    def __init__(self, features: Tensor, offsets: Tensor, left: int, right: int) -> None:
        self.features, self.offsets, self.left, self.right = features, torch.as_tensor(offsets), left, right

    def select(self, utterance: Tensor, first: Tensor, frames: int) -> Tensor:
        """(batch,) utterances and first frames -> (batch, left + frames + right, feature)."""
        begin, end = self.offsets[utterance, None], self.offsets[utterance + 1, None]
        row = begin + first[:, None] + torch.arange(-self.left, frames + self.right)
        return self.features[row.clamp(min=begin, max=end - 1).to(self.features.device)]
