"""The speaker's vector behind the features: [embedding]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hemstitch.train._options._checks import require


@dataclass(frozen=True, kw_only=True)
class SpeakerVector:
    """A vector that tells speakers and channels apart, at the end of each frame (the papers' i-vector).

    Attributes:
        dim: its length, 20 to 30 is usual; 0: none.
        prior_frames: frames of the average speaker that are added to what was heard, against conclusions from little.
        mode: what it is computed from: the utterance up to each frame, the whole utterance, or all that the part has of
            the speaker.
    """

    dim: int = 0
    prior_frames: float = 100.0
    mode: Literal["online", "utterance", "speaker"] = "online"

    def __post_init__(self) -> None:
        require(self.dim >= 0, f"dim must be at least 1, or 0 for none, got {self.dim}")
        require(self.prior_frames > 0, f"prior_frames must be positive, got {self.prior_frames:g}")
