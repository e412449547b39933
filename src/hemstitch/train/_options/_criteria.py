"""What is minimised: [criterion]."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class CrossEntropy:
    """Frame (or example) cross-entropy."""


@dataclass(frozen=True, kw_only=True)
class LatticeFreeMmi:
    """Maximum mutual information over whole utterances, the competitors being all phone sequences (paper 1).

    Attributes:
        leak: weight of a jump to the initial distribution of the denominator.
        output_l2: penalty on the square of the network's outputs.
        lm_order: order of the phone language model of the denominator.
        num_extra_states: histories longer than two phones that it keeps.
        length_step: utterances are prolonged by copies of their last frame to a multiple of this many frames, so that
            batches hold utterances of one length.
    """

    leak: float = 0.1
    output_l2: float = 5e-5
    lm_order: int = 4
    num_extra_states: int = 500
    length_step: int = 30
