"""One time-delay layer: splice, affine, nonlinearity, normalisation (Waibel et al. 1989; Peddinti et al. 2015).

The splice is followed by a plain ``nn.Linear``, so that whatever preconditions linear layers sees the rows it should:
one per output frame, over the whole window. The normalisations keep the scale of the hidden units fixed, which
natural gradient's bounded steps rely on:

- ``batch``: every unit has mean 0 and variance 1 over the batch, without a learned scale (the next affine map has one);
- ``rms``: every frame has root mean square 1, the "renormalisation" of the networks of 2014 to 2017.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hemstitch.errors import MisuseError
from hemstitch.models._feed_forward import activation, initialise
from hemstitch.models._splice import Splice


class PNorm(nn.Module):
    """The norm of each group of units: y_j = (sum_{i in group j} |x_i|^p)^(1/p).

    Units of a group are neighbours. With p = 2 and groups of 10 it was the best of the generalised maxout units (Zhang,
    Trmal, Povey and Khudanpur, ICASSP 2014). The gradient at a group of zeros is taken as zero.

    Args:
        group_size: inputs per output.
        p: exponent, >= 1.
    """

    def __init__(self, group_size: int = 10, p: float = 2.0) -> None:
        super().__init__()
        if group_size < 1 or p < 1:
            raise MisuseError(f"p-norm needs group_size >= 1 and p >= 1, got {group_size} and {p}")
        self.group_size, self.p = group_size, p

    def forward(self, inputs: Tensor) -> Tensor:
        """(..., group_size * unit) -> (..., unit)."""
        return torch.linalg.vector_norm(inputs.unflatten(-1, (-1, self.group_size)), self.p, dim=-1)

    def extra_repr(self) -> str:
        """Group size and exponent, for printing."""
        return f"group_size={self.group_size}, p={self.p:g}"


class FrameBatchNorm(nn.BatchNorm1d):
    """Batch normalisation over all frames of all sequences, features last, without a learned scale and shift."""

    def __init__(self, num_features: int) -> None:
        super().__init__(num_features, eps=1e-3, affine=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """(batch, time, feature) -> the same shape."""
        return super().forward(inputs.flatten(0, 1)).view_as(inputs)


def frame_norm(name: str, num_features: int) -> nn.Module:
    """The normalisation called ``name``: ``batch``, ``rms`` or ``none``."""
    match name:
        case "batch":
            return FrameBatchNorm(num_features)
        case "rms":
            return nn.RMSNorm(num_features, eps=1e-6, elementwise_affine=False)
        case "none":
            return nn.Identity()
    raise MisuseError(f"unknown normalisation {name!r}: choose one of batch, none, rms")


class TimeDelayLayer(nn.Module):
    """Splice, affine map, nonlinearity, normalisation: y_t = norm(f(W [x_{st + o}]_o + b)).

    Args:
        num_inputs: features per input frame.
        num_outputs: units.
        offsets: frames seen, relative to the current one and counted at the layer's own rate.
        stride: input frames per output frame.
        nonlinearity: ``relu``, ``tanh``, ``sigmoid`` or ``pnorm`` (the affine map is then ``group_size`` times wider).
        norm: ``batch``, ``rms`` or ``none``.
        group_size: inputs per p-norm unit.
        dropout: probability of dropping a unit.
    """

    def __init__(
        self,
        num_inputs: int,
        num_outputs: int,
        offsets: Sequence[int] = (0,),
        *,
        stride: int = 1,
        nonlinearity: str = "relu",
        norm: str = "batch",
        group_size: int = 10,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        pooled = nonlinearity == "pnorm"
        self.splice = Splice(offsets, stride=stride)
        width = num_outputs * group_size if pooled else num_outputs
        self.affine = initialise(nn.Linear(num_inputs * len(offsets), width), nonlinearity)
        self.nonlinearity = PNorm(group_size) if pooled else activation(nonlinearity)
        self.norm = frame_norm(norm, num_outputs)
        self.dropout = nn.Dropout(dropout)
        self.num_outputs = num_outputs
        self.left, self.right, self.stride = self.splice.left, self.splice.right, stride

    def forward(self, inputs: Tensor) -> Tensor:
        """(batch, left + time + right, feature) -> (batch, ceil(time / stride), unit)."""
        return self._transform(self.splice(inputs))

    def stream(self, inputs: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """Apply to the frames that came since ``state``; returns the outputs and the frames still needed."""
        spliced, state = self.splice.stream(inputs, state)
        return self._transform(spliced), state

    def _transform(self, spliced: Tensor) -> Tensor:
        return self.dropout(self.norm(self.nonlinearity(self.affine(spliced))))
