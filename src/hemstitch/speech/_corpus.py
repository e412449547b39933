"""A corpus: one folder with a fixed layout.

::

    corpus.json        {"name": ..., "sampling_rate": 8000, "licence": ..., "attribution": ...}
    utterances.jsonl   one utterance a line (see hemstitch.speech.Utterance)
    lexicon.txt        WORD PHONE PHONE ..., one pronunciation a line
    lm.arpa            optional, and any other *.arpa beside it
    audio/... or features.npy

A corpus without audio has ``frame_shift`` (seconds) in place of ``sampling_rate``. ``corpus.json`` may also have
``description`` and ``silence``, the phone that stands for silence ("SIL").
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hemstitch.errors import DataError
from hemstitch.speech._broken import BrokenUtterance, Unusable, enforce_tolerance
from hemstitch.speech._files import new_file
from hemstitch.speech._manifest import Utterance, json_object, parse_utterance, unknown_key
from hemstitch.speech._media import StoredFeatures, check_audio

ABOUT, MANIFEST, LEXICON = "corpus.json", "utterances.jsonl", "lexicon.txt"
ABOUT_TYPES = {"name": str, "sampling_rate": int, "frame_shift": float, "licence": str, "attribution": str,
               "description": str, "silence": str}


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Utterances and what belongs to them; immutable, so parts of it are corpora too.

    Attributes:
        folder: where its files are.
        name: what to call it.
        utterances: in the order of the manifest.
        sampling_rate: of the audio in Hz; ``None`` where features are stored instead.
        frame_shift: of the stored features in seconds; ``None`` where there is audio.
        licence, attribution: of the data; keep them with every copy.
        description: one line on where it comes from.
        silence: the phone that stands for silence.
        broken: utterances that :meth:`load` left out.
    """

    folder: Path
    name: str
    utterances: tuple[Utterance, ...]
    sampling_rate: int | None = None
    frame_shift: float | None = None
    licence: str = ""
    attribution: str = ""
    description: str = ""
    silence: str = "SIL"
    broken: tuple[BrokenUtterance, ...] = ()

    @classmethod
    def load(cls, folder: Path | str, *, tolerance: float = 0.0, check_media: bool = True) -> Corpus:
        """Read a corpus folder strictly.

        Args:
            folder: the corpus folder.
            tolerance: largest share of broken utterances accepted; these are left out and listed in ``broken``.
            check_media: look at each audio header and feature range; without, a broken file is found when it is read.

        Raises:
            DataError: names file, line, key and remedy.

        Cost: about 0.1 ms per utterance with audio.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise DataError(f"no corpus folder {folder}: correct the path, or make one with `hemstitch data`")
        for name in (ABOUT, MANIFEST, LEXICON):
            if not (folder / name).is_file():
                raise DataError(f"{folder / name} is missing: a corpus folder needs {ABOUT}, {MANIFEST} and {LEXICON}")
        about = _read_about(folder / ABOUT)
        corpus = cls(folder=folder, utterances=(), **about)
        utterances, broken = corpus._read_manifest(check_media)
        total = len(utterances) + len(broken)
        if total:
            enforce_tolerance(broken, total, tolerance)
        if not utterances:
            raise DataError(f"{folder / MANIFEST} holds no usable utterance: expected one JSON object a line")
        return dataclasses.replace(corpus, utterances=tuple(utterances), broken=tuple(broken))

    def save(self) -> None:
        """Write ``corpus.json`` and ``utterances.jsonl`` into the folder; audio, lexicon and LMs are left alone."""
        about = {key: getattr(self, key) for key in ABOUT_TYPES if getattr(self, key) not in (None, "")}
        with new_file(self.folder / ABOUT) as path:
            path.write_text(json.dumps(about, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        with new_file(self.folder / MANIFEST) as path:
            path.write_text("".join(u.to_json() + "\n" for u in self.utterances), encoding="utf-8")

    def __len__(self) -> int:
        return len(self.utterances)

    def __iter__(self) -> Iterator[Utterance]:
        return iter(self.utterances)

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of its parts, sorted."""
        return tuple(sorted({u.split for u in self.utterances}))

    @property
    def speakers(self) -> tuple[str, ...]:
        """Its speakers, sorted."""
        return tuple(sorted({u.speaker for u in self.utterances}))

    @property
    def lexicon(self) -> Path:
        """Its pronunciation lexicon."""
        return self.folder / LEXICON

    def language_model(self, name: str = "lm.arpa") -> Path:
        """The ARPA file of that name in the folder.

        Raises:
            DataError: it is not there; lists those that are.
        """
        path = self.folder / name
        if not path.is_file():
            found = ", ".join(sorted(p.name for p in self.folder.glob("*.arpa"))) or "none"
            raise DataError(f"language model {path} is missing: language models in this folder: {found}")
        return path

    def where(self, utterance: Utterance) -> str:
        """``file:line`` of an utterance, for messages."""
        return f"{self.folder / MANIFEST}:{utterance.line}"

    def select(self, *splits: str) -> Corpus:
        """The utterances of these splits.

        Raises:
            DataError: there is no such split; lists those that are.
        """
        if missing := [split for split in splits if split not in self.splits]:
            raise DataError(f"corpus {self.name} has no split {missing[0]!r}: it has {', '.join(self.splits)}")
        return self._with(u for u in self.utterances if u.split in splits)

    def keep(self, ids: Collection[str]) -> Corpus:
        """The utterances with these ids."""
        wanted = frozenset(ids)
        return self._with(u for u in self.utterances if u.id in wanted)

    def split_by_speaker(self, amount: float, *, seed: int = 0, split: str = "train", into: str = "dev") -> Corpus:
        """Move whole speakers of ``split`` into a split of their own; the choice depends on nothing but the seed.

        Args:
            amount: number of speakers (an integer), or their share (a float in (0, 1)); at least one moves, one stays.
            seed: chooses the speakers.
            split: where they are taken from.
            into: name of the new split.

        Raises:
            DataError: there are too few speakers.
        """
        speakers = _shuffled(self.select(split).speakers, seed)
        share = 0 < amount < 1
        count = max(1, min(len(speakers) - 1, round(amount * len(speakers)))) if share else amount
        if not (0 < count < len(speakers) and isinstance(count, int)):
            raise DataError(f"cannot hold out {amount} of the {len(speakers)} speakers of split {split!r} of "
                            f"{self.name}: give a share between 0 and 1, or a number below theirs")
        chosen = frozenset(speakers[:count])
        return self._with(dataclasses.replace(u, split=into) if u.split == split and u.speaker in chosen else u
                          for u in self.utterances)

    def speaker_folds(self, count: int, *, seed: int = 0) -> tuple[Corpus, ...]:
        """Copies for cross-validation by speaker, all splits pooled: in copy i, fold i is "test" and the rest "train".

        Each speaker is in one fold; folds have about equally many utterances.

        Raises:
            DataError: there are fewer speakers than folds, or fewer than two folds.
        """
        if not 2 <= count <= len(self.speakers):
            raise DataError(f"cannot make {count} folds of the {len(self.speakers)} speakers of {self.name}: "
                            f"choose 2 to {len(self.speakers)}")
        sizes = {speaker: 0 for speaker in _shuffled(self.speakers, seed)}
        for utterance in self.utterances:
            sizes[utterance.speaker] += 1
        filled, fold_of = [0] * count, {}
        for speaker in sorted(sizes, key=lambda s: -sizes[s]):  # stable: ties stay shuffled
            fold_of[speaker] = filled.index(min(filled))
            filled[fold_of[speaker]] += sizes[speaker]
        return tuple(
            self._with(dataclasses.replace(u, split="test" if fold_of[u.speaker] == fold else "train")
                       for u in self.utterances)
            for fold in range(count)
        )

    def _with(self, utterances: Iterable[Utterance]) -> Corpus:
        return dataclasses.replace(self, utterances=tuple(utterances))

    def _read_manifest(self, check_media: bool) -> tuple[list[Utterance], list[BrokenUtterance]]:
        manifest = self.folder / MANIFEST
        stored = StoredFeatures(self.folder)
        lines: dict[str, int] = {}
        utterances: list[Utterance] = []
        broken: list[BrokenUtterance] = []
        for number, text in enumerate(manifest.read_bytes().split(b"\n"), start=1):
            if not text.strip():
                continue
            utterance = None
            try:
                utterance = parse_utterance(text, number)
                if first := lines.get(utterance.id):
                    raise Unusable(f"the id is already used in line {first}: give each utterance its own")
                lines[utterance.id] = number
                self._check_media(utterance, stored if check_media else None)
                utterances.append(utterance)
            except Unusable as error:
                name = utterance.id if utterance else error.id
                broken.append(BrokenUtterance(name, f"{manifest}:{number}", str(error)))
        return utterances, broken

    def _check_media(self, utterance: Utterance, stored: StoredFeatures | None) -> None:
        if (utterance.audio is None) == (self.sampling_rate is not None):
            expected, about = ("audio", "sampling_rate") if self.sampling_rate else ("features", "frame_shift")
            raise Unusable(f"needs the key {expected!r}, as {ABOUT} has {about!r}")
        if stored is None:
            return
        if utterance.audio is not None:
            assert self.sampling_rate is not None
            check_audio(self.folder / utterance.audio, self.sampling_rate)
        elif utterance.features is not None:
            stored.check(*utterance.features)


