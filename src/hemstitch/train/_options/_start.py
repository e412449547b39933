"""What a run begins with: [start]."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hemstitch.train._options._checks import require


@dataclass(frozen=True, kw_only=True)
class Start:
    """The network before the first step: drawn at random, or that of another run.

    Attributes:
        run: folder of the run whose best network is taken.
        recipe: where run is not given, a recipe (path or name) that is trained first, on the same data with the same
            seed; runs that begin with the same recipe share its run, in runs/starts.
        new_output: give it a fresh output layer, for other targets (transfer learning, paper 2). Without, the states of
            the hidden Markov models must be the same, and tied ones are taken from that run.
        alignment: take the alignment from that run too, made of the same utterances.
        freeze: regular expressions; parameters whose name matches one are not trained. Normalisation layers still
            follow the data.
        layerwise: epochs of training at each depth, 1, 2 ... hidden layers, before the whole network is trained (for
            deep sigmoid networks, paper 3); 0: none.
        layerwise_lr: learning rate of that, by momentum SGD with momentum 0.9.
        layerwise_batch_size: its batch size.
    """

    run: Path | None = None
    recipe: str | None = None
    new_output: bool = False
    alignment: bool = False
    freeze: tuple[str, ...] = ()
    layerwise: int = 0
    layerwise_lr: float = 0.05
    layerwise_batch_size: int = 256

    def __post_init__(self) -> None:
        given = self.run is not None or self.recipe is not None
        require(given or not (self.new_output or self.alignment),
                "new_output and alignment say what to take from another run: set run to its folder")  # fmt: skip
        require(not (self.new_output and self.alignment),
                "alignment names the outputs of the other run, new_output replaces them: set one")  # fmt: skip
        require(not given or self.layerwise == 0,
                "layerwise begins with nothing, run with a trained network: set one of the two")  # fmt: skip
        require(self.layerwise >= 0, f"layerwise must not be negative, got {self.layerwise}")
        require(self.layerwise_lr > 0, f"layerwise_lr must be positive, got {self.layerwise_lr:g}")
        require(self.layerwise_batch_size > 0, "layerwise_batch_size must be at least 1")
