"""Recurrent acoustic models: LSTM, bidirectional LSTM, and time-delay layers between LSTMs.

Trained on chunks, a recurrent network has to guess the state it would have had; `warm_up` frames before the chunk
(and, backwards in time, `cool_down` after it), whose outputs are not used, bring it there. The sequences of a batch
must be equally long: a shorter one's padding would be part of what the network heard.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import nn

from hemstitch.errors import MisuseError
from hemstitch.models._frame_stack import FrameStack
from hemstitch.models._lstm import BidirectionalLstm, ProjectedLstm
from hemstitch.models._splice import Offsets, Splice, subsample
from hemstitch.models._time_delay import TimeDelayLayer

WINDOW: Offsets = (-2, -1, 0, 1, 2)


def _recurrent_stack(
    layer: type[nn.Module], num_inputs: int, num_layers: int, sizes: tuple[int, int, int], offsets: Offsets,
    subsampling: int, options: dict[str, object],
) -> list[nn.Module]:
    layers: list[nn.Module] = [Splice(offsets, stride=subsampling)]
    width = num_inputs * len(offsets)
    for _ in range(num_layers):
        layers.append(layer(width, *sizes, **options))
        width = layers[-1].num_outputs
    return layers


class Lstm(FrameStack):
    """Projected LSTM layers over spliced frames.

    To let it hear the future before it answers, shift the splice: ``offsets=(3, 4, 5, 6, 7)`` is a label delay of
    five frames.

    Args:
        num_inputs: features per frame.
        num_outputs: pdfs.
        num_layers: LSTM layers.
        num_cells, num_recurrent, num_nonrecurrent: sizes of each.
        offsets: spliced input frames.
        subsampling: input frames per output frame, skipped by the recurrence too.
        warm_up: frames that bring the recurrence into its state.
        xent_head: add the output layer of cross-entropy regularisation.
        **options: of `ProjectedLstm`.
    """

    def __init__(
        self,
        num_inputs: int,
        num_outputs: int,
        num_layers: int = 3,
        num_cells: int = 512,
        num_recurrent: int = 128,
        num_nonrecurrent: int = 128,
        *,
        offsets: Offsets = WINDOW,
        subsampling: int = 1,
        warm_up: int = 40,
        xent_head: bool = False,
        **options: object,
    ) -> None:
        sizes = (num_cells, num_recurrent, num_nonrecurrent)
        layers = _recurrent_stack(ProjectedLstm, num_inputs, num_layers, sizes, offsets, subsampling, options)
        super().__init__(num_inputs, num_outputs, layers, warm_up=warm_up, xent_head=xent_head)


class Blstm(FrameStack):
    """Stacked bidirectional projected LSTMs over spliced frames; needs whole chunks, so it cannot be streamed.

    Args:
        num_inputs: features per frame.
        num_outputs: pdfs.
        num_layers: bidirectional layers.
        num_cells, num_recurrent, num_nonrecurrent: sizes of each direction of each layer.
        offsets: spliced input frames.
        subsampling: input frames per output frame, skipped by the recurrence too.
        warm_up, cool_down: frames before and after that bring the two recurrences into their state.
        xent_head: add the output layer of cross-entropy regularisation.
        **options: of `ProjectedLstm`.
    """

    def __init__(
        self,
        num_inputs: int,
        num_outputs: int,
        num_layers: int = 3,
        num_cells: int = 512,
        num_recurrent: int = 128,
        num_nonrecurrent: int = 128,
        *,
        offsets: Offsets = WINDOW,
        subsampling: int = 1,
        warm_up: int = 40,
        cool_down: int = 40,
        xent_head: bool = False,
        **options: object,
    ) -> None:
        sizes = (num_cells, num_recurrent, num_nonrecurrent)
        layers = _recurrent_stack(BidirectionalLstm, num_inputs, num_layers, sizes, offsets, subsampling, options)
        super().__init__(num_inputs, num_outputs, layers, warm_up=warm_up, cool_down=cool_down, xent_head=xent_head)


class TdnnLstm(FrameStack):
    """Time-delay layers with LSTMs between them: the future comes from the windows, the past from the recurrence.

    Peddinti, Wang, Povey and Khudanpur (IEEE Signal Processing Letters 2018); the network that gained most from
    backstitch. An LSTM above the stride of the subsampling steps over ``subsampling`` frames at once.

    Args:
        num_inputs: features per frame.
        num_outputs: pdfs.
        layers: lowest first: offsets in input frames for a time-delay layer, "lstm" for an LSTM.
        width: units of each time-delay layer.
        num_cells, num_recurrent, num_nonrecurrent: sizes of each LSTM.
        subsampling: input frames per output frame.
        warm_up: frames that bring the recurrences into their state.
        nonlinearity, norm: of the time-delay layers.
        xent_head: add the output layer of cross-entropy regularisation.
        **options: of `ProjectedLstm`.
    """

    def __init__(
        self,
        num_inputs: int,
        num_outputs: int,
        layers: Sequence[Offsets | Literal["lstm"]] = (
            WINDOW, (-1, 0, 1), "lstm", (-3, 0, 3), (-3, 0, 3), "lstm", (-3, 0, 3), (-3, 0, 3), "lstm"),
        *,
        width: int = 512,
        num_cells: int = 512,
        num_recurrent: int = 128,
        num_nonrecurrent: int = 128,
        subsampling: int = 1,
        warm_up: int = 40,
        nonlinearity: str = "relu",
        norm: str = "batch",
        xent_head: bool = False,
        **options: object,
    ) -> None:
        if not layers or layers[0] == "lstm":
            raise MisuseError("a TDNN-LSTM begins with a time-delay layer, which also takes care of the subsampling")
        placed = subsample([(0,) if layer == "lstm" else layer for layer in layers], subsampling)
        stack: list[nn.Module] = []
        for kind, (offsets, stride) in zip(layers, placed, strict=True):
            below = stack[-1].num_outputs if stack else num_inputs
            if kind == "lstm":
                stack.append(ProjectedLstm(below, num_cells, num_recurrent, num_nonrecurrent, **options))
            else:
                stack.append(
                    TimeDelayLayer(below, width, offsets, stride=stride, nonlinearity=nonlinearity, norm=norm))
        super().__init__(num_inputs, num_outputs, stack, warm_up=warm_up, xent_head=xent_head)
