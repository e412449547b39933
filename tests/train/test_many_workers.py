"""Runs of several workers: virtual ones, threads in the place of processes, and (slowly) processes."""

import json
import os
import signal
import threading
import time

import pytest
import torch

from hemstitch.comm import run_workers
from hemstitch.errors import ConfigError
from hemstitch.report import write_report
from hemstitch.train import Console, Interrupted, load_recipe, resume, train
from hemstitch.train._build import build_run
from hemstitch.train._checkpoint import load_checkpoint
from hemstitch.train._processes import WorkerFolder
from hemstitch.train._run_folder import RunFolder

QUIET = Console(quiet=True)
VIRTUAL = ["--parallel.kind", "virtual-averaging", "--parallel.every", "60"]
PLAIN = ["--model.dropout", "0", "--train.checkpoint_every", "0"]
RICH = ["--gradient.kind", "natural", "--update.kind", "max-change-sgd", "--update.lr", "0.1",
        "--update.momentum", "0.5", "--backstitch.scale", "0.3", "--backstitch.interval", "2",
        "--parallel.workers", "2",
        "--parallel.final_workers", "3", "--parallel.combine", "3", "--parallel.best_first", "true"]  # fmt: skip


def newest(folder):
    return load_checkpoint(RunFolder.open(folder).checkpoints()[-1])


def metrics(folder, clocks=("wall_seconds", "cpu_seconds")):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in clocks} for row in rows if "seconds" not in row["name"]]


def assert_same(a, b):
    torch.testing.assert_close(newest(a)["model"], newest(b)["model"], rtol=0, atol=0)


def go(recipe, settings, path):
    return train(load_recipe(recipe, settings), path, QUIET)


def stop_after(monkeypatch, step):
    from hemstitch.train import _loop

    original = _loop.Loop.one_step

    def one_step(loop):
        original(loop)
        loop.stop_requested |= loop.progress.step == step

    monkeypatch.setattr(_loop.Loop, "one_step", one_step)
    return lambda: monkeypatch.setattr(_loop.Loop, "one_step", original)


def as_threads(recipe, settings, path, num_workers):
    """The run as that many workers, threads in the place of processes."""
    recipe, lock = load_recipe(recipe, settings), threading.Lock()
    RunFolder.create(path, recipe.with_origins())

    def worker(reducer):
        with lock:                                          # the weights are drawn from the common generator
            run = build_run(recipe, QUIET, None, reducer)
        loop = run.loop(WorkerFolder(path, reducer))
        loop.run()
        return {name: value.clone() for name, value in loop.model.state_dict().items()}

    return run_workers(worker, num_workers, timeout=60)


@pytest.mark.parametrize("kind", ["virtual-averaging", "averaging", "data-parallel"])
def test_one_worker_is_a_local_run_to_the_bit(tiny_recipe, tmp_path, kind):
    local = go(tiny_recipe, [], tmp_path / "local")
    every = [] if kind == "data-parallel" else ["--parallel.every", "60"]
    alone = go(tiny_recipe, ["--parallel.kind", kind, "--parallel.workers", "1", *every], tmp_path / "one")
    assert_same(local, alone)
    dev = [[row for row in metrics(folder) if row["split"] == "dev"] for folder in (local, alone)]
    assert dev[0] == dev[1]


@pytest.mark.parametrize("settings", [["--parallel.workers", "3"], RICH, ["--parallel.state", "averaged"],
                                      ["--parallel.state", "reset"]])  # fmt: skip
@pytest.mark.parametrize("step", [1, 5, 8])
def test_virtual_workers_continue_to_the_same_bits(tiny_recipe, tmp_path, monkeypatch, settings, step):
    whole = go(tiny_recipe, VIRTUAL + settings, tmp_path / "whole")
    undo = stop_after(monkeypatch, step)
    with pytest.raises(Interrupted):
        go(tiny_recipe, VIRTUAL + settings, tmp_path / "cut")
    undo()
    cut = resume(tmp_path / "cut", QUIET)
    assert metrics(cut) == metrics(whole)
    assert_same(cut, whole)


def test_virtual_workers_learn_and_their_losses_are_drawn(tiny_recipe, tmp_path):
    folder = go(tiny_recipe, [*VIRTUAL, "--parallel.workers", "4"], tmp_path / "run")
    assert json.loads((folder / "result.json").read_text())["accuracy"]["test"] > 0.9
    assert "Loss of the workers between two averages" in write_report(folder).read_text()
    last = {row["name"]: row["value"] for row in metrics(folder)}
    assert last["workers"] == 4 and last["averages"] == 3


@pytest.mark.parametrize("settings", [["--parallel.workers", "2"], RICH])
def test_processes_and_virtual_workers_end_with_the_same_bits(tiny_recipe, tmp_path, settings):
    virtual = go(tiny_recipe, VIRTUAL + PLAIN + settings, tmp_path / "virtual")
    settings = [*VIRTUAL, *PLAIN, *settings, "--parallel.kind", "averaging"]
    models = as_threads(tiny_recipe, settings, tmp_path / "threads", 3 if "--parallel.final_workers" in settings else 2)
    for model in models:
        torch.testing.assert_close(model, dict(newest(virtual)["model"]), rtol=0, atol=0)
    dev = [[row for row in metrics(folder) if row["split"] == "dev"] for folder in (virtual, tmp_path / "threads")]
    assert dev[0] == dev[1]


