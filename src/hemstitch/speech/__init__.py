"""Audio and transcripts to graphs and back: corpora, features, lexicon, alignment, decoding, scoring."""

from hemstitch.speech._align import Alignment, Segment, align, equal_alignment
from hemstitch.speech._compile import DecodingGraph, decoding_graph, training_graph
from hemstitch.speech._decode import DecodeOptions, Hypothesis, decode, log_priors, scaled_loglikelihoods
from hemstitch.speech._language_model import LanguageModel, NGram
from hemstitch.speech._lexicon import Lexicon, Pronunciation
from hemstitch.speech._score import ErrorCounts, WordErrorRate, word_error_rate
from hemstitch.speech._topology import HmmState, Topology

__all__ = [
    "Alignment",
    "DecodeOptions",
    "DecodingGraph",
    "ErrorCounts",
    "HmmState",
    "Hypothesis",
    "LanguageModel",
    "Lexicon",
    "NGram",
    "Pronunciation",
    "Segment",
    "Topology",
    "WordErrorRate",
    "align",
    "decode",
    "decoding_graph",
    "equal_alignment",
    "log_priors",
    "scaled_loglikelihoods",
    "training_graph",
    "word_error_rate",
]
