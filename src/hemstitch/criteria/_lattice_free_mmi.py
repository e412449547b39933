"""Lattice-free MMI: the paths of the transcript against all paths of a phone language model.

    objective = sum_b w_b [ log Z_num(b) - log Z_den(b) ],
    d objective / d output(b, t, n) = w_b [ gamma_num(b, t, n) - gamma_den(b, t, n) ]

Sums over sequences and frames, never means: divide ``loss`` by ``weight`` for a figure per frame.

References: D. Povey et al., "Purely sequence-trained neural networks for ASR based on lattice-free MMI", Interspeech
2016; H. Hadian et al., "End-to-end speech recognition using lattice-free MMI", Interspeech 2018.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hemstitch.criteria._output_curvature import OutputCurvature
from hemstitch.criteria._path_sums import WithDerivative
from hemstitch.curvature import occupancy_product
from hemstitch.errors import MisuseError
from hemstitch.graphs import Graph, add_numerator_occupancies, denominator_posteriors, numerator_posteriors

_RANGE = 30.0
"""Outputs beyond this, in nats, are penalised."""


@dataclass(frozen=True, kw_only=True, eq=False)
class OuterGradient:
    """The criterion and its derivative by the network outputs, without autograd.

    Attributes:
        derivative: (batch, time, pdf) derivative of ``loss`` by the outputs: ``outputs.backward(derivative)`` trains.
        numerator: (batch, time, pdf) w_b gamma_num, the targets of the cross-entropy head; ``None`` if not asked for.
        loss: den - num + the penalties on the outputs, a float64 scalar.
        num, den: weighted log-probabilities, summed over the sequences that counted, float64 scalars.
        weight: sum of w_b times frames over the sequences that counted.
        reasons: why a sequence was left out, by its index in the batch.
    """

    derivative: Tensor
    numerator: Tensor | None
    loss: Tensor
    num: Tensor
    den: Tensor
    weight: float
    reasons: dict[int, str]


@dataclass(frozen=True, kw_only=True, eq=False)
class SequenceObjective:
    """Value of a sequence criterion on a batch.

    Attributes:
        loss: float64 scalar to be minimised; carries the gradient. Finite whatever the inputs.
        num, den: weighted log-probabilities, summed over the sequences that counted.
        weight: sum of sequence weights times frames over the sequences that counted.
        reasons: why a sequence was left out, by its index in the batch.
    """

    loss: Tensor
    num: Tensor
    den: Tensor
    weight: float
    reasons: dict[int, str]

    @property
    def skipped(self) -> int:
        """Number of sequences left out; they have zero gradient."""
        return len(self.reasons)

    @property
    def extra(self) -> dict[str, float]:
        """What training logs besides the loss."""
        return {"skipped": float(self.skipped)}


class LatticeFreeMMI:
    """``loss = -sum_b w_b (num_b - den_b) + penalties``, with zero gradient for sequences that cannot be computed.

    What differs from the reference: a sequence that fails is left out and reported instead of counting as -10 per
    frame; the range penalty is the expectation (its coefficient on every call instead of twice on a random half), so
    that a step can be repeated; outputs are not clamped unless asked, since a scale per frame does the same exactly.

    Args:
        graph: the denominator graph.
        leak: weight of a jump to the initial distribution in the denominator; 0.1 is common.
        output_l2: c in the penalty c/2 |output|^2; 5e-5 is common.
        xent_regularize: scale of the cross-entropy head's objective; 0.1 is common.
        range_penalty: c in the penalty c/2 (excess of an output beyond +-30)^2; the reference has 0.01.
        clip: clamp the denominator's outputs at +- this, for parity with the reference (30).

    Example:
        >>> graph = Graph.from_arcs([0, 0, 1], [0, 1, 1], [0, 1, 1], [0.7, 0.7, 0.7])
        >>> reference = Graph.from_arcs([0, 1], [1, 2], [0, 1], [0.0, 0.0], final=[torch.inf, torch.inf, 0.0])
        >>> outputs = torch.zeros(1, 2, 2, requires_grad=True)
        >>> objective = LatticeFreeMMI(graph)(outputs, torch.tensor([2]), [reference])
        >>> objective.loss.backward()
        >>> objective.weight, objective.skipped
        (2.0, 0)
    """

    def __init__(
        self,
        graph: Graph,
        leak: float = 1e-5,
        output_l2: float = 0.0,
        xent_regularize: float = 0.0,
        range_penalty: float = 0.0,
        clip: float | None = None,
    ):
        settings = dict(leak=leak, output_l2=output_l2, xent_regularize=xent_regularize, range_penalty=range_penalty)
        for name, value in settings.items():
            if not 0.0 <= value < torch.inf:
                raise MisuseError(f"LatticeFreeMMI: {name} {value} is out of range, expected 0 or more")
        self.graph, self.leak, self.clip = graph, leak, clip
        self.output_l2, self.xent_regularize, self.range_penalty = output_l2, xent_regularize, range_penalty

    def __call__(
        self,
        outputs: Tensor,
        lengths: Tensor,
        graphs: Sequence[Graph | None],
        weights: Tensor | None = None,
        xent_outputs: Tensor | None = None,
        frame_weights: Tensor | None = None,
    ) -> SequenceObjective:
        """The objective of a batch.

        Args:
            outputs: (batch, time, pdf) log-likelihoods in nats, unnormalised.
            lengths: (batch,) number of frames; later ones are never read.
            graphs: one numerator per sequence, already composed with the normalisation graph where that is wanted;
                ``None``: leave the sequence out.
            weights: (batch,) w_b >= 0; ``None``: 1.
            xent_outputs: (batch, time, pdf) LOG-PROBABILITIES of a second head (after ``log_softmax``), trained on the
                numerator's occupancies scaled by ``xent_regularize``.
            frame_weights: (batch, time) factor on the derivative of each frame (0 at the overlap of chunks, see
                :func:`hemstitch.criteria.overlap_weights`). The values of num and den keep all frames.
        """
        trains_xent = xent_outputs is not None and self.xent_regularize > 0.0
        found = self.outer_gradient(outputs, lengths, graphs, weights, frame_weights, numerator=trains_xent)
        reasons = dict(found.reasons)
        loss = WithDerivative.apply(outputs, found.loss, found.derivative)
        if trains_xent:
            terms = (found.numerator * xent_outputs).where(found.numerator > 0, 0.0).sum((1, 2), dtype=torch.float64)
            finite = terms.isfinite()
            reasons |= {b: "cross-entropy outputs are not finite" for b in _where(~finite) if b not in reasons}
            loss = loss - self.xent_regularize * terms.where(finite, 0.0).sum()
        return SequenceObjective(loss=loss, num=found.num, den=found.den, weight=found.weight, reasons=reasons)

    @torch.no_grad()
    def outer_gradient(
        self,
        outputs: Tensor,
        lengths: Tensor,
        graphs: Sequence[Graph | None],
        weights: Tensor | None = None,
        frame_weights: Tensor | None = None,
        numerator: bool = False,
    ) -> OuterGradient:
        """The derivative by the outputs on its own, for trainers that compute it elsewhere or earlier.

        Args: as of a call; ``numerator``: whether to return the occupancies of the numerator too.
        """
        clipped = outputs if self.clip is None else outputs.clamp(-self.clip, self.clip)
        den = denominator_posteriors(self.graph, clipped, lengths, self.leak)
        scale = torch.ones_like(den.logprob) if weights is None else weights.to(den.logprob)
        factor = scale[:, None].expand(outputs.shape[:2])
        factor = factor if frame_weights is None else factor * frame_weights.to(factor)
        derivative = den.occupancies
        if weights is not None or frame_weights is not None:
            derivative *= factor[..., None].to(derivative)
        targets = torch.zeros_like(derivative) if numerator else None
        if numerator:
            num = add_numerator_occupancies(graphs, outputs, lengths, targets, factor)
            derivative -= targets
        else:
            num = add_numerator_occupancies(graphs, outputs, lengths, derivative, -factor)

        reasons = _reasons(num, den.logprob)
        left_out = torch.tensor(list(reasons), dtype=torch.int64, device=scale.device)
        for each in (derivative, targets) if numerator else (derivative,):
            each[left_out] = 0.0
        scale = scale.index_fill(0, left_out, 0.0)
        frames = torch.as_tensor(lengths).to(scale)
        num, logprob = _weighted_sum(scale, num), _weighted_sum(scale, den.logprob)
        loss = logprob - num
        if self.output_l2 or self.range_penalty:
            counted = (torch.arange(outputs.shape[1], device=scale.device) < frames[:, None]) & (scale[:, None] > 0)
            loss = loss + self._penalise(derivative, outputs.where(counted[..., None], 0.0), scale, factor)
        return OuterGradient(derivative=derivative, numerator=targets, loss=loss, num=num, den=logprob,
                             weight=float((scale * frames).sum()), reasons=reasons)

    @torch.no_grad()
    def curvature(
        self,
        outputs: Tensor,
        lengths: Tensor,
        graphs: Sequence[Graph | None],
        weights: Tensor | None = None,
        frame_weights: Tensor | None = None,
    ) -> OutputCurvature:
        """w_b (diag(gamma_den) - gamma_den gamma_den' + c I) of each frame that counts: positive semi-definite.

        A surrogate: the Hessian of the loss, the covariance of the denominator's paths less that of the numerator's,
        is indefinite. c is ``output_l2``; ``range_penalty`` and the cross-entropy head are left out.

        Args: as of a call.
        """
        clipped = outputs if self.clip is None else outputs.clamp(-self.clip, self.clip)
        den = denominator_posteriors(self.graph, clipped, lengths, self.leak)
        num = numerator_posteriors(graphs, outputs, lengths, occupancies=False)
        scale = torch.ones_like(den.logprob) if weights is None else weights.to(den.logprob, copy=True)
        scale[list(_reasons(num.logprob, den.logprob))] = 0.0
        frames = torch.as_tensor(lengths).to(scale)
        factor = scale[:, None] * (torch.arange(outputs.shape[1], device=scale.device) < frames[:, None])
        factor = (factor if frame_weights is None else factor * frame_weights.to(factor))[..., None].to(outputs.dtype)
        occupancies = den.occupancies.to(outputs.dtype)
        return OutputCurvature(
            product=lambda v: factor * (occupancy_product(occupancies, v) + self.output_l2 * v),
            weight=float((scale * frames).sum()),
        )

    def _penalise(self, derivative: Tensor, outputs: Tensor, scale: Tensor, factor: Tensor) -> Tensor:
        """Add the derivative of the penalties on the outputs; return their value."""
        used = outputs.to(derivative.dtype)
        excess = used - used.clamp(-_RANGE, _RANGE)
        derivative += factor[..., None].to(derivative) * (self.output_l2 * used + self.range_penalty * excess)
        squares = self._squares(used, excess)
        squares = squares if squares.isfinite().all() else self._squares(used.double(), excess.double())
        return _weighted_sum(scale, squares) / 2

    def _squares(self, used: Tensor, excess: Tensor) -> Tensor:
        squares = self.output_l2 * used.square() + self.range_penalty * excess.square()
        return squares.sum((1, 2), dtype=torch.float64)


def overlap_weights(starts: Sequence[int], length: int, num_frames: int) -> Tensor:
    """(chunk, length) frame weights of chunks of one utterance that overlap: 1 / number of chunks on that frame.

    Every frame of the utterance then has total weight 1, and frames past its end have weight 0.

    Args:
        starts: first frame of each chunk.
        length: frames of each chunk.
        num_frames: frames of the utterance.
    """
    frames = torch.as_tensor(starts)[:, None] + torch.arange(length)
    inside = (frames >= 0) & (frames < num_frames)
    covered = torch.bincount(frames[inside], minlength=num_frames).clamp(min=1)
    return (1.0 / covered[frames.clamp(0, max(0, num_frames - 1))]).where(inside, 0.0)


def _reasons(num: Tensor, den: Tensor) -> dict[int, str]:
    why = [(den.isnan() | num.isnan(), "outputs are NaN or infinite"),
           (den == -torch.inf, "no path through the denominator"),
           (num == -torch.inf, "no path through the numerator in so many frames")]
    found: dict[int, str] = {}
    for mask, reason in why:
        found |= {b: reason for b in _where(mask) if b not in found}
    return dict(sorted(found.items()))


def _where(mask: Tensor) -> list[int]:
    return mask.nonzero()[:, 0].tolist()


def _weighted_sum(scale: Tensor, values: Tensor) -> Tensor:
    """Sum of scale x value; a scale of zero leaves out what is not finite."""
    return (scale * values).where(scale > 0, 0.0).sum()
