"""Fixtures for every test: where the shared data and golden numbers are, and one thread."""

from pathlib import Path

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
