"""Fixtures for every test: shared data and golden numbers, one thread, a tiny image problem with a recipe on it."""

import gzip
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def _folder(name: str) -> Path:
    path = SHARED / name
    if not path.is_dir():
        pytest.skip(f"needs {path}, which is not on this machine")
    return path


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the checkout."""
    return _folder("data")


@pytest.fixture(scope="session")
def shared_golden() -> Path:
    """The folder of golden numbers beside the checkout."""
    return _folder("golden")


def write_idx(path, array):
    header = struct.pack(f">i{array.ndim}i", 0x800 + array.ndim, *array.shape)
    path.write_bytes(gzip.compress(header + array.astype(np.uint8).tobytes()))


@pytest.fixture(scope="session")
def tiny_images(tmp_path_factory):
    """Three classes of 4 x 4 images: a bright row at another height each, with noise."""
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    for part, count in (("train", 300), ("t10k", 90)):
        labels = np.arange(count) % 3
        images = random.integers(0, 120, (count, 4, 4))
        images[np.arange(count), labels] += 100
        write_idx(folder / f"{part}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{part}-labels-idx1-ubyte.gz", labels)
    return folder


@pytest.fixture
def tiny_recipe(tiny_images, tmp_path):
    """A recipe file on the tiny images: 27 steps, dropout, a checkpoint every 4 steps."""
    path = tmp_path / "tiny.toml"
    path.write_text(f"""
name = "tiny"
[data]
kind = "images"
source = "{tiny_images}"
[model]
hidden = [16]
dropout = 0.2
[update]
kind = "adam"
lr = 0.01
[schedule]
kind = "plateau"
patience = 0
threshold = 0.2
[train]
epochs = 3
batch_size = 30
log_every = 5
checkpoint_every = 4
threads = 1
""")
    return path


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory):
    """A corpus of stored features: 8 speakers, 3 words of 2 phones, each phone another mean; 10 frames a phone."""
    folder = tmp_path_factory.mktemp("speech") / "corpus"
    write_tiny_corpus(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_speech_recipe(tiny_corpus, tmp_path_factory):
    """A recipe file on the tiny corpus."""
    return speech_recipe(tmp_path_factory.mktemp("recipe") / "speech.toml", tiny_corpus)


def write_tiny_corpus(folder, bad_lines=()):
    """Write the corpus of ``tiny_corpus``; ``bad_lines`` are appended to its manifest."""
    words = {"ONE": ("A", "B"), "TWO": ("B", "C"), "TEN": ("C", "A")}
    means = {"SIL": (0, 0, 0), "A": (3, 0, 0), "B": (0, 3, 0), "C": (0, 0, 3)}
    random = np.random.default_rng(0)
    folder.mkdir(parents=True)
    frames, lines = [], []
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


def speech_recipe(path, corpus, extra=""):
    """A recipe file on a tiny corpus."""
    path.write_text(f"""
name = "tiny-speech"
[data]
corpus = "{corpus}"
dev_share = 0.2
[features]
kind = "given"
normalisation = "none"
[hmm]
states_per_phone = 1
silence_states = 1
realign = [1, 2]
[model]
hidden = [16]
left_context = 2
right_context = 2
[update]
kind = "adam"
lr = 0.02
[train]
epochs = 4
batch_size = 64
threads = 1
{extra}
""")
    return path
