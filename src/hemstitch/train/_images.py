"""The image task: labelled images, held-out examples, accuracy."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hemstitch.criteria import CrossEntropy
from hemstitch.errors import DataError
from hemstitch.sampling import BatchSource, ShuffledEpochs, generator
from hemstitch.train._options import ImageData
from hemstitch.train._strategies import Batch

LOOK_BATCH = 2048
BLOCKS_PER_FOLD = 40


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """An idx file (gzip or not) of unsigned bytes with the given number of dimensions.

    Raises:
        DataError: missing, damaged or of another shape.
    """
    try:
        raw = path.read_bytes()
        content = gzip.decompress(raw) if path.suffix == ".gz" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error}). Expected an idx file of the MNIST family.") from None
    header = np.frombuffer(content[: 4 + 4 * dimensions], ">i4")
    if len(header) != 1 + dimensions or header[0] != 0x800 + dimensions:
        raise DataError(f"{path}: not an idx file of unsigned bytes with {dimensions} dimensions.")
    shape, body = tuple(int(n) for n in header[1:]), np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions)
    if body.size != np.prod(shape):
        raise DataError(f"{path}: the header promises {shape}, the file holds {body.size} bytes: it is cut short.")
    return body.reshape(shape)


def read_images(source: Path, part: str) -> tuple[Tensor, Tensor]:
    """``train`` or ``t10k`` images as (example, 1, pixel) float32 in [0, 1], and (example,) labels."""
    images = read_idx(_find(source, f"{part}-images-idx3-ubyte"), 3)
    labels = read_idx(_find(source, f"{part}-labels-idx1-ubyte"), 1)
    if len(images) != len(labels):
        raise DataError(f"{source}: {len(images)} {part} images but {len(labels)} labels.")
    return torch.from_numpy(images.reshape(len(images), 1, -1).astype(np.float32) / 255), torch.from_numpy(
        labels.astype(np.int64)
    )


def _find(source: Path, stem: str) -> Path:
    for suffix in (".gz", ""):
        if (source / (stem + suffix)).is_file():
            return source / (stem + suffix)
    raise DataError(f"{source}: no {stem}.gz there. Set data.source to the folder with the four idx files.")


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
    """

    criterion = CrossEntropy()

    def __init__(self, options: ImageData, device: torch.device) -> None:
        inputs, targets = read_images(options.source, "train")
        test_inputs, test_targets = read_images(options.source, "t10k")
        self.fold = options.fold
        if options.fold:
            pooled = torch.cat([inputs, test_inputs]), torch.cat([targets, test_targets])
            self.test_ids, rest = cut_fold(len(pooled[0]), options)
            (inputs, test_inputs), (targets, test_targets) = ((x[rest], x[self.test_ids]) for x in pooled)
        mean, deviation = inputs.mean(), inputs.std()
        order = torch.randperm(len(inputs), generator=generator(options.dev_seed))
        num_dev = round(options.dev_share * len(inputs))
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
        self.num_inputs, self.num_outputs = inputs.shape[2], int(targets.max()) + 1

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
            for start in range(0, len(inputs), LOOK_BATCH):
                objective = criterion(
                    model(inputs[start : start + LOOK_BATCH]), targets[start : start + LOOK_BATCH, None]
                )
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
            decisions = torch.cat([model(x).flatten(1).argmax(1) for x in inputs.split(LOOK_BATCH)])
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
