"""Every entry of the catalogue runs at scale "smoke"."""

import pytest

from hemstitch.reproduce import catalogue, run_entry, select, write_page
from hemstitch.train import Console


@pytest.mark.parametrize("entry", catalogue(), ids=lambda entry: entry.key)
def test_entry_runs(entry, tmp_path):
    outcome = run_entry(entry, "smoke", tmp_path, Console(quiet=True))
    assert outcome["summary"]
    assert (outcome["verdict"] == "not run") == bool(entry.unavailable)
    assert "<article>" in write_page(tmp_path / "smoke", [entry], "smoke").read_text()


@pytest.mark.parametrize(("paper", "tables", "figures"), [(1, 2, 2), (2, 1, 7), (3, 2, 4), (5, 0, 19)])
def test_every_table_and_figure_is_found(paper, tables, figures):
    """By its own number too, where one entry has several; the poster, paper 4, has no numbers."""
    names = [f"paper-{paper}/table-{k + 1}" for k in range(tables)]
    for name in names + [f"paper-{paper}/figure-{k + 1}" for k in range(figures)]:
        assert select(catalogue(), [name])


def test_keys_are_unique():
    keys = [entry.key for entry in catalogue()]
    assert len(set(keys)) == len(keys)
    assert all(entry.minutes > 0 for entry in catalogue() if not entry.unavailable)
