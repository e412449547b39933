"""CMU AN4 (Census): letters, numbers, months and a few command words, as 13 cepstra at 100 frames a second."""

from __future__ import annotations

import re
import shutil
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from hemstitch.errors import DataError
from hemstitch.speech._corpus import LEXICON, Corpus
from hemstitch.speech._files import new_folder
from hemstitch.speech._importers._text import read_text
from hemstitch.speech._manifest import Utterance, json_object

SPLITS = ("train", "test")
FRAME_SHIFT = 0.01
FEATURES = "features.npy"


def import_an4(source: Path, target: Path, *, overwrite: bool = False,
               progress: Callable[[int, int], None] | None = None) -> Corpus:
    """Make a corpus folder of AN4's stored features, its dictionary and its unigram language model.

    The model is AN4's own, unchanged: its 104 words are equally likely, and two words of the test part, THIRTEEN and
    NOVEMBER (once each), are not among them.

    Args:
        source: folder with train.npz, train.jsonl, test.npz, test.jsonl, an4.dic, an4.ug.lm and LICENSE.
        target: the corpus folder; must not exist yet.
        overwrite: replace what is there.
        progress: called with (parts done, parts).

    Raises:
        DataError: a file of ``source`` is missing or not as expected.
    """
    source = Path(source)
    needed = [f"{split}.{kind}" for split in SPLITS for kind in ("npz", "jsonl")] + ["an4.dic", "an4.ug.lm", "LICENSE"]
    if missing := [name for name in needed if not (source / name).is_file()]:
        raise DataError(f"{source} is not AN4 as expected: {', '.join(missing)} missing; "
                        f"needed are {', '.join(needed)}")
    lexicon = _read_dictionary(source / "an4.dic")
    utterances: list[Utterance] = []
    arrays: list[np.ndarray] = []
    for done, split in enumerate(SPLITS, start=1):
        feats, entries = _read_split(source, split, first_row=sum(map(len, arrays)))
        arrays.append(feats)
        utterances += entries
        if progress:
            progress(done, len(SPLITS))
    with new_folder(target, overwrite=overwrite) as folder:
        np.save(folder / FEATURES, np.concatenate(arrays))
        (folder / LEXICON).write_text("".join(f"{word} {phones}\n" for word, phones in lexicon), encoding="utf-8")
        shutil.copyfile(source / "an4.ug.lm", folder / "lm.arpa")
        shutil.copyfile(source / "LICENSE", folder / "LICENSE")
        Corpus(
            folder=folder, name="an4", frame_shift=FRAME_SHIFT, utterances=tuple(utterances),
            licence="free for use for any purpose (commercial or otherwise), see LICENSE",
            attribution="AN4 database, (c) 1991-2005 Carnegie Mellon University",
            description="13 mel cepstra (40 filters, 130-6800 Hz), close-talking microphone",
        ).save()
    return Corpus.load(target)


def _read_dictionary(path: Path) -> list[tuple[str, str]]:
    """(word, phones); a variant WORD(2) is another pronunciation of WORD."""
    entries = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        word, _, phones = " ".join(line.split()).partition(" ")
        if not phones:
            raise DataError(f"{path}:{number}: expected WORD PHONE PHONE ..., got {line!r}")
        entries.append((re.sub(r"\(\d+\)$", "", word), phones))
    return entries


def _read_split(source: Path, split: str, first_row: int) -> tuple[np.ndarray, list[Utterance]]:
    path, manifest = source / f"{split}.npz", source / f"{split}.jsonl"
    try:
        with np.load(path) as content:
            feats, offsets = content["feats"], content["offsets"]
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: expected arrays 'feats' and 'offsets': {error}. Copy the file anew.") from None
    lines = read_text(manifest).splitlines()
    if len(lines) + 1 != len(offsets) or offsets[-1] != len(feats):
        raise DataError(f"{manifest} has {len(lines)} utterances, {path} has {len(offsets) - 1} with "
                        f"{offsets[-1]} of {len(feats)} frames: they do not belong together")
    spans = zip(offsets[:-1] + first_row, offsets[1:] + first_row)
    return feats, [_utterance(line, split, int(first), int(end), f"{manifest}:{number}")
                   for number, (line, (first, end)) in enumerate(zip(lines, spans), start=1)]


def _utterance(line: str, split: str, first: int, end: int, where: str) -> Utterance:
    try:
        entry = json_object(line)
        utterance = Utterance(id=entry["utt"], speaker=entry["speaker"], text=entry["text"], split=split,
                              features=(FEATURES, first, end))
    except ValueError as error:
        raise DataError(f"{where}: {error}. Copy the file anew.") from None
    except KeyError as error:
        raise DataError(f"{where}: key {error} is missing. Copy the file anew.") from None
    if entry.get("num_frames", end - first) != end - first:
        raise DataError(f"{where}: {entry['num_frames']} frames announced, {end - first} stored. Copy the files anew.")
    return utterance
