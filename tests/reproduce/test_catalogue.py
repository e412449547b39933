"""Every entry of the catalogue runs at scale "smoke"."""

import pytest

from hemstitch.reproduce import catalogue, run_entry, write_page
from hemstitch.train import Console


@pytest.mark.parametrize("entry", catalogue(), ids=lambda entry: entry.key)
def test_entry_runs(entry, tmp_path):
    outcome = run_entry(entry, "smoke", tmp_path, Console(quiet=True))
    assert outcome["summary"]
    assert (outcome["verdict"] == "not run") == bool(entry.unavailable)
    assert "<article>" in write_page(tmp_path / "smoke", [entry], "smoke").read_text()


def test_keys_are_unique():
    keys = [entry.key for entry in catalogue()]
    assert len(set(keys)) == len(keys)
    assert all(entry.minutes > 0 for entry in catalogue() if not entry.unavailable)
