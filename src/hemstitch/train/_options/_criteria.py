"""What is minimised: [criterion]."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hemstitch.train._options._checks import require


@dataclass(frozen=True, kw_only=True)
class CrossEntropy:
    """Frame (or example) cross-entropy.

    Attributes:
        chunk: utterances are cut into chunks of so many frames, which recurrent networks need; train.batch_size then
            counts chunks. 0: single frames with their context.
    """

    chunk: int = 0

    def __post_init__(self) -> None:
        require(self.chunk >= 0, f"chunk must not be negative, got {self.chunk}")


@dataclass(frozen=True, kw_only=True)
class Ctc:
    """Connectionist temporal classification: phones and a blank, without alignments; a baseline.

    Attributes:
        length_step: utterances are prolonged by copies of their last frame to a multiple of this many frames, so that
            batches hold utterances of one length; what is added does not count.
    """

    length_step: int = 30

    def __post_init__(self) -> None:
        require(self.length_step >= 1, f"length_step must be at least 1, got {self.length_step}")


@dataclass(frozen=True, kw_only=True)
class LatticeFreeMmi:
    """Maximum mutual information over whole utterances, the competitors being all phone sequences (paper 1).

    Attributes:
        numerator: what counts as the transcript: all ways to say it, which needs no alignment ("end-to-end"), or one
            way, give or take a few frames ("alignments").
        alignments: run folder of a cross-entropy run whose network aligns; none: one Gaussian per state does.
        tolerance: frames by which a phone may begin earlier or end later than in its alignment.
        chunk: frames of the pieces into which utterances are cut, a multiple of model.subsampling; 0: whole utterances.
            Needs alignments.
        shifts: where the network skips frames, each epoch begins on another one, so that all are used.
        leak: weight of a jump to the initial distribution of the denominator.
        output_l2: penalty on the square of the network's outputs.
        range_penalty: penalty on the square of what outputs have beyond +-30.
        xent_regularize: weight of a second output layer that learns the occupancies of the numerator by cross-entropy;
            0: there is none.
        lm_order: order of the phone language model of the denominator. It has no smoothing: where sequences of so many
            phones often come up unheard, take a lower one.
        lm_shuffles: copies of the training transcripts, their words dealt out anew, that it also learns from: words
            then compete in orders that nobody said, as they do in a search with a weak language model.
        num_extra_states: histories longer than two phones that it keeps.
        length_step: without chunks, utterances are prolonged by copies of their last frame to a multiple of this many
            frames, so that batches hold utterances of one length.
    """

    numerator: Literal["end-to-end", "alignments"] = "end-to-end"
    alignments: Path | None = None
    tolerance: int = 5
    chunk: int = 0
    shifts: bool = True
    leak: float = 0.1
    output_l2: float = 5e-5
    range_penalty: float = 0.0
    xent_regularize: float = 0.0
    lm_order: int = 4
    lm_shuffles: int = 0
    num_extra_states: int = 500
    length_step: int = 30

    def __post_init__(self) -> None:
        for name in ("tolerance", "chunk", "leak", "output_l2", "range_penalty", "xent_regularize",
                     "lm_shuffles", "num_extra_states"):  # fmt: skip
            require(getattr(self, name) >= 0, f"{name} must not be negative, got {getattr(self, name)}")
        require(self.lm_order >= 1 and self.length_step >= 1,
                f"lm_order and length_step must be at least 1, got {self.lm_order} and {self.length_step}")  # fmt: skip
        for name in ("alignments", "chunk"):
            require(self.numerator == "alignments" or not getattr(self, name),
                    f"{name} = {getattr(self, name)} needs numerator = 'alignments'")  # fmt: skip
