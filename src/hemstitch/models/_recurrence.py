"""The recurrence of the projected LSTM (Sak, Senior and Beaufays 2014), forward and backward through time.

With x_t the input, r_{t-1} and c_{t-1} the recurrent output and cell of the step before, R the size of r, v_. the
peepholes (one scale per cell) and sigma the logistic function::

    [a_i a_f a_g a_o] = W [x_t; r_{t-1}] + b                 one affine map for all gates
    i = sigma(a_i + v_i c_{t-1})     f = sigma(a_f + v_f c_{t-1})
    c_t = clip(f c_{t-1} + i tanh(a_g))
    o = sigma(a_o + v_o c_t)         m_t = o tanh(c_t)
    y_t = P m_t                      r_t = y_t[:R]           recurrent and non-recurrent projection in one

Two editions compute it. `plain_recurrence` is these lines in autograd: it teaches, is the oracle of the tests and is
what curvature products, torch.func and exporters see. `Recurrence` is the fast one, with its backward written out:
the part of every derivative that needs no recurrence is computed for all steps at once, the loop only carries (dr,
dc) back, and the derivatives by W, b, P and v are one product each over the stacked steps (steps x batch rows),
instead of one small product a step. That stack is also what natural gradient preconditions, once per backward.

Truncation: the derivative (dr, dc) that goes back from one step to the one before is scaled down to norm ``clip``, per
sequence; every ``interval`` steps it is set to zero where its norm exceeds ``threshold``. This keeps a chunk whose
recurrence explodes from dominating a minibatch. It is not the derivative of any function, so gradients that are to be
differentiated again (``create_graph``) are neither truncated nor preconditioned.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hemstitch.models._affine import affine_gradients


@dataclass(frozen=True, kw_only=True)
class Truncation:
    """Limits on the derivative that flows back through time; norms are in the scale of a loss SUMMED over frames."""

    clip: float = 30.0
    """Largest norm of the derivative by (r, c) of one sequence at one step."""
    threshold: float = 15.0
    """Above this norm the derivative is zeroed at every `interval`-th step."""
    interval: int = 20
    """Steps between the places where derivatives may be zeroed."""

    def apply_(self, derivative: Tensor, time: int) -> None:
        """Limit ``derivative`` (batch, recurrent + cell), which goes back into step ``time``, in place."""
        norm = torch.linalg.vector_norm(derivative, dim=1, keepdim=True)
        scale = (self.clip / norm).clamp_(max=1.0)
        if time % self.interval == 0:
            scale.masked_fill_(norm > self.threshold, 0.0)
        derivative.mul_(scale)


class Parameters(NamedTuple):
    """What the recurrence computes with."""

    gates: Tensor
    """W (4 cell, input + recurrent); rows in the order i, f, g, o."""
    bias: Tensor
    """b (4 cell)."""
    projection: Tensor
    """P (recurrent + nonrecurrent, cell)."""
    peepholes: Tensor | None
    """v (3 cell): to the input gate, forget gate, output gate."""


def plain_recurrence(
    inputs: Tensor, recurrent: Tensor, cell: Tensor, parameters: Parameters, cell_clip: float
) -> tuple[Tensor, Tensor]:
    """The recurrence as its definition reads, for autograd.

    Args:
        inputs: (time, batch, feature).
        recurrent, cell: r_0 (batch, recurrent) and c_0 (batch, cell).
        parameters: W, b, P, v.
        cell_clip: bound on the absolute value of the cell.

    Returns:
        y (time, batch, output) and the last cell (batch, cell).
    """
    weight, bias, projection, peepholes = parameters
    v_i, v_f, v_o = (0.0, 0.0, 0.0) if peepholes is None else peepholes.view(3, -1)
    outputs = []
    for frame in inputs:
        a_i, a_f, a_g, a_o = F.linear(torch.cat([frame, recurrent], 1), weight, bias).chunk(4, 1)
        i, f = torch.sigmoid(a_i + v_i * cell), torch.sigmoid(a_f + v_f * cell)
        cell = (f * cell + i * torch.tanh(a_g)).clamp(-cell_clip, cell_clip)
        o = torch.sigmoid(a_o + v_o * cell)
        outputs.append(F.linear(o * torch.tanh(cell), projection))
        recurrent = outputs[-1][:, : recurrent.shape[1]]
    return torch.stack(outputs), cell


class Tape(NamedTuple):
    """What the forward loop leaves for the way back; all (time, batch, ...)."""

    gates: Tensor
    """i, f, tanh(a_g), o."""
    cells: Tensor
    """c_0 .. c_T: one more than the others."""
    squashed: Tensor
    """tanh(c_t)."""
    hidden: Tensor
    """m_t."""
    outputs: Tensor
    """y_t."""


@torch.no_grad()
def scan(inputs: Tensor, recurrent: Tensor, cell: Tensor, parameters: Parameters, cell_clip: float) -> Tape:
    """`plain_recurrence` without a graph: one product for the inputs of all steps, then in place."""
    weight, bias, projection, peepholes = parameters
    (time, batch, num_inputs), num_cells = inputs.shape, cell.shape[1]
    gates = F.linear(inputs, weight[:, :num_inputs], bias)
    cells = inputs.new_empty(time + 1, batch, num_cells)
    squashed, hidden = (inputs.new_empty(time, batch, num_cells) for _ in range(2))
    outputs = inputs.new_empty(time, batch, projection.shape[0])
    tape = Tape(gates, cells, squashed, hidden, outputs)

    cells[0] = cell
    peepholes = None if peepholes is None else peepholes.view(3, -1)
    into_gates, into_outputs = weight[:, num_inputs:].t().contiguous(), projection.t()
    steps = zip(*(part.unbind() for part in (gates, *_gate_views(gates), cells[:-1], cells[1:], *tape[2:])))
    for a, a_if, i, f, g, o, old, new, tanh_c, m, y in steps:
        a.addmm_(recurrent, into_gates)
        if peepholes is not None:
            a_if.addcmul_(peepholes[:2], old.unsqueeze(1))
        a_if.sigmoid_()
        torch.mul(i, g.tanh_(), out=new).addcmul_(f, old).clamp_(-cell_clip, cell_clip)
        if peepholes is not None:
            o.addcmul_(peepholes[2], new)
        torch.mul(o.sigmoid_(), torch.tanh(new, out=tanh_c), out=m)
        recurrent = torch.mm(m, into_outputs, out=y)[:, : recurrent.shape[1]]
    return tape


def _gate_views(gates: Tensor) -> tuple[Tensor, ...]:
    """(time, batch, 4 cell) as [i f] (time, batch, 2, cell) and i, f, g, o (time, batch, cell)."""
    split = gates.unflatten(2, (4, -1))
    return split[:, :, :2], *split.unbind(2)


def scan_back(
    tape: Tape,
    d_outputs: Tensor,
    d_cell: Tensor,
    num_recurrent: int,
    parameters: Parameters,
    cell_clip: float,
    truncation: Truncation | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Back through time: derivatives by the affine maps' outputs.

    Args:
        tape: of `scan`.
        d_outputs: derivative by y from above, (time, batch, output); overwritten by the total one.
        d_cell: derivative by the last cell.
        num_recurrent: size of r.
        parameters, cell_clip: as in `scan`.
        truncation: limits on what goes back.

    Returns:
        Derivatives by the gates' affine outputs (time, batch, 4 cell), by r_0 and by c_0.
    """
    gates, cells, squashed, *_ = tape
    peepholes = None if parameters.peepholes is None else parameters.peepholes.view(3, -1)
    recurrent_weight = parameters.gates[:, -num_recurrent:].contiguous()
    i, f, g, o = gates.chunk(4, 2)
    logistic, tanh = torch.ops.aten.sigmoid_backward, torch.ops.aten.tanh_backward
    local = torch.stack([logistic(g, i), logistic(cells[:-1], f), tanh(i, g)], 2)       # da_{i,f,g} / dc
    local_o, through = logistic(squashed, o), tanh(o, squashed)                           # da_o / dm, dc / dm
    inside = cells[1:].abs() < cell_clip

    d_gates = torch.empty_like(gates)
    split = d_gates.unflatten(2, (4, -1))
    back = torch.cat([d_cell.new_zeros(len(d_cell), num_recurrent), d_cell], 1)
    d_r, d_c = back[:, :num_recurrent], back[:, num_recurrent:]
    for t in reversed(range(len(gates))):
        d_outputs[t, :, :num_recurrent] += d_r
        d_m = d_outputs[t] @ parameters.projection
        d_o = torch.mul(d_m, local_o[t], out=split[t, :, 3])
        d_c.addcmul_(d_m, through[t])
        if peepholes is not None:
            d_c.addcmul_(d_o, peepholes[2])
        d_c.mul_(inside[t])
        d_ifg = torch.mul(local[t], d_c.unsqueeze(1), out=split[t, :, :3])
        d_c.mul_(f[t])
        if peepholes is not None:
            d_c.addcmul_(d_ifg[:, 0], peepholes[0]).addcmul_(d_ifg[:, 1], peepholes[1])
        torch.mm(d_gates[t], recurrent_weight, out=d_r)
        if truncation is not None:
            truncation.apply_(back, t)
    return d_gates, d_r, d_c


