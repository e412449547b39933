"""Audio and transcripts to graphs and back: corpora, features, lexicon, alignment, decoding, scoring."""

from hemstitch.speech._align import Alignment, Segment, align, equal_alignment
from hemstitch.speech._alignment_files import (
    Interval,
    alignment_from_phones,
    in_frames,
    in_seconds,
    read_ctm,
    read_kaldi_alignment,
    read_kaldi_phones,
    write_ctm,
    write_kaldi_alignment,
    write_textgrid,
)
from hemstitch.speech._augment import (
    AugmentOptions,
    add_noise,
    change_speed,
    change_volume,
    mask_windows,
    speed_perturbed,
    warp_time,
)
from hemstitch.speech._augmented_corpus import augmented_corpus
from hemstitch.speech._blanks import with_blanks
from hemstitch.speech._broken import BrokenUtterance
from hemstitch.speech._compile import DecodingGraph, decoding_graph, training_graph
from hemstitch.speech._convert import convert_alignment, subsample_alignment
from hemstitch.speech._corpus import Corpus
from hemstitch.speech._decode import DecodeOptions, Hypothesis, decode, log_priors, scaled_loglikelihoods
from hemstitch.speech._download import RESOURCES, Resource, download, download_resource
from hemstitch.speech._feature_options import FeatureOptions
from hemstitch.speech._feature_set import FeatureSet, Statistics
from hemstitch.speech._features import compute_features
from hemstitch.speech._gaussian import Gaussians
from hemstitch.speech._importers import (
    IMPORTERS,
    import_an4,
    import_an4_audio,
    import_corpus,
    import_fsdd_strings,
    import_kaldi,
    import_librispeech,
    import_speechocean762,
    import_synthetic_digits,
    import_wav_tree,
    import_yesno,
)
from hemstitch.speech._language_model import LanguageModel, NGram
from hemstitch.speech._lattice_decode import Alternative, LatticeDecoder, Recognised, write_slf
from hemstitch.speech._lexicon import Lexicon, Pronunciation
from hemstitch.speech._manifest import Utterance
from hemstitch.speech._ngram import Perplexity, estimate_ngrams, perplexity
from hemstitch.speech._positions import position_dependent
from hemstitch.speech._questions import phone_questions
from hemstitch.speech._resample import resample
from hemstitch.speech._rescore import BestLists, Candidate, rescore
from hemstitch.speech._score import ErrorCounts, WordErrorRate, word_error_rate
from hemstitch.speech._speaker_embedding import SpeakerEmbedding, append_embedding
from hemstitch.speech._spoken import estimate_pronunciations, estimate_silence_probability
from hemstitch.speech._tied import Root, Split, TiedTopology
from hemstitch.speech._topology import HmmState, Topology
from hemstitch.speech._tree import tie_states
from hemstitch.speech._tree_statistics import TreeStatistics
from hemstitch.speech._unknown_words import resolve_unknown, with_garbage

__all__ = [
    "IMPORTERS",
    "RESOURCES",
    "Alignment",
    "Alternative",
    "AugmentOptions",
    "BestLists",
    "BrokenUtterance",
    "Candidate",
    "Corpus",
    "DecodeOptions",
    "DecodingGraph",
    "ErrorCounts",
    "FeatureOptions",
    "FeatureSet",
    "Gaussians",
    "HmmState",
    "Hypothesis",
    "Interval",
    "LanguageModel",
    "LatticeDecoder",
    "Lexicon",
    "NGram",
    "Perplexity",
    "Pronunciation",
    "Recognised",
    "Resource",
    "Root",
    "Segment",
    "SpeakerEmbedding",
    "Split",
    "Statistics",
    "TiedTopology",
    "Topology",
    "TreeStatistics",
    "Utterance",
    "WordErrorRate",
    "add_noise",
    "align",
    "alignment_from_phones",
    "append_embedding",
    "augmented_corpus",
    "change_speed",
    "change_volume",
    "compute_features",
    "convert_alignment",
    "decode",
    "decoding_graph",
    "download",
    "download_resource",
    "equal_alignment",
    "estimate_ngrams",
    "estimate_pronunciations",
    "estimate_silence_probability",
    "import_an4",
    "import_an4_audio",
    "import_corpus",
    "import_fsdd_strings",
    "import_kaldi",
    "import_librispeech",
    "import_speechocean762",
    "import_synthetic_digits",
    "import_wav_tree",
    "import_yesno",
    "in_frames",
    "in_seconds",
    "log_priors",
    "mask_windows",
    "perplexity",
    "phone_questions",
    "position_dependent",
    "read_ctm",
    "read_kaldi_alignment",
    "read_kaldi_phones",
    "resample",
    "rescore",
    "resolve_unknown",
    "scaled_loglikelihoods",
    "speed_perturbed",
    "subsample_alignment",
    "tie_states",
    "training_graph",
    "warp_time",
    "with_blanks",
    "with_garbage",
    "word_error_rate",
    "write_ctm",
    "write_kaldi_alignment",
    "write_slf",
    "write_textgrid",
]
