"""Which lattice criterion a recipe means, and what it goes with."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hemstitch.criteria import (
    FrameAccuracy,
    LatticeCriterion,
    LatticeMBR,
    LatticeMMI,
    LatticeOptions,
    UtteranceGradient,
)
from hemstitch.errors import ConfigError
from hemstitch.graphs import Graph, Lattice
from hemstitch.speech import Topology
from hemstitch.train import _options as o
from hemstitch.train._recipe import Recipe

FRAMES = ("acoustic_scale", "beam", "lattice_beam", "max_active", "smoothing", "min_occupancy", "tolerance",
          "numerator")  # fmt: skip
"""Options of a recipe that the criterion has under the same name."""


def make_criterion(recipe: Recipe, topology: Topology, graph: Graph, priors: Tensor) -> LatticeCriterion:
    """The criterion of a recipe.

    Args:
        recipe: its criterion is of a lattice kind.
        topology: of the phones; the first is silence.
        graph: of the weak language model.
        priors: (pdf,) log priors.
    """
    options: o.LatticeTraining = recipe.criterion
    silence = sorted({pdf for i in range(topology.num_positions[0]) for pdf in topology.pdfs(topology.silence, i)})
    settings = LatticeOptions(**{name: getattr(options, name) for name in FRAMES},
                              fixed_pdfs=tuple(silence) if options.fix_silence else ())  # fmt: skip
    if isinstance(options, o.Smbr):
        accuracy = FrameAccuracy.states(topology.num_pdfs, silence, options.one_silence_class)
        return LatticeMBR(graph, priors, accuracy, settings)
    phones = pdf_phones(topology, recipe.hmm.position_dependent)
    if isinstance(options, o.Mpe):
        return LatticeMBR(graph, priors, FrameAccuracy(phones, silence, options.one_silence_class), settings)
    boost = options.boost if isinstance(options, o.BoostedMmi) else 0.0
    accuracy = FrameAccuracy(phones, silence) if boost else None
    kind = LatticeMMI if options.denominator else WithoutDenominator
    return kind(graph, priors, settings, boost, accuracy)


class WithoutDenominator(LatticeMMI):
    """Cross-entropy in the place of MMI: the softmax is the only competitor. A control of paper 2, section 4.2.

    Alignments and batches are those of MMI, and so is the scale of the gradient. Frames need no old gradient: the
    transcript's part is linear in the outputs, the softmax is that of the moment,

        loss(a) = w (log sum exp a - a[reference])        w = (1 - h) kappa + h, with smoothing h
    """

    def linear_part(self, reference: np.ndarray | None, num_frames: int) -> tuple[Tensor, Tensor]:
        """(frame, pdf) -w where the reference is, and (frame,) w; zeros where there is no reference."""
        h, slope = self.options.smoothing, torch.zeros(num_frames, len(self.log_priors))
        if reference is None:
            return slope, slope.new_zeros(num_frames)
        weight = (1 - h) * self.options.acoustic_scale + h
        slope[torch.arange(num_frames), torch.from_numpy(reference).long()] = -weight
        return slope, slope.new_full((num_frames,), weight)

    def frames_loss(self, outputs: Tensor, slope: Tensor, weight: Tensor) -> Tensor:
        """The sum over frames; outputs that are to stay as they are get no gradient."""
        fixed = torch.tensor(self.options.fixed_pdfs, dtype=torch.int64, device=outputs.device)
        outputs = outputs.index_copy(1, fixed, outputs[:, fixed].detach())
        return ((slope * outputs).sum(1) + weight * outputs.logsumexp(1)).double().sum()

    def utterance(
        self, outputs: np.ndarray, reference: np.ndarray | None, lattice: Lattice | None = None
    ) -> UtteranceGradient:
        """kappa times the frame cross-entropy."""
        if reference is None:
            return super().utterance(outputs, reference)
        logits = outputs.astype(np.float64)
        logprobs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        softmax, frames = np.exp(logprobs), np.arange(len(reference))
        sequence = softmax.copy()
        sequence[frames, reference] -= 1.0
        loss = -self.options.acoustic_scale * float(logprobs[frames, reference].sum())
        return self._finished(outputs, reference, loss, sequence, softmax, False, 0.0)

    def rejected(self, occupancy: np.ndarray, sequence: np.ndarray) -> np.ndarray:
        """None."""
        return np.zeros(len(occupancy), bool)


def pdf_phones(topology: Topology, position_dependent: bool) -> np.ndarray:
    """(pdf,) a number for the phone of each pdf, the same wherever in a word the phone stands."""
    names = [phone.rpartition("_")[0] or phone if position_dependent else phone for phone in topology.phones]
    number = {name: i for i, name in enumerate(dict.fromkeys(names))}
    phones = np.zeros(topology.num_pdfs, np.int64)
    for phone, name in enumerate(names, start=1):
        for position in range(topology.num_positions[phone - 1]):
            phones[list(topology.pdfs(phone, position))] = number[name]
    return phones


def check_combination(recipe: Recipe) -> None:
    """Refuse what makes no sense beside a lattice criterion.

    Raises:
        ConfigError: with the reason.
    """
    options: o.LatticeTraining = recipe.criterion
    kind, model = f"criterion.kind = {recipe.kinds['criterion']!r}", recipe.kinds["model"]
    frames = options.unit == "frame"
    reasons = {
        "hmm.topology = 'chain'": (
            recipe.hmm.topology == "chain",
            "its reference is an alignment of frames to states; use left-to-right",
        ),
        f"model.kind = {model!r} and unit = 'frame'": (
            frames and model in ("blstm", "tdnn-lstm"),
            "frames are taken out of their utterances, and the network sees whole ones; use unit = 'utterance'",
        ),
        f"order.kind = {recipe.kinds['order']!r} and unit = 'frame'": (
            frames and recipe.kinds["order"] != "forward",
            "batches cannot be used again in another order once their utterances are used up; use unit = 'utterance'",
        ),
        f"parallel.kind = {recipe.kinds['parallel']!r} and unit = 'frame'": (
            frames and recipe.kinds["parallel"] not in ("local", "async", "simulated-async"),
            "the frames of a decoded utterance are not shared out over workers; use unit = 'utterance', or "
            "parallel.kind = 'async', whose replicas have decoders of their own",
        ),
        f"shuffling = {options.shuffling!r} and parallel.kind = {recipe.kinds['parallel']!r}": (
            frames and options.shuffling != "on-the-fly" and recipe.kinds["parallel"] in ("async", "simulated-async"),
            "replicas use frames up as their decoders deliver them; use shuffling = 'on-the-fly'",
        ),
        f"start_l2 and parallel.kind = {recipe.kinds['parallel']!r}": (
            options.start_l2 > 0 and recipe.kinds["parallel"] not in ("local", "data-parallel"),
            "the penalty is on the way of one network, and every worker has its own; set start_l2 = 0",
        ),
        "realign = 'on-the-fly' and parallel.kind = 'async'": (
            options.realign == "on-the-fly" and recipe.kinds["parallel"] == "async",
            "the processes would align with the network at the beginning; use realign = 'epoch'",
        ),
        "update.kind = 'hessian-free' and unit = 'frame'": (
            frames and recipe.kinds["update"] == "hessian-free",
            "the gradients of frames are older than the parameters; use unit = 'utterance'",
        ),
    }
    for what, (is_wrong, reason) in reasons.items():
        if is_wrong:
            raise ConfigError(f"{kind} does not go with {what}: {reason}.")
