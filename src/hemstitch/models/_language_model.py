"""The recurrent language model and what one measures with it (Mikolov et al. 2010; Sundermeyer et al. 2012)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hemstitch.errors import MisuseError
from hemstitch.models._lstm import LstmState, ProjectedLstm


class LockedDropout(nn.Module):
    """Dropout with one mask for all steps of a sequence (Gal and Ghahramani 2016).

    The mask is a single draw from torch's generator and does not depend on the number of steps: setting the generator
    back gives the same mask again, which the two passes of backstitch need.

    Args:
        probability: of dropping a unit.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        if not 0 <= probability < 1:
            raise MisuseError(f"dropout probability must be in [0, 1), got {probability}")
        self.probability = probability

    def forward(self, inputs: Tensor) -> Tensor:
        """(batch, time, feature) -> the same shape."""
        if not self.training or self.probability == 0:
            return inputs
        return inputs * F.dropout(torch.ones_like(inputs[:, :1]), self.probability)

    def extra_repr(self) -> str:
        """Probability, for printing."""
        return f"{self.probability:g}"


class RecurrentLanguageModel(nn.Module):
    """Next-word logits from an embedding and projected LSTM layers.

    Args:
        vocabulary: number of words.
        embedding: size of the word vectors.
        num_layers: LSTM layers.
        num_cells: memory cells of each.
        num_recurrent, num_nonrecurrent: outputs of each, fed back and not.
        tied: the output layer shares the word vectors (Press and Wolf 2017); needs embedding = recurrent +
            nonrecurrent.
        dropout: probability, before each LSTM and before the output layer.
        **options: of `ProjectedLstm`.
    """

    def __init__(
        self,
        vocabulary: int,
        embedding: int = 256,
        num_layers: int = 2,
        num_cells: int = 512,
        num_recurrent: int = 128,
        num_nonrecurrent: int = 128,
        *,
        tied: bool = False,
        dropout: float = 0.0,
        **options: object,
    ) -> None:
        super().__init__()
        width = num_recurrent + num_nonrecurrent
        if tied and embedding != width:
            raise MisuseError(
                f"tied word vectors need embedding = recurrent + nonrecurrent, got {embedding} and {width}")
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.layers = nn.ModuleList(
            ProjectedLstm(width if index else embedding, num_cells, num_recurrent, num_nonrecurrent, **options)
            for index in range(num_layers))
        self.dropout = LockedDropout(dropout)
        self.output = nn.Linear(width, vocabulary)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        nn.init.uniform_(self.output.weight, -0.1, 0.1)
        nn.init.zeros_(self.output.bias)
        if tied:
            self.output.weight = self.embedding.weight

    def forward(
        self, words: Tensor, state: Sequence[LstmState] | None = None
    ) -> tuple[Tensor, list[LstmState]]:
        """Logits of the word after each word, and the state to go on with.

        The state is detached: gradients stop at the start of a chunk (truncated back-propagation through time).

        Args:
            words: (batch, time), integers.
            state: of the call before, for text that goes on; None at the start.

        Returns:
            (batch, time, vocabulary) and the new state.
        """
        hidden, carried = self.embedding(words), []
        for layer, layer_state in zip(self.layers, state or [None] * len(self.layers), strict=True):
            hidden, (recurrent, cell) = layer(self.dropout(hidden), layer_state)
            carried.append((recurrent.detach(), cell.detach()))
        return self.output(self.dropout(hidden)), carried


@torch.no_grad()
def perplexity(model: RecurrentLanguageModel, words: Tensor, *, chunk: int = 256) -> float:
    """exp of the mean of -log P(w_t | w_1 .. w_{t-1}) over t >= 2, the state carried from chunk to chunk.

    Args:
        model: the language model; used in evaluation mode and left in its own.
        words: (time,) or (batch, time): each row one running text.
        chunk: words processed at a time; bounds the memory, does not change the result.
    """
    words = torch.atleast_2d(words)
    if words.shape[1] < 2:
        raise MisuseError("perplexity needs at least two words: the first is only a history")
    total, state = 0.0, None
    with _evaluating(model):
        for start in range(0, words.shape[1] - 1, chunk):
            targets = words[:, start + 1 : start + 1 + chunk]
            logits, state = model(words[:, start : start + targets.shape[1]], state)
            total += F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum").item()
    return math.exp(total / words[:, 1:].numel())


@torch.no_grad()
def sentence_log_probabilities(
    model: RecurrentLanguageModel, sentences: Sequence[Sequence[int]], boundary: int
) -> Tensor:
    """log P(sentence and its end | its start) of each sentence, e.g. to rescore the hypotheses of a recogniser.

    Args:
        model: the language model; used in evaluation mode and left in its own.
        sentences: word numbers, without boundaries; may be empty.
        boundary: the word that stands for the start and the end of a sentence.

    Returns:
        (sentence,), natural logarithms.
    """
    device = model.embedding.weight.device
    ended = [torch.tensor([*sentence, boundary], device=device) for sentence in sentences]
    targets = nn.utils.rnn.pad_sequence(ended, batch_first=True, padding_value=-100)
    history = F.pad(targets.clamp(min=0)[:, :-1], (1, 0), value=boundary)
    with _evaluating(model):
        logits, _ = model(history)
    return -F.cross_entropy(logits.transpose(1, 2), targets, reduction="none", ignore_index=-100).sum(1)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
