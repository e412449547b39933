"""The frame task over chunks: for recurrent networks, whose single frames would each cost a whole warm-up.

An utterance is cut into as few chunks of one length as cover it. Where two overlap, a frame counts in the first only;
where a chunk reaches beyond a short utterance, what lies there does not count at all.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hemstitch.criteria import IGNORED
from hemstitch.sampling import BatchSource, ShuffledEpochs
from hemstitch.train._frames import FrameTask
from hemstitch.train._pieces import Pieces, chunks
from hemstitch.train._speech_data import Part
from hemstitch.train._strategies import Batch


class ChunkTask(FrameTask):
    """Learn to tell hidden Markov states apart, chunk by chunk."""

    def bind(self, model: nn.Module) -> None:
        """Lay the frames out with the context that the model wants, and cut the chunks."""
        super().bind(model)
        self.stretches = self.stretches_of("train", model)
        self.pieces = chunks(self.stretches.offsets.diff(), self.recipe.criterion.chunk, 1)
        self.counted = counted_rows(self.parts["train"], self.pieces)

    def source(self, batch_size: int, seed: int) -> BatchSource[Batch]:
        """Shuffled chunks of the training part."""
        part, pieces, size = self.parts["train"], self.pieces, self.recipe.criterion.chunk

        def collate(items: Tensor) -> Batch:
            rows = self.counted[items]
            targets = part.targets[rows.clamp(min=0)].masked_fill(rows < 0, IGNORED)
            inputs = self.stretches.select(pieces.utterance[items], pieces.first[items], size)
            return Batch(self.inputs.masked(inputs, items), targets.to(self.device), len(items))

        return BatchSource(ShuffledEpochs(len(pieces.first), batch_size, seed), collate)


def counted_rows(part: Part, pieces: Pieces) -> Tensor:
    """(chunk, time) row of each frame among those of the part, each row once; -1 for a frame that does not count."""
    offsets, size = torch.from_numpy(part.offsets), int(pieces.frames[0])
    frame = pieces.first[:, None] + torch.arange(size)
    follows = torch.zeros(len(pieces.first), dtype=torch.bool)
    follows[1:] = pieces.utterance[1:] == pieces.utterance[:-1]
    covered = torch.where(follows, pieces.first.roll(1) + size, 0)  # what the chunk before has counted
    length = offsets.diff()[pieces.utterance]
    counts = (frame >= covered[:, None]) & (frame < length[:, None])
    return torch.where(counts, offsets[pieces.utterance, None] + frame, -1)
