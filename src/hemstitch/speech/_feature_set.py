"""Features of many utterances in one array, and their file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from hemstitch.errors import DataError
from hemstitch.speech._broken import BrokenUtterance
from hemstitch.speech._files import new_file


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """What features were normalised by.

    Attributes:
        mean: (dim,) float32.
        std: (dim,) float32; ones where the variance was left alone.
    """

    mean: np.ndarray
    std: np.ndarray


@dataclass(frozen=True, kw_only=True)
class FeatureSet:
    """Features of utterances, one after the other.

    Attributes:
        frames: (frame, dim) float32, contiguous.
        offsets: (utterance + 1,) int64: utterance i has rows ``offsets[i]:offsets[i + 1]``.
        ids: id of each utterance.
        frame_shift: seconds from one frame to the next.
        statistics: of the global normalisation, else ``None``; pass them on for other data.
        broken: utterances that were left out.
    """

    frames: np.ndarray
    offsets: np.ndarray
    ids: tuple[str, ...]
    frame_shift: float
    statistics: Statistics | None = None
    broken: tuple[BrokenUtterance, ...] = field(default=())

    @property
    def dim(self) -> int:
        """Values per frame."""
        return int(self.frames.shape[1])

    @cached_property
    def position(self) -> Mapping[str, int]:
        """Id -> index."""
        return {name: index for index, name in enumerate(self.ids)}

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, key: int | str) -> np.ndarray:
        """Features of one utterance, by index or id: (time, dim), a view."""
        index = self.position[key] if isinstance(key, str) else range(len(self.ids))[key]
        return self.frames[self.offsets[index] : self.offsets[index + 1]]

    def save(self, path: Path | str) -> None:
        """Write a safetensors file, whole or not at all."""
        from safetensors.numpy import save_file

        tensors = {"frames": self.frames, "offsets": self.offsets}
        if self.statistics is not None:
            tensors |= {"mean": self.statistics.mean, "std": self.statistics.std}
        about = {"ids": self.ids, "frame_shift": self.frame_shift, "broken": [asdict(b) for b in self.broken]}
        with new_file(Path(path)) as partial:
            save_file(tensors, partial, metadata={"features": json.dumps(about)})

    @classmethod
    def load(cls, path: Path | str) -> FeatureSet:
        """Read what :meth:`save` wrote.

        Raises:
            DataError: the file is missing, damaged or something else.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="numpy") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
                about = json.loads(file.metadata()["features"])
            return cls(
                frames=tensors["frames"], offsets=tensors["offsets"], ids=tuple(about["ids"]),
                frame_shift=about["frame_shift"], broken=tuple(BrokenUtterance(**b) for b in about["broken"]),
                statistics=Statistics(mean=tensors["mean"], std=tensors["std"]) if "mean" in tensors else None,
            )
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise DataError(f"{path} is not a readable feature file ({type(error).__name__}: {error}): "
                            "delete it and compute the features anew") from error
