"""What backstitch costs: whole steps with it over whole steps without, in CPU time of one thread.

    python benchmarks/bench_backstitch.py [--quick]

Blocks of steps with and without alternate (A B A B ...); the result is the median of the blocks' ratios. Two passes every
minibatch cannot cost less than 2, every fourth not less than 1.25; the rest is the copy of the parameters and the second move.
"""

import sys

import torch
from _common import environment, write_result
from bench_natural_gradient import costs
from torch import nn

from hemstitch.optim import SGD, Backstitch, NaturalGradient, component_groups

INNER = {
    "our SGD": lambda net: SGD(component_groups(net), lr=1e-5),
    "our SGD, momentum": lambda net: SGD(component_groups(net), lr=1e-5, momentum=0.5),
    "torch SGD, momentum": lambda net: torch.optim.SGD(net.parameters(), lr=1e-6, momentum=0.9),
    "AdamW": lambda net: torch.optim.AdamW(net.parameters(), lr=1e-6),
}


def step_of(inner, interval, natural=False, batch=256, width=1024):
    """A 4 x 1024 network over 440 inputs, 1000 classes (4.6 million parameters), mean cross-entropy."""
    torch.manual_seed(0)
    widths = [440, width, width, width, width, 1000]
    layers = [module for a, b in zip(widths, widths[1:]) for module in (nn.Linear(a, b), nn.ReLU())]
    net = nn.Sequential(*layers[:-1])
    batches = [(torch.randn(batch, widths[0]), torch.randint(widths[-1], (batch,))) for _ in range(4)]
    gradient = NaturalGradient(net, loss_reduction="mean") if natural else None
    optimizer = INNER[inner](net)
    if interval:
        optimizer = Backstitch(optimizer, scale=1.0 if interval > 1 else 0.3, interval=interval,
                               natural_gradient=gradient)

    def step(index):
        inputs, targets = batches[index % 4]

        def closure():
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(inputs), targets)
            loss.backward()
            return loss

        optimizer.step(closure)

    return step


def main():
    """Every inner optimizer, both intervals."""
    torch.set_num_threads(1)
    rounds = 7 if "--quick" in sys.argv else 30
    result = {"environment": environment(), "backstitch / plain": {}}
    cases = [(inner, natural) for inner in INNER for natural in (False, True) if not natural or inner == "our SGD"]
    for interval, limit in ((1, 2.05), (4, 1.27)):
        for inner, natural in cases:
            name = f"interval {interval}, {inner}{', natural gradient' if natural else ''}"
            (measured,) = costs(step_of(inner, 0, natural), [step_of(inner, interval, natural)], rounds)
            result["backstitch / plain"][name] = measured | {"limit": limit}
            print(name, measured, "limit", limit, flush=True)
    write_result("backstitch", result)


if __name__ == "__main__":
    main()
