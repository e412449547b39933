"""The language models of a speech recipe: files of the corpus, or n-grams of the training transcripts."""

from __future__ import annotations

import re
from collections.abc import Sequence

from hemstitch.errors import DataError
from hemstitch.speech import Corpus, LanguageModel, estimate_ngrams


def language_model(
    name: str, corpus: Corpus, sentences: Sequence[Sequence[str]], words: Sequence[str],
    setting: str = "decode.language_model",
) -> LanguageModel:
    """The model that a recipe names.

    Args:
        name: of an ARPA file in the corpus folder (or its path); or "3-gram" and the like: estimated on ``sentences``
            (Witten-Bell, so that few data do).
        corpus: its folder is looked in.
        sentences: the training transcripts.
        words: of the lexicon; an estimated model allows them all.
        setting: that names it, for messages.

    Raises:
        DataError: there is no such file, or it is no ARPA file.
    """
    if found := re.fullmatch(r"([1-9])-gram", name):
        return estimate_ngrams(sentences, int(found[1]), method="witten-bell", words=words)
    try:
        path = corpus.language_model(name)
    except DataError as error:
        raise DataError(f"{setting}: {error}. Name one of them, or \"3-gram\" and the like") from None
    return LanguageModel.read(path)
