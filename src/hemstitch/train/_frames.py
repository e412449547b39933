"""The frame task: alignments made and renewed with the network itself.

Equal alignment -> Viterbi with one Gaussian per state (flat start) -> states tied by context, if the recipe says so ->
frame cross-entropy on shuffled frames -> Viterbi realignment with the network after some epochs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hemstitch.criteria import CrossEntropy
from hemstitch.errors import ConfigError
from hemstitch.sampling import BatchSource, ShuffledEpochs
from hemstitch.speech import TiedTopology
from hemstitch.train._console import Console
from hemstitch.train._flat_start import convert_targets, gaussian_rounds, tied_topology
from hemstitch.train._recipe import Recipe
from hemstitch.train._speech import SpeechTask, part_outputs
from hemstitch.train._speech_data import Part, best_alignments, take_targets
from hemstitch.train._start import FormerRun
from hemstitch.train._strategies import Batch


class FrameTask(SpeechTask):
    """Learn to tell hidden Markov states apart, frame by frame."""

    criterion = CrossEntropy()

    def __init__(
        self, recipe: Recipe, device: torch.device, console: Console, kept: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(recipe, device, console)
        former = FormerRun.of(recipe) if kept is None else None
        if kept is not None:  # the alignment comes from the checkpoint
            self.restore(kept)
        elif former is not None and former.options.alignment:
            self.restore(former.kept)
            self.take_alignment(former)
            if recipe.hmm.probabilities == "estimated" and not self.estimated:
                raise ConfigError("hmm.probabilities = 'estimated': the run whose alignment is taken (start.alignment) "
                                  "has estimated none, and there is no flat start to count in: set it to 'given'")
        else:
            self.flat_start({} if former is None else former.kept)

    def restore(self, kept: Mapping[str, Any]) -> None:
        """Take over what :meth:`kept` gave."""
        self.restore_probabilities(kept)
        if "topology" in kept:
            self.use_topology(TiedTopology.from_dict(kept["topology"]))

    def take_alignment(self, former: FormerRun) -> None:
        """Begin with the alignment of another run."""
        try:
            self.load_state_dict(former.state["task"])
        except (KeyError, ValueError) as error:
            raise ConfigError(f"start.alignment: {former.folder.path} has it for other data ({error})") from None

    def flat_start(self, kept: Mapping[str, Any]) -> None:
        """From the equal alignment to that of one Gaussian per state, the states tied if the recipe says so."""
        hmm, untied = self.recipe.hmm, self.topology
        alignments = gaussian_rounds(self.parts, self.lexicon, untied, hmm.flat_start)
        if alignments and not self.restore_probabilities(kept):
            self.estimate_probabilities(alignments["train"])
        if hmm.context != "none":
            self.use_topology(TiedTopology.from_dict(kept["topology"]) if "topology" in kept else
                              tied_topology(self.parts["train"], alignments["train"], untied, hmm))  # fmt: skip
            convert_targets(self.parts, alignments, untied, self.topology)
            gaussian_rounds(self.parts, self.lexicon, self.topology, hmm.tied_rounds)

    def kept(self) -> dict[str, Any]:
        """What a run folder keeps of the preparations, so that they need not be repeated; see ``__init__``."""
        tied = {"topology": self.topology.to_dict()} if isinstance(self.topology, TiedTopology) else {}
        return tied | self.kept_probabilities()

    def source(self, batch_size: int, seed: int) -> BatchSource[Batch]:
        """Frame-shuffled minibatches of the training part."""
        part = self.parts["train"]
        assert part.windows is not None
        windows = part.windows

        def collate(frames: Tensor) -> Batch:
            targets = part.targets[frames].to(self.device)
            inputs = self.inputs.masked(windows.select(frames.to(self.device)), frames)
            return Batch(inputs, targets.unsqueeze(1), len(frames))

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

    def renews(self, epoch: int) -> bool:
        """Whether the recipe realigns after this epoch."""
        return epoch in self.recipe.hmm.realign

    def after_epoch(self, epoch: int, model: nn.Module) -> list[tuple[str, str]]:
        """Realign train and dev with the network, if the recipe says so after this epoch."""
        if epoch not in self.recipe.hmm.realign:
            return []
        priors, changed = self.log_priors(), {}
        for name in ("train", "dev"):
            part = self.parts[name]
            loglikes = self.scores(model, part)[0] - priors
            changed[name] = take_targets(part, best_alignments(part, loglikes.__getitem__, self.lexicon, self.topology))
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
