"""Sequence criteria over lattices: [criterion] of kind mmi, boosted-mmi, mpe, smbr."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hemstitch.train._options._checks import require


@dataclass(frozen=True, kw_only=True)
class LatticeTraining:
    """What the lattice criteria share (paper 2).

    Attributes:
        acoustic_scale: weight of the acoustic scores beside the language model; what decoding finds best is a good
            choice.
        lm_order: order of the weak language model of the lattices, estimated on the training transcripts; 1: unigram.
        language_model: name of an ARPA file in the corpus folder to use in its place; empty: none.
        beam: of the lattice search, in units of the scaled log-likelihood.
        lattice_beam: largest cost above the best path.
        max_active: states alive in a frame.
        unit: what a batch consists of: whole utterances (any network; the exact gradient), or frames (networks that see
            a window of frames; cancelled frames are left out, and gradients may be a few steps old).
        shuffling: of frames: one utterance after the other, each place in the batch walking through an utterance of its
            own, or all frames of an epoch at random (then all lattices are made at its beginning).
        realign: align the transcripts anew with the current network: never, once at the beginning, after each epoch, or
            whenever an utterance is used.
        numerator: the reference: one alignment of the transcript, or all ways to say its words that the lattice has,
            so that other words compete with it and not other boundaries.
        denominator: false: without competitors, a control: cross-entropy with the criterion's data flow.
        smoothing: h of (1 - h) criterion + h cross-entropy.
        start_l2: penalty on half the squared distance to the network at the beginning, per frame.
        min_occupancy: frames whose reference has less denominator occupancy have no gradient (MMI kinds).
        tolerance: a frame whose occupancies differ by no more counts as cancelled.
        fix_silence: the outputs of silence get no gradient.
        auxiliary: how an older gradient is followed (unit = "frame"): along the tangent, or down a bound of the
            criterion (MMI kinds), which damps large moves.
        length_step: whole utterances are padded to a multiple of this many frames, so that batches hold one length.
    """

    acoustic_scale: float = 0.2
    lm_order: int = 1
    language_model: str = ""
    beam: float = 12.0
    lattice_beam: float = 6.0
    max_active: int = 2000
    unit: Literal["utterance", "frame"] = "utterance"
    shuffling: Literal["none", "on-the-fly", "full"] = "on-the-fly"
    realign: Literal["never", "once", "epoch", "on-the-fly"] = "never"
    numerator: Literal["alignment", "words"] = "alignment"
    denominator: bool = True
    smoothing: float = 0.0
    start_l2: float = 0.0
    min_occupancy: float = 1e-3
    tolerance: float = 1e-3
    fix_silence: bool = False
    auxiliary: Literal["tangent", "bound"] = "tangent"
    length_step: int = 20

    def __post_init__(self) -> None:
        for name in ("acoustic_scale", "beam", "lattice_beam", "max_active", "lm_order", "length_step"):
            require(getattr(self, name) > 0, f"{name} must be above 0, got {getattr(self, name)}")
        for name in ("smoothing", "min_occupancy", "tolerance"):
            require(0 <= getattr(self, name) <= 1, f"{name} must lie in 0..1, got {getattr(self, name)}")
        require(self.start_l2 >= 0, f"start_l2 must not be negative, got {self.start_l2}")
        require(self.auxiliary == "tangent" or self.unit == "frame",
                "auxiliary = 'bound' is for gradients older than the parameters: set unit = 'frame'")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Mmi(LatticeTraining):
    """Maximum mutual information over lattices."""


@dataclass(frozen=True, kw_only=True)
class BoostedMmi(LatticeTraining):
    """Maximum mutual information with competitors weighted up by their wrong frames.

    Attributes:
        boost: weight of a frame whose phone is wrong, in nats.
    """

    boost: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.boost > 0, f"boost must be above 0 (mmi is the criterion without it), got {self.boost}")


@dataclass(frozen=True, kw_only=True)
class BayesRisk(LatticeTraining):
    """Expected accuracy over lattices.

    Attributes:
        one_silence_class: silence counts as right where the reference has any silence; false: silence is never right.
    """

    one_silence_class: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.auxiliary == "tangent", "auxiliary = 'bound': no bound of mpe and smbr is known here")
        require(self.denominator, "denominator = false is a control of the mmi kinds")


@dataclass(frozen=True, kw_only=True)
class Mpe(BayesRisk):
    """Minimum phone error: as many frames as possible within the right phone, in expectation."""


@dataclass(frozen=True, kw_only=True)
class Smbr(BayesRisk):
    """State-level minimum Bayes risk: as many frames as possible with the right state, in expectation."""
