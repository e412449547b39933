"""Corpora of recipes: loaded, or made by an importer first."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from hemstitch.errors import ConfigError, DataError
from hemstitch.speech import IMPORTERS, Corpus, import_corpus
from hemstitch.train._config import nearest
from hemstitch.train._console import Console
from hemstitch.train._options import SpeechData


def open_corpus(options: SpeechData, console: Console) -> Corpus:
    """The corpus of a recipe, cut as it says; its importer makes it if the folder is not there.

    Raises:
        DataError: no such folder and no importer, or bad content.
    """
    if not options.corpus.exists():
        if options.importer is None:
            raise DataError(
                f"{options.corpus}: no such corpus folder. Set data.importer (see `hemstitch list`) and data.source, "
                "or make it with `hemstitch data`."
            )
        make_corpus(options.importer, options.source, options.corpus, options.importer_options, console)
    corpus = Corpus.load(options.corpus, tolerance=options.tolerance)
    return take_fold(corpus, options) if options.fold else corpus


def take_fold(corpus: Corpus, options: SpeechData) -> Corpus:
    """All parts of the recipe pooled: one fold of the speakers becomes the test part, the rest the training part."""
    pooled = corpus.select(options.train, options.test, *{options.dev}.intersection(corpus.splits))
    cut = pooled.speaker_folds(options.folds, seed=options.fold_seed)[options.fold - 1]
    names = {"train": options.train, "test": options.test}
    return dataclasses.replace(cut, utterances=tuple(dataclasses.replace(u, split=names[u.split]) for u in cut))


def make_corpus(name: str, source: Path | None, folder: Path, settings: Sequence[str], console: Console) -> None:
    """Run an importer, with a progress bar."""
    if name not in IMPORTERS:
        raise ConfigError(f"no importer {name!r}: {nearest(name, list(IMPORTERS))}")
    console.say(f"importing {name} into {folder}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with console.progress(100, f"importing {name}") as bar:
        import_corpus(
            name,
            folder,
            source=source,
            settings=settings,
            progress=lambda done, total: bar.update(100 * done // max(total, 1), f"importing {name}"),
        )
