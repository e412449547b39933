"""Faults of a real system: processes are killed and stopped by their ids, and what is promised is counted exactly.

One embedded cluster for all; `make test-ray`.
"""

import os
import signal
import subprocess
from itertools import count

import numpy as np
import pytest
import torch

pytest.importorskip("ray", reason="needs the engine: pip install 'hemstitch[parallel]'")

from ray_system import (
    check_counts,
    counted_training,
    go_on,
    order,
    refused_after_a_newer_life,
    strike,
    watch_until,
)

from hemstitch.parallel import Decoding
from hemstitch.parallel.ray import connected
from hemstitch.parallel.ray._crew import Crew
from hemstitch.parallel.ray._shard import Push

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

SNAPSHOT_EVERY = 20
PATIENCE = 10.0


@pytest.fixture(scope="module")
def engine():
    with connected(num_cpus=16) as ray:
        yield ray


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def training(engine, folder):
    with counted_training(folder, num_replicas=4, num_processes=2, num_shards=2, snapshot_every=SNAPSHOT_EVERY,
                          patience=PATIENCE, evaluate=lambda parameters: {"first": float(parameters[0])}) as training:
        training.wait_until_ready()
        yield training


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def is_stopped(pid):
    """By a signal; the system's view of its processes is that of `ps`."""
    return subprocess.run(["ps", "-o", "state=", "-p", str(pid)], capture_output=True, text=True).stdout.startswith("T")


# -- workers -----------------------------------------------------------------------------------------------------------


def test_undisturbed_every_batch_is_applied_once(training, folder):
    go_on(training, 200)
    report = check_counts(training, folder)
    if report.failures:
        pytest.skip("this machine is too slow for an undisturbed run: a process that did not answer was replaced")
    assert (report.updates, report.abandoned) == (200, 0)


KILLED_OR_STOPPED = pytest.mark.parametrize("how", ["SIGKILL", "SIGSTOP"])


@KILLED_OR_STOPPED
@pytest.mark.parametrize("moment", ["worker computes", "worker fetches", "worker pushes"])
def test_a_worker_is_lost_and_the_others_go_on(training, folder, moment, how):
    before = training.report()
    order(folder, moment, getattr(signal, how))
    go_on(training, 150)
    watch_until(training, lambda: training.report().failures > before.failures, "it is noticed")
    after = check_counts(training, folder)
    assert after.failures >= before.failures + 2                        # two replicas lived in that process
    assert 0 <= after.abandoned - before.abandoned <= (after.failures - before.failures)
    assert not (folder / moment).exists()


def test_a_worker_that_dies_before_it_begins_is_replaced(training, folder):
    before = training.report()
    order(folder, "worker starts")
    os.kill(training.pids["replicas"][0], signal.SIGKILL)
    go_on(training, 150)
    watch_until(training, lambda: training.report().failures >= before.failures + 4, "both deaths seen")
    watch_until(training, lambda: len(training.pids["replicas"]) == 2, "both processes there")
    check_counts(training, folder)


def test_the_others_never_wait_for_one_that_is_stopped(training, folder):
    stopped = training.pids["replicas"][0]
    training.proceed(training.report().batches + 10**6)
    before = training.report()
    os.kill(stopped, signal.SIGSTOP)
    watch_until(training, lambda: training.report().answered > before.answered + 50, "the other process goes on")
    assert training.report().failures == before.failures                # nobody has even noticed
    os.kill(stopped, signal.SIGCONT)
    training.pause()
    check_counts(training, folder)


def test_a_worker_that_was_given_up_is_refused_when_it_comes_back(training, folder, monkeypatch):
    out_of_reach = []
    monkeypatch.setattr(Crew, "kill", lambda crew: out_of_reach.append(crew._handle))   # as if its machine were cut off
    before, pids = training.report(), training.pids["replicas"]
    training.proceed(before.batches + 10**6)
    watch_until(training, lambda: training.report().answered > before.answered + 10, "work")
    order(folder, "worker computes", signal.SIGSTOP)        # it has a gradient to send
    watch_until(training, lambda: training.report().failures > before.failures, "it is given up")
    zombie, = filter(is_stopped, pids)
    watch_until(training, lambda: len(set(training.pids["replicas"]) - set(pids)) == 1, "a new process")
    now = training.report().answered
    watch_until(training, lambda: training.report().answered > now + 50, "work of the new process")
    os.kill(zombie, signal.SIGCONT)
    watch_until(training, lambda: refused_after_a_newer_life(folder, 0)["stale_incarnation"] > 0, "its push is refused")
    training.pause()
    assert set(refused_after_a_newer_life(folder, 0)) == {"stale_incarnation"}
    check_counts(training, folder)
    out_of_reach.clear()
    watch_until(training, lambda: not is_alive(zombie), "it ends")


