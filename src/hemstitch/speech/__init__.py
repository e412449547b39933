"""Audio and transcripts to graphs and back: corpora, features, lexicon, alignment, decoding, scoring."""
