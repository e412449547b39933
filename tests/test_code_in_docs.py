"""The pieces of code on the concept and how-to pages run, given what their text takes as given."""

import re
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn

from hemstitch.comm import host_store

DOCS = Path(__file__).parents[1] / "docs"
PAGES = ["concepts/backstitch", "concepts/hessian-free", "concepts/iteration-order", "concepts/lattice-free-mmi",
         "concepts/natural-gradient", "how-to/averaging-in-your-own-loop", "how-to/coming-from-sam"]  # fmt: skip
FENCE = re.compile(r"^ *```python\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
SKETCHES = ("SequenceLoss", "sam.first_step", "LocalWorkers")
"""Pieces that show the shape of code that is somebody else's."""


def blocks(page):
    """The pieces of code of a page, in its order."""
    found = map(textwrap.dedent, FENCE.findall((DOCS / f"{page}.md").read_text(encoding="utf-8")))
    return [code for code in found if not any(sketch in code for sketch in SKETCHES)]


def given():
    """What the pages take as given: a small network, its data, and sequences of phones."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh())
    model.add_module("output", nn.Linear(8, 4))
    x, y = torch.randn(200, 6), torch.randint(4, (200,))
    loader = [(x[:16], y[:16])] * 3
    loss = nn.CrossEntropyLoss()
    outputs = torch.randn(2, 9, 4, requires_grad=True)
    return {
        "torch": torch, "model": model, "criterion": loss, "inputs": x[:16], "targets": y[:16], "x": x, "y": y,
        "x_held": x[:50], "y_held": y[:50], "loader": loader, "evaluate": lambda model: loss(model(x), y),
        "scaler": torch.amp.GradScaler("cpu", enabled=False), "num_phones": 2, "training_phones": [[0, 1], [1, 0, 1]],
        "batch_phones": [[0, 1], [1, 0]], "alignments": [([0, 1], [12, 15]), ([1, 0], [10, 14])],
        "outputs": outputs, "lengths": torch.tensor([9, 8]),
        "log_softmax_of_a_second_head": torch.randn(2, 9, 4, requires_grad=True).log_softmax(-1),
        "__name__": "__main__",
    }  # fmt: skip


@pytest.mark.parametrize("page", PAGES)
def test_code_runs(page, monkeypatch):
    store = host_store()
    torchrun = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": store.port, "TORCHELASTIC_USE_AGENT_STORE": True}  # fmt: skip
    for name, value in torchrun.items():
        monkeypatch.setenv(name, str(value))
    names = given()
    for code in blocks(page):
        exec(code, names)
    assert blocks(page) and all(p.isfinite().all() for p in names["model"].parameters())
