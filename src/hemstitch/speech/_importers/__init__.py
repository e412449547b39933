"""Importers: from data as they are handed out to a corpus folder."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hemstitch.errors import ConfigError, DataError
from hemstitch.speech._corpus import Corpus
from hemstitch.speech._importers._an4 import import_an4
from hemstitch.speech._importers._an4_audio import import_an4_audio
from hemstitch.speech._importers._fsdd import import_fsdd_strings
from hemstitch.speech._importers._kaldi import import_kaldi
from hemstitch.speech._importers._librispeech import import_librispeech
from hemstitch.speech._importers._speechocean762 import import_speechocean762
from hemstitch.speech._importers._synthetic import import_synthetic_digits
from hemstitch.speech._importers._wav_tree import import_wav_tree
from hemstitch.speech._importers._yesno import import_yesno
from hemstitch.speech._manifest import unknown_key

IMPORTERS: Mapping[str, tuple[Callable[..., Corpus], str]] = {
    "an4": (import_an4, "CMU AN4: spelled letters, numbers, months; stored cepstra (train.npz, an4.dic ...)"),
    "an4-audio": (import_an4_audio, "CMU AN4 with audio (etc/an4_train.fileids, wav/an4_clstk/...)"),
    "fsdd-strings": (import_fsdd_strings, "Free Spoken Digit Dataset: its clips joined to connected digits"),
    "kaldi": (import_kaldi, "Kaldi data directories (wav.scp, text, utt2spk, segments)"),
    "librispeech": (import_librispeech, "LibriSpeech, Mini LibriSpeech and trees like them (.flac and .trans.txt)"),
    "speechocean762": (import_speechocean762, "English of learners: sentences, or digit strings of children"),
    "synthetic-digits": (import_synthetic_digits, "connected digits synthesised offline in many voices; reads nothing"),
    "wav-tree": (import_wav_tree, "a folder of audio files with transcripts beside them or in one table"),
    "yesno": (import_yesno, "OpenSLR's yesno: one speaker, eight times yes or no a file"),
}
"""Name -> (function, one line on what it reads)."""

FIXED = ("source", "target", "progress")


def import_corpus(
    name: str,
    target: Path | str,
    *,
    source: Path | str | None = None,
    settings: Sequence[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Corpus:
    """Run an importer by its name, with settings as a recipe or the command line gives them.

    Args:
        name: key of ``IMPORTERS``.
        target: the corpus folder to write; must not exist yet.
        source: what the importer reads.
        settings: each "name=value", a keyword argument of the importer.
        progress: called with (done, total) now and then.

    Raises:
        ConfigError: unknown importer or setting, wrong value, missing or needless source.
        DataError: the source cannot be used or the target not be written.
    """
    if name not in IMPORTERS:
        raise ConfigError(f"importer: {unknown_key(name, IMPORTERS)}")
    function = IMPORTERS[name][0]
    needs_source = "source" in inspect.signature(function).parameters
    if needs_source != (source is not None):
        raise ConfigError(f"importer {name} " + ("needs a source: --source FOLDER, what it reads" if needs_source
                                                 else f"reads nothing: leave out the source {source}"))
    if source is not None and not Path(source).exists():
        raise DataError(f"importer {name}: there is no {source}. Give the place of the data: --data.source FOLDER of a "
                        "recipe, --source FOLDER of `hemstitch data`; `hemstitch download` lists what can be fetched")
    arguments = {"source": Path(source)} if source is not None else {}
    return function(**arguments, target=Path(target), progress=progress, **_settings(name, function, settings))


def _settings(name: str, function: Callable[..., Corpus], settings: Sequence[str]) -> dict[str, Any]:
    hints = {key: hint for key, hint in typing.get_type_hints(function).items() if key not in (*FIXED, "return")}
    values = {}
    for setting in settings:
        key, _, text = setting.partition("=")
        if key not in hints:
            raise ConfigError(f"importer {name}: {unknown_key(key, hints)}; settings are given as name=value")
        values[key] = _value(text, hints[key], f"importer {name}: {key}")
    return values


def _value(text: str, hint: Any, where: str) -> Any:
    if typing.get_origin(hint) is typing.Literal:
        if text not in typing.get_args(hint):
            raise ConfigError(f"{where} must be one of {', '.join(typing.get_args(hint))}, got {text!r}")
        return text
    if hint is bool and text in ("true", "false"):
        return text == "true"
    kind = next((k for k in (int, float) if k is hint), str)
    try:
        if hint is not bool:
            return kind(text)
    except ValueError:
        pass
    raise ConfigError(f"{where} needs {getattr(hint, '__name__', hint)}, got {text!r}") from None
