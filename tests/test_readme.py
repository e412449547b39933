"""The README does what it says: its pieces of code run, its comparison is what the committed outcome files say."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from hemstitch.commands._reproduce import write_markdown
from hemstitch.graphs import compose, denominator_graph, estimate_phone_lm, normalisation_graph, phone_sequence_graph

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)


def _names() -> dict[str, Any]:
    """What the pieces take as given."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 4))
    loss, x, y = torch.nn.CrossEntropyLoss(), torch.randn(64, 6), torch.randint(4, (64,))

    def closure() -> torch.Tensor:
        model.zero_grad()
        value = loss(model(x), y)
        value.backward()
        return value

    phones = [[0, 1], [1, 0, 1]]
    pdfs = [(0, 1), (2, 3)]
    denominator = denominator_graph(estimate_phone_lm(phones), pdfs)
    weights = normalisation_graph(denominator)
    return {
        "torch": torch, "model": model, "loss": loss, "x": x, "y": y, "x_held": x[:16], "y_held": y[:16],
        "closure": closure, "batch": (x, y), "evaluate": lambda model: loss(model(x), y), "denominator": denominator,
        "numerators": [compose(phone_sequence_graph(p, pdfs), weights) for p in phones],
        "outputs": torch.randn(2, 9, 4, requires_grad=True), "lengths": torch.tensor([9, 8]),
    }  # fmt: skip


@pytest.mark.parametrize("code", BLOCKS, ids=[block.split("import ")[1].split(",")[0].split()[0] for block in BLOCKS])
def test_code_runs(code: str) -> None:
    exec(code, _names())


def test_comparison_is_what_the_outcome_files_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["comparison.py", "--check"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "docs" / "comparison.py"), run_name="__main__")
    assert not stop.value.code


def test_results_page_is_what_the_outcome_files_say(tmp_path: Path) -> None:
    write_markdown(ROOT / "results" / "laptop", tmp_path / "results.md")
    assert (tmp_path / "results.md").read_text() == (ROOT / "docs" / "results.md").read_text(), "run: make results"
