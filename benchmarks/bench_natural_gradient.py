"""What natural gradient costs: whole steps with it over whole steps without, in CPU time of one thread.

    python benchmarks/bench_natural_gradient.py [--quick]

Blocks of steps with and without alternate (A B A B ...); the result is the median of the blocks' ratios. CPU time, so that
other processes on the machine disturb little. Blocks are multiples of the update period.
"""

import sys
import time

import torch
from _common import environment, write_result
from torch import nn

from hemstitch.optim import SGD, NaturalGradient, component_groups

BLOCK = 8


def layer_step(batch, natural, size=1024, **options):
    """One affine layer: forward, backward (also by the inputs), update. Inputs like those behind a ReLU."""
    torch.manual_seed(0)
    layer = nn.Linear(size, size)
    batches = [(torch.randn(batch, size).relu_().requires_grad_(), torch.randn(batch, size) / size) for _ in range(4)]
    if natural:
        NaturalGradient(layer, **options)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1e-6)

    def step(index):
        inputs, derivatives = batches[index % 4]
        optimizer.zero_grad()
        inputs.grad = None
        layer(inputs).backward(derivatives)
        optimizer.step()

    return step


def network_step(batch, natural, **options):
    """Four hidden layers, ten million parameters, cross-entropy, our SGD with bounds on the change."""
    torch.manual_seed(0)
    widths = [40 * 9, 1536, 1536, 1536, 1536, 1500]
    layers = [module for a, b in zip(widths, widths[1:]) for module in (nn.Linear(a, b), nn.ReLU())]
    net = nn.Sequential(*layers[:-1])
    batches = [(torch.randn(batch, widths[0]), torch.randint(widths[-1], (batch,))) for _ in range(4)]
    if natural:
        NaturalGradient(net, **options)
    optimizer = SGD(component_groups(net), lr=1e-6)

    def step(index):
        inputs, targets = batches[index % 4]
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(inputs), targets, reduction="sum").backward()
        optimizer.step()

    return step


def block_time(step):
    """CPU seconds of one block."""
    start = time.process_time()
    for index in range(BLOCK):
        step(index)
    return time.process_time() - start


def cost(ours, base, rounds):
    """Median of ours / base over alternating blocks, after both are past their first updates."""
    for step in (base, ours):
        for _ in range(3):
            block_time(step)
    pairs = [(block_time(ours), block_time(base)) for _ in range(rounds)]
    ratios = sorted(a / b for a, b in pairs)
    return {"ratio": round(ratios[rounds // 2], 4), "quartiles": [round(ratios[rounds // 4], 4),
            round(ratios[3 * rounds // 4], 4)], "base_ms": round(1e3 * sorted(b for _, b in pairs)[rounds // 2] / BLOCK, 2)}


CASES = {
    "layer 1024x1024, batch 512, ranks 20/80, period 4": (layer_step, 512, {}, 1.15),
    "layer 1024x1024, batch 512, ranks 20/80, period 1": (layer_step, 512, {"update_period": 1}, None),
    "layer 1024x1024, batch 512, ranks 40/40, period 4": (layer_step, 512, {"rank_in": 40, "rank_out": 40}, None),
    "layer 1024x1024, batch 128, ranks 20/80, period 4": (layer_step, 128, {}, 1.20),
    "network of 10 million parameters, batch 512": (network_step, 512, {}, 1.15),
}


def main():
    """Run all cases."""
    torch.set_num_threads(1)
    quick = "--quick" in sys.argv
    result = {"environment": environment(), "natural / plain": {}}
    for name, (make, batch, options, limit) in CASES.items():
        rounds = 15 if quick else 60
        measured = cost(make(batch, True, **options), make(batch, False), rounds // 3 if make is network_step else rounds)
        result["natural / plain"][name] = measured | {"limit": limit}
        print(name, measured, "limit", limit, flush=True)
    write_result("natural_gradient", result)


if __name__ == "__main__":
    main()
