r"""Auxiliary functions: a sequence criterion as a sum over frames, around the parameters where it was computed.

An outer gradient g = d loss / d outputs, computed at outputs a' (parameters theta'), stands in for the criterion while
the parameters move; one part computes it, another uses it, frame by frame, possibly later:

    tangent      A(a) = loss' + <g, a - a'>                              A(a') = loss', the same gradient at theta'
    bound        B(a) = A(a) + (kappa^2 T / 4) |a - a'|^2 >= loss(a)     for MMI, T: frames of the utterance

The tangent is the one of paper 2; nothing is known away from theta'. The bound decreases the loss whatever the step, as
long as B decreases (generalised EM). Why it bounds: loss = log Z_den - log Z_num; -log Z_num is concave in a, so below
its tangent; the Hessian of log Z_den is kappa^2 times the covariance of the indicators of the path, and

    v' Cov v = Var sum_t v(t, s_t) <= T sum_t Var v(t, s_t) <= T sum_t (max v_t - min v_t)^2 / 4 <= (T / 2) |v|^2.

It holds for the lattice at hand and without frame rejection, which changes g. With smoothing h, kappa^2 T / 4 becomes
(1 - h) kappa^2 T / 4 + h / 4, since the covariance of a softmax is at most 1/2.

Reference: Heigold et al. 2014, section 3.3 and figure 3 (the paper refers to G. Heigold's thesis, RWTH Aachen 2010,
section 6.2.2, for lower bounds; the one here is simpler, and looser).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hemstitch.criteria._lattice import LatticeCriterion, LatticeMMI
from hemstitch.errors import MisuseError


@dataclass(frozen=True, kw_only=True, eq=False)
class AuxiliaryFunction:
    """Stands in for a criterion; a function of the outputs.

    Attributes:
        derivative: (..., pdf) outer gradient g.
        at: (..., pdf) the outputs a' where it was computed.
        loss: the criterion there; only shifts the value.
        strength: (...) twice the weight of |a - a'|^2 in each frame; ``None``: the tangent.
    """

    derivative: Tensor
    at: Tensor
    loss: float = 0.0
    strength: Tensor | None = None

    def __call__(self, outputs: Tensor) -> Tensor:
        """Its value, to be minimised; carries the gradient. Terms are summed in float64."""
        moved = (outputs - self.at).double()
        value = self.loss + (self.derivative.double() * moved).sum()
        if self.strength is not None:
            value = value + 0.5 * (self.strength.double() * moved.square().sum(-1)).sum()
        return value


def bound_strength(criterion: LatticeCriterion, lengths: Tensor) -> Tensor:
    """(batch,) the ``strength`` with which the auxiliary function bounds the criterion.

    Raises:
        MisuseError: not MMI; of the other criteria no bound is known here.
    """
    if not isinstance(criterion, LatticeMMI):
        raise MisuseError(f"auxiliary function: no bound is known for {type(criterion).__name__}; use the tangent")
    h, kappa = criterion.options.smoothing, criterion.options.acoustic_scale
    return (1 - h) * kappa**2 * torch.as_tensor(lengths).double() / 2 + h / 2
