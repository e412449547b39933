"""Windows over time: which frames a layer sees, and at which rate a stack of such layers runs.

A time-delay network computes its upper layers only at the frames that the outputs ask for: with outputs every third
frame and upper offsets that are multiples of three, two thirds of the frames are never needed (Peddinti, Povey and
Khudanpur, Interspeech 2015). As a valid convolution that is one stride: every layer above it runs at the lower rate,
its offsets divided.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hemstitch.errors import MisuseError

Offsets = tuple[int, ...]


class Splice(nn.Module):
    """Join the frames at ``offsets`` around every ``stride``-th frame: y_t = [x_{st + o} for o in offsets].

    Frame t of the output belongs to input frame ``left + stride * t``; only frames whose whole window lies inside the
    input come out ("valid"). Costs one copy of the output.

    Args:
        offsets: frames relative to the current one, distinct, in ascending order; all positive ones delay the output.
        stride: input frames per output frame.
    """

    def __init__(self, offsets: Sequence[int], *, stride: int = 1) -> None:
        super().__init__()
        if not offsets or list(offsets) != sorted(set(offsets)) or stride < 1:
            raise MisuseError(f"offsets must be ascending and distinct, stride >= 1; got {tuple(offsets)}, {stride}")
        self.offsets, self.stride = tuple(offsets), stride
        self.left, self.right = max(0, -self.offsets[0]), max(0, self.offsets[-1])

    def forward(self, inputs: Tensor) -> Tensor:
        """(batch, left + time + right, feature) -> (batch, ceil(time / stride), len(offsets) * feature)."""
        time = inputs.shape[1] - self.left - self.right
        frames = max(0, -(-time // self.stride))
        starts = (self.left + offset for offset in self.offsets)
        return torch.cat([inputs[:, start :: self.stride][:, :frames] for start in starts], dim=2)

    def stream(self, inputs: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """Apply to the frames that came since ``state``; returns the outputs and the frames still needed."""
        frames = inputs if state is None else torch.cat([state, inputs], dim=1)
        outputs = self(frames)
        return outputs, frames[:, outputs.shape[1] * self.stride :]

    def extra_repr(self) -> str:
        """Offsets and stride, for printing."""
        return f"offsets={self.offsets}, stride={self.stride}"


def subsample(offsets: Sequence[Offsets], factor: int) -> list[tuple[Offsets, int]]:
    """Place one stride in a stack of layers so that no frame is computed in vain.

    The stride goes to the highest layer that still needs frames between the outputs (whose offsets are not all
    multiples of ``factor``), or to the lowest layer if none does; the offsets above it are divided.

    Args:
        offsets: per layer, lowest first, in input frames.
        factor: input frames per output frame.

    Returns:
        Per layer its offsets, counted at the rate it runs at, and its stride.
    """
    dense = [index for index, layer in enumerate(offsets) if any(offset % factor for offset in layer)]
    if not offsets:
        raise MisuseError("a time-delay network needs at least one layer")
    place = max(dense, default=0)
    below = [(layer, 1) for layer in offsets[:place]]
    above = [(tuple(offset // factor for offset in layer), 1) for layer in offsets[place + 1 :]]
    return [*below, (offsets[place], factor), *above]
