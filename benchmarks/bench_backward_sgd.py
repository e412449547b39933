"""Iteration order: exact iterates against the plain loop, the order average against a plain gradient, A.1's stability.

Speeds are ratios base / ours (above 1: faster), one thread; on a GPU, if there is one, 1,024 trajectories. `stability`
is the regression of the paper's section A.1, seed by seed: spread and mean of the training loss over the last 200 of
1,400 steps, and the gradients spent for those 200 looks, for each order and for what one would use instead (averages of
the forward iterates, a decayed rate). `head` compares the exact order with fixed tails, from the newest forward iterate and
from an average of them, at 40 of the looks.

    python benchmarks/bench_backward_sgd.py [speed] [average] [stability] [head]
"""

import copy
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from statistics import mean, median, stdev

import torch
from _common import environment, median_ratio, write_result
from torch import Tensor, nn
from torch.nn import functional as F

from hemstitch.order import BackwardSGD, OrderAverage, OrderComparison, backward_iterates, compare_orders

LOOKS = range(1201, 1401)
TAIL = 50


def network(*sizes: int) -> nn.Sequential:
    layers = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def regression(seed: int, function: Callable[[Tensor], Tensor] = torch.square, num_steps: int = 1400):
    """Section A.1: 3 x 300 ReLU, 101 points of a function on [-1, 1], batches of one drawn independently."""
    torch.manual_seed(seed)
    model = network(1, 300, 300, 300, 1)
    x = torch.linspace(-1, 1, 101).unsqueeze(1)
    y = function(x)
    batches = [(x[i : i + 1], y[i : i + 1]) for i in torch.randint(101, (num_steps,))]

    def train_loss(model: nn.Module) -> float:
        with torch.no_grad():
            return float(F.mse_loss(model(x), y))

    return model, batches, train_loss


def a1_stability(seed: int, lr: float = 0.05, function: Callable[[Tensor], Tensor] = torch.square) -> OrderComparison:
    """The training loss of all three orders over the last 200 steps."""
    model, batches, train_loss = regression(seed, function)
    return compare_orders(model, nn.MSELoss(), batches, lr, LOOKS, train_loss, tail=TAIL)


def windowed(seed: int, lr: float = 0.05, window: int = 50) -> tuple[list[float], int]:
    """Backward windows, each from the end of the last; a look is shown the last finished one."""
    model, batches, train_loss = regression(seed)
    order = BackwardSGD(model, nn.MSELoss(), torch.optim.SGD(model.parameters(), lr=lr), window=window, hold=True)
    losses = []
    for step, batch in enumerate(batches, 1):
        order.observe(batch)
        if step in LOOKS:
            with order.applied():
                losses.append(train_loss(model))
    return losses, order.report().backward_passes


