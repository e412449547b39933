"""The manifest of a corpus: one utterance a line, read strictly.

A line of ``utterances.jsonl`` is a JSON object::

    {"id": "fash-251", "speaker": "fash", "text": "YES NO", "split": "train", "audio": "audio/fash-251.wav"}

with ``"features": ["features.npy", 1200, 1350]`` (file, first row, row after the last) instead of ``audio`` where
there is no audio. Optional are ``word_times`` (``[["YES", 0.12, 0.48], ...]``, seconds) and ``info`` (an object of
anything else one wants to keep).
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from hemstitch.speech._broken import Unusable

REQUIRED = ("id", "speaker", "text", "split")
KEYS = (*REQUIRED, "audio", "features", "word_times", "info")
_NO_TEXT = re.compile(r"[\x00-\x08\x0e-\x1b\x7f\ud800-\udfff]")
"""Control characters and halves of surrogate pairs, which cannot be shown or written to files."""


@dataclass(frozen=True, kw_only=True)
class Utterance:
    """One utterance of a corpus.

    Attributes:
        id: unique name, without white space.
        speaker: who speaks; parts and folds are cut by speaker.
        text: the transcript, words parted by white space; never empty.
        split: the part of the corpus it belongs to: "train", "test", ...
        audio: audio file, relative to the corpus folder; ``None`` where features are stored instead.
        features: (file, first row, row after the last) in a ``.npy`` or ``.npz`` file of the corpus folder.
        word_times: (word, start, end) in seconds, where they are known.
        info: anything else.
        line: line of the manifest, counted from 1; 0 if it did not come from one.
    """

    id: str
    speaker: str
    text: str
    split: str
    audio: str | None = None
    features: tuple[str, int, int] | None = None
    word_times: tuple[tuple[str, float, float], ...] = ()
    info: Mapping[str, Any] = field(default_factory=dict)
    line: int = field(default=0, compare=False)

    @property
    def words(self) -> tuple[str, ...]:
        """The words of the transcript."""
        return tuple(self.text.split())

    def to_json(self) -> str:
        """Its manifest line, without the line break."""
        values = {key: getattr(self, key) for key in KEYS}
        return json.dumps({key: value for key, value in values.items() if value or key in REQUIRED},
                          ensure_ascii=False)


def parse_utterance(text: bytes, line: int) -> Utterance:
    """Read one manifest line.

    Raises:
        Unusable: it is not such a line; names the key and the remedy.
    """
    try:
        entry = json_object(text.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise Unusable(f"not UTF-8 at byte {error.start}: save the manifest as UTF-8") from None
    except ValueError as error:
        raise Unusable(f"{error}: each line must be one complete JSON object") from None
    try:
        return _utterance(entry, line)
    except Unusable as error:
        raise Unusable(str(error), entry["id"] if isinstance(entry.get("id"), str) else "") from None


def json_object(text: str) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ValueError: it is something else; says what.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits, or thousands of brackets
        raise ValueError(f"not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"expected a JSON object {{...}}, got {type(content).__name__}")
    return content


def _utterance(entry: dict[str, Any], line: int) -> Utterance:
    for key in REQUIRED:
        if key not in entry:
            raise Unusable(f"key {key!r} is missing: add it")
        if not isinstance(entry[key], str):
            raise Unusable(f"key {key!r} needs a string, got {entry[key]!r}")
        if not entry[key].strip():
            raise Unusable(f"{key!r} is empty: " + ("write the transcript or remove the line" if key == "text"
                                                    else "fill it in"))
        if found := _NO_TEXT.search(entry[key]):
            raise Unusable(f"key {key!r} has the control character {found[0]!r} in it: remove it")
    if len(entry["id"].split()) != 1 or entry["id"] != entry["id"].strip():
        raise Unusable(f"id {entry['id']!r} has white space in it: ids go into score files, use '-' or '_'")
    if "/" in entry["split"]:
        raise Unusable(f"split {entry['split']!r} has a '/' in it: files are called after splits, use '-' or '_'")
    if unknown := sorted(entry.keys() - set(KEYS)):
        raise Unusable(unknown_key(unknown[0], KEYS) + " (data of your own go under 'info')")
    if ("audio" in entry) == ("features" in entry):
        raise Unusable("needs exactly one of the keys 'audio' and 'features'")
    return Utterance(
        **{key: entry[key] for key in REQUIRED}, audio=_audio(entry), features=_features(entry),
        word_times=_word_times(entry), info=_info(entry), line=line,
    )


def unknown_key(key: str, known: Collection[str]) -> str:
    """Says that ``key`` is unknown and offers the nearest one."""
    nearest = difflib.get_close_matches(key, known, n=1)
    hint = f": did you mean {nearest[0]!r}?" if nearest else f", known are {', '.join(known)}"
    return f"unknown key {key!r}{hint}"


def _audio(entry: dict[str, Any]) -> str | None:
    audio = entry.get("audio")
    if "audio" in entry and not (isinstance(audio, str) and audio):
        raise Unusable(f"key 'audio' needs a path relative to the corpus folder, got {audio!r}")
    return audio


def _features(entry: dict[str, Any]) -> tuple[str, int, int] | None:
    match entry.get("features"):
        case None if "features" not in entry:
            return None
        case [str(file), int(first), int(end)] if 0 <= first < end:
            return file, first, end
        case other:
            raise Unusable(f"key 'features' needs [file, first row, row after the last] with 0 <= first < last, "
                           f"got {other!r}")


def _word_times(entry: dict[str, Any]) -> tuple[tuple[str, float, float], ...]:
    times = entry.get("word_times", [])
    try:
        parsed = tuple((str(word), float(start), float(end)) for word, start, end in times)
    except (TypeError, ValueError):
        raise Unusable(f"key 'word_times' needs a list of [word, start, end] in seconds, got {times!r}") from None
    if not all(0 <= start <= end for _, start, end in parsed):
        raise Unusable("key 'word_times': each word needs 0 <= start <= end")
    return parsed


def _info(entry: dict[str, Any]) -> dict[str, Any]:
    info = entry.get("info", {})
    if not isinstance(info, dict):
        raise Unusable(f"key 'info' needs an object {{...}}, got {info!r}")
    return info