class Recurrence(torch.autograd.Function):
    """`plain_recurrence` as one node of the graph; see the module's docstring."""

    @staticmethod
    def forward(ctx: Any, layer: nn.Module, inputs: Tensor, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        """Returns y and the last cell.

        Args:
            ctx: of autograd.
            layer: has gates, projection, peepholes, cell_clip and truncation.
            inputs: (time, batch, feature).
            tensors: r_0, c_0, W, b, P, v.
        """
        recurrent, cell, *parameters = tensors
        tape = scan(inputs, recurrent, cell, Parameters(*parameters), layer.cell_clip)
        ctx.layer = layer
        ctx.save_for_backward(inputs, *tensors, *tape)
        return tape.outputs, tape.cells[-1].clone()

    @staticmethod
    def backward(ctx: Any, d_outputs: Tensor, d_cell: Tensor) -> tuple[Tensor | None, ...]:
        """Derivatives by all inputs; through `plain_recurrence` where they are to be differentiated again."""
        inputs, recurrent, cell, *rest = ctx.saved_tensors
        parameters, tape, layer = Parameters(*rest[:4]), Tape(*rest[4:]), ctx.layer
        if torch.is_grad_enabled():                                                 # create_graph
            arguments = (inputs, recurrent, cell, *parameters)
            outputs = plain_recurrence(inputs, recurrent, cell, parameters, layer.cell_clip)
            return None, *_gradients(outputs, arguments, ctx.needs_input_grad[1:], (d_outputs, d_cell))

        d_outputs = d_outputs.clone(memory_format=torch.contiguous_format)
        d_gates, d_recurrent, d_cell = scan_back(
            tape, d_outputs, d_cell, recurrent.shape[1], parameters, layer.cell_clip, layer.truncation)
        d_inputs = d_gates @ parameters.gates[:, : inputs.shape[2]] if ctx.needs_input_grad[1] else None
        d_parameters = _parameter_gradients(layer, inputs, recurrent, tape, d_gates, d_outputs)
        return None, d_inputs, d_recurrent, d_cell, *d_parameters


def _gradients(
    outputs: tuple[Tensor, ...], arguments: tuple[Tensor | None, ...], wanted: tuple[bool, ...], d_outputs: tuple
) -> list[Tensor | None]:
    """Differentiable derivatives by the ``wanted`` ones of ``arguments``, None for the others."""
    chosen = [argument for argument, needed in zip(arguments, wanted) if needed]
    found = iter(torch.autograd.grad(outputs, chosen, d_outputs, create_graph=True))
    return [next(found) if needed else None for needed in wanted]


def _parameter_gradients(
    layer: nn.Module, inputs: Tensor, recurrent: Tensor, tape: Tape, d_gates: Tensor, d_outputs: Tensor
) -> tuple[Tensor | None, ...]:
    """Derivatives by W, b, P, v: one product each over the stacked steps."""
    recurrents = torch.cat([recurrent.unsqueeze(0), tape.outputs[:-1, :, : recurrent.shape[1]]])
    d_affine = affine_gradients(layer.gates, torch.cat([inputs, recurrents], 2), d_gates)
    d_projection = affine_gradients(layer.projection, tape.hidden, d_outputs)
    if layer.peepholes is None:
        return *d_affine, *d_projection, None
    seen = torch.cat([tape.cells[:-1], tape.cells[:-1], tape.cells[1:]], 2)
    d_i, d_f, _, d_o = d_gates.chunk(4, 2)
    return *d_affine, *d_projection, *affine_gradients(layer.peepholes, seen, torch.cat([d_i, d_f, d_o], 2))
