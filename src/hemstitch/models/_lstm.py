"""Projected LSTM layers: forwards in time, and in both directions."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from hemstitch.errors import MisuseError
from hemstitch.models._affine import PerElementScale
from hemstitch.models._recurrence import Parameters, Recurrence, Truncation, plain_recurrence

LstmState = tuple[Tensor, Tensor]


class ProjectedLstm(nn.Module):
    """LSTM with recurrent and non-recurrent projection (LSTMP; Sak, Senior and Beaufays, Interspeech 2014).

    Equations in `hemstitch.models._recurrence`. One affine map computes all gates, from the input and the recurrent
    output together; one projection gives both kinds of outputs. Runs in the parameters' precision, also under
    autocast. First derivatives are truncated; derivatives of derivatives, torch.func and forward mode work and are
    exact (slower).

    The parameters live in the modules ``gates``, ``projection`` and ``peepholes``. These are never called one step at
    a time: a forward put on such a module (natural gradient) is called once per backward with the rows of all steps,
    see `hemstitch.models._affine`.

    Args:
        num_inputs: features per frame.
        num_cells: memory cells.
        num_recurrent: outputs that are fed back.
        num_nonrecurrent: outputs that are not.
        peepholes: let the gates see the cells, through one scale each.
        cell_clip: bound on the absolute value of a cell.
        truncation: limits on the derivative that flows back through time; None for the exact gradient.
    """

    left, right, stride = 0, 0, 1

    def __init__(
        self,
        num_inputs: int,
        num_cells: int,
        num_recurrent: int,
        num_nonrecurrent: int = 0,
        *,
        peepholes: bool = True,
        cell_clip: float = 50.0,
        truncation: Truncation | None = Truncation(),  # noqa: B008 (frozen)
    ) -> None:
        super().__init__()
        if min(num_inputs, num_cells, num_recurrent) < 1 or num_nonrecurrent < 0 or cell_clip <= 0:
            raise MisuseError(
                "an LSTM needs inputs, cells, recurrent outputs >= 1, nonrecurrent outputs >= 0 and cell_clip > 0; got "
                f"{num_inputs}, {num_cells}, {num_recurrent}, {num_nonrecurrent}, {cell_clip}")
        self.num_inputs, self.num_cells, self.num_recurrent = num_inputs, num_cells, num_recurrent
        self.num_outputs = num_recurrent + num_nonrecurrent
        self.cell_clip, self.truncation = cell_clip, truncation
        self.gates = nn.Linear(num_inputs + num_recurrent, 4 * num_cells)
        self.projection = nn.Linear(num_cells, self.num_outputs, bias=False)
        self.peepholes = PerElementScale(3 * num_cells) if peepholes else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weights with variance 1 / inputs; biases are zero, the forget gate's one (it starts by remembering)."""
        for layer in (self.gates, self.projection):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
        nn.init.zeros_(self.gates.bias)
        nn.init.ones_(self.gates.bias[self.num_cells : 2 * self.num_cells])
        if self.peepholes is not None:
            nn.init.zeros_(self.peepholes.weight)

    def forward(self, inputs: Tensor, state: LstmState | None = None) -> tuple[Tensor, LstmState]:
        """Outputs for ``inputs``, which follow on what led to ``state``, and the new state.

        Gradients flow into the state: detach it to stop them at a chunk's start.

        Args:
            inputs: (batch, time, feature); time may be 0.
            state: r (batch, recurrent) and c (batch, cell); None for zeros.

        Returns:
            (batch, time, output) and the state after the last step.
        """
        batch, time, _ = inputs.shape
        weight = self.gates.weight
        inputs = inputs.to(weight.dtype)
        if state is None:
            state = (inputs.new_zeros(batch, self.num_recurrent), inputs.new_zeros(batch, self.num_cells))
        if time == 0:
            return inputs.new_zeros(batch, 0, self.num_outputs), state
        parameters = Parameters(
            weight, self.gates.bias, self.projection.weight, None if self.peepholes is None else self.peepholes.weight)
        with torch.autocast(inputs.device.type, enabled=False):
            outputs, cell = self._run(inputs.transpose(0, 1), *state, parameters)
        return outputs.transpose(0, 1), (outputs[-1, :, : self.num_recurrent], cell)

    def stream(self, inputs: Tensor, state: LstmState | None) -> tuple[Tensor, LstmState]:
        """The same as ``forward``: what `FrameStack.stream` asks of a layer."""
        return self(inputs, state)

    def _run(self, inputs: Tensor, recurrent: Tensor, cell: Tensor, parameters: Parameters) -> tuple[Tensor, Tensor]:
        if _is_transformed(inputs, recurrent, cell, *parameters):
            return plain_recurrence(inputs, recurrent, cell, parameters, self.cell_clip)
        return Recurrence.apply(self, inputs, recurrent, cell, *parameters)

    def extra_repr(self) -> str:
        """Sizes, for printing."""
        return f"{self.num_inputs}, cells={self.num_cells}, recurrent={self.num_recurrent}, outputs={self.num_outputs}"


class BidirectionalLstm(nn.Module):
    """Two projected LSTMs, one forwards and one backwards in time, their outputs joined.

    Args:
        num_inputs: features per frame.
        num_cells, num_recurrent, num_nonrecurrent: of each direction.
        **options: of `ProjectedLstm`.
    """

    left, right, stride = 0, 0, 1

    def __init__(
        self, num_inputs: int, num_cells: int, num_recurrent: int, num_nonrecurrent: int = 0, **options: object
    ) -> None:
        super().__init__()
        self.forwards = ProjectedLstm(num_inputs, num_cells, num_recurrent, num_nonrecurrent, **options)
        self.backwards = ProjectedLstm(num_inputs, num_cells, num_recurrent, num_nonrecurrent, **options)
        self.num_outputs = 2 * self.forwards.num_outputs

    def forward(self, inputs: Tensor) -> Tensor:
        """(batch, time, feature) -> (batch, time, 2 output)."""
        return torch.cat([self.forwards(inputs)[0], self.backwards(inputs.flip(1))[0].flip(1)], 2)


def _is_transformed(*tensors: Tensor | None) -> bool:
    """Whether the computation is compiled, exported, or under torch.func or forward-mode differentiation."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return True
    return any(t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors)
