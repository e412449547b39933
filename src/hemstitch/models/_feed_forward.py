"""The feed-forward acoustic model: spliced frames through fully connected layers (Hinton et al. 2012)."""

from __future__ import annotations

import itertools

from torch import Tensor, nn

from hemstitch.errors import MisuseError
from hemstitch.models._base import FrameModel

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}


def activation(name: str) -> nn.Module:
    """The pointwise nonlinearity called ``name``."""
    if name not in ACTIVATIONS:
        raise MisuseError(f"unknown activation {name!r}: choose one of {', '.join(sorted(ACTIVATIONS))}")
    return ACTIVATIONS[name]()


def initialise(layer: nn.Linear, nonlinearity: str) -> nn.Linear:
    """Draw the weights for ``nonlinearity`` (He for ReLU, Glorot otherwise) and set the biases to zero."""
    if nonlinearity == "relu":
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    else:
        nn.init.xavier_normal_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class FeedForward(FrameModel):
    """Fully connected layers over ``left + 1 + right`` spliced frames.

    Paper 2's networks are ``hidden=(1024,) * 4, left_context=20, right_context=5`` with ReLU. The output layer
    starts at zero, so that training begins at the uniform distribution.

    Args:
        num_inputs: features per frame.
        num_outputs: pdfs.
        hidden: width of each hidden layer.
        left_context, right_context: spliced frames beside the current one.
        nonlinearity: ``relu``, ``tanh`` or ``sigmoid``.
        dropout: probability of dropping a hidden unit.
    """

    def __init__(
        self,
        num_inputs: int,
        num_outputs: int,
        hidden: tuple[int, ...] = (1024, 1024, 1024, 1024),
        *,
        left_context: int = 20,
        right_context: int = 5,
        nonlinearity: str = "relu",
        dropout: float = 0.0,
    ) -> None:
        super().__init__(num_inputs, num_outputs, left_context=left_context, right_context=right_context)
        widths = [num_inputs * (self.context + 1), *hidden]
        layers: list[nn.Module] = []
        for fan_in, fan_out in itertools.pairwise(widths):
            layers += [initialise(nn.Linear(fan_in, fan_out), nonlinearity), activation(nonlinearity)]
            if dropout > 0:
                layers.append(nn.Dropout(dropout))
        output = nn.Linear(widths[-1], num_outputs)
        nn.init.zeros_(output.weight)
        nn.init.zeros_(output.bias)
        self.layers = nn.Sequential(*layers, output)

    def forward(self, inputs: Tensor) -> Tensor:
        """(batch, left + time + right, feature) -> (batch, time, pdf)."""
        window = self.context + 1
        if inputs.shape[1] == window:                               # single frames: the splice is a view
            return self.layers(inputs.flatten(1)).unsqueeze(1)
        spliced = inputs.unfold(1, window, 1)                       # (batch, time, feature, window)
        return self.layers(spliced.transpose(2, 3).flatten(2))
