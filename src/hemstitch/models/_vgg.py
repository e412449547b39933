"""VGG-19 for 32 x 32 images (Simonyan and Zisserman, ICLR 2015, table 1, column E), with batch normalisation.

Five pools bring 32 pixels to 1, so one affine layer replaces the published three (which have 4096 units each), as is
usual for small images. Batch-norm after each convolution is later than the paper (Ioffe and Szegedy 2015); without it
a network of this depth hardly starts from a random point.
"""

from __future__ import annotations

from torch import Tensor, nn

STAGES = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))


class Vgg(nn.Module):
    """Stages of 3 x 3 convolutions, each ended by a pool of 2 x 2, then an affine output layer.

    Args:
        num_outputs: classes.
        stages: (channels, convolutions) of each stage.
        width: factor on all channel numbers (1 = as published).
        num_channels: of the images, whose sides must be at least 2 ** len(stages) pixels.
    """

    def __init__(
        self,
        num_outputs: int,
        stages: tuple[tuple[int, int], ...] = STAGES,
        *,
        width: float = 1.0,
        num_channels: int = 3,
    ) -> None:
        super().__init__()
        self.num_outputs = num_outputs
        layers: list[nn.Module] = []
        for published, depth in stages:
            channels = max(1, round(width * published))
            for _ in range(depth):
                convolution = nn.Conv2d(num_channels, channels, 3, padding=1)
                nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(convolution.bias)
                layers += [convolution, nn.BatchNorm2d(channels), nn.ReLU()]
                num_channels = channels
            layers.append(nn.MaxPool2d(2))
        self.layers = nn.Sequential(*layers)
        self.output = nn.Linear(num_channels, num_outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        """(batch, channel, height, width) -> (batch, class) logits."""
        return self.output(self.layers(inputs).mean((2, 3)))


def vgg19(num_outputs: int = 10, *, width: float = 1.0, num_channels: int = 3) -> Vgg:
    """VGG-19 with batch-norm for small images: 20.04 million parameters with 10 classes."""
    return Vgg(num_outputs, width=width, num_channels=num_channels)
