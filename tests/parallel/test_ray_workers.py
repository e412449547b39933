"""Averaging and Hessian-free on workers that Ray has started; one embedded cluster for all, `make test-ray`."""

import contextlib
import json
import os
import signal
import sys

import pytest
import torch

pytest.importorskip("ray", reason="needs the engine: pip install 'hemstitch[parallel]'")

from ray import cloudpickle

import hemstitch.parallel.ray
from hemstitch.errors import ConfigError
from hemstitch.parallel import WorkerFailed
from hemstitch.parallel.ray import RayWorkers, connected
from hemstitch.train import Console, _processes, load_recipe, train
from hemstitch.train._checkpoint import load_checkpoint
from hemstitch.train._run_folder import RunFolder

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

cloudpickle.register_pickle_by_value(sys.modules[__name__])
QUIET = Console(quiet=True)
PLAIN = ["--model.dropout", "0", "--train.checkpoint_every", "0"]
HESSIAN_FREE = ["--update.kind", "hessian-free", "--update.preconditioner", "lbfgs", "--schedule.kind", "constant"]


@pytest.fixture(scope="module", autouse=True)
def engine():
    with connected(num_cpus=16) as ray:
        yield ray


def go(recipe, settings, path):
    return train(load_recipe(recipe, settings), path, QUIET)


def newest(folder):
    return load_checkpoint(RunFolder.open(folder).checkpoints()[-1])


def on_dev(folder):
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [(row["step"], row["name"], row["value"]) for row in rows if row["split"] == "dev"]


def by_ray(kind, num_workers):
    return ["--parallel.kind", kind, "--parallel.launcher", "ray", "--parallel.workers", str(num_workers)]


def sums(reducer, rounds):
    """Each round the sum of what all bring."""
    flat = torch.zeros(50_000)
    for _ in range(rounds):
        flat += reducer.rank + 1
        weight = reducer.sum_(flat, 2.0)
    return reducer.rank, reducer.world, float(flat[7]), weight


def test_workers_reduce_in_groups_of_their_own():
    with RayWorkers(sums, 3, args=(2,)) as workers:
        assert workers.results(timeout=240) == [(rank, 3, 24.0, 6.0) for rank in range(3)]
        assert len(set(workers.pids)) == 3 and not workers.losses()


def fail(reducer):
    raise ConfigError("the very cause")


def test_what_a_worker_raises_comes_back():
    with RayWorkers(fail, 2) as workers, pytest.raises(WorkerFailed, match="the very cause"):
        workers.results(timeout=240)


def test_hessian_free_over_1_2_4_workers_has_the_same_bits(tiny_recipe, tmp_path):
    settings = [*HESSIAN_FREE, *PLAIN, "--train.epochs", "3"]
    alone = go(tiny_recipe, settings, tmp_path / "1")
    for num_workers in 2, 4:
        folder = go(tiny_recipe, [*settings, *by_ray("data-parallel", num_workers)], tmp_path / str(num_workers))
        torch.testing.assert_close(newest(folder)["model"], newest(alone)["model"], rtol=0, atol=0)
        assert on_dev(folder) == on_dev(alone)


def test_averaging_is_that_of_virtual_workers(tiny_recipe, tmp_path):
    settings = [*PLAIN, "--parallel.every", "60"]
    virtual = go(tiny_recipe, [*settings, "--parallel.kind", "virtual-averaging", "--parallel.workers", "2"],
                 tmp_path / "virtual")
    folder = go(tiny_recipe, [*settings, *by_ray("averaging", 2)], tmp_path / "ray")
    torch.testing.assert_close(newest(folder)["model"], newest(virtual)["model"], rtol=0, atol=0)


def test_hessian_free_loses_a_worker_and_no_bit(tiny_recipe, tmp_path, monkeypatch):
    class Struck(RayWorkers):
        """One worker is killed as soon as the run has looked at dev."""

        def results(self, **options):
            if not self.losses() and (tmp_path / "run/metrics.jsonl").exists() and on_dev(tmp_path / "run"):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.pids[1], signal.SIGKILL)
            return super().results(**options)

    monkeypatch.setattr(hemstitch.parallel.ray, "RayWorkers", Struck)
    settings = [*HESSIAN_FREE, "--train.epochs", "40"]
    whole = go(tiny_recipe, settings, tmp_path / "whole")
    folder = go(tiny_recipe, [*settings, *by_ray("data-parallel", 3)], tmp_path / "run")
    assert "worker-lost" in (folder / "events.jsonl").read_text()
    torch.testing.assert_close(newest(folder)["model"], newest(whole)["model"], rtol=0, atol=0)


def work_and_die(reducer, path, quiet):
    """The first worker is killed with a message of its 150th exchange under way."""
    wait, count = reducer._wait, iter(range(1, 10**9))

    def wait_or_die(work):
        if next(count) == 150:
            os.kill(os.getpid(), signal.SIGKILL)
        wait(work)

    if reducer.rank == 0:
        reducer._wait = wait_or_die
    return work(reducer, path, quiet)


work = _processes.work


@pytest.mark.parametrize("kind", ["averaging", "data-parallel", "hessian-free"])
def test_the_first_worker_dies_in_mid_reduction(tiny_recipe, tmp_path, monkeypatch, kind):
    monkeypatch.setattr(_processes, "work", work_and_die)
    settings = {"averaging": ["--parallel.every", "30"], "data-parallel": [], "hessian-free": HESSIAN_FREE}[kind]
    settings = [*settings, "--train.epochs", "40"]
    parallel = by_ray("averaging" if kind == "averaging" else "data-parallel", 3)
    folder = go(tiny_recipe, [*settings, *parallel], tmp_path / "run")
    assert (folder / "events.jsonl").read_text().count("worker-lost") == 1
    assert newest(folder)["progress"]["looked"] == 40
    if kind == "hessian-free":                              # no bit of the result is lost with it
        whole = go(tiny_recipe, settings, tmp_path / "whole")
        torch.testing.assert_close(newest(folder)["model"], newest(whole)["model"], rtol=0, atol=0)
