"""A small corpus folder to break: three speakers, four utterances of audio."""

import json
from pathlib import Path

import numpy as np
import soundfile

RATE = 8000
LINES = [
    {"id": "ann-1", "speaker": "ann", "text": "one two", "split": "train", "audio": "audio/ann-1.wav"},
    {"id": "ann-2", "speaker": "ann", "text": "two", "split": "train", "audio": "audio/ann-2.wav"},
    {"id": "bob-1", "speaker": "bob", "text": "one", "split": "train", "audio": "audio/bob-1.flac"},
    {"id": "cid-1", "speaker": "cid", "text": "two one", "split": "test", "audio": "audio/cid-1.ogg"},
]


def write_corpus(folder: Path, lines=LINES, **about) -> Path:
    """Write the folder; audio is half a second of noise per line."""
    (folder / "audio").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for line in lines:
        if "audio" in line:
            soundfile.write(folder / line["audio"], 0.1 * rng.standard_normal(RATE // 2), RATE)
    (folder / "corpus.json").write_text(json.dumps({"name": "small", "sampling_rate": RATE, **about}))
    write_manifest(folder, lines)
    (folder / "lexicon.txt").write_text("one W AH N\ntwo T UW\n")
    return folder


def write_manifest(folder: Path, lines) -> None:
    """Write the manifest; strings and bytes are written as they are."""
    rows = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    (folder / "utterances.jsonl").write_bytes(b"\n".join(rows) + b"\n")
