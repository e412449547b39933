"""The sequence task: lattice-free MMI, from a flat start or from alignments.

Denominator: a phone n-gram of the training data, expanded to the chain topology. Numerators: all ways to say a
transcript, or one way give or take a few frames (``_numerators.py``), over utterances or chunks (``_pieces.py``).
References: Povey et al., "Purely sequence-trained neural networks for ASR based on lattice-free MMI", Interspeech
2016; Hadian et al., "End-to-end speech recognition using lattice-free MMI", Interspeech 2018.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hemstitch.criteria import LatticeFreeMMI, OutputCurvature, SequenceObjective
from hemstitch.errors import ConfigError
from hemstitch.graphs import Graph, denominator_graph, estimate_phone_lm, normalisation_graph
from hemstitch.sampling import BatchSource, EqualLengthEpochs
from hemstitch.speech import TiedTopology, Topology, convert_alignment
from hemstitch.train._console import Console
from hemstitch.train._flat_start import Alignments, gaussian_rounds, tied_topology
from hemstitch.train._numerators import (
    Numerators,
    PhoneAlignment,
    aligned_numerators,
    drawn_phones,
    end_to_end_numerators,
    phone_pdfs,
    shuffled_words,
)
from hemstitch.train._options import LatticeFreeMmi
from hemstitch.train._pieces import Pieces, chunks, whole_utterances
from hemstitch.train._recipe import Recipe
from hemstitch.train._run_folder import RunFolder
from hemstitch.train._speech import SpeechTask, make_topology, mean_objective, part_outputs
from hemstitch.train._speech_data import Part
from hemstitch.train._start import FormerRun
from hemstitch.train._strategies import Batch

SUPERVISED = ("train", "dev")


@dataclass(frozen=True)
class Supervision:
    """What a sequence criterion needs of a batch.

    Attributes:
        lengths: (batch,) output frames.
        graphs: the numerator of each item; ``None``: left out.
        weights: (batch,) weight of each item.
        frame_weights: (batch, time) factor on the derivative of each frame; ``None``: 1.
    """

    lengths: Tensor
    graphs: list[Graph | None]
    weights: Tensor
    frame_weights: Tensor | None = None


class LatticeFreeTask(SpeechTask):
    """Learn to prefer the transcript to all other phone sequences.

    An utterance counts as often as the number ``weight`` in the ``info`` of its manifest line says, else once.
    """

    uses_priors = False

    def __init__(
        self, recipe: Recipe, device: torch.device, console: Console, kept: Mapping[str, Any] | None = None
    ) -> None:
        _check(recipe)
        super().__init__(recipe, device, console)
        if kept is None and (former := FormerRun.of(recipe)) is not None:
            kept = former.kept or None
        options: LatticeFreeMmi = recipe.criterion
        self.phones: dict[str, list[PhoneAlignment]] = {}
        if kept is None and self.aligns:
            self.prepare(console)
        elif self.aligns:
            self.restore(kept)
        sequences, extra = self.phone_sequences(), options.num_extra_states
        phone_lm = estimate_phone_lm(sequences, options.lm_order, num_extra_states=extra)
        self.denominator = denominator_graph(phone_lm, phone_pdfs(self.topology))
        self.objective = LatticeFreeMMI(
            self.denominator, options.leak, options.output_l2, options.xent_regularize, options.range_penalty
        )
        self.subsampling = 1

    def phone_sequences(self) -> list[list[int]]:
        """What the denominator's language model learns from: training transcripts, and shuffles of them."""
        said = self.transcripts("train")
        shuffled = shuffled_words(said, self.recipe.criterion.lm_shuffles)
        if self.phones:
            aligned, drawn = [a.phones for a in self.phones["train"]], shuffled
        else:
            aligned, drawn = [], said + shuffled
        return aligned + drawn_phones(drawn, self.lexicon, self.topology, self.silence_probability)

    # -- preparations ------------------------------------------------------------------------------------------------

    @property
    def aligns(self) -> bool:
        """Whether an alignment is needed: for numerators, or to tie states."""
        return self.recipe.criterion.numerator == "alignments" or self.recipe.hmm.context != "none"

    def first_topology(self) -> Topology:
        """What alignments are made with."""
        hmm = dataclasses.replace(self.recipe.hmm, topology="left-to-right") if self.aligns else self.recipe.hmm
        return make_topology(hmm, self.lexicon)

    def prepare(self, console: Console) -> None:
        """Align, tie states if the recipe says so, and go on with the chain topology."""
        hmm, chain = self.recipe.hmm, make_topology(self.recipe.hmm, self.lexicon)
        alignments, source = self.align(console)
        self.estimate_probabilities(alignments["train"])
        self.phones = {name: [PhoneAlignment.of(a, chain) for a in found] for name, found in alignments.items()}
        if hmm.context != "none":
            converted = [convert_alignment(a, source, chain) for a in alignments["train"]]
            self.use_topology(tied_topology(self.parts["train"], converted, chain, hmm))
        else:
            self.use_topology(chain)

    def align(self, console: Console) -> tuple[Alignments, Topology]:
        """Alignments of train and dev, and the topology that they are in."""
        if self.recipe.criterion.alignments is None:
            return gaussian_rounds(self.parts, self.lexicon, self.topology, self.recipe.hmm.flat_start), self.topology
        from hemstitch.train._network_alignments import network_alignments  # loads runs, of which this is a part

        return network_alignments(self, self.recipe.criterion.alignments, console)

    def kept(self) -> dict[str, Any]:
        """What a run folder keeps of the preparations."""
        tied = {"topology": self.topology.to_dict()} if isinstance(self.topology, TiedTopology) else {}
        phones = {u.id: a for name, found in self.phones.items() for u, a in zip(self.parts[name].utterances, found)}
        return {**tied, **self.kept_probabilities(), "alignments": phones} if phones else {}

    def restore(self, kept: Mapping[str, Any]) -> None:
        """Go on with what :meth:`kept` returned.

        Raises:
            ConfigError: the corpus has utterances that it lacks.
        """
        self.restore_probabilities(kept)
        alignments = kept.get("alignments", {})
        for name in SUPERVISED:
            utterances = self.parts[name].utterances
            if missing := [u.id for u in utterances if u.id not in alignments]:
                raise ConfigError(f"the run has kept no alignment of {missing[0]!r} (and {len(missing) - 1} others): "
                                  "the corpus has changed. Train anew, or restore the corpus.")  # fmt: skip
            self.phones[name] = [PhoneAlignment(*alignments[u.id]) for u in utterances]
        chain = make_topology(self.recipe.hmm, self.lexicon)
        self.use_topology(TiedTopology.from_dict(kept["topology"]) if "topology" in kept else chain)

    def bind(self, model: nn.Module) -> None:
        """Lay the frames out with the context that the model wants, and cut the items."""
        super().bind(model)
        self.subsampling = model.subsampling
        self.pieces = {name: self.cut(name) for name in SUPERVISED}
        self.stretches = {name: self.stretches_of(name, model) for name in SUPERVISED}
        self.numerators = {name: self.make_numerators(name) for name in SUPERVISED}
        self.weights = {name: torch.tensor([float(u.info.get("weight", 1.0)) for u in self.parts[name].utterances],
                                           dtype=torch.float64) for name in SUPERVISED}  # fmt: skip
        self.notices += [notice for name in SUPERVISED if (notice := self.unreachable(name))]

    def cut(self, name: str) -> Pieces:
        """The items of a part."""
        options, lengths = self.recipe.criterion, torch.from_numpy(self.parts[name].offsets).diff()
        if options.chunk % self.subsampling:
            raise ConfigError(f"criterion.chunk = {options.chunk} must be a multiple of the network's subsampling, "
                              f"{self.subsampling}")  # fmt: skip
        if options.chunk:
            return chunks(lengths, options.chunk, self.subsampling)
        return whole_utterances(lengths, options.length_step)

    def make_numerators(self, name: str) -> Numerators:
        """What makes the numerators of a part, with the normalisation graph's weights."""
        normalisation, options = normalisation_graph(self.denominator), self.recipe.criterion
        if options.numerator == "alignments":
            pdfs = phone_pdfs(self.topology)
            return aligned_numerators(self.phones[name], pdfs, options.tolerance, self.subsampling, normalisation)
        silence = self.silence_probability
        return end_to_end_numerators(self.transcripts(name), self.lexicon, self.topology, silence, normalisation)

    def unreachable(self, name: str) -> tuple[str, str] | None:
        """A notice about items whose numerator has no path; they never count."""
        graphs = self.graphs(name, torch.arange(len(self.pieces[name].utterance)))
        without = self.pieces[name].utterance[[g is None for g in graphs]].unique().tolist()
        if not without:
            return None
        example = self.parts[name].utterances[without[0]].id
        return "skipped", (
            f"{name} part: {len(without)} of {len(self.transcripts(name))} utterances, such as {example}, do not "
            "count (in full): they have more phones than output frames (correct the transcripts, or lower "
            "model.subsampling), or phones in an order that the denominator's language model has never seen (lower "
            "criterion.lm_order, or set criterion.lm_shuffles to 20)"
        )

    def scores(self, model: nn.Module, part: Part) -> tuple[Tensor, np.ndarray]:
        """(row, pdf) scores; the mean over the shifts of training if the recipe says so."""
        return part_outputs(model, part, model.subsampling if self.recipe.decode.average_shifts else 1)

    # -- training ----------------------------------------------------------------------------------------------------

    def criterion(self, outputs: Tensor | tuple[Tensor, Tensor], targets: Supervision) -> SequenceObjective:
        """The objective of a batch; its loss is NaN if nothing counts because no output is finite."""
        xent = None
        if isinstance(outputs, tuple):
            outputs, xent = outputs[0], outputs[1].log_softmax(-1)
        found = self.objective(
            outputs, targets.lengths, targets.graphs, targets.weights, xent, targets.frame_weights
        )
        if found.weight == 0 and any("not finite" in why or "NaN" in why for why in found.reasons.values()):
            return dataclasses.replace(found, loss=found.loss * torch.nan)
        return found

    @property
    def shifts(self) -> int:
        """How many first frames take turns."""
        return self.subsampling if self.recipe.criterion.shifts else 1

    def curvature(self, outputs: Tensor, targets: Supervision) -> OutputCurvature:
        """The curvature of the objective at the outputs, for Hessian-free optimisation."""
        return self.objective.curvature(
            outputs, targets.lengths, targets.graphs, targets.weights, targets.frame_weights
        )

    def source(self, batch_size: int, seed: int) -> BatchSource[Batch]:
        """Batches of items of one length."""
        stream = EqualLengthEpochs(self.pieces["train"].frames, batch_size, seed, variants=self.shifts)
        return BatchSource(stream, self.collate("train"))

    def graphs(self, name: str, items: Tensor, shift: Tensor | int = 0) -> list[Graph | None]:
        """The numerators of items."""
        pieces, numerators = self.pieces[name], self.numerators[name]
        outputs = -(-pieces.frames[items] // self.subsampling)
        columns = (pieces.utterance[items], pieces.first[items], outputs, shift + torch.zeros_like(items))
        return [numerators(*row) for row in zip(*(column.tolist() for column in columns))]

    def collate(self, name: str) -> Callable[[Tensor], Batch]:
        """A function from items of one length, in any shift, to their batch."""
        pieces, stretches = self.pieces[name], self.stretches[name]

        def batch(indices: Tensor) -> Batch:
            shift, items = indices // len(pieces.utterance), indices % len(pieces.utterance)
            utterance, frames = pieces.utterance[items], int(pieces.frames[items].max())
            inputs = stretches.select(utterance, pieces.first[items] + shift, frames)
            inputs = self.inputs.masked(inputs, indices) if name == "train" else inputs
            lengths = torch.full((len(items),), -(-frames // self.subsampling))
            weights = None if pieces.weights is None else torch.stack([pieces.weights[i] for i in items.tolist()])
            supervision = Supervision(
                lengths, self.graphs(name, items, shift), self.weights[name][utterance], weights
            )
            return Batch(inputs, supervision, len(items))

        return batch

    def evaluate(self, model: nn.Module, part: str = "dev") -> dict[str, float]:
        """Mean objective per frame on a part, to be minimised; and the share of items left out."""
        stream = EqualLengthEpochs(self.pieces[part].frames, self.recipe.train.batch_size)
        return mean_objective(model, self.criterion, stream, self.collate(part))

    def decode(self, model: nn.Module, folder: RunFolder, parts: Sequence[str], console: Console) -> dict[str, Any]:
        """Recognise parts with the settings that are best on dev; writes decode/PART.jsonl."""
        scales = self.recipe.decode.acoustic_scale
        if max(scales) < 0.5:
            console.event("warning", f"decode.acoustic_scale = {list(scales)}: scores of lattice-free MMI are made to "
                                     "be searched at a scale of about 1, and recognise badly far from it")
        return super().decode(model, folder, parts, console)

    def facts(self) -> dict[str, Any]:
        """What `--dry-run` shows of the data."""
        graph = f"{self.denominator.num_states} states, {self.denominator.num_arcs} arcs"
        return super().facts() | {"denominator graph": graph, "training items": len(self.pieces["train"].utterance)}


def _check(recipe: Recipe) -> None:
    """Refuse what makes no sense."""
    hmm, options = recipe.hmm, recipe.criterion
    if hmm.topology != "chain":
        raise ConfigError("criterion.kind = 'lattice-free-mmi' needs hmm.topology = 'chain': the network's outputs "
                          "are then scores of a phone's first and further frames")  # fmt: skip
    aligns = options.numerator == "alignments" or hmm.context != "none"
    if hmm.probabilities != "given" and not aligns:
        raise ConfigError("criterion.numerator = 'end-to-end' has no alignment to count in: set hmm.probabilities = "
                          "'given', or criterion.numerator = 'alignments'")  # fmt: skip
    if hmm.context == "both":
        raise ConfigError("criterion.kind = 'lattice-free-mmi': in its denominator a pdf may depend on the phone to "
                          "the left only: set hmm.context = 'left' or 'none'")  # fmt: skip
    if recipe.start.alignment:
        raise ConfigError("start.alignment is of single frames: criterion.alignments names the run that aligns")
    if options.xent_regularize and recipe.kinds["update"] == "hessian-free":
        raise ConfigError("criterion.xent_regularize: update.kind = 'hessian-free' knows one output layer only; set it "
                          "to 0")  # fmt: skip
    if options.xent_regularize and recipe.kinds["model"] == "feed-forward":
        raise ConfigError("criterion.xent_regularize needs a model.kind with a second output layer: tdnn, tdnn-lstm "
                          "or blstm")  # fmt: skip
