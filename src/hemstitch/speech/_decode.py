"""From log-likelihoods to words.

A network gives posteriors p(s | x); the search wants likelihoods p(x | s) = p(s | x) p(x) / p(s), where p(x) is the
same for all hypotheses: the hybrid system uses log p(s | x) - log p(s).

Reference: H. Bourlard, N. Morgan, "Connectionist Speech Recognition: A Hybrid Approach" (1994), chapter 7.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from hemstitch.errors import DataError
from hemstitch.graphs import Graph, Path, beam_search
from hemstitch.speech._align import Alignment, Segment, segments
from hemstitch.speech._compile import DecodingGraph

Array = TypeVar("Array", np.ndarray, Tensor)


@dataclass(frozen=True, kw_only=True)
class DecodeOptions:
    """How to search.

    Attributes:
        beam: largest cost above the best token, in nats after scaling.
        max_active: most tokens followed in a frame.
        acoustic_scale: weight of a log-likelihood beside the language model, usually 0.05 to 0.3: neighbouring frames
            resemble each other, so their likelihoods must not count as independent.
        word_penalty: added to the cost of every word, in nats; > 0: fewer insertions, more deletions.
    """

    beam: float = 14.0
    max_active: int = 7000
    acoustic_scale: float = 0.1
    word_penalty: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Hypothesis:
    """What was recognised.

    Attributes:
        words: with their first frame and the frame after their last.
        phones: likewise, silence among them.
        cost: of the best path, in nats, after scaling.
        reached_final: whether the path is a whole sentence; else it is the best beginning of one.
    """

    words: tuple[Segment, ...]
    phones: tuple[Segment, ...]
    cost: float
    reached_final: bool

    @property
    def text(self) -> str:
        """The words, separated by blanks."""
        return " ".join(word.label for word in self.words)


def decode(loglikes: np.ndarray | Tensor, graph: DecodingGraph, options: DecodeOptions | None = None) -> Hypothesis:
    """The best sentence by beam search.

    Args:
        loglikes: (frames, pdfs) log-likelihoods in nats, see :func:`scaled_loglikelihoods`.
        graph: from :func:`decoding_graph`.
        options: how to search; ``None``: the defaults.

    Raises:
        DataError: the log-likelihoods have too few columns.
        NonFiniteError: a log-likelihood is NaN or +inf.
        MisuseError: an option is out of range.
    """
    options = options or DecodeOptions()
    searched = penalised(graph.graph, options.word_penalty)
    path = beam_search(searched, loglikes, options.beam, options.max_active, options.acoustic_scale)
    return hypothesis(path, graph)


def penalised(graph: Graph, word_penalty: float) -> Graph:
    """The graph with a cost on every word."""
    if not word_penalty:
        return graph
    assert graph.label is not None  # decoding graphs have labels
    return replace(graph, cost=graph.cost + word_penalty * (graph.label > 0))


def hypothesis(path: Path, graph: DecodingGraph) -> Hypothesis:
    """Words and phones of a path through a decoding graph."""
    phones, words = segments(path, graph.phones, graph.words)
    return Hypothesis(words=words, phones=phones, cost=path.cost, reached_final=path.reached_final)


def log_priors(alignments: Iterable[Alignment], num_pdfs: int, smoothing: float = 1.0) -> np.ndarray:
    """log p(s) of each pdf from its share of aligned frames: (count(s) + c) / sum_r (count(r) + c).

    Args:
        alignments: of the training data.
        num_pdfs: P.
        smoothing: c > 0, counted once for every pdf, so that none has a prior of zero.

    Returns:
        (P,) float32, in nats.
    """
    counts = np.full(num_pdfs, smoothing, dtype=np.float64)
    for alignment in alignments:
        counts += np.bincount(alignment.pdfs, minlength=num_pdfs)
    return np.log(counts / counts.sum()).astype(np.float32)


def scaled_loglikelihoods(log_posteriors: Array, log_priors: np.ndarray | Tensor, prior_scale: float = 1.0) -> Array:
    """log p(s | x) - prior_scale log p(s).

    Args:
        log_posteriors: (frames, pdfs) in nats.
        log_priors: (pdfs,) in nats, see :func:`log_priors`.
        prior_scale: usually 1; below 1 it trusts rare pdfs less.

    Raises:
        DataError: the shapes differ, or a prior is zero.
    """
    priors = torch.as_tensor(log_priors)
    if log_posteriors.ndim != 2 or tuple(priors.shape) != tuple(log_posteriors.shape[1:]):
        raise DataError(f"posteriors of shape {tuple(log_posteriors.shape)} need as many priors as columns, "
                        f"got {tuple(priors.shape)}")
    if not bool(torch.isfinite(priors).all()):
        pdf = int((~torch.isfinite(priors)).nonzero()[0])
        raise DataError(f"the log prior of pdf {pdf} is {float(priors[pdf])}: it never occurred; smooth the counts")
    if isinstance(log_posteriors, Tensor):
        return log_posteriors - prior_scale * priors.to(log_posteriors)
    return log_posteriors - prior_scale * priors.numpy()
