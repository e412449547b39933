"""The sequence task: lattice-free MMI over whole utterances, from a flat start (no alignment at all).

Denominator: a phone n-gram of the training transcripts, silence put in at random, expanded to the chain topology.
Numerators: all ways to say a transcript, composed with the normalisation graph. References: Povey et al., "Purely
sequence-trained neural networks for ASR based on lattice-free MMI", Interspeech 2016; Hadian et al., "End-to-end speech
recognition using lattice-free MMI", Interspeech 2018.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hemstitch.criteria import LatticeFreeMMI, OutputCurvature
from hemstitch.errors import ConfigError
from hemstitch.graphs import Graph, compose, denominator_graph, estimate_phone_lm, normalisation_graph
from hemstitch.sampling import BatchSource, EqualLengthEpochs
from hemstitch.speech import training_graph
from hemstitch.train._console import Console
from hemstitch.train._options import LatticeFreeMmi
from hemstitch.train._recipe import Recipe
from hemstitch.train._speech import SpeechTask
from hemstitch.train._speech_data import Part
from hemstitch.train._strategies import Batch


@dataclass(frozen=True)
class Supervision:
    """What a sequence criterion needs of a batch.

    Attributes:
        lengths: (batch,) output frames.
        graphs: the numerator of each utterance; ``None``: left out.
    """

    lengths: Tensor
    graphs: list[Graph | None]


class LatticeFreeTask(SpeechTask):
    """Learn to prefer the transcript to all other phone sequences."""

    uses_priors = False

    def __init__(self, recipe: Recipe, device: torch.device, console: Console) -> None:
        if recipe.hmm.topology != "chain":
            raise ConfigError("criterion.kind = 'lattice-free-mmi' needs hmm.topology = 'chain': the network's outputs "
                              "are then scores of a phone's first and further frames")  # fmt: skip
        if recipe.hmm.context != "none":
            raise ConfigError("criterion.kind = 'lattice-free-mmi' starts without an alignment, so there is nothing to "
                              "grow trees on: set hmm.context = 'none'")  # fmt: skip
        super().__init__(recipe, device, console)
        options: LatticeFreeMmi = recipe.criterion
        sequences = phone_sequences(self, self.parts["train"])
        phone_lm = estimate_phone_lm(sequences, options.lm_order, num_extra_states=options.num_extra_states)
        pdfs = [(self.topology.pdf(p, 0), self.topology.pdf(p, 1)) for p in range(1, len(self.topology.phones) + 1)]
        self.denominator = denominator_graph(phone_lm, pdfs)
        self.objective = LatticeFreeMMI(self.denominator, leak=options.leak, output_l2=options.output_l2)
        self.numerators = {name: self.make_numerators(self.parts[name]) for name in ("train", "dev")}
        self.length_step, self.subsampling = options.length_step, 1

    def make_numerators(self, part: Part) -> list[Graph | None]:
        """The numerator of each utterance, with the normalisation graph's weights; ``None``: they share no path."""
        normalisation = normalisation_graph(self.denominator)
        unweighted = dataclasses.replace(self.topology, transition_scale=0.0)
        graphs: list[Graph | None] = []
        for utterance in part.utterances:
            said = training_graph(utterance.text.split(), self.lexicon, unweighted, self.recipe.hmm.silence_probability)
            graph = compose(
                Graph.from_arcs(said.src, said.dst, said.pdf, said.cost, said.start, said.final), normalisation
            )
            graphs.append(graph if graph.num_arcs else None)
        return graphs

    def bind(self, model: nn.Module) -> None:
        """Lay the frames out with the context that the model wants."""
        super().bind(model)
        self.subsampling = model.subsampling

    def criterion(self, outputs: Tensor, targets: Supervision) -> Any:
        """The objective of a batch."""
        return self.objective(outputs, targets.lengths, targets.graphs)

    def curvature(self, outputs: Tensor, targets: Supervision) -> OutputCurvature:
        """The curvature of the objective at the outputs, for Hessian-free optimisation."""
        return self.objective.curvature(outputs, targets.lengths, targets.graphs)

    def source(self, batch_size: int, seed: int) -> BatchSource[Batch]:
        """Batches of whole utterances of one length."""
        lengths = self.padded_lengths(self.parts["train"])
        return BatchSource(EqualLengthEpochs(lengths, batch_size, seed), self.collate("train"))

    def padded_lengths(self, part: Part) -> Tensor:
        """(utterance,) frames after prolonging each utterance to a multiple of ``length_step``."""
        lengths = torch.from_numpy(np.diff(part.offsets))
        return (lengths + self.length_step - 1) // self.length_step * self.length_step

    def collate(self, name: str) -> Callable[[Tensor], Batch]:
        """A function from utterances of one length to their batch."""
        part, numerators, padded = self.parts[name], self.numerators[name], self.padded_lengths(self.parts[name])

        def batch(indices: Tensor) -> Batch:
            assert part.windows is not None
            longest = int(padded[indices].max()) + part.windows.left + part.windows.right
            inputs = torch.stack([prolonged(part.windows.utterance(i), longest) for i in indices.tolist()])
            frames = -(-int(padded[indices].max()) // self.subsampling)
            lengths = torch.full((len(indices),), frames)
            return Batch(inputs, Supervision(lengths, [numerators[i] for i in indices.tolist()]), len(indices))

        return batch

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Mean objective per frame on the dev part, to be minimised; and the share of utterances left out."""
        stream = EqualLengthEpochs(self.padded_lengths(self.parts["dev"]), self.recipe.train.batch_size)
        collate, loss, weight, skipped = self.collate("dev"), 0.0, 0.0, 0
        model.eval()
        with torch.no_grad():
            for _ in range(stream.batches_per_epoch):
                batch = collate(stream.next())
                objective = self.criterion(model(batch.inputs), batch.targets)
                loss, weight = loss + float(objective.loss), weight + objective.weight
                skipped += objective.skipped
        model.train()
        return {"loss": loss / max(weight, 1.0), "skipped": skipped / stream.num_items}

    def after_epoch(self, epoch: int, model: nn.Module) -> list[tuple[str, str]]:
        """Nothing to renew: there is no alignment."""
        return []

    def facts(self) -> dict[str, Any]:
        """What `--dry-run` shows of the data."""
        graph = f"{self.denominator.num_states} states, {self.denominator.num_arcs} arcs"
        return super().facts() | {"denominator graph": graph}

    def state_dict(self) -> dict[str, Any]:
        """Nothing changes."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""


def phone_sequences(task: SpeechTask, part: Part) -> list[list[int]]:
    """Phones (from 0) of the transcripts; pronunciations and silences are drawn at random (fixed seed)."""
    random = np.random.default_rng(0)
    silence_probability = task.recipe.hmm.silence_probability
    number = {phone: i for i, phone in enumerate(task.topology.phones)}
    sequences = []
    for utterance in part.utterances:
        phones = [0]
        for entry in task.lexicon.pronunciations(utterance.text.split()):
            phones += [number[p] for p in entry[random.integers(len(entry))].phones]
            phones += [0] if random.random() < silence_probability else []
        sequences.append(phones if phones[-1] == 0 else [*phones, 0])
    return sequences


def prolonged(frames: Tensor, length: int) -> Tensor:
    """(length, feature): the frames, the last one repeated."""
    return torch.cat([frames, frames[-1:].expand(length - len(frames), -1)])
