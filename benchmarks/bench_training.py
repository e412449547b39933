"""Training throughput against a bare PyTorch loop: 4 x 1024 ReLU network, batch 256, the same data, interleaved.

The bare loop indexes tensors in memory (already spliced), runs forward, cross-entropy, backward and torch's SGD.
Ours is ``Loop`` as ``hemstitch train`` runs it, splicing on the fly, with logging and the check for non-finite values.
Target: ours reaches at least 0.95 of the bare loop's samples per second.
"""

import tempfile
import time
from pathlib import Path

import torch
from _common import environment, median_ratio, write_result
from torch import nn

from hemstitch.criteria import CrossEntropy
from hemstitch.models import FeedForward
from hemstitch.sampling import BatchSource, FrameWindows, ShuffledEpochs
from hemstitch.train._console import Console
from hemstitch.train._loop import Loop
from hemstitch.train._options import ConstantRate, Training
from hemstitch.train._run_folder import RunFolder
from hemstitch.train._schedules import Schedule
from hemstitch.train._strategies import Batch, Gradient, SinglePass

FRAMES, FEATURES, PDFS, BATCH, LEFT, RIGHT, STEPS, ROUNDS = 20000, 40, 120, 256, 20, 5, 30, 7


class NoTask:
    """No dev part: the benchmark measures steps."""

    def state_dict(self):
        return {}


def new_model():
    torch.manual_seed(0)
    return FeedForward(FEATURES, PDFS, (1024,) * 4, left_context=LEFT, right_context=RIGHT)


def bare_loop(windows, targets):
    """A function that makes ``STEPS`` steps and returns the seconds."""
    model = new_model().layers
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    spliced = windows.select(torch.arange(FRAMES)).flatten(1)

    def run():
        begin = time.perf_counter()
        for indices in torch.randperm(FRAMES)[: STEPS * BATCH].split(BATCH):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(spliced[indices]), targets[indices])
            loss.backward()
            optimizer.step()
        return time.perf_counter() - begin

    return run


def our_loop(windows, targets, folder):
    """The same through the training loop of the tool."""
    model = new_model()
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    source = BatchSource(
        ShuffledEpochs(FRAMES, BATCH, seed=0),
        lambda indices: Batch(windows.select(indices), targets[indices].unsqueeze(1), len(indices)),
    )
    loop = Loop(
        task=NoTask(), model=model, optimizer=optimizer,
        strategy=SinglePass(Gradient(model, CrossEntropy()), optimizer), schedule=Schedule(ConstantRate(), 1), source=source, folder=RunFolder.create(Path(folder), {}),
        options=Training(epochs=1), console=Console(quiet=True),
    )

    def run():
        begin = time.perf_counter()
        for _ in range(STEPS):
            loop.one_step()
        return time.perf_counter() - begin

    return run


def main():
    torch.manual_seed(1)
    features, targets = torch.randn(FRAMES, FEATURES), torch.randint(0, PDFS, (FRAMES,))
    windows = FrameWindows(features, torch.arange(0, FRAMES + 1, 400), LEFT, RIGHT)
    with tempfile.TemporaryDirectory() as folder:
        bare, ours = bare_loop(windows, targets), our_loop(windows, targets, folder + "/run")
        result = median_ratio(bare, ours, ROUNDS)
    write_result("training", {
        "what": "samples per second, hemstitch loop / bare PyTorch loop, 4x1024, batch 256",
        "target": 0.95, **result, **environment()})


if __name__ == "__main__":
    main()
