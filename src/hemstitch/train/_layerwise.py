"""Discriminative pretraining: a deep network grown from one hidden layer, each depth trained for a while.

Sigmoid networks of many layers hardly train from a random start. Here a network of one hidden layer is trained for a
few epochs; then a fresh hidden layer and a fresh output layer are put on top, all of it is trained, and so on. When the
full depth is reached, the run proper begins, with its own update rule.

Reference: F. Seide, G. Li, X. Chen, D. Yu, "Feature engineering in context-dependent deep neural networks for
conversational speech transcription", ASRU 2011, section 3.3.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from hemstitch.errors import ConfigError, NonFiniteError
from hemstitch.models import insert_layer
from hemstitch.train import _options as o
from hemstitch.train._recipe import Recipe
from hemstitch.train._strategies import Gradient, SinglePass, Strategy

MOMENTUM = 0.9


@dataclass
class Growth:
    """What growing a network took.

    Attributes:
        samples: forward and backward passes, in samples.
        losses: mean training loss of the last epoch at each depth.
    """

    samples: int
    losses: list[float]


def check_layerwise(recipe: Recipe) -> None:
    """Refuse pretraining of what cannot be grown.

    Raises:
        ConfigError: another kind of network or criterion, or dropout.
    """
    if not recipe.start.layerwise:
        return
    if not isinstance(recipe.model, o.FeedForwardModel | o.MlpModel) or recipe.model.dropout:
        raise ConfigError("start.layerwise grows networks of kind 'feed-forward' or 'mlp' without dropout, got "
                          f"model.kind = {recipe.kinds['model']!r}, model.dropout = "
                          f"{getattr(recipe.model, 'dropout', 0)}")  # fmt: skip
    if not isinstance(recipe.criterion, o.CrossEntropy):
        raise ConfigError("start.layerwise trains with cross-entropy: pretrain in a run of its own, and give that as "
                          "start.run to this one")  # fmt: skip


def grow(recipe: Recipe, task: Any, shallow: nn.Module) -> Growth:
    """Train a network of one hidden layer, add the next, until it has all; in place.

    Args:
        recipe: its sections start, model and train.
        task: the data; bound to a model with the same context.
        shallow: the network, with the first hidden layer only.

    Raises:
        NonFiniteError: a loss or gradient is not finite.
    """
    options: o.Start = recipe.start
    samples, losses = 0, []
    for depth, width in enumerate(recipe.model.hidden[1:], start=1):
        source = task.source(options.layerwise_batch_size, recipe.seed + depth)
        optimizer = torch.optim.SGD(shallow.parameters(), options.layerwise_lr, momentum=MOMENTUM)
        strategy = SinglePass(Gradient(shallow, task.criterion, autocast=recipe.train.precision == "bf16"), optimizer)
        for _ in range(options.layerwise):
            loss, count = one_epoch(strategy, source)
            samples += count
        losses.append(loss)
        insert_layer(shallow, width, nonlinearity=recipe.model.nonlinearity)
    return Growth(samples, losses)


def one_epoch(strategy: Strategy, source: Any) -> tuple[float, int]:
    """Mean loss and samples of an epoch of steps."""
    loss, weight, samples = 0.0, 0.0, 0
    for _ in range(source.indices.batches_per_epoch):
        report = strategy.step(source)
        if not report.applied:
            raise NonFiniteError(f"start.layerwise: loss {report.loss:g}, gradient norm {report.gradient_norm}. Lower "
                                 "start.layerwise_lr.")  # fmt: skip
        loss, weight, samples = loss + report.loss, weight + report.weight, samples + report.samples
    return loss / max(weight, 1.0), samples


def shallow_recipe(recipe: Recipe) -> Recipe:
    """The recipe with the first hidden layer only."""
    model = replace(recipe.model, hidden=recipe.model.hidden[:1])
    return replace(recipe, sections={**recipe.sections, "model": model})
