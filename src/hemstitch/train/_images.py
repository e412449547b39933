"""The image task: labelled images, held-out examples, accuracy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hemstitch.criteria import CrossEntropy
from hemstitch.sampling import BatchSource, ShuffledEpochs, generator
from hemstitch.train._image_files import read_part
from hemstitch.train._options import ImageData
from hemstitch.train._strategies import Batch

LOOK_VALUES = 2048 * 784  # input values that a look sends through the network at once
SIDE = 32
BLOCKS_PER_FOLD = 40


def prepared(images: np.ndarray, flat: bool) -> Tensor:
    """Images in [0, 1], float32: (image, 1, pixel) for networks without places, else (image, channel, row, column).

    The latter are padded with zeros to 32 pixels a side, what the convolutional networks are made for.
    """
    inputs = torch.from_numpy(images.astype(np.float32) / 255)
    if flat:
        return inputs.reshape(len(inputs), 1, -1)
    rows, columns = (max(0, SIDE - size) for size in inputs.shape[2:])
    return nn.functional.pad(inputs, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))


def cut_fold(count: int, options: ImageData) -> tuple[Tensor, Tensor]:
    """Indices of the images of the fold, in random order, and of the others."""
    order = torch.randperm(count, generator=generator(options.fold_seed))
    in_fold = torch.arange(count) % options.folds == options.fold - 1
    return order[in_fold], order[~in_fold].sort().values


class ImageTask:
    """Classify images.

    Args:
        options: the recipe's [data] section.
        device: where the images are kept.
        flat: whether the network takes pixels without places.
    """

    criterion = CrossEntropy()

    def __init__(self, options: ImageData, device: torch.device, flat: bool = True) -> None:
        (inputs, targets), (test_inputs, test_targets) = (
            (prepared(images, flat), torch.from_numpy(labels))
            for images, labels in (read_part(options.source, part) for part in ("train", "test"))
        )
        self.fold = options.fold
        if options.fold:
            pooled = torch.cat([inputs, test_inputs]), torch.cat([targets, test_targets])
            self.test_ids, rest = cut_fold(len(pooled[0]), options)
            (inputs, test_inputs), (targets, test_targets) = ((x[rest], x[self.test_ids]) for x in pooled)
        mean, deviation = inputs.mean(), inputs.std()
        order = torch.randperm(len(inputs), generator=generator(options.dev_seed))
        num_dev = max(1, min(len(inputs) - 1, round(options.dev_share * len(inputs))))
        dev, train = order[:num_dev].sort().values, order[num_dev:].sort().values
        self.device = device
        self.parts = {
            name: (((x - mean) / deviation).to(device), y.to(device))
            for name, (x, y) in {
                "train": (inputs[train], targets[train]),
                "dev": (inputs[dev], targets[dev]),
                "test": (test_inputs, test_targets),
            }.items()
        }
        self.num_inputs = inputs.shape[2] if flat else inputs.shape[1]
        self.num_outputs = int(targets.max()) + 1
        self.look_batch = max(1, LOOK_VALUES // inputs[0].numel())

    def bind(self, model: nn.Module) -> None:
        """Nothing to prepare: images have no context."""

    def source(self, batch_size: int, seed: int) -> BatchSource[Batch]:
        """Shuffled minibatches of the training part."""
        inputs, targets = self.parts["train"]

        def collate(indices: Tensor) -> Batch:
            indices = indices.to(self.device)
            return Batch(inputs[indices], targets[indices].unsqueeze(1), len(indices))

        return BatchSource(ShuffledEpochs(len(inputs), batch_size, seed), collate)

    def evaluate(self, model: nn.Module, part: str = "dev") -> dict[str, float]:
        """Mean loss and share of wrong decisions on a part."""
        criterion, (inputs, targets) = self.criterion, self.parts[part]
        sums = torch.zeros(2, dtype=torch.float64)
        model.eval()
        with torch.no_grad():
            for images, labels in zip(inputs.split(self.look_batch), targets.split(self.look_batch)):
                objective = criterion(model(images), labels[:, None])
                sums += torch.tensor([float(objective.loss), objective.errors], dtype=torch.float64)
        model.train()
        loss, error = (sums / len(inputs)).tolist()
        return {"loss": loss, "error": error}

    def renews(self, epoch: int) -> bool:
        """Labels stay as they are."""
        return False

    def after_epoch(self, epoch: int, model: nn.Module) -> list[tuple[str, str]]:
        """Labels stay as they are."""
        return []

    def finish(self, model: nn.Module, folder: Any, console: Any) -> dict[str, Any]:
        """Accuracy on dev and test; of a fold, also the answer to each of its images."""
        if self.fold:
            folder.write_lines("predictions/test.jsonl", self.answers(model))
        return {"accuracy": {part: 1 - self.evaluate(model, part)["error"] for part in ("dev", "test")}}

    def answers(self, model: nn.Module) -> Iterator[dict[str, Any]]:
        """Every test image with its class and the network's; random blocks of images stand in for speakers."""
        inputs, targets = self.parts["test"]
        model.eval()
        with torch.no_grad():
            decisions = torch.cat([model(x).flatten(1).argmax(1) for x in inputs.split(self.look_batch)])
        rows = zip(self.test_ids.tolist(), targets.tolist(), decisions.tolist())
        for k, (image, target, decision) in enumerate(rows):
            block = f"fold {self.fold} block {k % BLOCKS_PER_FOLD}"
            yield {"id": str(image), "speaker": block, "reference": str(target), "hypothesis": str(decision)}

    def facts(self) -> dict[str, Any]:
        """What `--dry-run` shows of the data."""
        return {f"{name} images": len(x) for name, (x, _) in self.parts.items()} | {"classes": self.num_outputs}

    def state_dict(self) -> dict[str, Any]:
        """Nothing changes."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""
