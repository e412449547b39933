"""Forward and backward of the projected LSTM, with our plain edition, against torch's own LSTM of that kind.

Ratios base / ours in seconds: above 1 is faster than torch.nn.LSTM(proj_size=...), a loop in C++ that has neither
peepholes nor truncation, with as many outputs.
"""

import time
import warnings

import torch
from _common import environment, median_ratio, write_result

from hemstitch.models import ProjectedLstm
from hemstitch.models._recurrence import Parameters, plain_recurrence

CASES = {"chunk 50 x 32, 256 cells": (50, 32, 256, 256, 128), "chunk 150 x 16, 128 cells": (150, 16, 128, 128, 64)}


def timer(layer, inputs):
    """A function that runs forward and backward once and returns the seconds."""

    def run():
        leaf = inputs.clone().requires_grad_()
        begin = time.perf_counter()
        layer(leaf)[0].sum().backward()
        return time.perf_counter() - begin

    return run


def plain(layer):
    """The same layer through the recurrence in autograd."""
    parameters = Parameters(layer.gates.weight, layer.gates.bias, layer.projection.weight, None)

    def run(inputs):
        batch = len(inputs)
        state = inputs.new_zeros(batch, layer.num_recurrent), inputs.new_zeros(batch, layer.num_cells)
        return plain_recurrence(inputs.transpose(0, 1), *state, parameters, layer.cell_clip)

    return run


def main():
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="LSTM with projections")
    cases = {}
    for name, (steps, batch, num_inputs, cells, outputs) in CASES.items():
        inputs = torch.randn(batch, steps, num_inputs)
        base = timer(torch.nn.LSTM(num_inputs, cells, proj_size=outputs, batch_first=True), inputs)
        bare = ProjectedLstm(num_inputs, cells, outputs, peepholes=False, truncation=None)
        full = ProjectedLstm(num_inputs, cells, outputs)
        cases[name] = {
            "same equations": median_ratio(base, timer(bare, inputs), 15),
            "with peepholes and truncation": median_ratio(base, timer(full, inputs), 15),
            "plain edition": median_ratio(base, timer(plain(bare), inputs), 15),
        }
    write_result("lstm", {"what": __doc__.splitlines()[0], "cases": cases, **environment()})


if __name__ == "__main__":
    main()
