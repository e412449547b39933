"""Residual networks for 32 x 32 images (He, Zhang, Ren and Sun, CVPR 2016, section 3.3 and table 1).

The published ImageNet networks with the stem that is usual for small images: one 3 x 3 convolution of stride 1 and no
pooling, instead of 7 x 7 of stride 2 and pooling. The stages then run at 32, 16, 8 and 4 pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """y = relu(x + f(x)), f a chain of convolutions with batch-norm; x is projected where the shape changes.

    Args:
        num_inputs: channels in.
        widths: channels after each convolution.
        kernels: their sizes; the first 3 x 3 one carries the stride.
        stride: of the block.
    """

    def __init__(self, num_inputs: int, widths: Sequence[int], kernels: Sequence[int], stride: int) -> None:
        super().__init__()
        strides = [1] * len(kernels)
        strides[kernels.index(3)] = stride
        layers: list[nn.Module] = []
        for fan_in, fan_out, kernel, step in zip([num_inputs, *widths], widths, kernels, strides):
            layers += [*convolution(fan_in, fan_out, kernel, step), nn.ReLU()]
        self.residual = nn.Sequential(*layers[:-1])
        changed = stride != 1 or num_inputs != widths[-1]
        self.shortcut = nn.Sequential(*convolution(num_inputs, widths[-1], 1, stride)) if changed else nn.Identity()

    def forward(self, inputs: Tensor) -> Tensor:
        """(batch, channel, height, width) -> (batch, widths[-1], height / stride, width / stride)."""
        return torch.relu(self.shortcut(inputs) + self.residual(inputs))


def convolution(num_inputs: int, num_outputs: int, kernel: int, stride: int = 1) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    """A convolution that keeps the size (but for the stride), He-initialised, and its batch-norm."""
    layer = nn.Conv2d(num_inputs, num_outputs, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer, nn.BatchNorm2d(num_outputs)


class ResNet(nn.Module):
    """Stem, four stages of residual blocks, mean over the image, affine output layer.

    Args:
        depths: blocks in each stage.
        bottleneck: blocks of 1 x 1, 3 x 3 and 1 x 1 convolutions, the last with four times the channels, not of two
            of 3 x 3.
        num_outputs: classes.
        width: factor on all channel numbers (1 = as published).
        num_channels: of the images.
    """

    def __init__(
        self,
        depths: Sequence[int],
        *,
        bottleneck: bool,
        num_outputs: int,
        width: float = 1.0,
        num_channels: int = 3,
    ) -> None:
        super().__init__()
        self.num_outputs = num_outputs
        stages = [max(1, round(width * channels)) for channels in (64, 128, 256, 512)]
        self.stem = nn.Sequential(*convolution(num_channels, stages[0], 3), nn.ReLU())
        blocks, last = [], stages[0]
        for stage, (channels, depth) in enumerate(zip(stages, depths, strict=True)):
            widths, kernels = (channels, channels), (3, 3)
            if bottleneck:
                widths, kernels = (channels, channels, 4 * channels), (1, 3, 1)
            for index in range(depth):
                blocks.append(ResidualBlock(last, widths, kernels, 2 if stage and not index else 1))
                last = widths[-1]
        self.blocks = nn.Sequential(*blocks)
        self.output = nn.Linear(last, num_outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        """(batch, channel, height, width) -> (batch, class) logits."""
        return self.output(self.blocks(self.stem(inputs)).mean((2, 3)))


def resnet18(num_outputs: int = 10, *, width: float = 1.0, num_channels: int = 3) -> ResNet:
    """ResNet-18 for small images: 11.17 million parameters with 10 classes."""
    return ResNet((2, 2, 2, 2), bottleneck=False, num_outputs=num_outputs, width=width, num_channels=num_channels)


def resnet50(num_outputs: int = 100, *, width: float = 1.0, num_channels: int = 3) -> ResNet:
    """ResNet-50 for small images: 23.7 million parameters with 100 classes."""
    return ResNet((3, 4, 6, 3), bottleneck=True, num_outputs=num_outputs, width=width, num_channels=num_channels)
