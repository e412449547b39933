"""The lattice task: MMI, boosted MMI, MPE or sMBR from a network that cross-entropy has trained (paper 2).

Lattices are made on the fly with the current network and a weak language model, estimated on the training transcripts;
recognition at the end uses the corpus's. The looks at dev recognise with the weak one: the criterion, its frame error
and its word error rate can be watched against each other.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hemstitch.criteria import (
    AuxiliaryFunction,
    LatticeCriterion,
    LatticeObjective,
    OutputCurvature,
    UtteranceGradient,
    bound_strength,
)
from hemstitch.errors import ConfigError, DataError, NonFiniteError
from hemstitch.graphs import nbest
from hemstitch.sampling import BatchSource, EqualLengthEpochs
from hemstitch.speech import DecodingGraph, align, decoding_graph
from hemstitch.train import _options as o
from hemstitch.train._console import Console
from hemstitch.train._frames import FrameTask
from hemstitch.train._lattice_criteria import WithoutDenominator, check_combination, make_criterion
from hemstitch.train._outer_frames import Loaded, OuterFrames, OuterRows
from hemstitch.train._recipe import Recipe
from hemstitch.train._speech import part_outputs
from hemstitch.train._speech_data import Part, best_alignments, in_threads, take_targets
from hemstitch.train._strategies import Batch


@dataclass(frozen=True)
class References:
    """What the criterion needs of a batch of whole utterances.

    Attributes:
        lengths: (batch,) frames.
        pdfs: the aligned pdfs of each utterance.
    """

    lengths: Tensor
    pdfs: list[np.ndarray | None]


@dataclass(frozen=True)
class RowsObjective:
    """Value of the auxiliary function on a batch of frames.

    Attributes:
        loss: a sum; carries the gradient.
        weight: number of frames.
        extra: values to log.
    """

    loss: Tensor
    weight: float
    extra: dict[str, float]


class LatticeTask(FrameTask):
    """Learn to prefer the transcript to what the recogniser takes for it."""

    priors: Tensor | None = None
    made: tuple[Tensor, LatticeCriterion] | None = None

    def __init__(
        self, recipe: Recipe, device: torch.device, console: Console, kept: Mapping[str, Any] | None = None
    ) -> None:
        check_combination(recipe)
        super().__init__(recipe, device, console, kept)
        self.options: o.LatticeTraining = recipe.criterion
        self.weak_graph = self.make_weak_graph()
        self.start: list[Tensor] | None = None
        self.realigned = False

    def make_weak_graph(self) -> DecodingGraph:
        """The graph of the criterion's own language model: in an n-gram of the transcripts all words are possible."""
        name = self.options.language_model or f"{self.options.lm_order}-gram"
        model = self.language_model(name, "criterion.language_model")
        return decoding_graph(self.lexicon, self.topology, model, self.silence_probability)

    def bind(self, model: nn.Module) -> None:
        """Lay the frames out with the context that the model wants."""
        if getattr(model, "subsampling", 1) != 1:
            raise ConfigError(f"criterion.kind = {self.recipe.kinds['criterion']!r} needs an output for every frame: "
                              "model.subsampling = 1")  # fmt: skip
        super().bind(model)
        self.model = model

    # -- the criterion ---------------------------------------------------------------------------------------------

    @property
    def objective(self) -> LatticeCriterion:
        """The criterion with the priors of the alignment at the beginning."""
        priors = self.log_priors()
        if self.made is None or self.made[0] is not priors:
            self.made = (priors, make_criterion(self.recipe, self.topology, self.weak_graph.graph, priors))
        return self.made[1]

    def log_priors(self) -> Tensor:
        """(pdf,) log priors: those at the beginning, whatever realignment does later."""
        if self.priors is None:
            self.priors = super().log_priors()
        return self.priors

    def criterion(self, outputs: Tensor, targets: References | tuple[OuterRows, dict[str, float]]) -> Any:
        """The objective of a batch of utterances, or the auxiliary function on a batch of frames."""
        if isinstance(targets, References):
            found = self.objective(outputs, targets.lengths, targets.pdfs)
            return LatticeObjective(loss=found.loss + self.distance() * found.weight, weight=found.weight,
                                    extra=found.extra, reasons=found.reasons)
        rows, extra = targets
        now = outputs[:, 0]
        if isinstance(self.objective, WithoutDenominator):
            value = self.objective.frames_loss(now, rows.derivative, rows.strength)
            return RowsObjective(value + self.distance() * len(rows), float(len(rows)), extra)
        at = rows.at if rows.at.shape[1] else now.detach()  # the tangent's slope does not depend on it
        function = AuxiliaryFunction(derivative=rows.derivative, at=at, loss=float(rows.loss.sum()),
                                     strength=rows.strength)  # fmt: skip
        return RowsObjective(function(now) + self.distance() * len(rows), float(len(rows)), extra)

    def distance(self) -> Tensor | float:
        """The penalty on the way from the network at the beginning."""
        if not self.options.start_l2:
            return 0.0
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        if self.start is None:
            self.start = [p.detach().clone() for p in parameters]
        squares = torch.stack([(p - q).square().sum() for p, q in zip(parameters, self.start)])
        return 0.5 * self.options.start_l2 * squares.sum()

    def curvature(self, outputs: Tensor, targets: References) -> OutputCurvature:
        """The curvature of the objective at the outputs, for Hessian-free optimisation."""
        return self.objective.curvature(outputs, targets.lengths, targets.pdfs)

    # -- batches ---------------------------------------------------------------------------------------------------

    def source(self, batch_size: int, seed: int) -> Any:
        """Batches of whole utterances, or of frames with the outer gradients of their utterances."""
        lengths = torch.from_numpy(np.diff(self.parts["train"].offsets))
        if self.options.unit == "frame":
            return OuterFrames(lengths, batch_size, seed, self.options.shuffling, self.load, self.frames_batch)
        step = self.options.length_step
        padded = (lengths + step - 1) // step * step
        return BatchSource(EqualLengthEpochs(padded, batch_size, seed), self.utterances_batch)

    def utterances_batch(self, indices: Tensor) -> Batch:
        """Whole utterances, the shorter ones prolonged by their last frame, which does not count."""
        part = self.parts["train"]
        assert part.windows is not None
        lengths = torch.from_numpy(np.diff(part.offsets))[indices]
        longest = int(lengths.max()) + part.windows.left + part.windows.right
        inputs = torch.stack([prolonged(part.windows.utterance(i), longest) for i in indices.tolist()])
        inputs = self.inputs.masked(inputs, indices)
        return Batch(inputs, References(lengths, self.references(indices.tolist())), len(indices))

    def frames_batch(self, rows: OuterRows, consumed: int, extra: dict[str, float]) -> Batch:
        """Frames with their context."""
        part = self.parts["train"]
        assert part.windows is not None
        rows = OuterRows(**{name: value.to(self.device) for name, value in vars(rows).items()})
        return Batch(part.windows.select(rows.frames), (rows, extra), consumed)

    def references(self, indices: Sequence[int]) -> list[np.ndarray | None]:
        """The aligned pdfs of training utterances; aligned anew if the recipe says so."""
        part = self.parts["train"]
        if self.options.realign == "once" and not self.realigned:
            self.realign_parts(self.model)
            self.realigned = True
        if self.options.realign == "on-the-fly":
            for index, outputs in self.outputs(part, indices).items():
                words, graph = part.utterances[index].text.split(), part.graphs[index]
                found = align(outputs - self.log_priors(), words, self.lexicon, self.topology, graph=graph)
                part.targets[part.cut(index)] = torch.from_numpy(found.pdfs)
        return [part.targets[part.cut(i)].numpy() for i in indices]

    def outputs(self, part: Part, indices: Sequence[int]) -> dict[int, Tensor]:
        """(frame, pdf) outputs of some utterances, without dropout."""
        assert part.windows is not None
        training = self.model.training
        self.model.eval()
        with torch.no_grad():
            found = {i: self.model(part.windows.utterance(i)[None])[0].cpu() for i in indices}
        self.model.train(training)
        return found

    def load(self, indices: list[int]) -> Loaded:
        """Decode utterances with the current network; the frames that do not cancel, with their outer gradients."""
        part, criterion = self.parts["train"], self.objective
        references, outputs = self.references(indices), self.outputs(part, indices)
        matrices = [outputs[i].numpy() for i in indices]
        found = in_threads(lambda k: criterion.utterance(matrices[k], references[k]), range(len(indices)))
        lengths = torch.tensor([len(each.cancelled) for each in found])
        strength = torch.zeros(len(found))
        if self.options.auxiliary == "bound":
            strength = bound_strength(criterion, lengths).float()
        rows = [outer_rows(int(part.offsets[i]), each, outputs[i], float(each_strength))
                for i, each, each_strength in zip(indices, found, strength)]
        if isinstance(criterion, WithoutDenominator):
            rows = [control_rows(criterion, int(part.offsets[i]), each, reference)
                    for i, each, reference in zip(indices, found, references)]
        frames = int(lengths.sum())
        extra = {
            "sequence_loss": sum(each.loss for each in found) / frames,
            "cancelled_frames": sum(int(each.cancelled.sum()) for each in found) / frames,
            "rejected_frames": sum(each.rejected for each in found) / frames,
            "references_added": sum(each.added for each in found) / len(found),
            "arcs_per_frame": sum(each.density * len(each.cancelled) for each in found) / frames,
            "utterances_left_out": sum(bool(each.reason) for each in found) / len(found),
        }
        return Loaded(rows, extra)

    # -- looks -----------------------------------------------------------------------------------------------------

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """On dev: the criterion per frame, the frame error, the word error rate with the weak language model.

        The criterion is NaN where no utterance has a lattice and a path, as with a network that has diverged.
        """
        part, criterion = self.parts["dev"], self.objective
        outputs, offsets = part_outputs(model, part)
        scores = outputs.log_softmax(-1)
        loss, frames, words = 0.0, 0, {}
        looks = in_threads(lambda i: self.look(criterion, scores, i), range(len(part.utterances)))
        for utterance, (found, text) in zip(part.utterances, looks):
            words[utterance.id] = text
            if not found.reason:
                loss, frames = loss + found.loss, frames + len(found.cancelled)
        error = (scores.argmax(1) != part.targets).double().mean()
        left_out = 1 - frames / int(offsets[-1])
        with torch.no_grad():
            penalty = float(self.distance())
        loss = loss / frames + penalty if frames else math.nan
        return {"loss": loss, "error": float(error),
                "wer": self.score("dev", words, replications=1).rate, "left_out": left_out}  # fmt: skip

    def look(self, criterion: LatticeCriterion, scores: Tensor, index: int) -> tuple[UtteranceGradient, str]:
        """The criterion and the words of one dev utterance, from one lattice."""
        part = self.parts["dev"]
        cut = scores[part.cut(index)].numpy()
        reference = part.targets[part.cut(index)].numpy()
        try:
            lattice, _ = criterion.lattice(cut, reference)
        except (DataError, NonFiniteError):
            return criterion.utterance(cut, None), ""
        labels = nbest(lattice, 1)[0].labels
        text = " ".join(self.weak_graph.words[label - 1] for label in labels)
        return criterion.utterance(cut, reference, lattice), text

    def renews(self, epoch: int) -> bool:
        """Whether the recipe realigns after each epoch."""
        return self.options.realign == "epoch"

    def after_epoch(self, epoch: int, model: nn.Module) -> list[tuple[str, str]]:
        """Align anew, if the recipe says so."""
        if not self.renews(epoch):
            return []
        moved = self.realign_parts(model)
        return [("realign", f"realigned after epoch {epoch}: {moved:.1%} of the training frames moved")]

    def realign_parts(self, model: nn.Module) -> float:
        """Replace the alignments of train and dev; returns the share of training frames that moved."""
        changed = {}
        for name in ("train", "dev"):
            part = self.parts[name]
            loglikes = self.scores(model, part)[0] - self.log_priors()
            changed[name] = take_targets(part, best_alignments(part, loglikes.__getitem__, self.lexicon, self.topology))
        return changed["train"]

    def facts(self) -> dict[str, Any]:
        """What `--dry-run` shows of the data."""
        graph = self.weak_graph.graph
        return super().facts() | {"lattice graph": f"{graph.num_states} states, {graph.num_arcs} arcs"}

    # -- state -----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The alignments, the priors, and the network at the beginning where a penalty needs it."""
        self.distance()
        return super().state_dict() | {"priors": self.log_priors(), "realigned": self.realigned, "start": self.start}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore them; the state of a cross-entropy run has alignments only."""
        super().load_state_dict({name: state[name] for name in ("train", "dev")})
        self.priors, self.made = state.get("priors"), None
        self.realigned, self.start = state.get("realigned", False), state.get("start")


def outer_rows(first: int, found: UtteranceGradient, outputs: Tensor, strength: float) -> OuterRows:
    """The frames of an utterance that do not cancel; one if all do, so that every batch has some.

    Args:
        first: number of its first frame in the part.
        found: its outer gradient.
        outputs: (frame, pdf) where that was computed.
        strength: of the bound; 0: tangent.
    """
    kept = torch.from_numpy(np.flatnonzero(~found.cancelled))
    kept = kept if len(kept) else torch.zeros(1, dtype=torch.int64)
    return OuterRows(
        frames=kept + first,
        derivative=torch.from_numpy(found.derivative)[kept],
        at=outputs[kept] if strength else outputs.new_empty(len(kept), 0),
        loss=torch.full((len(kept),), found.loss / len(kept)),
        strength=torch.full((len(kept),), strength),
    )


def control_rows(
    criterion: WithoutDenominator, first: int, found: UtteranceGradient, reference: np.ndarray | None
) -> OuterRows:
    """The same frames for the control without a denominator, whose gradient is that of the moment of use."""
    slope, weight = criterion.linear_part(reference, len(found.cancelled))
    rows = outer_rows(first, found, slope, 0.0)
    kept = rows.frames - first
    return replace(rows, derivative=slope[kept], strength=weight[kept])


def prolonged(frames: Tensor, length: int) -> Tensor:
    """(length, feature): the frames, the last one repeated."""
    return torch.cat([frames, frames[-1:].expand(length - len(frames), -1)])
