r"""Sequence criteria over lattices that are made on the fly: MMI, boosted MMI, MPE, sMBR.

With outputs a (logits), log priors q, acoustic scale kappa, and the cost G of a path in the graph of a weak language
model, a path pi of the lattice has the log weight

    w(pi) = kappa sum_t [a(t, pi_t) - q(pi_t)] - G(pi).

    MMI     loss = log sum_pi exp[w(pi) + b E(pi)] - log sum_{pi = r} exp w(pi)      b: boost, E: wrong frames
            d loss / d a(t, s) = kappa [gamma_den(t, s) - gamma_num(t, s)]
    MBR     loss = T - sum_pi A(pi) exp w(pi) / sum_pi exp w(pi)                      A: right frames (pdfs or phones)
            d loss / d a(t, s) = -kappa sum_{arcs a of (t, s)} gamma_a (c_a - c)

r is the reference: the pdf of each frame in an alignment of the transcript. The normalisation of the softmax cancels,
so that logits do as well as log posteriors.

The denominator sums over all state sequences within the lattice beam. Against one alignment most of the loss is then
about boundaries: at a small kappa a sentence has very many alignments of nearly the same weight. With
``numerator="words"`` the numerator of MMI sums over all paths of the lattice with the words of the reference, and

    MBR     A(pi) = sum_t sum_{s right for pi_t} gamma_num(t, s)         gamma_num is held fixed in the derivative

so that what is left is about words. Boosting then holds for both sums.

What differs from paper 2: lattices there have one alignment for each word sequence. The reference's path is added to
the lattice where it fell out, so that the criterion stays finite, and after that the paper's frame rejection applies:
a frame is rejected where sum_s min(gamma_num, gamma_den) is small, gamma_den(t, r_t) for an alignment.

References: Heigold et al., "Asynchronous stochastic optimization for sequence training of deep neural networks", ICASSP
2014, section 2; D. Povey et al., "Boosted MMI for model and feature-space discriminative training", ICASSP 2008;
M. Gibson, T. Hain, "Hypothesis spaces for minimum Bayes risk training", Interspeech 2006 (sMBR); H. Su et al., "Error
back propagation for sequence training of context-dependent deep networks", ICASSP 2013 (smoothing).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from hemstitch.criteria._frame_accuracy import FrameAccuracy
from hemstitch.criteria._lattice_gradient import (
    LatticeObjective,
    LatticeOptions,
    LatticeOuterGradient,
    UtteranceGradient,
    gathered,
)
from hemstitch.criteria._output_curvature import OutputCurvature
from hemstitch.criteria._path_sums import WithDerivative
from hemstitch.curvature import occupancy_product
from hemstitch.errors import DataError, MisuseError, NonFiniteError
from hemstitch.graphs import (
    Graph,
    Lattice,
    LatticeGraph,
    arc_weights,
    frame_sums,
    labelled_sums,
    lattice_sums,
    nbest,
    path_of_pdfs,
    restricted_to,
)
from hemstitch.graphs._threads import share_out


class LatticeCriterion:
    """What MMI and MBR kinds share: lattices, references, batches.

    Args:
        graph: decoding graph of a weak language model; epsilon arcs are allowed, cycles of them are not.
        log_priors: (pdf,) taken off the outputs.
        options: of lattices and frames; ``None``: the defaults.

    Cost: a lattice search (about 1 ms per 100 frames on a small graph) and 20 ns per arc of the lattice.
    """

    def __init__(self, graph: Graph, log_priors: Tensor | np.ndarray, options: LatticeOptions | None = None) -> None:
        self.graph, self.options = LatticeGraph(graph), options or LatticeOptions()
        self.log_priors = np.asarray(log_priors, np.float64)
        if self.log_priors.ndim != 1 or len(self.log_priors) < graph.num_pdfs:
            raise MisuseError(f"lattice criterion: expected one log prior for each of {graph.num_pdfs} pdfs, got shape "
                              f"{self.log_priors.shape}")

    def __call__(self, outputs: Tensor, lengths: Tensor, references: Sequence[np.ndarray | None]) -> LatticeObjective:
        """The objective of a batch.

        Args:
            outputs: (batch, time, pdf) logits or log posteriors.
            lengths: (batch,) number of frames; later ones are never read.
            references: the (frame,) pdfs of each sequence's transcript; ``None``: leave the sequence out.
        """
        found = self.outer_gradient(outputs, lengths, references)
        loss = WithDerivative.apply(outputs, found.loss, found.derivative)
        return LatticeObjective(loss=loss, weight=found.weight, extra=found.extra, reasons=found.reasons)

    @torch.no_grad()
    def outer_gradient(
        self, outputs: Tensor, lengths: Tensor, references: Sequence[np.ndarray | None]
    ) -> LatticeOuterGradient:
        """The derivative by the outputs on its own, for trainers that compute it elsewhere or earlier.

        Args: as of a call. Sequences are shared out over torch's threads.
        """
        values, counts = outputs.detach().cpu().numpy(), [int(n) for n in lengths]
        if len(references) != len(values) or len(counts) != len(values):
            raise MisuseError(f"lattice criterion: {len(values)} sequences of outputs, {len(counts)} lengths, "
                              f"{len(references)} references")
        found: list[UtteranceGradient | None] = [None] * len(values)

        def part(first: int, last: int) -> None:
            for b in range(first, last):
                found[b] = self.utterance(values[b, :counts[b]], references[b])

        share_out(part, len(values))
        return gathered([each for each in found if each is not None], outputs, counts)

    @torch.no_grad()
    def curvature(
        self, outputs: Tensor, lengths: Tensor, references: Sequence[np.ndarray | None]
    ) -> OutputCurvature:
        """The positive semi-definite surrogate kappa^2 (diag(g) - g g') of each frame that counts.

        g: the denominator occupancies for MMI, the softmax of the outputs for MBR. With smoothing h the curvature of
        the cross-entropy is added in proportion.
        """
        found, h = self.outer_gradient(outputs, lengths, references), self.options.smoothing
        softmax = outputs.softmax(-1) * (found.occupancy.sum(-1, keepdim=True) > 0)
        occupancy = self.curved(found.occupancy, softmax).to(outputs.dtype)
        scale = self.options.acoustic_scale

        def product(v: Tensor) -> Tensor:
            sequence = occupancy_product(occupancy, v, scale)
            return sequence if h == 0 else (1 - h) * sequence + h * occupancy_product(softmax, v)

        return OutputCurvature(product=product, weight=found.weight)

    def utterance(
        self, outputs: np.ndarray, reference: np.ndarray | None, lattice: Lattice | None = None
    ) -> UtteranceGradient:
        """The outer gradient of one utterance; whatever keeps it from being computed becomes its ``reason``.

        Args:
            outputs: (frame, pdf) logits or log posteriors.
            reference: (frame,) pdfs of the transcript; ``None``: leave it out.
            lattice: with the reference in it; ``None``: one is made.
        """
        nothing, added = np.zeros_like(outputs), False
        try:
            if reference is None:
                raise DataError("there is no alignment of its transcript")
            if lattice is None:
                lattice, added = self.lattice(outputs, reference)
        except (DataError, NonFiniteError) as error:
            return UtteranceGradient(derivative=nothing, occupancy=nothing, reason=str(error),
                                     cancelled=np.ones(len(outputs), bool))
        scores = outputs - self.log_priors.astype(outputs.dtype)
        weights = arc_weights(lattice, scores, self.options.acoustic_scale)
        loss, sequence, occupancy = self.sums(lattice, weights, reference)
        return self._finished(outputs, reference, loss, sequence, occupancy, added, lattice.density)

    def lattice(self, outputs: np.ndarray, reference: np.ndarray) -> tuple[Lattice, bool]:
        """The lattice of an utterance with its reference, and whether that had to be added.

        Raises:
            DataError: no sentence lies within the beam, or the graph has no path for the reference.
            NonFiniteError: an output is NaN or infinite.
        """
        options, scores = self.options, (outputs - self.log_priors).astype(np.float32)
        if len(reference) != len(scores):
            raise DataError(f"its alignment has {len(reference)} frames, its outputs have {len(scores)}")
        lattice = self.graph.search(scores, options.beam, options.lattice_beam, options.max_active,
                                    options.acoustic_scale)
        if not lattice.reached_final:
            raise DataError("no sentence lies within the search beam: the lattice is empty")
        only = restricted_to(lattice, reference, arc_weights(lattice))
        if lattice_sums(lattice, only).logprob > -np.inf:
            return lattice, False
        path = path_of_pdfs(self.graph.graph, reference, scores, options.acoustic_scale)
        return lattice.with_path(path, scores), True

    def numerator(
        self, lattice: Lattice, weights: np.ndarray, reference: np.ndarray, boosted: np.ndarray | None = None
    ) -> tuple[float, np.ndarray]:
        """log Z_num, and its (arc,) posteriors; ``boosted``: the weights of words, those of their competitors."""
        aligned = restricted_to(lattice, reference, weights)
        if self.options.numerator == "words":
            words = nbest(lattice, 1, aligned)[0].labels
            return labelled_sums(lattice, words, weights if boosted is None else boosted)
        found = lattice_sums(lattice, aligned)
        return found.logprob, found.posteriors

    def sums(
        self, lattice: Lattice, weights: np.ndarray, reference: np.ndarray
    ) -> tuple[float, np.ndarray, np.ndarray]:
        """(loss, (frame, pdf) its derivative by kappa x outputs, (frame, pdf) denominator occupancies)."""
        raise NotImplementedError

    def curved(self, occupancy: Tensor, softmax: Tensor) -> Tensor:
        """The probabilities whose covariance is the curvature of a frame."""
        raise NotImplementedError

    def rejected(self, occupancy: np.ndarray, sequence: np.ndarray) -> np.ndarray:
        """(frame,) the frames that get no gradient, given what :meth:`sums` found."""
        return np.zeros(len(occupancy), bool)

    def _finished(
        self, outputs: np.ndarray, reference: np.ndarray, loss: float, sequence: np.ndarray, occupancy: np.ndarray,
        added: bool, density: float,
    ) -> UtteranceGradient:
        """Scale, rejection, smoothing, fixed outputs, cancelled frames."""
        options, frames = self.options, np.arange(len(reference))
        rejected = self.rejected(occupancy, sequence)
        sequence[rejected] = 0.0
        derivative = options.acoustic_scale * sequence
        if h := options.smoothing:
            logits = outputs.astype(np.float64)
            logprobs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
            frame = np.exp(logprobs)
            frame[frames, reference] -= 1.0
            loss = (1 - h) * loss - h * float(logprobs[frames, reference].sum())
            derivative = (1 - h) * derivative + h * frame
        derivative[:, list(options.fixed_pdfs)] = 0.0
        cancelled = np.abs(derivative).max(1) <= options.tolerance * options.acoustic_scale
        return UtteranceGradient(
            derivative=derivative.astype(outputs.dtype), occupancy=occupancy.astype(outputs.dtype), loss=loss,
            cancelled=cancelled, rejected=int(rejected.sum()), added=added, density=density)


class LatticeMMI(LatticeCriterion):
    """Maximum mutual information, boosted or not; formulas in the module.

    Args:
        graph, log_priors, options: see :class:`LatticeCriterion`.
        boost: b >= 0, weight of a wrong frame in favour of competitors; 0: plain MMI. 0.1 is common at kappa = 0.1.
        accuracy: what a wrong frame is; needed for ``boost > 0``.

    Reference: paper 2, equation 2; boosting: Povey et al. 2008, equation 2.
    """

    def __init__(
        self,
        graph: Graph,
        log_priors: Tensor | np.ndarray,
        options: LatticeOptions | None = None,
        boost: float = 0.0,
        accuracy: FrameAccuracy | None = None,
    ) -> None:
        super().__init__(graph, log_priors, options)
        if boost < 0 or (boost > 0 and accuracy is None):
            raise MisuseError(f"LatticeMMI: expected boost >= 0, and an accuracy where it is above 0, got {boost}")
        self.boost, self.accuracy = boost, accuracy

    def sums(
        self, lattice: Lattice, weights: np.ndarray, reference: np.ndarray
    ) -> tuple[float, np.ndarray, np.ndarray]:
        """log Z_den - log Z_num; gamma_den - gamma_num; gamma_den."""
        boosted = weights
        if self.boost > 0:
            assert self.accuracy is not None
            boosted = weights + self.boost * _by_arc(lattice, reference, self.accuracy.errors)
        num, posteriors = self.numerator(lattice, weights, reference, boosted)
        den = lattice_sums(lattice, boosted)
        occupancy, reached = (frame_sums(lattice, of, len(self.log_priors)) for of in (den.posteriors, posteriors))
        return den.logprob - num, occupancy - reached, occupancy

    def rejected(self, occupancy: np.ndarray, sequence: np.ndarray) -> np.ndarray:
        """Frames where the numerator's states are all but impossible."""
        return np.minimum(occupancy, occupancy - sequence).sum(1) < self.options.min_occupancy

    def curved(self, occupancy: Tensor, softmax: Tensor) -> Tensor:
        """Denominator occupancies."""
        return occupancy


class LatticeMBR(LatticeCriterion):
    """Minimum Bayes risk: as many right frames as possible, in expectation; formulas in the module.

    Args:
        graph, log_priors, options: see :class:`LatticeCriterion`; no frame is rejected.
        accuracy: of states (sMBR) or of phones (MPE, counted by frames).
    """

    def __init__(
        self,
        graph: Graph,
        log_priors: Tensor | np.ndarray,
        accuracy: FrameAccuracy,
        options: LatticeOptions | None = None,
    ) -> None:
        super().__init__(graph, log_priors, options)
        self.accuracy = accuracy

    def sums(
        self, lattice: Lattice, weights: np.ndarray, reference: np.ndarray
    ) -> tuple[float, np.ndarray, np.ndarray]:
        """Expected wrong frames; -gamma (c_a - c); gamma."""
        num_pdfs = len(self.log_priors)
        _, posteriors = self.numerator(lattice, weights, reference)
        right = self.accuracy.expected(frame_sums(lattice, posteriors, num_pdfs))
        values = np.where(lattice.pdf >= 0, right[np.minimum(lattice.time, len(right) - 1), lattice.pdf], 0.0)
        found = lattice_sums(lattice, weights, values)
        return (len(reference) - found.mean, -frame_sums(lattice, found.contrasts, num_pdfs),
                frame_sums(lattice, found.posteriors, num_pdfs))

    def curved(self, occupancy: Tensor, softmax: Tensor) -> Tensor:
        """The softmax."""
        return softmax


def _by_arc(lattice: Lattice, reference: np.ndarray, compare) -> np.ndarray:  # type: ignore[no-untyped-def]
    """(arc,) a comparison with the reference; 0 for epsilons."""
    spoken = lattice.pdf >= 0
    values = np.zeros(lattice.num_arcs)
    values[spoken] = compare(lattice.pdf[spoken], reference[lattice.time[spoken]])
    return values