def test_gradients_of_data_parallel_workers_add_up_to_the_local_one(tiny_recipe, tmp_path):
    settings = [*PLAIN, "--update.kind", "sgd", "--update.lr", "0.1"]
    local = go(tiny_recipe, settings, tmp_path / "local")
    models = as_threads(tiny_recipe, [*settings, "--parallel.kind", "data-parallel"], tmp_path / "threads", 3)
    for model in models:
        torch.testing.assert_close(model, dict(newest(local)["model"]), rtol=1e-4, atol=1e-6)
    assert all(torch.equal(models[0][name], model[name]) for model in models for name in models[0])


def test_four_workers_averaging_every_step_are_one_large_batch(tiny_recipe, tmp_path):
    settings = [*PLAIN, "--update.kind", "sgd", "--update.momentum", "0", "--train.epochs", "1"]
    large = go(tiny_recipe, [*settings, "--train.batch_size", "120", "--update.lr", "0.2"], tmp_path / "large")
    averaging = [*VIRTUAL, "--parallel.every", "1", "--parallel.workers", "4", "--update.lr", "0.05"]
    small = go(tiny_recipe, [*settings, *averaging, "--train.batch_size", "30"], tmp_path / "small")
    torch.testing.assert_close(newest(small)["model"], newest(large)["model"], rtol=1e-4, atol=1e-6)


HESSIAN_FREE = ["--update.kind", "hessian-free", "--update.preconditioner", "lbfgs", "--schedule.kind", "constant",
                "--train.epochs", "4"]  # fmt: skip


def test_hessian_free_workers_end_with_the_bits_of_one(tiny_recipe, tmp_path):
    settings = [*PLAIN, *HESSIAN_FREE]                      # threads share the random numbers that dropout draws
    local = go(tiny_recipe, settings, tmp_path / "local")
    models = as_threads(tiny_recipe, [*settings, "--parallel.kind", "data-parallel"], tmp_path / "threads", 2)
    for model in models:
        torch.testing.assert_close(model, dict(newest(local)["model"]), rtol=0, atol=0)
    dev = [[row for row in metrics(folder) if row["split"] == "dev"] for folder in (local, tmp_path / "threads")]
    assert dev[0] == dev[1]


def test_other_strategies_are_refused_with_the_reason(tiny_recipe):
    with pytest.raises(ConfigError, match="none can take one by itself"):
        settings = [*VIRTUAL, "--update.kind", "hessian-free", "--schedule.kind", "constant"]
        build_run(load_recipe(tiny_recipe, settings), QUIET)


@pytest.fixture
def launched(monkeypatch):
    """The workers that a run has started."""
    from hemstitch.train import _processes

    seen = []

    class Seen(_processes.LocalWorkers):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            seen.append(self)

    monkeypatch.setattr(_processes, "LocalWorkers", Seen)
    return seen


def when_training(folder, act):
    """Call ``act`` once the run in ``folder`` has looked at dev."""
    def wait():
        deadline = time.monotonic() + 120
        while '"dev"' not in (folder / "metrics.jsonl").read_text() if (folder / "metrics.jsonl").exists() else True:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        act()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


@pytest.mark.slow
def test_processes_started_by_the_tool_are_the_virtual_workers(tiny_recipe, tmp_path):
    virtual = go(tiny_recipe, [*VIRTUAL, *PLAIN, "--parallel.workers", "3"], tmp_path / "virtual")
    settings = [*VIRTUAL, *PLAIN, "--parallel.kind", "averaging", "--parallel.workers", "3"]
    assert_same(go(tiny_recipe, settings, tmp_path / "processes"), virtual)


@pytest.mark.slow
def test_hessian_free_outlives_a_worker_and_loses_no_bit(tiny_recipe, tmp_path, launched):
    settings = [*HESSIAN_FREE, "--train.epochs", "60"]      # with dropout: every shard draws its own, whoever has it
    whole = go(tiny_recipe, settings, tmp_path / "whole")
    settings += ["--parallel.kind", "data-parallel", "--parallel.workers", "3"]
    thread = when_training(tmp_path / "run", lambda: os.kill(launched[0].pids[1], signal.SIGKILL))
    folder = go(tiny_recipe, settings, tmp_path / "run")
    thread.join()
    assert "worker-lost" in (folder / "events.jsonl").read_text()
    assert_same(folder, whole)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["averaging", "data-parallel"])
def test_a_run_outlives_its_first_worker(tiny_recipe, tmp_path, launched, kind):
    every = ["--parallel.every", "60"] if kind == "averaging" else []
    settings = ["--parallel.kind", kind, *every, "--parallel.workers", "3", "--train.epochs", "150"]
    thread = when_training(tmp_path / "run", lambda: os.kill(launched[0].pids[0], signal.SIGKILL))
    folder = go(tiny_recipe, settings, tmp_path / "run")
    thread.join()
    assert json.loads((folder / "result.json").read_text())["accuracy"]["test"] > 0.9
    assert "worker-lost" in (folder / "events.jsonl").read_text()
    assert newest(folder)["progress"]["looked"] == 150


@pytest.mark.slow
def test_processes_stop_when_asked_to_and_continue(tiny_recipe, tmp_path):
    settings = [*VIRTUAL, *PLAIN, "--parallel.kind", "averaging", "--train.epochs", "80"]
    whole = go(tiny_recipe, settings, tmp_path / "whole")
    thread = when_training(tmp_path / "cut", lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(Interrupted):
        go(tiny_recipe, settings, tmp_path / "cut")
    thread.join()
    assert 0 < newest(tmp_path / "cut")["progress"]["step"]
    assert_same(resume(tmp_path / "cut", QUIET), whole)
