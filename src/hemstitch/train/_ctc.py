"""The CTC task: phones and a blank over whole utterances, without any alignment; a baseline.

A phone is one label, in the first pronunciation of each word; silence is the blank. The states of [hmm] have no effect.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from hemstitch.criteria import Ctc
from hemstitch.errors import ConfigError
from hemstitch.graphs import Graph
from hemstitch.sampling import BatchSource, EqualLengthEpochs
from hemstitch.speech import DecodingGraph, LanguageModel, Topology, decoding_graph, training_graph, with_blanks
from hemstitch.speech._topology import phone_numbers
from hemstitch.train._console import Console
from hemstitch.train._pieces import Pieces, whole_utterances
from hemstitch.train._recipe import Recipe
from hemstitch.train._speech import SpeechTask, mean_objective, part_outputs
from hemstitch.train._speech_data import Part
from hemstitch.train._strategies import Batch

BLANK = 0
"""The output that says nothing; it is also that of silence."""


class Labels(NamedTuple):
    """What CTC needs of a batch: (batch,) output frames, and the labels of each utterance."""

    lengths: Tensor
    sequences: list[Tensor]


class CtcTask(SpeechTask):
    """Learn to write down phones in their order."""

    uses_priors = False

    def __init__(
        self, recipe: Recipe, device: torch.device, console: Console, kept: Mapping[str, Any] | None = None
    ) -> None:
        if recipe.hmm.context != "none":
            raise ConfigError("criterion.kind = 'ctc' has no alignment to grow trees on: set hmm.context = 'none'")
        if recipe.hmm.probabilities != "given":
            raise ConfigError("criterion.kind = 'ctc' has no alignment to count in: set hmm.probabilities = 'given'")
        super().__init__(recipe, device, console)
        self.objective = Ctc(BLANK)
        for name in ("train", "dev"):
            self.parts[name].graphs = [self.training_graph(words) for words in self.transcripts(name)]
        self.labels = {name: [self.label_sequence(words) for words in self.transcripts(name)]
                       for name in ("train", "dev")}  # fmt: skip

    def first_topology(self) -> Topology:
        """One state a phone; time costs nothing."""
        chain = Topology.left_to_right(self.lexicon.phones, 1)
        return dataclasses.replace(chain, transition_scale=0.0)

    def label_sequence(self, words: Sequence[str]) -> Tensor:
        """(label,) the outputs of the phones of the words, in their first pronunciations."""
        phones = [phone for entry in self.lexicon.pronunciations(words) for phone in entry[0].phones]
        return torch.tensor([self.topology.pdf(number, 0) for number in phone_numbers(self.topology, phones)])

    def training_graph(self, words: Sequence[str]) -> Graph:
        """All ways to say a transcript, with blanks."""
        return with_blanks(training_graph(words, self.lexicon, self.topology, 0.0), BLANK)

    def graph_of(self, language_model: LanguageModel) -> DecodingGraph:
        """The graph of all sentences that a language model allows, with blanks in place of silence."""
        found = decoding_graph(self.lexicon, self.topology, language_model, 0.0)
        return dataclasses.replace(found, graph=with_blanks(found.graph, BLANK))

    def scores(self, model: nn.Module, part: Part) -> tuple[Tensor, np.ndarray]:
        """(row, label) log posteriors."""
        outputs, offsets = part_outputs(model, part)
        return outputs.log_softmax(-1), offsets

    def bind(self, model: nn.Module) -> None:
        """Lay the frames out with the context that the model wants."""
        super().bind(model)
        self.subsampling, step = model.subsampling, self.recipe.criterion.length_step
        self.stretches = {name: self.stretches_of(name, model) for name in ("train", "dev")}
        self.pieces = {name: whole_utterances(s.offsets.diff(), step) for name, s in self.stretches.items()}

    def criterion(self, outputs: Tensor, targets: Labels) -> Any:
        """The objective of a batch."""
        return self.objective(outputs, targets.lengths, targets.sequences)

    def source(self, batch_size: int, seed: int) -> BatchSource[Batch]:
        """Batches of whole utterances of one length."""
        return BatchSource(EqualLengthEpochs(self.pieces["train"].frames, batch_size, seed), self.collate("train"))

    def collate(self, name: str) -> Callable[[Tensor], Batch]:
        """A function from utterances of one length to their batch."""
        pieces: Pieces = self.pieces[name]
        frames = torch.from_numpy(self.parts[name].offsets).diff()

        def batch(items: Tensor) -> Batch:
            longest = int(pieces.frames[items].max())
            inputs = self.stretches[name].select(pieces.utterance[items], pieces.first[items], longest)
            inputs = self.inputs.masked(inputs, items) if name == "train" else inputs
            lengths = (frames[items] + self.subsampling - 1) // self.subsampling
            return Batch(inputs, Labels(lengths, [self.labels[name][i] for i in items.tolist()]), len(items))

        return batch

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Mean loss per output frame on the dev part, and the share of utterances left out."""
        stream = EqualLengthEpochs(self.pieces["dev"].frames, self.recipe.train.batch_size)
        return mean_objective(model, self.criterion, stream, self.collate("dev"))
