"""What a Gauss-Newton product costs against a gradient, and conjugate gradients against a product.

    python benchmarks/bench_curvature.py [--quick]

The network of paper 3 (360-5x1024-2220, sigmoid, cross-entropy) in float32 on one thread. Products and gradients
alternate (A B A B ...), in CPU time, so that other processes disturb little. Memory is the growth of the peak resident
size in a process of its own. A store of 16 pairs with the policy "even" holds 8 to 16 of them, hence three figures.
The preconditioner is bound by memory: it reads 2 vectors per pair twice.

Limits: 4/3 for a product (4 matrix multiplications a layer against 3), 2 for the engine that keeps nothing. Peers
(backpack, curvlinops) are at 2.2 to 2.5.
"""

import itertools
import subprocess
import sys
import time
from pathlib import Path

import torch
from _common import environment, median_ratio, write_result
from torch import nn

from hemstitch.curvature import LBFGSPreconditioner, PairStore, conjugate_gradient, gauss_newton

ENGINES = ("r_operator", "double_backward", "dual_forward")
NUM_PAIRS = 16


def network(frames):
    torch.manual_seed(0)
    widths = [360, *[1024] * 5, 2220]
    layers = [module for a, b in itertools.pairwise(widths) for module in (nn.Linear(a, b), nn.Sigmoid())]
    return nn.Sequential(*layers[:-1]), torch.randn(frames, 360), torch.randint(2220, (frames,))


def timer(function):
    def run():
        start = time.process_time()
        function()
        return time.process_time() - start

    return run


def product_over_gradient(engine, frames, rounds):
    model, x, y = network(frames)
    loss, params = nn.CrossEntropyLoss(), list(model.parameters())
    operator = gauss_newton(model, loss, x, y, engine=engine)
    v = torch.randn(operator.shape[0])
    return median_ratio(timer(lambda: operator @ v),
                        timer(lambda: torch.autograd.grad(loss(model(x), y), params)), rounds)


class Diagonal:
    """A matrix with a product of one pass over a vector, the time of which is taken apart."""

    def __init__(self, size):
        self.diagonal = torch.linspace(0.01, 1.0, size)
        self.seconds = 0.0

    def __matmul__(self, v):
        start = time.process_time()
        product = self.diagonal * v
        self.seconds += time.process_time() - start
        return product


def iteration_over_product(frames, rounds, num_pairs, iterations=40):
    """One iteration of conjugate gradients with an L-BFGS preconditioner, less its product, over a product.

    The run stores its own pairs, as a Hessian-free step does.
    """
    model, x, y = network(frames)
    operator = gauss_newton(model, nn.CrossEntropyLoss(), x, y)
    b, A, pairs = torch.randn(operator.shape[0]), Diagonal(operator.shape[0]), PairStore(NUM_PAIRS, keep="first")
    conjugate_gradient(A, b, tol=0.0, max_iter=num_pairs, pairs=pairs)
    preconditioner, own = LBFGSPreconditioner(pairs), PairStore(NUM_PAIRS, keep="first")

    def iteration_seconds():
        own.clear()
        A.seconds = 0.0
        start = time.process_time()
        conjugate_gradient(A, b, damping=0.01, preconditioner=preconditioner, tol=0.0, max_iter=iterations,
                           pairs=own)
        return (time.process_time() - start - A.seconds) / iterations

    return median_ratio(iteration_seconds, timer(lambda: operator @ b), rounds)


def peak_resident_mb():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def peak_memory(kind, frames):
    """Growth of the peak in MB while one gradient, or one operator and product, is computed."""
    model, x, y = network(frames)
    v = torch.randn(sum(param.numel() for param in model.parameters()))
    before = peak_resident_mb()
    if kind == "gradient":
        torch.autograd.grad(nn.CrossEntropyLoss()(model(x), y), list(model.parameters()))
    else:
        gauss_newton(model, nn.CrossEntropyLoss(), x, y, engine=kind) @ v
    return peak_resident_mb() - before


def memory(frames):
    run = lambda kind: subprocess.run([sys.executable, __file__, "--memory", kind, str(frames)], check=True,
                                      capture_output=True, text=True).stdout
    return {kind: round(float(run(kind))) for kind in ("gradient", *ENGINES)}


def main():
    torch.set_num_threads(1)
    if "--memory" in sys.argv:
        print(peak_memory(sys.argv[-2], int(sys.argv[-1])))
        return
    quick = "--quick" in sys.argv
    rounds = 3 if quick else 15
    frames = 1024 if quick else 4096
    write_result("curvature", {
        "environment": environment(),
        "product_over_gradient_512_frames": {engine: product_over_gradient(engine, 512, rounds) for engine in ENGINES},
        f"iteration_over_product_{frames}_frames": {
            f"{num_pairs}_pairs": iteration_over_product(frames, 1 if quick else 3, num_pairs)
            for num_pairs in (NUM_PAIRS // 2, 3 * NUM_PAIRS // 4, NUM_PAIRS)},
        f"peak_memory_mb_{frames}_frames": memory(frames),
    })


if __name__ == "__main__":
    main()
