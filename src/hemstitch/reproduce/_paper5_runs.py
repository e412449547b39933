"""Paper 5: runs of one problem in both orders, evaluated at the same steps; the other modules of paper 5 vary them.

A run is cut into slices of steps, each a part of its own, so that a long one goes on where it was stopped. Batches are
drawn with replacement from a seed. The paper names neither initialisation nor activation nor loss: ReLU; the squared
error and torch's initialisation in the regression; on images, with pixels in [0, 1], cross-entropy and He's
initialisation: with torch's own nothing is learned within the paper's steps at its learning rates. Batch-norm uses
batch statistics in a map; before a look they are estimated anew in either order, from the newest batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hemstitch.order._iterates import forward_points, gradient_descent
from hemstitch.order._maps import Maps, Point, Update
from hemstitch.order._probe import roughness as order_roughness
from hemstitch.order._statistics import reestimate_statistics
from hemstitch.reproduce._entry import Part, Scale
from hemstitch.reproduce._paper5_data import Examples, image_network, load

Curves = dict[str, list[float]]
"""Metric -> value at each look."""

STATISTICS_BATCHES = 20

@dataclass(frozen=True, kw_only=True)
class Size:
    """How large a run is.

    Attributes:
        width: of hidden layers, or the factor on channel numbers.
        num_steps: batches.
        look_every: steps between looks.
        slice: steps a part.
        seeds: seeds.
        num_images: training images at most; 0: all.
        num_looked: examples of either part in a look.
    """

    width: float
    num_steps: int
    look_every: int
    slice: int
    seeds: int
    num_images: int = 0
    num_looked: int = 500

    @property
    def steps(self) -> range:
        """The steps that are looked at."""
        return range(self.look_every, self.num_steps + 1, self.look_every)


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A problem and how both orders run on it.

    Attributes:
        data: a function of ``FUNCTIONS``, or the recipe whose images are used.
        network: ``network(width, num_outputs)``.
        lr: learning rate.
        batch_size: examples a batch.
        sizes: by scale.
        starts: where backward trajectories begin, as fractions of the run; before the first the order is forward.
    """

    data: str
    network: Callable[[float, int], nn.Module]
    lr: float
    batch_size: int
    sizes: Mapping[Scale, Size]
    starts: tuple[float, ...] = (0.0,)


@dataclass(frozen=True)
class Run:
    """The maps of a run and what is measured of a point.

    Attributes:
        maps, updates, origin: as in ``hemstitch.order``.
        looks: part -> examples.
        has_classes: whether accuracy is measured as well.
    """

    maps: Maps
    updates: list[Update]
    origin: Point
    looks: Mapping[str, Examples]
    has_classes: bool

    def measure(self, point: Point, step: int) -> dict[str, float]:
        """Losses, and accuracies, at a point that has seen batches up to ``step``."""
        with self.shown(point, step) as model, torch.no_grad():
            return {key: value for part, (inputs, targets) in self.looks.items()
                    for key, value in self._measured(model, part, inputs, targets).items()}  # fmt: skip

    def _measured(self, model: nn.Module, part: str, inputs: Tensor, targets: Tensor) -> dict[str, float]:
        outputs = torch.cat([model(chunk) for chunk in inputs.split(500)])
        if not self.has_classes:
            return {f"{part} loss": float(F.mse_loss(outputs, targets))}
        return {f"{part} loss": float(F.cross_entropy(outputs, targets)),
                f"{part} accuracy": float((outputs.argmax(1) == targets).float().mean())}  # fmt: skip

    @contextmanager
    def shown(self, point: Point, step: int) -> Iterator[nn.Module]:
        """The model at a point, in eval mode."""
        with self.maps.workspace():
            self.maps.restore(point, states=False)
            reestimate_statistics(self.maps, self.updates[max(0, step - STATISTICS_BATCHES) : step])
            self.maps.model.eval()
            try:
                yield self.maps.model
            finally:
                self.maps.model.train()


def begin(experiment: Experiment, scale: Scale, seed: int, folder: Path) -> Run:
    """Model, batches and maps of a seed."""
    size = experiment.sizes[scale]
    data = load(experiment.data, scale, folder, size.num_images, size.num_looked)
    inputs, targets = data.train
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = experiment.network
        if network is image_network:
            network = partial(network, num_inputs=inputs[0].numel())
        model = network(size.width, data.num_outputs)
        drawn = torch.randint(len(inputs), (size.num_steps, experiment.batch_size)).to(inputs.device)
    batches = [(inputs[indices], targets[indices]) for indices in drawn]
    loss = nn.CrossEntropyLoss() if data.has_classes else nn.MSELoss()
    maps, updates, origin = gradient_descent(model.to(inputs.device), loss, batches, experiment.lr)
    return Run(maps, updates, origin, data.looks, data.has_classes)


def both_orders(experiment: Experiment, scale: Scale, seed: int, steps: Sequence[int], folder: Path) -> dict[str, Any]:
    """Curves of the forward and the backward order at the given steps, which lie in one slice."""
    run = begin(experiment, scale, seed, folder)
    starts = [round(start * len(run.updates)) for start in experiment.starts]
    forward = {k: run.measure(end, k) for k, end in forward_points(run.maps, run.updates, run.origin, steps)}
    backward = {k: forward[k] for k in steps if k <= starts[0]}
    origin = run.origin
    if starts[0]:
        ((_, origin),) = forward_points(run.maps, run.updates, run.origin, [starts[0]])
    for first, last in pairwise([*starts, len(run.updates)]):
        window = run.updates[first:last]
        looks = [k for k in steps if first < k <= last]
        for index, end in run.maps.descend(window, [(origin, k - first) for k in looks]) if looks else ():
            backward[looks[index]] = run.measure(end, looks[index])
        if any(k > last for k in steps):
            ((_, origin),) = run.maps.descend(window, [(origin, len(window))])
    return {"steps": list(steps), "forward": columns(forward), "backward": columns(backward),
            "starts": starts, "gradients": run.maps.passes.backward}  # fmt: skip


def columns(rows: Mapping[int, Mapping[str, float]]) -> Curves:
    """{step: {metric: value}} -> {metric: values in the order of the steps}."""
    steps = sorted(rows)
    return {metric: [rows[k][metric] for k in steps] for metric in rows[steps[0]]} if steps else {}


def parts_of(experiment: Experiment, scale: Scale) -> dict[str, Part]:
    """A part for each seed and slice of steps."""
    size = experiment.sizes[scale]
    parts: dict[str, Part] = {}
    for seed in range(size.seeds):
        for first in range(0, size.num_steps, size.slice):
            steps = [k for k in size.steps if first < k <= first + size.slice]
            name = f"seed {seed}, steps {first + 1} to {min(first + size.slice, size.num_steps)}"
            parts[name] = partial(both_orders, experiment, scale, seed, steps)
    return parts


def joined(results: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """The curves of each seed, its slices put together."""
    seeds: dict[str, dict[str, Any]] = {}
    for name, result in results.items():
        whole = seeds.setdefault(name.partition(",")[0], {"steps": [], "forward": {}, "backward": {}, "gradients": 0})
        whole["steps"] += result["steps"]
        whole["gradients"] += result["gradients"]
        whole["starts"] = result["starts"]
        for order in ("forward", "backward"):
            for metric, values in result[order].items():
                whole[order].setdefault(metric, []).extend(values)
    return list(seeds.values())


def roughness(values: Sequence[float | None]) -> float:
    """The standard deviation of a curve around its own trend, from the differences of neighbouring looks."""
    return order_roughness([math.nan if v is None else v for v in values])
