"""Every block of docs/how-to/own-loop.md runs, each after the first one, which holds the model and the data."""

import re
from pathlib import Path

import pytest
import torch

PAGE = Path(__file__).parents[1] / "docs/how-to/own-loop.md"
SETUP, *BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: re.findall(r"import (\w+)", block)[0])
def test_block_runs(block):
    torch.manual_seed(0)
    names = {}
    exec(SETUP, names)
    before = [p.clone() for p in names["model"].parameters()]
    exec(block, names)
    assert all(torch.isfinite(p).all() for p in names["model"].parameters())
    if ".step(" in block:
        assert any(not torch.equal(a, b.cpu()) for a, b in zip(before, names["model"].parameters()))
