"""From gradient to step: [gradient], [update], [backstitch]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hemstitch.train._options._checks import above, at_least, require, share


@dataclass(frozen=True, kw_only=True)
class PlainGradient:
    """The gradient as it is."""


@dataclass(frozen=True, kw_only=True)
class NaturalGradientOptions:
    """Natural gradient: each layer's gradient multiplied by a factored estimate of the inverse Fisher matrix (paper 4).

    Attributes:
        rank_in, rank_out: ranks of the factors on the input and output side of a layer; 0: by the reference's rule.
        update_period: backward passes per update of the factors.
        alpha: smoothing towards the plain gradient.
        num_samples_history: rows over which old minibatches fade.
        method: low-rank factors kept up to date, or those of the other rows of the same minibatch.
    """

    rank_in: int = 0
    rank_out: int = 0
    update_period: int = 4
    alpha: float = 4.0
    num_samples_history: float = 2000.0
    method: Literal["online", "simple"] = "online"

    def __post_init__(self) -> None:
        at_least(0, self, "rank_in", "rank_out", "alpha")
        at_least(1, self, "update_period")
        above(0, self, "num_samples_history")


@dataclass(frozen=True, kw_only=True)
class Backstitch:
    """A small step backwards before each larger one forwards, on the same batch (paper 1).

    Attributes:
        scale: size of the backward step; 0: no backstitch. 0.3 with interval 1 and 1.0 with interval 4 are in use.
        interval: batches per pair of steps.
        warmup_steps: steps over which the scale grows from 0.
    """

    scale: float = 0.0
    interval: int = 4
    warmup_steps: int = 0

    def __post_init__(self) -> None:
        at_least(0, self, "scale", "warmup_steps")
        at_least(1, self, "interval")


@dataclass(frozen=True, kw_only=True)
class MaxChangeSgd:
    """Gradient descent whose step is bounded in each layer and in all (section 4.4 of paper 1).

    Attributes:
        lr: learning rate, on the mean loss of a batch.
        momentum: share of the previous step kept; the step is scaled by one minus it.
        l2: twice its product with the parameters is added to the gradient.
        max_change: most that a layer may move in a step.
        output_max_change: most that the output layer may move in a step.
        global_max_change: most that all parameters together may move in a step.
    """

    lr: float = 0.1
    momentum: float = 0.0
    l2: float = 0.0
    max_change: float = 0.75
    output_max_change: float = 1.5
    global_max_change: float = 2.0

    def __post_init__(self) -> None:
        above(0, self, "lr")
        share(self, "momentum")
        at_least(0, self, "l2", "max_change", "output_max_change", "global_max_change")


@dataclass(frozen=True, kw_only=True)
class MomentumSgd:
    """Stochastic gradient descent, optionally with momentum.

    Attributes:
        lr: learning rate, on the mean loss of a batch.
        momentum: share of the previous step kept.
        nesterov: look ahead along the momentum.
        weight_decay: L2 penalty added to the gradient.
    """

    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        above(0, self, "lr")
        share(self, "momentum")
        at_least(0, self, "weight_decay")
        require(self.momentum > 0 or not self.nesterov, "nesterov = true needs a momentum above 0")


@dataclass(frozen=True, kw_only=True)
class Adam:
    """Adam (Kingma and Ba 2015).

    Attributes:
        lr: learning rate.
        beta1, beta2: forgetting of the first and second moment.
        weight_decay: L2 penalty added to the gradient.
    """

    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        above(0, self, "lr")
        share(self, "beta1", "beta2")
        at_least(0, self, "weight_decay")


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019).

    Attributes:
        lr: learning rate.
        beta1, beta2: forgetting of the first and second moment.
        weight_decay: decay of the weights per step, times the learning rate.
    """

    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        above(0, self, "lr")
        share(self, "beta1", "beta2")
        at_least(0, self, "weight_decay")
