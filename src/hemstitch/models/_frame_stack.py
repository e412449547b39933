"""Acoustic models as a stack of layers over time with one or two output heads.

A layer is a module with ``left``, ``right`` (frames seen beside the current one, at its input's rate), ``stride``,
``num_outputs`` and ``forward``; to be used on a stream also ``stream(inputs, state) -> (outputs, state)``. The
context of the stack follows from its layers: each adds its window, times the strides below it.

Recurrent layers see everything since the start of the chunk. They are given ``warm_up`` frames before the first
output frame (and ``cool_down`` after the last, for those that run backwards) whose outputs are dropped: the context
of chunked training.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from hemstitch.errors import MisuseError
from hemstitch.models._base import FrameModel

StreamState = tuple[list, int]


def output_layer(num_inputs: int, num_outputs: int) -> nn.Linear:
    """An affine map that starts at zero, so that training begins at the uniform distribution."""
    layer = nn.Linear(num_inputs, num_outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class FrameStack(FrameModel):
    """Layers over time, then an affine output layer; the common part of the acoustic models.

    Args:
        num_inputs: features per frame.
        num_outputs: pdfs.
        layers: lowest first; see the module's docstring for what a layer promises.
        warm_up: input frames before the window whose outputs are dropped; rounded up to a multiple of the subsampling.
        cool_down: input frames after the window whose outputs are dropped.
        xent_head: add a second output layer for cross-entropy regularisation of a sequence criterion; ``forward`` then
            returns (outputs, cross-entropy outputs).
    """

    def __init__(
        self,
        num_inputs: int,
        num_outputs: int,
        layers: Iterable[nn.Module],
        *,
        warm_up: int = 0,
        cool_down: int = 0,
        xent_head: bool = False,
    ) -> None:
        layers = list(layers)
        if not layers:
            raise MisuseError("a stack needs at least one layer")
        left, right, rate = 0, 0, 1
        for layer in layers:
            left, right, rate = left + rate * layer.left, right + rate * layer.right, rate * layer.stride
        dropped = -(-warm_up // rate)
        left, right = left + dropped * rate, right + cool_down
        super().__init__(num_inputs, num_outputs, left_context=left, right_context=right, subsampling=rate)
        self.layers = nn.ModuleList(layers)
        self.output = output_layer(layers[-1].num_outputs, num_outputs)
        self.xent_output = output_layer(layers[-1].num_outputs, num_outputs) if xent_head else None
        self._dropped = dropped

    def forward(self, inputs: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """(batch, left + time + right, feature) -> (batch, ceil(time / subsampling), pdf); two with a second head."""
        time = inputs.shape[1] - self.context
        if time < 1:
            raise MisuseError(f"expected at least left + 1 + right = {self.context + 1} frames, got {inputs.shape[1]}")
        hidden = inputs
        for layer in self.layers:
            hidden = layer(hidden)
            if isinstance(hidden, tuple):                       # a recurrent layer gives its state as well
                hidden = hidden[0]
        frames = -(-time // self.subsampling)
        return self._heads(hidden[:, self._dropped : self._dropped + frames])

    def stream(
        self, inputs: Tensor, state: StreamState | None = None
    ) -> tuple[Tensor | tuple[Tensor, Tensor], StreamState]:
        """Outputs for the frames that came since ``state``, and the state to go on with.

        The chunks' outputs joined are those of ``forward`` on the joined chunks (in evaluation mode), whatever the
        chunks' lengths; a chunk too short to complete a window gives none. Begin with ``state=None`` and the left
        context; end with the right context. Cost: each frame is processed once, in memory that does not grow.

        Raises:
            MisuseError: a layer needs the future (a bidirectional one).
        """
        states, dropped = ([None] * len(self.layers), self._dropped) if state is None else state
        hidden, carried = inputs, []
        for layer, layer_state in zip(self.layers, states, strict=True):
            if not hasattr(layer, "stream"):
                raise MisuseError(f"{type(layer).__name__} needs the whole utterance: call the model on it instead")
            hidden, layer_state = layer.stream(hidden, layer_state)
            carried.append(layer_state)
        kept = hidden[:, dropped:]
        return self._heads(kept), (carried, dropped - (hidden.shape[1] - kept.shape[1]))

    def _heads(self, hidden: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        if self.xent_output is None:
            return self.output(hidden)
        return self.output(hidden), self.xent_output(hidden)
