"""Connectionist temporal classification: the probability of a label sequence, however it lies in time.

With a blank added to the labels, a path has a label or the blank in each frame; leaving out repetitions and then blanks
gives its label sequence. The loss of an utterance with labels l is - log of the sum over all paths that give l of the
product of the softmax outputs. The sum is torch's.

Reference: A. Graves, S. Fernandez, F. Gomez, J. Schmidhuber, "Connectionist temporal classification: labelling
unsegmented sequence data with recurrent neural networks", ICML 2006, equations 3 to 8.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class CtcObjective:
    """Value of the criterion on a batch.

    Attributes:
        loss: sum over utterances, to be minimised; carries the gradient.
        weight: output frames of the utterances that count.
        skipped: utterances left out: more labels than their frames can hold.
    """

    loss: Tensor
    weight: float
    skipped: int


class Ctc:
    """CTC loss, blank = output 0.

    Args:
        blank: which output is the blank.
    """

    def __init__(self, blank: int = 0) -> None:
        self.blank = blank

    def __call__(self, outputs: Tensor, lengths: Tensor, labels: Sequence[Tensor]) -> CtcObjective:
        """The objective of a batch; computed in float32 at least.

        Args:
            outputs: (batch, time, label) logits.
            lengths: (batch,) output frames; what lies behind them does not count.
            labels: of each utterance, (label,) int64 without blanks.
        """
        logits = outputs if outputs.dtype.itemsize >= 4 else outputs.float()
        fits = torch.tensor([frames_needed(sequence) <= int(n) for sequence, n in zip(labels, lengths)])
        kept = fits.nonzero()[:, 0]
        if not len(kept):
            return CtcObjective(logits.sum() * 0.0, 0.0, len(labels))
        loss = functional.ctc_loss(
            logits[kept.to(logits.device)].log_softmax(-1).transpose(0, 1),
            torch.cat([labels[i] for i in kept.tolist()]).to(logits.device),
            lengths[kept].cpu(),
            torch.tensor([len(labels[i]) for i in kept.tolist()]),
            blank=self.blank,
            reduction="sum",
        )
        return CtcObjective(loss, float(lengths[kept].sum()), len(labels) - len(kept))


def frames_needed(labels: Tensor) -> int:
    """Fewest frames that can hold a label sequence: one for each, and a blank between equal neighbours."""
    return len(labels) + int((labels[1:] == labels[:-1]).sum())