def _shuffled(names: Iterable[str], seed: int) -> list[str]:
    """An order that depends on the seed and each name alone: another speaker more does not reshuffle the others."""
    return sorted(names, key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).digest())


def _read_about(path: Path) -> Mapping[str, Any]:
    try:
        about = json_object(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 at byte {error.start}: save it as UTF-8") from None
    except ValueError as error:
        raise DataError(f"{path}: {error}") from None
    for key, value in about.items():
        if key not in ABOUT_TYPES:
            raise DataError(f"{path}: {unknown_key(key, ABOUT_TYPES)}")
        expected = ABOUT_TYPES[key]
        if not isinstance(value, (int, float) if expected is float else expected) or isinstance(value, bool):
            raise DataError(f"{path}: key {key!r} needs a {expected.__name__}, got {value!r}")
        if expected is not str and not 0 < value < math.inf:
            raise DataError(f"{path}: key {key!r} must be positive and finite, got {value!r}")
    if len(about.get("silence", "SIL").split()) != 1:
        raise DataError(f"{path}: key 'silence' needs the name of one phone, got {about['silence']!r}")
    if "name" not in about:
        raise DataError(f"{path}: key 'name' is missing: add it")
    if ("sampling_rate" in about) == ("frame_shift" in about):
        raise DataError(f"{path}: needs exactly one of 'sampling_rate' (Hz, audio) and 'frame_shift' (s, features)")
    return about
