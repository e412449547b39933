"""Hidden Markov models and decoding: [hmm], [decode]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hemstitch.train._options._checks import above, at_least, require


@dataclass(frozen=True, kw_only=True)
class Hmm:
    """Hidden Markov models of the phones, and how their alignment is found.

    Attributes:
        states_per_phone: emitting states of a phone, 1 to 3.
        silence_states: emitting states of silence.
        topology: a chain of states with a pdf each, or one state whose first frame has a pdf of its own (for
            lattice-free MMI; states_per_phone and silence_states are then without effect).
        silence_probability: probability of silence between two words and at the ends.
        probabilities: of pronunciations (as the lexicon has them) and of silence (silence_probability): as given, or
            estimated on the alignment of the flat start. A word's best pronunciation then has 1, so that many
            pronunciations make no word dearer.
        position_dependent: phones at the beginning, inside, at the end of a word and alone have states of their own.
        context: the neighbours that a state depends on: none, the phone to its left, or those on both sides. States are
            then tied by decision trees, grown on the alignment of the flat start.
        leaves: states after tying, which are the outputs of the network.
        leaf_frames: training frames that a leaf must have to be split off.
        flat_start: rounds of Viterbi realignment with one Gaussian per state before the network sees the alignment.
        tied_rounds: further such rounds after the states are tied.
        realign: epochs after which the training data are aligned anew with the network.
        restart: epoch after which the network is drawn anew and only the alignment kept, since a network that began
            with a flat start never quite recovers; 0: never.
    """

    states_per_phone: int = 3
    silence_states: int = 3
    topology: Literal["left-to-right", "chain"] = "left-to-right"
    silence_probability: float = 0.5
    probabilities: Literal["given", "estimated"] = "given"
    position_dependent: bool = False
    context: Literal["none", "left", "both"] = "none"
    leaves: int = 500
    leaf_frames: float = 50.0
    flat_start: int = 12
    tied_rounds: int = 4
    realign: tuple[int, ...] = (1, 2, 3, 5, 8)
    restart: int = 0

    def __post_init__(self) -> None:
        require(self.restart == 0 or self.restart in self.realign,
                 f"restart = {self.restart} must be one of the epochs of realign = {self.realign}, or 0")  # fmt: skip
        require(self.context == "none" or self.flat_start >= 1,
                f"context = {self.context!r} grows its trees on the alignment of the flat start: flat_start must be at "
                "least 1")  # fmt: skip
        require(self.probabilities == "given" or self.flat_start >= 1,
                "probabilities = 'estimated' counts in the alignment of the flat start: flat_start must be at least 1")
        at_least(0, self, "flat_start", "tied_rounds", "realign", "restart")
        at_least(1, self, "leaves")
        require(self.leaf_frames > 0, f"leaf_frames must be positive, got {self.leaf_frames:g}")
        require(1 <= self.states_per_phone <= 3, f"states_per_phone must be 1, 2 or 3, got {self.states_per_phone}")
        require(1 <= self.silence_states <= 5, f"silence_states must be 1 to 5, got {self.silence_states}")
        require(
            0 < self.silence_probability < 1,
            f"silence_probability must lie between 0 and 1, got {self.silence_probability}",
        )


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """Beam search over words with the trained network.

    Attributes:
        beam: width of the search beam, in units of the scaled log-likelihood.
        max_active: states kept per frame.
        acoustic_scale: candidate weights of the acoustic scores against the language model; the best on dev is used.
        prior_scale: weight of the log prior that is taken off the log posteriors, candidates; the best on dev is used.
        word_penalty: cost of each word in nats, candidates; the best on dev is used.
        language_model: name of an ARPA file in the corpus folder (`hemstitch lm` makes some); or "3-gram" and the like:
            of the training transcripts. That of the training criterion may be another, weaker one.
        average_shifts: for networks with lattice-free MMI that skip frames: scores are the mean over beginnings at each
            of the frames, as training took them in turn, at so many times the cost.
    """

    beam: float = 12.0
    max_active: int = 4000
    acoustic_scale: tuple[float, ...] = (0.1, 0.2, 0.4)
    prior_scale: tuple[float, ...] = (0.4, 0.7, 1.0)
    word_penalty: tuple[float, ...] = (0.0, 2.0)
    language_model: str = "lm.arpa"
    average_shifts: bool = False

    def __post_init__(self) -> None:
        above(0, self, "beam", "acoustic_scale")
        at_least(1, self, "max_active")
        at_least(0, self, "prior_scale")
        for name in ("acoustic_scale", "prior_scale", "word_penalty"):
            require(len(getattr(self, name)) > 0, f"{name} needs at least one candidate, got none")
