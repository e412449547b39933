"""The command that estimates language models for a corpus."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from hemstitch.errors import ConfigError, DataError
from hemstitch.speech import Corpus, Lexicon, estimate_ngrams, perplexity


def estimate_language_model(
    folder: Path, order: int, method: Literal["kneser-ney", "witten-bell"], split: str, text: Path | None,
    out: str | None,
) -> int:
    """Write an ARPA file into a corpus folder, and say what it thinks of the other parts.

    Args:
        folder: the corpus.
        order: of the n-grams, >= 1.
        method: how probability is set free for what was never seen.
        split: part of the corpus whose transcripts are counted.
        text: a file with a sentence a line to count in their place.
        out: name of the file in the corpus folder; ``None``: ``ORDER-gram.arpa``.

    Raises:
        DataError: there are no sentences, or the file cannot be read or written.
        ConfigError: the order is below 1.
    """
    if order < 1:
        raise ConfigError(f"--order must be 1 or more, got {order}")
    corpus = Corpus.load(folder, check_media=False)
    lexicon = Lexicon.read(corpus.lexicon, corpus.silence)
    sentences = [u.text.split() for u in corpus.select(split)] if text is None else _sentences(text)
    name = out or f"{order}-gram.arpa"
    model = estimate_ngrams(sentences, order, method=method, words=lexicon.words)
    model.write(corpus.folder / name)
    sizes = ", ".join(f"{len(listed):,} {n}-grams" for n, listed in enumerate(model.ngrams, start=1))
    print(f"{corpus.folder / name}: {sizes} from {len(sentences):,} sentences")
    if outside := sorted(set(model.vocabulary) - set(lexicon.words)):
        print(f"{len(outside)} words are not in the lexicon and are never recognised, such as {outside[0]}")
    for part in corpus.splits:
        found = perplexity(model, (u.text.split() for u in corpus.select(part)))
        mark = " (counted)" if text is None and part == split else ""
        print(f"{part}{mark}: perplexity {found.value:.2f} over {found.words} words, {found.unknown} unknown")
    print(f"use it with: --decode.language_model {name}")
    return 0


def _sentences(path: Path) -> list[list[str]]:
    try:
        return [words for line in path.read_text(encoding="utf-8").splitlines() if (words := line.split())]
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as text ({error}).") from None
