"""Tiny data on disk: problems that a network learns in a second, in the formats of real ones."""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np


def write_tiny_corpus(folder: Path, bad_lines: Sequence[str] = ()) -> None:
    """A corpus of stored features: 8 speakers, 3 words of 2 phones, each phone another mean; 10 frames a phone.

    Args:
        folder: where to; must not exist.
        bad_lines: appended to its manifest.
    """
    words = {"ONE": ("A", "B"), "TWO": ("B", "C"), "TEN": ("C", "A")}
    means = {"SIL": (0, 0, 0), "A": (3, 0, 0), "B": (0, 3, 0), "C": (0, 0, 3)}
    random = np.random.default_rng(0)
    folder.mkdir(parents=True)
    frames: list[np.ndarray] = []
    lines = []
    for speaker in range(8):
        for number in range(6):
            spoken = [sorted(words)[i] for i in random.integers(0, 3, random.integers(1, 4))]
            phones = ["SIL", *(p for w in spoken for p in words[w]), "SIL"]
            rows = np.concatenate([np.tile(means[p], (random.integers(8, 13), 1)) for p in phones])
            first = sum(map(len, frames))
            frames.append(rows + random.normal(0, 0.5, rows.shape))
            lines.append(
                {
                    "id": f"s{speaker}-{number}",
                    "speaker": f"s{speaker}",
                    "text": " ".join(spoken),
                    "split": "test" if speaker > 5 else "train",
                    "features": ["features.npy", int(first), int(first + len(rows))],
                }
            )
    np.save(folder / "features.npy", np.concatenate(frames).astype(np.float32))
    text = "".join(json.dumps(line) + "\n" for line in lines) + "".join(f"{line}\n" for line in bad_lines)
    (folder / "utterances.jsonl").write_text(text)
    (folder / "lexicon.txt").write_text("".join(f"{w} {' '.join(p)}\n" for w, p in words.items()))
    (folder / "corpus.json").write_text(json.dumps({"name": "tiny", "frame_shift": 0.01}))
    unigrams = "".join(f"-0.6021 {w}\n" for w in ("</s>", *words)) + "-99 <s>\n"
    (folder / "lm.arpa").write_text(f"\\data\\\nngram 1=5\n\n\\1-grams:\n{unigrams}\n\\end\\\n")


def write_tiny_images(folder: Path) -> None:
    """Three classes of 4 x 4 images in MNIST's files: a bright row at another height each, with noise; 300 + 90."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    for part, count in (("train", 300), ("t10k", 90)):
        labels = np.arange(count) % 3
        images = random.integers(0, 120, (count, 4, 4))
        images[np.arange(count), labels] += 100
        write_idx(folder / f"{part}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{part}-labels-idx1-ubyte.gz", labels)


def write_tiny_text(folder: Path) -> None:
    """Sentences that count: every word is the one after the last, from a random start; train, dev and test.txt."""
    folder.mkdir(parents=True, exist_ok=True)
    words = ("zero", "one", "two", "three", "four", "five", "six")
    random = np.random.default_rng(0)
    for part, count in (("train", 120), ("dev", 30), ("test", 30)):
        starts, lengths = random.integers(0, len(words), count), random.integers(2, 9, count)
        lines = (" ".join(words[(start + k) % len(words)] for k in range(n)) for start, n in zip(starts, lengths))
        (folder / f"{part}.txt").write_text("".join(f"{line}\n" for line in lines))


def write_idx(path: Path, values: np.ndarray) -> None:
    """Bytes in MNIST's file format."""
    header = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
    path.write_bytes(gzip.compress(header + values.astype(np.uint8).tobytes()))
