"""speechocean762: English read by learners whose mother tongue is Mandarin; sentences, and digit strings of children.

Reference: J. Zhang et al., "speechocean762: an open-source non-native English speech corpus for pronunciation
assessment", Interspeech 2021.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from hemstitch.errors import DataError
from hemstitch.speech._corpus import Corpus
from hemstitch.speech._importers._archive import read_manifest, unpacked
from hemstitch.speech._importers._assemble import Progress, Sound, assemble
from hemstitch.speech._importers._digits import PRONUNCIATIONS, write_uniform_lm
from hemstitch.speech._importers._recording import Recording
from hemstitch.speech._importers._words import Words

WORDS_PER_STRING = 4
KEYS = ("speaker", "text")


def import_speechocean762(
    source: Path,
    target: Path,
    *,
    material: Literal["sentences", "digits"] = "sentences",
    lm: str = "",
    stress: bool = False,
    sampling_rate: int = 0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Corpus:
    """Make a corpus folder of NAME.tar (Ogg Opus), NAME.jsonl and lexicon.txt, for NAME in train and test.

    (The corpus as its authors hand it out is a pair of Kaldi data directories: use the importer kaldi.)

    Args:
        source: folder with these files; for digits, NAME is digits_train and digits_test.
        target: the corpus folder; must not exist yet.
        material: sentences of adults, or digit strings of children.
        lm: ARPA file; without, the word frequencies of the training part, or for digits the ten equally likely.
        stress: keep the stress marks of vowels.
        sampling_rate: in Hz; 0: 16000, as it is. 8000 goes with digits trained on telephone bandwidth.
        overwrite: replace what is there.
        progress: called with (utterances done, utterances).

    Raises:
        DataError: ``source`` is not as expected; names file and line.
    """
    source = Path(source)
    if not (source / "lexicon.txt").is_file():
        raise DataError(f"{source / 'lexicon.txt'} is missing: give the folder of the repacked speechocean762")
    prefix = "digits_" if material == "digits" else ""
    with contextlib.ExitStack() as stack:
        recordings = []
        for split in ("train", "test"):
            name = f"{prefix}{split}"
            files = stack.enter_context(unpacked([source / f"{name}.tar", source / name], (".ogg", ".wav")))
            recordings += _recordings(source / f"{name}.jsonl", files, split)
        if material == "digits" and not lm:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="hemstitch-"))
            lm = str(Path(folder) / "lm.arpa")
            write_uniform_lm(Path(lm), [word.upper() for word in PRONUNCIATIONS], WORDS_PER_STRING)
        return assemble(
            Path(target), recordings, words=Words(lexicon=str(source / "lexicon.txt"), lm=lm, stress=stress),
            sound=Sound(sampling_rate=sampling_rate), overwrite=overwrite, progress=progress,
            about={"name": f"speechocean762-{material}", "description": "English of learners, as Ogg Opus",
                   "licence": "free for commercial and non-commercial use (README of the source)",
                   "attribution": "speechocean762, J. Zhang et al., Interspeech 2021; transcoded to Opus"},
        )


def _recordings(manifest: Path, files: Mapping[str, Path], split: str) -> list[Recording]:
    return [
        Recording(id=Path(entry["path"]).stem, speaker=entry["speaker"], text=entry["text"], split=split,
                  audio=files[Path(entry["path"]).name], where=where,
                  info={key: entry[key] for key in ("gender", "age", "phones") if key in entry})
        for entry, where in read_manifest(manifest, files, KEYS)
    ]
