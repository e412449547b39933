"""The text task: a recurrent language model on running text, by truncated back-propagation through time.

The training text is cut into as many streams as a batch has rows; a batch is the next ``chunk`` words of every stream.
The state of the network goes on from batch to batch, gradients stop at the start of a chunk. It belongs to the data:
all passes over a batch, two with backstitch, start from the state that the batch before it ended in, and the last of
them says what comes next.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hemstitch.criteria import CrossEntropy
from hemstitch.errors import ConfigError, DataError
from hemstitch.models import RecurrentLanguageModel, perplexity
from hemstitch.sampling import BatchSource, ShuffledEpochs
from hemstitch.train._options import TextData
from hemstitch.train._recipe import Recipe
from hemstitch.train._strategies import Batch
from hemstitch.train._vocabulary import Vocabulary, read_sentences, read_words

HELD_OUT_STREAMS = 16
"""Pieces of a held-out text that are read side by side, each from an empty state."""
FITTING = {"criterion": ("cross-entropy",), "order": ("forward",), "parallel": ("local",)}


class ContinuedLanguageModel(nn.Module):
    """A language model that goes on from the state in which it was left.

    Args:
        model: the language model.

    Attributes:
        history: the state from which every pass over this batch starts; ``None``: empty.
        reached: the state after the last pass.
    """

    def __init__(self, model: RecurrentLanguageModel) -> None:
        super().__init__()
        self.model = model
        self.history: Any = None
        self.reached: Any = None

    def forward(self, words: Tensor) -> Tensor:
        """(stream, time) words -> (stream, time, vocabulary) logits of the next ones."""
        logits, self.reached = self.model(words, self.history)
        return logits

    def advance(self, afresh: bool) -> None:
        """Move on to the next batch, or to the start of the text; a state that is not finite is dropped."""
        lost = self.reached is None or not all(bool(t.isfinite().all()) for state in self.reached for t in state)
        self.history = None if afresh or lost else self.reached


class TextSource(BatchSource[Batch]):
    """Chunks of all streams, one after the other; tells the model when it moves on.

    Args:
        words: (stream, time) training text.
        chunk: words per batch and stream.
        seed: kept with the position; the order of a text is its own.
        model: what carries the state.
    """

    def __init__(self, words: Tensor, chunk: int, seed: int, model: ContinuedLanguageModel) -> None:
        self.words, self.model = words, model
        streams, length = words.shape[0], words.shape[1] - 1
        super().__init__(ShuffledEpochs(streams * length, streams * chunk, seed, shuffle=False), self._chunk)

    def _chunk(self, items: Tensor) -> Batch:
        start, stop = (int(item) // len(self.words) for item in (items[0], items[-1]))
        inputs, targets = self.words[:, start : stop + 1], self.words[:, start + 1 : stop + 2]
        return Batch(inputs, targets, targets.numel())

    def next(self) -> Batch:
        """The next chunk of every stream."""
        items = self.indices.next()
        self.model.advance(afresh=int(items[0]) == 0)
        return self.collate(items)


class TextTask:
    """Predict the next word.

    Args:
        recipe: its section [data] is used, and others are checked.
        device: where the text is kept.

    Raises:
        ConfigError: the recipe asks for what does not go with running text.
        DataError: a text cannot be read.
    """

    criterion = CrossEntropy()

    def __init__(self, recipe: Recipe, device: torch.device) -> None:
        options: TextData = recipe.data
        _check_fit(recipe)
        words = read_words(options.train, options.unit, options.max_train)
        known = words
        if options.vocabulary:
            listed = set(read_sentences(Path(options.vocabulary)))
            known = [word for word in words if word in listed] + sorted(listed)
        self.vocabulary = Vocabulary.of(known, options.unit, options.max_vocabulary)
        texts = {"train": words} | {
            part: read_words(getattr(options, part), options.unit, options.max_held_out) for part in ("dev", "test")
        }
        self.texts = {part: torch.tensor(self.vocabulary.encode(text), device=device) for part, text in texts.items()}
        self.options, self.model = options, None
        self.num_inputs = self.num_outputs = len(self.vocabulary)

    def bind(self, model: ContinuedLanguageModel) -> None:
        """Remember who carries the state."""
        self.model = model

    def source(self, batch_size: int, seed: int) -> TextSource:
        """The training text in ``batch_size`` streams."""
        streams = in_streams(self.texts["train"], batch_size, "train.batch_size")
        return TextSource(streams, self.options.chunk, seed, self.model)

    def evaluate(self, model: ContinuedLanguageModel, part: str = "dev") -> dict[str, float]:
        """Mean negative log-probability of a word, and its exponential."""
        text = self.texts[part]
        value = perplexity(model.model, in_streams(text, min(HELD_OUT_STREAMS, len(text) // 2), part))
        return {"loss": math.log(value), "perplexity": value}

    def after_epoch(self, epoch: int, model: nn.Module) -> list[tuple[str, str]]:
        """A text stays as it is."""
        return []

    def finish(self, model: ContinuedLanguageModel, folder: Any, console: Any) -> dict[str, Any]:
        """Perplexity of dev and test."""
        return {"perplexity": {part: self.evaluate(model, part)["perplexity"] for part in ("dev", "test")}}

    def facts(self) -> dict[str, Any]:
        """What `--dry-run` shows of the data."""
        known = {part: float((text != 1).double().mean()) for part, text in self.texts.items()}
        return {"vocabulary": len(self.vocabulary)} | {
            f"{part} text": f"{len(text):,} {self.options.unit}s, {1 - known[part]:.1%} of them unknown"
            for part, text in self.texts.items()
        }

    def state_dict(self) -> dict[str, Any]:
        """The state of the network at the end of the last batch."""
        return {"reached": self.model.reached}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.model.reached = state["reached"]


def in_streams(text: Tensor, count: int, what: str) -> Tensor:
    """A text of n words as ``count`` rows of n // count; what is left over is left out."""
    if count < 1 or len(text) // count < 2:
        raise DataError(f"a text of {len(text)} words cannot be read in {count} streams of two words and more: "
                        f"lower {what}")  # fmt: skip
    length = len(text) // count
    return text[: count * length].view(count, length)


def _check_fit(recipe: Recipe) -> None:
    for section, kinds in FITTING.items():
        if (kind := recipe.kinds[section]) not in kinds:
            raise ConfigError(f"{section}.kind = {kind!r} does not go with data.kind = 'text', whose batches follow "
                              f"each other: use {' or '.join(kinds)}")  # fmt: skip
    if recipe.kinds["update"] not in ("sgd", "max-change-sgd", "adam", "adamw"):
        raise ConfigError(f"update.kind = {recipe.kinds['update']!r} draws samples of its own, and the batches of a "
                          "text follow each other: use sgd, max-change-sgd, adam or adamw")  # fmt: skip
