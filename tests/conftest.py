"""Fixtures for every test: shared data and golden numbers, one thread, a tiny image problem with a recipe on it."""

from pathlib import Path

import pytest
import torch

from hemstitch.testing import write_tiny_corpus, write_tiny_images
from tiny_speech import speech_recipe

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


@pytest.fixture(scope="session")
def tiny_images(tmp_path_factory):
    """Three classes of 4 x 4 images: a bright row at another height each, with noise."""
    folder = tmp_path_factory.mktemp("images")
    write_tiny_images(folder)
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
