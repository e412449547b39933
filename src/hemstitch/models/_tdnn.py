"""Networks of time-delay layers: the TDNN and the feed-forward network with p-norm units."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from hemstitch.models._frame_stack import FrameStack
from hemstitch.models._splice import Offsets, subsample
from hemstitch.models._time_delay import TimeDelayLayer


def time_delay_layers(
    num_inputs: int, width: int, offsets: Sequence[Offsets], subsampling: int, **options: object
) -> list[nn.Module]:
    """Time-delay layers of one width on top of each other, evaluated only where the outputs need them."""
    layers = []
    for layer_offsets, stride in subsample(offsets, subsampling):
        layers.append(TimeDelayLayer(num_inputs, width, layer_offsets, stride=stride, **options))
        num_inputs = width
    return layers


class Tdnn(FrameStack):
    """Time-delay network: layers that splice wider and wider windows, outputs every ``subsampling`` frames.

    The default sees 13 frames to either side. Peddinti et al. (Interspeech 2015): sparse windows, upper layers
    evaluated only where they are needed. A third of the frame rate is what lattice-free MMI uses (Povey et al.,
    Interspeech 2016).

    Args:
        num_inputs: features per frame.
        num_outputs: pdfs.
        width: units of each hidden layer.
        offsets: per layer, lowest first, in input frames.
        subsampling: input frames per output frame.
        nonlinearity: ``relu``, ``tanh``, ``sigmoid`` or ``pnorm``.
        norm: ``batch``, ``rms`` or ``none``.
        dropout: probability of dropping a hidden unit.
        xent_head: add the output layer of cross-entropy regularisation.
    """

    def __init__(
        self,
        num_inputs: int,
        num_outputs: int,
        width: int = 512,
        offsets: Sequence[Offsets] = ((-2, -1, 0, 1, 2), (-1, 0, 1), (-1, 0, 1), (-3, 0, 3), (-3, 0, 3), (-3, 0, 3)),
        *,
        subsampling: int = 1,
        nonlinearity: str = "relu",
        norm: str = "batch",
        dropout: float = 0.0,
        xent_head: bool = False,
    ) -> None:
        layers = time_delay_layers(
            num_inputs, width, offsets, subsampling, nonlinearity=nonlinearity, norm=norm, dropout=dropout)
        super().__init__(num_inputs, num_outputs, layers, xent_head=xent_head)


class PNormNetwork(FrameStack):
    """Feed-forward network over spliced frames with p-norm units, each frame scaled to root mean square 1.

    The 2014 network of natural-gradient training by parameter averaging (4 hidden layers, p = 2): without the scaling
    p-norm units, which do not saturate, let activations grow without bound (Zhang et al., ICASSP 2014).

    Args:
        num_inputs: features per frame.
        num_outputs: pdfs.
        hidden: p-norm units of each layer; its affine map is ``group_size`` times wider.
        group_size: inputs per unit.
        left_context, right_context: spliced frames beside the current one.
        xent_head: add the output layer of cross-entropy regularisation.
    """

    def __init__(
        self,
        num_inputs: int,
        num_outputs: int,
        hidden: tuple[int, ...] = (300, 300, 300, 300),
        *,
        group_size: int = 10,
        left_context: int = 4,
        right_context: int = 4,
        xent_head: bool = False,
    ) -> None:
        window = tuple(range(-left_context, right_context + 1))
        widths, layers = [num_inputs, *hidden], []
        for index, width in enumerate(hidden):
            layers.append(TimeDelayLayer(
                widths[index], width, (0,) if index else window, nonlinearity="pnorm", norm="rms",
                group_size=group_size))
        super().__init__(num_inputs, num_outputs, layers, xent_head=xent_head)
