"""Paper 5: data and networks of its experiments."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from hemstitch.models import Mlp
from hemstitch.reproduce._entry import Scale
from hemstitch.reproduce._training import recipe
from hemstitch.train._image_files import read_part
from hemstitch.train._images import prepared

Examples = tuple[Tensor, Tensor]

FUNCTIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "x^2": torch.square,
    "cos 10x": lambda x: torch.cos(10 * x),
    "x^3": lambda x: x**3,
}


@dataclass(frozen=True)
class Data:
    """What a problem is trained and evaluated on.

    Attributes:
        train: inputs and targets that batches are drawn from.
        looks: part -> the examples of a look.
        num_outputs: classes, or 1.
    """

    train: Examples
    looks: Mapping[str, Examples]
    num_outputs: int

    @property
    def has_classes(self) -> bool:
        """Whether the targets are classes."""
        return not self.train[1].is_floating_point()


def regression_network(width: float, num_outputs: int) -> nn.Module:
    """Three hidden layers (section A.1)."""
    return Mlp(1, num_outputs, (int(width),) * 3)


def image_network(width: float, num_outputs: int, num_inputs: int = 784, gain: float = 2.0) -> nn.Module:
    """Five hidden layers (section A.2), weights of variance ``gain`` / inputs (2: He, 1: LeCun), no biases to begin."""
    model = Mlp(num_inputs, num_outputs, (int(width),) * 5)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=math.sqrt(gain / module.in_features))
            nn.init.zeros_(module.bias)
    return model


def load(name: str, scale: Scale, folder: Path, num_images: int, num_looked: int) -> Data:
    """The data of a function of ``FUNCTIONS``, or the images of a recipe: at most so many, and so many in a look."""
    if name in FUNCTIONS:
        return function_data(FUNCTIONS[name])
    wanted = recipe(scale, name, folder)
    images = image_data(wanted.data.source, wanted.kinds["model"] == "mlp", num_images)
    return replace(images, looks={part: (x[: num_looked], y[: num_looked])
                                  for part, (x, y) in images.looks.items()})  # fmt: skip


def function_data(function: Callable[[Tensor], Tensor]) -> Data:
    """101 points of a function on [-1, 1] (the paper says 100, its formula gives 101); test points between them."""
    train, test = (torch.linspace(-edge, edge, count).unsqueeze(1) for edge, count in ((1.0, 101), (0.99, 100)))
    examples = {"train": (train, function(train)), "test": (test, function(test))}
    return Data(examples["train"], examples, 1)


@cache
def image_data(source: Path, flat: bool, num_images: int) -> Data:
    """Images with pixels in [0, 1]; the training part is shuffled."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    (images, labels), (test_images, test_labels) = (read_part(source, part) for part in ("train", "test"))
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[: num_images or None].numpy()
    found = (("train", images[order], labels[order]), ("test", test_images, test_labels))
    parts = {name: (prepared(x, flat).to(device), torch.as_tensor(y, device=device)) for name, x, y in found}
    return Data(parts["train"], parts, int(labels.max()) + 1)
