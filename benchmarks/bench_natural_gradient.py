"""What natural gradient costs: whole steps with it over whole steps without, in CPU time of one thread.

    python benchmarks/bench_natural_gradient.py [--quick]

Blocks of steps alternate (plain, bare, natural, plain ...); the results are medians of the blocks' ratios. CPU time, so that
other processes on the machine disturb little. Blocks are multiples of the update period.

`bare` is what no implementation in PyTorch can be below on this machine: the plain step followed by the products, norms and
eigen-decompositions of the method and nothing else, into memory that is there already. `arithmetic` counts multiplications and
additions only.
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


WIDTHS = [40 * 9, 1536, 1536, 1536, 1536, 1500]


def network_step(batch, natural, **options):
    """Four hidden layers, ten million parameters, cross-entropy, our SGD with bounds on the change."""
    torch.manual_seed(0)
    widths = WIDTHS
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


def bare_step(plain, batch, shapes, rank_in=20, rank_out=80, update_period=4):
    """The plain step and the bare products for layers of these shapes (in, out)."""
    sides = []
    for dims in shapes:
        for dim, rank in zip(dims, (rank_in, rank_out)):
            rows, factor = torch.randn(batch, dim), torch.randn(rank, dim) / dim
            sides.append((rows, factor, torch.empty(batch, rank), torch.empty_like(rows), torch.empty_like(factor)))

    def step(index):
        plain(index)
        for rows, factor, scores, out, new in sides:
            torch.linalg.vector_norm(rows)
            torch.mm(rows, factor.T, out=scores)
            torch.addmm(rows, scores, factor, alpha=-1, out=out)
            torch.linalg.vector_norm(out)
            if index % update_period == 0:
                cross, scatter = torch.mm(scores.T, rows, out=new), scores.T @ scores
                wide = cross.double()
                torch.linalg.eigh(wide @ wide.T)
                torch.addmm(scatter @ factor, scatter, cross)

    return step


def arithmetic(batch, shapes, rank_in=20, rank_out=80, update_period=4):
    """1 + operations of natural gradient / those of forward and backward (the first layer has no derivative by its inputs)."""
    ours = base = 0
    for index, dims in enumerate(shapes):
        base += (3 if index or len(shapes) == 1 else 2) * batch * dims[0] * dims[1]
        for dim, rank in zip(dims, (rank_in, rank_out)):
            ours += 2 * batch * dim * rank + (batch * rank * (dim + rank) + 3 * rank * rank * dim) / update_period
    return round(1 + ours / base, 4)


def block_time(step):
    """CPU seconds of one block."""
    start = time.process_time()
    for index in range(BLOCK):
        step(index)
    return time.process_time() - start


def costs(plain, others, rounds):
    """Of each of the other steps: blocks over the plain blocks beside them, after all are past their first updates.

    `ratio` is the median of the ratios; `of_minima` the least block over the least plain block, which a busy machine
    disturbs least.
    """
    for step in (plain, *others):
        for _ in range(3):
            block_time(step)
    base, *blocks = zip(*([block_time(step) for step in (plain, *others)] for _ in range(rounds)))
    return [cost(own, base) for own in blocks]


def cost(blocks, base):
    """Ratios of blocks to those beside them."""
    ratios, rounds = sorted(ours / plain for ours, plain in zip(blocks, base)), len(base)
    return {"ratio": round(ratios[rounds // 2], 4), "of_minima": round(min(blocks) / min(base), 4),
            "quartiles": [round(ratios[rounds // 4], 4), round(ratios[3 * rounds // 4], 4)],
            "base_ms": round(1e3 * sorted(base)[rounds // 2] / BLOCK, 2)}


LAYER, NETWORK = [(1024, 1024)], list(zip(WIDTHS, WIDTHS[1:]))
CASES = {
    "layer 1024x1024, batch 512, ranks 20/80, period 4": (layer_step, LAYER, 512, {}, 1.15),
    "layer 1024x1024, batch 512, ranks 20/80, period 1": (layer_step, LAYER, 512, {"update_period": 1}, None),
    "layer 1024x1024, batch 512, ranks 40/40, period 4": (layer_step, LAYER, 512, {"rank_in": 40, "rank_out": 40}, None),
    "layer 1024x1024, batch 128, ranks 20/80, period 4": (layer_step, LAYER, 128, {}, 1.20),
    "network of 10 million parameters, batch 512": (network_step, NETWORK, 512, {}, 1.15),
}


def main():
    """Run all cases."""
    torch.set_num_threads(1)
    quick = "--quick" in sys.argv
    result = {"environment": environment(), "natural / plain": {}}
    for name, (make, shapes, batch, options, limit) in CASES.items():
        rounds = (15 if quick else 60) // (3 if make is network_step else 1)
        bare = bare_step(make(batch, False), batch, shapes, **options)
        measured, least = costs(make(batch, False), (make(batch, True, **options), bare), rounds)
        result["natural / plain"][name] = measured | {
            "bare": least["ratio"], "arithmetic": arithmetic(batch, shapes, **options), "limit": limit}
        print(name, result["natural / plain"][name], flush=True)
    write_result("natural_gradient", result)


if __name__ == "__main__":
    main()
