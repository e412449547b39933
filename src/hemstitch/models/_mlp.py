"""Fully connected networks on flat inputs: the multilayer perceptron and the deep autoencoder."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from hemstitch.errors import MisuseError
from hemstitch.models._feed_forward import activation


class Mlp(nn.Module):
    """Multilayer perceptron: flatten, then affine maps with a nonlinearity between them.

    Weights keep torch's default initialisation. Iteration-order experiments use ``Mlp(784, 10, (500,) * 5)`` on
    images and ``Mlp(1, 1, (300,) * 3)`` for regression.

    Args:
        num_inputs: values per example after flattening.
        num_outputs: classes, or values to regress.
        hidden: width of each hidden layer.
        nonlinearity: ``relu``, ``tanh`` or ``sigmoid``.
    """

    def __init__(
        self, num_inputs: int, num_outputs: int, hidden: tuple[int, ...] = (500,) * 5, *, nonlinearity: str = "relu"
    ) -> None:
        super().__init__()
        self.num_inputs, self.num_outputs = num_inputs, num_outputs
        widths = [num_inputs, *hidden]
        layers: list[nn.Module] = [nn.Flatten()]
        for fan_in, fan_out in itertools.pairwise(widths):
            layers += [nn.Linear(fan_in, fan_out), activation(nonlinearity)]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], num_outputs))

    def forward(self, inputs: Tensor) -> Tensor:
        """(batch, ...) -> (batch, output): logits or values."""
        return self.layers(inputs)


class DeepAutoencoder(nn.Module):
    """Deep sigmoid autoencoder with a linear code layer, decoder mirrored.

    784-1000-500-250-30 on MNIST is the classic problem for second-order methods (Hinton and Salakhutdinov, Science
    2006; Martens, ICML 2010): plain gradient descent hardly moves it from a random start. Hence also the sparse
    initialisation of the latter: every unit gets ``num_connections`` weights from N(0, 1), the others are zero.

    Args:
        num_inputs: values per example.
        widths: encoder layers, the last one being the code.
        num_connections: nonzero incoming weights of each unit at the start.
    """

    def __init__(
        self, num_inputs: int = 784, widths: tuple[int, ...] = (1000, 500, 250, 30), *, num_connections: int = 15
    ) -> None:
        super().__init__()
        if not widths:
            raise MisuseError("an autoencoder needs at least the code layer")
        encoder = [num_inputs, *widths]
        self.encoder = _sigmoid_layers(encoder)
        self.decoder = _sigmoid_layers(encoder[::-1])
        for layer in (*self.encoder, *self.decoder):
            if isinstance(layer, nn.Linear):
                sparse_initialise(layer, num_connections)

    def forward(self, inputs: Tensor) -> Tensor:
        """(batch, ...) -> (batch, input): logits of the reconstruction, for binary cross-entropy with logits."""
        return self.decoder(self.encoder(inputs.flatten(1)))

    def reconstruct(self, inputs: Tensor) -> Tensor:
        """The reconstruction itself, in (0, 1)."""
        return torch.sigmoid(self(inputs))


def sparse_initialise(layer: nn.Linear, num_connections: int) -> None:
    """Give each output unit ``num_connections`` incoming weights from N(0, 1); all else is zero (Martens 2010)."""
    with torch.no_grad():
        weight = layer.weight
        chosen = torch.rand_like(weight).argsort(1)[:, :num_connections]
        weight.zero_().scatter_(1, chosen, torch.randn_like(weight)[:, : chosen.shape[1]])
        layer.bias.zero_()


def _sigmoid_layers(widths: list[int]) -> nn.Sequential:
    """Affine maps with sigmoids between them, none after the last."""
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), nn.Sigmoid()]
    return nn.Sequential(*layers[:-1])
