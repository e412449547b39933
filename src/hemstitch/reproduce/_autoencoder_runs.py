"""A deep autoencoder of images under one method after another: what each run reached after so many passes and seconds.

A pass is one gradient over the training images; forward passes count a third, curvature products four thirds, each
times its share of the images. Looks at the error cost nothing.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hemstitch.optim import HessianFree, batch_closure
from hemstitch.sampling import GrowingSample, SampleGrowth, generator
from hemstitch.train._image_files import read_part

Make = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


class PixelLoss(nn.BCEWithLogitsLoss):
    """Logistic loss summed over pixels, mean over images."""

    def forward(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss."""
        return super().forward(outputs, targets) * targets.shape[1]


@dataclass(frozen=True, kw_only=True)
class Task:
    """What all methods are given.

    Attributes:
        images: folder in MNIST's format.
        hidden: widths down to the code; the decoder mirrors them.
        num_train, num_held_out, num_test: images; the held-out ones accept or reject Hessian-free steps.
        passes: how long each method trains.
        batch_size: of the methods with small batches.
        looks: how often the error is looked at.
    """

    images: Path
    hidden: tuple[int, ...]
    num_train: int
    num_held_out: int
    num_test: int
    passes: float
    batch_size: int = 128
    looks: int = 20

    def data(self) -> tuple[Tensor, Tensor, Tensor]:
        """Rows of pixels in [0, 1]: for training, held out, for testing."""
        pixels = {part: read_part(self.images, part)[0] for part in ("train", "test")}
        train, test = (torch.from_numpy(each.copy()).flatten(1) for each in pixels.values())
        last = self.num_train + self.num_held_out
        parts = train[: self.num_train], train[self.num_train : last], test[: self.num_test]
        return tuple(part.float() / 255 for part in parts)  # type: ignore[return-value]

    def model(self, num_pixels: int) -> nn.Sequential:
        """Sigmoid units but for the linear code, Glorot's initialisation."""
        torch.manual_seed(0)
        widths = [num_pixels, *self.hidden, *reversed(self.hidden[:-1]), num_pixels]
        layers = [nn.Linear(a, b) for a, b in itertools.pairwise(widths)]
        for layer in layers:
            nn.init.xavier_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
        code = len(self.hidden) - 1
        units = [nn.Identity() if i in (code, len(layers) - 1) else nn.Sigmoid() for i in range(len(layers))]
        return nn.Sequential(*itertools.chain.from_iterable(zip(layers, units)))


@dataclass
class Course:
    """A run as it goes: ends with the passes of the task, or with a loss that is not finite."""

    task: Task
    data: tuple[Tensor, Tensor, Tensor] = field(init=False)
    passes: float = 0.0
    seconds: float = 0.0
    found: dict[str, Any] = field(default_factory=lambda: {name: [] for name in COLUMNS})

    def __post_init__(self) -> None:
        torch.set_num_threads(1)
        self.data = self.task.data()
        self.model, self.loss = self.task.model(self.data[0].shape[1]), PixelLoss()
        self.start = time.process_time()
        self._look()

    def goes_on(self, passes: float) -> bool:
        """Count passes; look, if it is time to."""
        self.passes += passes
        self.seconds += time.process_time() - self.start
        due = len(self.found["passes"]) * self.task.passes / self.task.looks
        is_finite = self._look() if self.passes >= due else True
        self.start = time.process_time()
        return is_finite and self.passes < self.task.passes

    @torch.no_grad()
    def _look(self) -> bool:
        train, _, test = self.data
        errors = [float((self.model(x).sigmoid() - x).square().sum(1).mean()) for x in (train, test)]
        values = (self.passes, self.seconds, *errors)
        if all(map(math.isfinite, values)):
            for name, value in zip(COLUMNS, values):
                self.found[name].append(value)
            return True
        self.found["diverged"] = True
        return False


COLUMNS = ("passes", "seconds", "train_error", "test_error")
"""Squared reconstruction errors, sum over pixels and mean over images."""


def small_batches(task: Task, make: Make, correct: Callable[[Course], Callable[[Tensor], None]] | None = None) -> dict:
    """An optimizer on shuffled small batches.

    Args:
        task: what to learn.
        make: the optimizer of parameters.
        correct: of the course, what happens to the gradients of a batch before the update.
    """
    course = Course(task)
    optimizer, x, shuffle = make(course.model.parameters()), course.data[0], generator(0)
    corrected = correct(course) if correct else lambda batch: None
    going = True
    while going:
        for rows in torch.randperm(len(x), generator=shuffle).split(task.batch_size):
            batch = x[rows]
            optimizer.zero_grad()
            course.loss(course.model(batch), batch).backward()
            corrected(batch)
            optimizer.step()
            going = going and course.goes_on(len(rows) / len(x))
    return course.found


def full_batch(task: Task, history: int) -> dict:
    """torch's L-BFGS with a strong Wolfe search."""
    course = Course(task)
    x, calls = course.data[0], []
    optimizer = torch.optim.LBFGS(course.model.parameters(), max_iter=5, history_size=history,
                                  line_search_fn="strong_wolfe")  # fmt: skip

    def closure() -> Tensor:
        calls.append(1)
        optimizer.zero_grad()
        loss = course.loss(course.model(x), x)
        loss.backward()
        return loss

    while True:
        calls.clear()
        optimizer.step(closure)
        if not calls or not course.goes_on(len(calls)):  # without a call it has converged
            return course.found


def hessian_free(task: Task, growth: dict[str, SampleGrowth], **options: Any) -> dict:
    """Hessian-free steps with samples that follow ``growth``."""
    course = Course(task)
    train, held_out, _ = course.data
    samples = {role: GrowingSample(len(train), each) for role, each in growth.items()}
    optimizer = HessianFree(course.model.parameters(), samples=samples, **options)
    closure = batch_closure(course.model, course.loss, train, train, held_out=(held_out, held_out),
                            sample=optimizer.sample, batch_size=1024)  # fmt: skip
    steps = iterations = 0
    going = True
    while going:
        optimizer.step(closure)
        report = optimizer.report()
        steps, iterations = steps + 1, iterations + report.cg_iterations
        going = course.goes_on(report.cost / len(train))
    return course.found | {"steps": steps, "cg_iterations": iterations}


def library(name: str) -> Any:
    """The module of this name; ``None`` if it is not installed, or built for another torch."""
    try:
        return import_module(name)
    except Exception:  # compiled parts that do not fit fail in many ways
        return None


def kronecker_factored(course: Course, damping: float, period: int = 20) -> Callable[[Tensor], None]:
    """Gradients times the inverse of K-FAC's Fisher matrix (Martens and Grosse 2015), by curvlinops.

    The factors are those of the last batch, computed every ``period`` steps; the library has no running average.
    """
    curvlinops, params = import_module("curvlinops"), list(course.model.parameters())
    inverse, count = None, itertools.count()

    def correct(batch: Tensor) -> None:
        nonlocal inverse
        pixels = batch.shape[1]  # the library knows the mean over all pixels
        gradients = [p.grad / pixels for p in params]
        if next(count) % period == 0:
            factors = curvlinops.KFACLinearOperator(
                course.model, nn.BCEWithLogitsLoss(), params, [(batch, batch)], check_deterministic=False,
                separate_weight_and_bias=False)  # fmt: skip
            inverse = curvlinops.KFACInverseLinearOperator(factors, damping=damping / pixels,
                                                           use_heuristic_damping=True)  # fmt: skip
        for p, gradient in zip(params, inverse @ gradients, strict=True):
            p.grad = gradient.detach()

    return correct
