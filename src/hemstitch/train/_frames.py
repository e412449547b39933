"""The frame task: alignments made and renewed with the network itself.

Equal alignment -> Viterbi with one Gaussian per state (flat start) -> frame cross-entropy on shuffled frames ->
Viterbi realignment with the network after some epochs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hemstitch.criteria import CrossEntropy
from hemstitch.sampling import BatchSource, ShuffledEpochs
from hemstitch.speech import Gaussians
from hemstitch.train._console import Console
from hemstitch.train._recipe import Recipe
from hemstitch.train._speech import SpeechTask, part_outputs
from hemstitch.train._speech_data import Part, realign
from hemstitch.train._strategies import Batch


class FrameTask(SpeechTask):
    """Learn to tell hidden Markov states apart, frame by frame."""

    criterion = CrossEntropy()

    def __init__(self, recipe: Recipe, device: torch.device, console: Console) -> None:
        super().__init__(recipe, device, console)
        self.flat_start(recipe.hmm.flat_start)

    def flat_start(self, rounds: int) -> None:
        """From the equal alignment to that of one Gaussian per state, estimated on the training part."""
        train = self.parts["train"]
        for _ in range(rounds):
            gaussians = Gaussians.estimate(train.frames, train.targets.numpy(), self.num_outputs)
            for name in ("train", "dev"):
                part = self.parts[name]
                loglikes = torch.from_numpy(gaussians.loglikelihoods(part.frames))
                realign(part, loglikes, self.lexicon, self.topology)

    def source(self, batch_size: int, seed: int) -> BatchSource[Batch]:
        """Frame-shuffled minibatches of the training part."""
        part = self.parts["train"]
        assert part.windows is not None
        windows = part.windows

        def collate(frames: Tensor) -> Batch:
            targets = part.targets[frames].to(self.device)
            return Batch(windows.select(frames.to(self.device)), targets.unsqueeze(1), len(frames))

        return BatchSource(ShuffledEpochs(len(part.frames), batch_size, seed), collate)

    def scores(self, model: nn.Module, part: Part) -> tuple[Tensor, np.ndarray]:
        """(frame, pdf) log posteriors."""
        outputs, offsets = part_outputs(model, part)
        return outputs.log_softmax(-1), offsets

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Frame cross-entropy and frame error on the dev part, against its current alignment."""
        part = self.parts["dev"]
        scores, _ = self.scores(model, part)
        loss = nn.functional.nll_loss(scores, part.targets)
        error = (scores.argmax(1) != part.targets).double().mean()
        return {"loss": float(loss), "error": float(error)}

    def after_epoch(self, epoch: int, model: nn.Module) -> list[tuple[str, str]]:
        """Realign train and dev with the network, if the recipe says so after this epoch."""
        if epoch not in self.recipe.hmm.realign:
            return []
        priors, changed = self.log_priors(), {}
        for name in ("train", "dev"):
            part = self.parts[name]
            loglikes = self.scores(model, part)[0] - priors
            changed[name] = realign(part, loglikes, self.lexicon, self.topology)
        events = [("realign", f"realigned after epoch {epoch}: {changed['train']:.1%} of the training frames moved")]
        if epoch == self.recipe.hmm.restart:
            events.append(("restart", "the network is drawn anew; its alignment is kept"))
        return events

    def log_priors(self) -> Tensor:
        """(pdf,) log share of each pdf in the training alignment, one frame added to each."""
        counts = torch.bincount(self.parts["train"].targets, minlength=self.num_outputs).double() + 1
        return (counts / counts.sum()).log().float()

    def state_dict(self) -> dict[str, Any]:
        """The alignments."""
        kind = torch.int16 if self.num_outputs < 2**15 else torch.int32
        return {name: self.parts[name].targets.to(kind) for name in ("train", "dev")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the alignments."""
        for name, targets in state.items():
            if targets.shape != self.parts[name].targets.shape:
                raise ValueError(
                    f"the {name} part has {len(self.parts[name].targets)} frames, the checkpoint's alignment "
                    f"{len(targets)}: the corpus has changed"
                )
            self.parts[name].targets = targets.long()