def test_an_old_life_is_refused_by_every_shard(training, engine):
    for shard in training._server.shards:
        new = engine.get(shard.register.remote(9)), engine.get(shard.register.remote(9))
        assert new[1] == new[0] + 1
        header = Push(9, 0, new[0], 0, 0.0, 1.0, False, 0.0, 1.0)
        assert engine.get(shard.push.remote(header, np.ones(3, np.float32))).status == "stale_incarnation"
        assert engine.get(shard.fetch.remote(9, new[0], 1)).batches == (0, -1) or shard is training._server.shards[1]


# -- the server --------------------------------------------------------------------------------------------------------


@KILLED_OR_STOPPED
@pytest.mark.parametrize("moment", ["push before", "push after", "fetch after"])
def test_a_shard_is_lost_and_comes_back(training, folder, moment, how):
    before = training.report()
    order(folder, moment, getattr(signal, how))
    go_on(training, 150)
    after = check_counts(training, folder)
    assert after.shard_restarts == before.shard_restarts + 1
    assert after.lost_updates - before.lost_updates <= SNAPSHOT_EVERY
    assert after.counts["duplicate"] - before.counts["duplicate"] == (moment == "push after")


@pytest.mark.parametrize("number", [0, 1])
def test_a_shard_that_is_stopped_is_started_anew(training, folder, number):
    before, pid = training.report(), training.pids["shards"][number]
    training.proceed(before.batches + 10**6)
    watch_until(training, lambda: training.report().answered > before.answered + 30, "work")
    os.kill(pid, signal.SIGSTOP)
    watch_until(training, lambda: training.report().shard_restarts > before.shard_restarts, "a new process")
    if is_alive(pid):
        os.kill(pid, signal.SIGCONT)
    now = training.report().answered
    watch_until(training, lambda: training.report().answered > now + 50, "work goes on")
    training.pause()
    after = check_counts(training, folder)
    assert after.lost_updates - before.lost_updates <= SNAPSHOT_EVERY
    watch_until(training, lambda: not is_alive(pid), "the stopped process ends")


@pytest.mark.parametrize("moment", ["registration before", "registration after"])
def test_a_registration_without_a_reply_is_repeated(training, folder, moment):
    before = training.report()
    order(folder, moment)
    os.kill(training.pids["replicas"][0], signal.SIGKILL)
    watch_until(training, lambda: training.report().shard_restarts > before.shard_restarts, "the shard dies")
    watch_until(training, lambda: len(training.pids["replicas"]) == 2, "both processes there")
    go_on(training, 100)
    after = check_counts(training, folder)
    assert after.shard_restarts == before.shard_restarts + 1


def test_the_evaluation_replica_dies_and_looks_again(training, folder):
    go_on(training, 10)
    num_before = len(training.report().evaluations)
    os.kill(training.pids["others"][0], signal.SIGKILL)
    training.proceed(training.report().batches + 10**6)
    watch_until(training, lambda: training.watch(evaluate_every=1) or
                len(training.report().evaluations) > num_before + 1, "an evaluation")
    training.pause()
    last = training.report().evaluations[-1]
    assert last.values["first"] < 0
    check_counts(training, folder)


# -- decoders ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def decoding_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("decoding")


@pytest.fixture(scope="module")
def decoding_training(engine, training, decoding_folder):
    training.close()                                                    # one system at a time
    folder = decoding_folder

    def outer_gradient(parameters, utterances):
        strike(folder, "decoder decodes")
        return [torch.zeros(5, 1) for _ in utterances]

    decoding = Decoding(outer_gradient=outer_gradient, utterances=lambda worker: count(), num_slots=2)
    with counted_training(folder, num_replicas=2, num_processes=1, num_decoders=2, patience=PATIENCE,
                          decoding=decoding) as training:
        training.wait_until_ready()
        yield training


@KILLED_OR_STOPPED
def test_a_decoder_is_lost_and_its_replica_waits_for_the_next(decoding_training, decoding_folder, how):
    go_on(decoding_training, 50)
    num_before = len(decoding_training.report().messages)
    order(decoding_folder, "decoder decodes", getattr(signal, how))
    go_on(decoding_training, 100)
    report = check_counts(decoding_training, decoding_folder)
    assert report.abandoned == report.failures == 0
    assert len(report.outer) == 2 * report.updates                      # an age for each of two frames
    watch_until(decoding_training, lambda: any("died and is back" in text for _, text in
                                               decoding_training.report().messages[num_before:]), "its death is told")


def test_a_decoder_that_is_stopped_is_started_anew(decoding_training, decoding_folder):
    pid = decoding_training.pids["others"][0]
    decoding_training.proceed(decoding_training.report().batches + 10**6)
    os.kill(pid, signal.SIGSTOP)
    watch_until(decoding_training, lambda: decoding_training.pids["others"][0] != pid, "a new process")
    if is_alive(pid):
        os.kill(pid, signal.SIGCONT)
    now = decoding_training.report().answered
    watch_until(decoding_training, lambda: decoding_training.report().answered > now + 50, "work goes on")
    decoding_training.pause()
    check_counts(decoding_training, decoding_folder)
    watch_until(decoding_training, lambda: not is_alive(pid), "the stopped process ends")
