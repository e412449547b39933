"""Small sources for importers to read: tones, transcripts, a dictionary."""

import hashlib
from pathlib import Path

import numpy as np
import soundfile

RATE = 8000
DICTIONARY = ";;; like CMUdict\none W AH1 N\none(2) HH W AH1 N\ntwo T UW1 # as in too\nthree TH R IY1\n"


def write_tone(path: Path, seconds: float = 0.5, rate: int = RATE, channels: int = 1, **options) -> Path:
    """A tone that grows louder, so that every place in it is different."""
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(round(seconds * rate)) / rate
    samples = 0.5 * np.sin(2 * np.pi * 440 * time) * time / seconds
    soundfile.write(path, np.tile(samples[:, None], (1, channels)).squeeze(), rate, **options)
    return path


def write_dictionary(folder: Path) -> str:
    """A dictionary of three words; returns its path."""
    path = folder / "dictionary.txt"
    path.write_text(DICTIONARY)
    return str(path)


def pcm(path: Path) -> np.ndarray:
    """The samples of a file as 16-bit integers."""
    return soundfile.read(path, dtype="int16")[0]


def digest(folder: Path) -> str:
    """Of every file with its path."""
    total = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        total.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return total.hexdigest()
