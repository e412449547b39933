"""Running text and its language model: [data] and [model] of text recipes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hemstitch.train._options._checks import at_least, require, share


@dataclass(frozen=True, kw_only=True)
class TextData:
    """Running text, one sentence a line: plain (also .xz or .gz), or the "text" of JSON lines (.jsonl).

    Attributes:
        train, dev, test: files.
        vocabulary: file with the words, one a line; "" takes the words of the training text.
        unit: what is predicted.
        max_vocabulary: keep only so many words, the most frequent of the training text; 0: all.
        max_train: words of the training text that are used, from its start; 0: all.
        max_held_out: the same of the dev and of the test text.
        chunk: words per batch and stream: gradients do not reach farther back, the state of the network does.
    """

    train: Path
    dev: Path
    test: Path
    vocabulary: str = ""
    unit: Literal["word", "character"] = "word"
    max_vocabulary: int = 0
    max_train: int = 0
    max_held_out: int = 0
    chunk: int = 32

    def __post_init__(self) -> None:
        for name in ("max_vocabulary", "max_train", "max_held_out"):
            require(getattr(self, name) >= 0, f"{name} must be at least 0, got {getattr(self, name)}")
        require(self.chunk >= 1, f"chunk must be at least 1 word, got {self.chunk}")


@dataclass(frozen=True, kw_only=True)
class LstmLanguageModel:
    """Word vectors, projected LSTM layers, next-word probabilities.

    Attributes:
        embedding: size of the word vectors.
        num_layers: LSTM layers.
        num_cells: cells of each.
        num_recurrent, num_nonrecurrent: sizes of the two projections.
        tied: the output layer shares the word vectors; embedding must then be recurrent + nonrecurrent.
        dropout: probability, before each LSTM and before the output layer.
    """

    embedding: int = 64
    num_layers: int = 1
    num_cells: int = 128
    num_recurrent: int = 64
    num_nonrecurrent: int = 0
    tied: bool = False
    dropout: float = 0.0

    def __post_init__(self) -> None:
        at_least(1, self, "embedding", "num_layers", "num_cells", "num_recurrent")
        at_least(0, self, "num_nonrecurrent")
        share(self, "dropout")
        width = self.num_recurrent + self.num_nonrecurrent
        require(not self.tied or self.embedding == width,
                f"tied word vectors need embedding = num_recurrent + num_nonrecurrent = {width}, got {self.embedding}")