def forward_models(seed: int, rate: Callable[[int], float]) -> Iterator[tuple[int, nn.Module, Callable]]:
    model, batches, train_loss = regression(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for step, batch in enumerate(batches, 1):
        optimizer.param_groups[0]["lr"] = rate(step)
        optimizer.zero_grad()
        F.mse_loss(model(batch[0]), batch[1]).backward()
        optimizer.step()
        yield step, model, train_loss


def averaged(seed: int, weight: Callable[[int], float], lr: float = 0.05) -> list[float]:
    """Forward iterates averaged: average += weight(step) (iterate - average)."""
    average, losses = None, []
    for step, model, train_loss in forward_models(seed, lambda step: lr):
        average = average or copy.deepcopy(model)
        with torch.no_grad():
            for a, p in zip(average.parameters(), model.parameters()):
                a.lerp_(p, weight(step))
        if step in LOOKS:
            losses.append(train_loss(average))
    return losses


def decayed(seed: int, lr: float = 0.05) -> list[float]:
    """Learning rate down to zero along a line over the second half."""
    return [loss(model) for step, model, loss in forward_models(seed, lambda s: lr * min(1, (1400 - s) / 700))
            if step in LOOKS]


def stability(seeds=range(5)) -> dict:
    rows = {}
    for seed in seeds:
        comparison = a1_stability(seed)
        held, held_passes = windowed(seed)
        curves = {
            "forward": (comparison.forward, comparison.passes["forward"]),
            "backward": (comparison.backward, comparison.passes["backward"]),
            "fixed tail 50": (comparison.fixed_tail, comparison.passes["fixed_tail"]),
            "windows of 50, held": (held, held_passes),
            "EMA, horizon 100": (averaged(seed, lambda step: max(0.01, 1 / step)), 1400),
            "SWA from step 700": (averaged(seed, lambda step: 1 / max(1, step - 700)), 1400),
            "decayed learning rate": (decayed(seed), 1400),
        }
        rows[seed] = {
            "forward / backward": round(comparison.spread, 3),
            "tail / backward": round(comparison.tail_spread, 3),
            "tail / backward cost": round(comparison.passes["fixed_tail"] / comparison.passes["backward"], 4),
            **{name: {"std": float(f"{stdev(v):.3g}"), "mean": float(f"{mean(v):.3g}"), "gradients": passes}
               for name, (v, passes) in curves.items()},
        }
        print(seed, rows[seed], flush=True)
    keys = ("forward / backward", "tail / backward")
    return {"median": {key: round(median(row[key] for row in rows.values()), 3) for key in keys}, "seeds": rows}


def head(seeds=range(5, 10), horizon: int = 100) -> dict:
    """Is a tail after an average as steady as the exact order?"""
    rows = {}
    for seed in seeds:
        model, batches, train_loss = regression(seed)
        plain, headed = (
            compare_orders(model, nn.MSELoss(), batches, 0.05, LOOKS[4::5], train_loss, tail=TAIL, head_horizon=h)
            for h in (1, horizon)
        )
        curves = {"backward": plain.backward, "fixed tail": plain.fixed_tail, "after an average": headed.fixed_tail}
        rows[seed] = {
            "tail / backward": round(plain.tail_spread, 3),
            "tail after an average / backward": round(headed.tail_spread, 3),
            "gradients": plain.passes | {"after an average": headed.passes["fixed_tail"]},
            **{name: {"std": float(f"{stdev(v):.3g}"), "mean": float(f"{mean(v):.3g}")} for name, v in curves.items()},
        }
        print(seed, rows[seed], flush=True)
    return {"seeds": rows}


def loop_seconds(model: nn.Module, loss: Callable, batches: list, at: list[int], lr: float) -> float:
    """Seconds per trajectory-step of what one would write without this package."""
    begin = time.perf_counter()
    for k in at:
        copied = copy.deepcopy(model)
        optimizer = torch.optim.SGD(copied.parameters(), lr=lr)
        for inputs, targets in reversed(batches[:k]):
            optimizer.zero_grad()
            loss(copied(inputs), targets).backward()
            optimizer.step()
    _finish_queued_work()
    return (time.perf_counter() - begin) / sum(at)


def engine_seconds(model: nn.Module, loss: Callable, batches: list, at: list[int], lr: float, engine: str) -> float:
    begin = time.perf_counter()
    backward_iterates(model, loss, batches, lr, at, engine=engine)
    _finish_queued_work()
    return (time.perf_counter() - begin) / sum(at)


def speed() -> dict:
    """Exact iterates, a trajectory-step."""
    model, batches, _ = regression(0, num_steps=150)
    deep = network(784, 500, 500, 500, 500, 500, 10)
    classes = [(torch.rand(8, 784), torch.randint(10, (8,))) for _ in range(24)]
    cases = {
        "3x300, batch 1": (model, nn.MSELoss(), batches, list(range(119, 151)), 0.05),
        "5x500, batch 8": (deep, nn.CrossEntropyLoss(), classes, list(range(17, 25)), 0.001),
    }
    engines = ("fused", "vmap")
    result = {f"{name}, {engine}": _faster(engine, *case) for name, case in cases.items() for engine in engines}
    if torch.cuda.is_available():
        model, batches, _ = regression(0, num_steps=1024)
        batches = [(x.cuda(), y.cuda()) for x, y in batches]
        result["3x300, batch 1, fused, 1,024 trajectories on a GPU"] = median_ratio(
            lambda: loop_seconds(model.cuda(), nn.MSELoss(), batches, [200], 0.05),
            lambda: engine_seconds(model.cuda(), nn.MSELoss(), batches, list(range(1, 1025)), 0.05, "fused"), rounds=5)
    return result


def _finish_queued_work() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _faster(engine: str, model: nn.Module, loss: Callable, batches: list, at: list[int], lr: float) -> dict:
    return median_ratio(lambda: loop_seconds(model, loss, batches, at[-4:], lr),
                        lambda: engine_seconds(model, loss, batches, at, lr, engine), rounds=15)


def average() -> dict:
    """The order average at c = 4 on a batch of 2,048 against its plain gradient, the network of section D.2."""
    torch.manual_seed(0)
    model, loss = network(784, 500, 500, 500, 500, 500, 10), nn.CrossEntropyLoss()
    batch = torch.rand(2048, 784), torch.randint(10, (2048,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
    transform = OrderAverage(model, loss, optimizer, num_parts=4)

    def timed(backward: Callable) -> float:
        optimizer.zero_grad()
        begin = time.perf_counter()
        backward()
        return time.perf_counter() - begin

    result = median_ratio(lambda: timed(lambda: loss(model(batch[0]), batch[1]).backward()),
                          lambda: timed(lambda: transform.backward(batch)), rounds=15)
    return result | {"times a plain gradient": round(1 / result["ratio"], 3)}


if __name__ == "__main__":
    torch.set_num_threads(1)
    parts = {"speed": speed, "average": average, "stability": stability, "head": head}
    chosen = sys.argv[1:] or list(parts)
    name = "backward_sgd" if len(chosen) == len(parts) else f"backward_sgd_{'_'.join(chosen)}"
    write_result(name, {**environment(), **{part: parts[part]() for part in chosen}})
