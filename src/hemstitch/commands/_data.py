"""Commands on corpora: import and check."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hemstitch.commands._show import show
from hemstitch.speech import Corpus
from hemstitch.train import Console, make_corpus
from hemstitch.train._config import read_overrides


def import_corpus(name: str, source: Path | None, folder: Path, settings: Sequence[str]) -> int:
    """Make a corpus folder with an importer."""
    options = [f"{key}={show(value)}" for key, (value, _) in read_overrides(settings).items()]
    make_corpus(name, source, folder, options, Console())
    return check_corpus(folder)


def check_corpus(folder: Path) -> int:
    """Read a corpus folder strictly and say what is in it."""
    corpus = Corpus.load(folder)
    for split in corpus.splits:
        part = corpus.select(split)
        words = sum(len(u.text.split()) for u in part)
        counts = ((len(part), "utterance"), (len(part.speakers), "speaker"), (words, "word"))
        print(f"{split}: " + ", ".join(f"{n} {noun}{'' if n == 1 else 's'}" for n, noun in counts))
    return 0
