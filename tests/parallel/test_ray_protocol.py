"""Server processes and workers' links, without an engine: what is counted, repeated, refused and restored."""

import signal
import socket
import subprocess
import sys
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fake_engine import FakeEngine, Future, Handle, Lost
from simulated import bowl

from hemstitch.errors import ConfigError, RunError
from hemstitch.parallel import AsynchronousSimulation, Bound, Cluster, StepRule
from hemstitch.parallel._replica import Replica
from hemstitch.parallel._server_shards import shard_cuts, shard_rule
from hemstitch.parallel.ray import AsynchronousTraining, _engine, _link, _server, _shard
from hemstitch.parallel.ray._ledger import Kind, Ledger, Record, read_records
from hemstitch.parallel.ray._link import Layout, Link, Numbered, RealTimes
from hemstitch.parallel.ray._real_clock import RealClock
from hemstitch.parallel.ray._shard import (
    Push,
    ServerShard,
    first_snapshot,
    make_snapshot,
    read_snapshot,
    write_snapshot,
)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(_link, "RETRY_SECONDS", 0.001)
    monkeypatch.setattr(_link, "ASK_AGAIN_SECONDS", 0.001)


def shard(folder, parameters=(0.0, 0.0), rule=StepRule(lr=0.5), number=0, snapshot_every=10, first_batch=0):
    """A new shard, with batches for ever."""
    write_snapshot(first_snapshot(folder, number), make_snapshot(torch.tensor(parameters), rule, first_batch))
    result = ServerShard(str(folder), number, snapshot_every)
    result.allow(10**9)
    return result


def restarted(folder, number=0, snapshot_every=10):
    return ServerShard(str(folder), number, snapshot_every)


def push(shard, seq, worker=0, incarnation=1, value=1.0, version=0):
    gradient = np.full(2, value, np.float32)
    header = Push(worker, seq, incarnation, version, 0.0, float(np.linalg.norm(gradient)), False, 0.25, 4.0)
    return shard.push(header, gradient).status


# -- the shard ---------------------------------------------------------------------------------------------------------


def test_a_restarted_shard_knows_every_answer_and_how_many_updates_are_undone(tmp_path):
    first = shard(tmp_path, snapshot_every=100)
    first.register(0)
    first.fetch(0, 1, 5)
    assert [push(first, seq) for seq in range(3)] == ["accepted"] * 3
    again = restarted(tmp_path)
    assert again.server.parameters.tolist() == [0.0, 0.0]           # the snapshot was that of the start
    status = again.status()
    assert (status["version"], status["lost"], status["starts"]) == (3, 3, 2)
    assert status["samples"] == 12.0 and status["under_way"] == 2 and len(status["ages"][0]) == 3
    assert push(again, 2) == "duplicate" and push(again, 3, version=3) == "accepted"
    assert restarted(tmp_path).status()["lost"] == 4                # counted once each


@pytest.mark.parametrize("snapshot_every", [1, 2, 5, 8])
def test_at_most_so_many_updates_are_undone_as_promised(tmp_path, snapshot_every):
    first = shard(tmp_path, snapshot_every=snapshot_every)
    first.register(0)
    for seq in range(23):
        push(first, seq)
    if first._writer is not None:
        first._writer.join()                                        # a real death may come before: then it is not there
    again = restarted(tmp_path)
    assert again.status()["lost"] < snapshot_every
    assert again.server.parameters.tolist() == [-0.5 * (23 - again.status()["lost"])] * 2


def test_a_record_cut_short_by_death_is_left_out(tmp_path):
    first = shard(tmp_path)
    first.register(0)
    push(first, 0)
    ledger = next(tmp_path.glob("*.ledger"))
    ledger.write_bytes(ledger.read_bytes()[:-3])
    again = restarted(tmp_path)
    assert again.status()["version"] == 0
    assert push(again, 0) == "accepted"
    assert read_records(max(tmp_path.glob("*.ledger")))[-1].kind == Kind.ACCEPTED


def test_a_shard_that_was_given_up_and_comes_back_disturbs_nobody(tmp_path):
    zombie = shard(tmp_path, snapshot_every=2)
    zombie.register(0)
    again = restarted(tmp_path)
    for seq in range(5):
        push(zombie, seq, value=100.0)                              # with snapshots of its own
    zombie._end_snapshot()
    assert again.status()["version"] == 0
    push(again, 0)
    third = restarted(tmp_path)
    assert third.status()["version"] == 1 and abs(third.server.parameters).max() <= 0.5


def test_a_shard_that_is_merely_cut_off_may_write_while_its_successor_reads(tmp_path, monkeypatch):
    zombie = shard(tmp_path, snapshot_every=1)
    zombie.register(0)

    def read(path):
        push(zombie, 0)
        zombie._end_snapshot()
        return read_snapshot(path)

    monkeypatch.setattr(_shard, "read_snapshot", read)
    again = restarted(tmp_path)
    assert push(again, 0) == "duplicate" and again.server.parameters.tolist() == [-0.5, -0.5]


def test_nothing_is_under_way_only_when_every_shard_has_the_last_push(tmp_path):
    shards = [shard(tmp_path, number=number) for number in range(2)]
    for one in shards:
        one.register(0)
    shards[0].allow(1)
    shards[0].fetch(0, 1, 1)
    system = AsynchronousTraining.__new__(AsynchronousTraining)
    system._crews = [SimpleNamespace(has_ended=False)]
    idle = []
    for one in shards:
        push(one, 0)
        system._server = SimpleNamespace(status=[each.status() for each in shards])
        idle.append(system.is_idle)
    assert idle == [False, True]


def test_batches_are_handed_out_once_and_those_of_the_dead_are_counted(tmp_path):
    first = shard(tmp_path, first_batch=7)
    first.allow(12)
    first.register(0), first.register(1), first.register(2)
    assert first.fetch(0, 1, 3).batches == (7, 3)
    assert first.fetch(0, 1, 3).batches == (7, 3)                   # the reply was lost: the same again
    assert first.fetch(1, 1, 3).batches == (10, 2)
    nothing = first.fetch(2, 1, 3)
    assert nothing.batches == (0, 0) and nothing.parameters is None
    push(first, 0, worker=1)
    assert first.register(1) == 2                                   # its former life had one more
    assert first.fetch(1, 1, 1).batches == (0, -1)
    status = restarted(tmp_path).status()
    assert (status["abandoned"], status["under_way"], status["next_batch"]) == (1, 3, 12)
    assert push(first, 1, worker=1) == "stale_incarnation"


def test_non_finite_gradients_are_refused_and_counted(tmp_path):
    first = shard(tmp_path)
    first.register(0)
    assert push(first, 0, value=float("nan")) == "nonfinite"
    assert first.status()["answered"] == 1 and first.status()["samples"] == 0
    assert first.server.parameters.tolist() == [0.0, 0.0]


def test_other_parameters_survive_a_restart(tmp_path):
    first = shard(tmp_path)
    first.set_rule(StepRule(0.125, 2.0, (Bound(0, 1, 0.5),)))
    first.reset(np.array([3.0, 4.0], np.float32))
    again = restarted(tmp_path)
    assert again.server.parameters.tolist() == [3.0, 4.0]
    assert again.server.rule == StepRule(0.125, 2.0, (Bound(0, 1, 0.5),))


def test_a_shard_without_a_snapshot_says_what_to_do(tmp_path):
    with pytest.raises(RunError, match="shared storage"):
        ServerShard(str(tmp_path), 0, 10)


def test_a_ledger_counts_the_same_after_reading_it_back(tmp_path):
    random = np.random.default_rng(0)
    path = tmp_path / "some.ledger"
    ledger = Ledger(path)
    for _ in range(500):
        kind = Kind(int(random.integers(0, 7)))
        ledger.add(Record(kind, *random.integers(0, 5, 4).tolist(), *random.random(4).tolist()))
    again = Ledger(path).summary()
    for name, value in ledger.summary().items():
        np.testing.assert_equal(again[name], value)


# -- replicas on it ----------------------------------------------------------------------------------------------------


def system(folder, num_replicas, num_shards=1, rule=StepRule(lr=0.02), fails=None, snapshot_every=10, fetch_every=1):
    """Replicas of a quadratic on real shards in one process; returns what runs them, and the handles of the shards."""
    theta, gradient, batches = bowl(noise=0.1)
    rows = [row for _, row in zip(range(40), batches(0))]
    cuts = shard_cuts(theta.numel(), num_shards, rule)
    shards = [Handle(shard(folder, theta[cut].tolist(), shard_rule(rule, cut), number, snapshot_every), fails)
              for number, cut in enumerate(cuts)]
    for handle, cut in zip(shards, cuts):
        handle.target.reset(theta[cut].numpy())
    engine = FakeEngine()
    clock = RealClock(engine.wait)
    links = [Link(engine, clock, shards, Layout(tuple(cuts), bool(rule.components)), worker, fetch_every)
             for worker in range(num_replicas)]
    for worker, link in enumerate(links):
        Replica(worker, clock, link, RealTimes(), Numbered(link, lambda k: rows[k % 40]), gradient, Cluster(),
                fetch_every, lambda *_: None)
    return clock, links, shards


def run_until(clock, shards, answered):
    clock.run(stop=lambda: shards[0].target.ledger.answered >= answered)


@pytest.mark.parametrize("num_shards", [1, 3])
def test_one_real_replica_is_the_simulated_one_to_the_bit(tmp_path, num_shards):
    theta, gradient, batches = bowl(noise=0.1)
    rule = StepRule(0.05, 0.0, tuple(Bound(i, i + 1, 0.05) for i in range(4)))
    simulation = AsynchronousSimulation(theta, gradient, lambda worker: batches(0), rule=rule, num_shards=num_shards)
    simulation.run(updates=60)
    simulation.clock.run(until=simulation.clock.now)                # the last update on all shards
    clock, _, shards = system(tmp_path, 1, num_shards, rule)
    run_until(clock, shards, 60)
    clock.run(until=clock.now + 0.01, stop=lambda: all(h.target.server.version == 60 for h in shards))
    assert torch.equal(torch.cat([handle.target.server.parameters for handle in shards]), simulation.parameters)
    assert shards[0].target.ledger.inner.updates.tolist() == [0] * 60


def test_virtual_replicas_of_one_process_come_between_each_other(tmp_path):
    clock, _, shards = system(tmp_path, 8)
    run_until(clock, shards, 800)
    ages = shards[0].target.ledger.inner.updates[100:]
    assert 2 < ages.mean() <= 7 and ages.max() <= 2 * 7             # at most n - 1 others in a cycle


@pytest.mark.parametrize("when", ["before", "after"])
def test_what_gets_no_reply_is_sent_again_and_applied_once(tmp_path, when):
    random = np.random.default_rng(1)
    fails = {method: (lambda: when if random.random() < 0.3 else None) for method in ("push", "fetch", "register")}
    clock, links, shards = system(tmp_path, 3, fails=fails)
    run_until(clock, shards, 200)
    records = read_records(max(tmp_path.glob("*.ledger")))
    applied = Counter((r.worker, r.incarnation, r.number) for r in records if r.kind == Kind.ACCEPTED)
    assert set(applied.values()) == {1} and len(applied) == 200
    assert (shards[0].target.server.counts["duplicate"] > 20) == (when == "after")
    assert shards[0].target.status()["under_way"] <= 3              # nothing handed out to nobody
    assert sum(link.num_retries for link in links) > 50


def test_replicas_go_on_with_a_restarted_shard(tmp_path):
    clock, links, shards = system(tmp_path, 4, num_shards=2, snapshot_every=4)
    run_until(clock, shards, 50)
    shards[1].target = restarted(tmp_path, number=1, snapshot_every=4)
    run_until(clock, shards, 100)
    shards[0].target = restarted(tmp_path, number=0, snapshot_every=4)
    run_until(clock, shards, 900)
    status = [handle.target.status() for handle in shards]
    assert not any(link.is_fenced for link in links)
    assert all(s["lost"] <= 4 and s["starts"] == 2 for s in status)
    assert abs(torch.cat([handle.target.server.parameters for handle in shards])).max() < 0.5


def test_a_replica_with_a_newer_life_elsewhere_is_told_and_changes_nothing(tmp_path):
    clock, links, shards = system(tmp_path, 2)
    run_until(clock, shards, 20)
    shards[0].target.register(1)                                    # its replacement, while it was stopped
    num_before = len(read_records(max(tmp_path.glob("*.ledger"))))
    clock.run(stop=lambda: links[1].is_fenced)
    clock.run(until=clock.now + 0.05)
    since = read_records(max(tmp_path.glob("*.ledger")))[num_before:]
    assert {r.kind for r in since if r.worker == 1} <= {Kind.STALE_INCARNATION}
    assert Kind.ACCEPTED in {r.kind for r in since if r.worker == 0}


def test_a_limit_ends_the_work_and_nothing_is_under_way(tmp_path):
    clock, _, shards = system(tmp_path, 5, fetch_every=3)
    shards[0].target.allow(50)
    run_until(clock, shards, 50)
    status = shards[0].target.status()
    assert (status["answered"], status["under_way"], status["next_batch"]) == (50, 0, 50)


# -- the engine --------------------------------------------------------------------------------------------------------


def test_too_little_shared_memory_is_one_clear_error(tmp_path):
    with pytest.raises(ConfigError, match="--shm-size"):
        _engine.check_memory(10**15, 2)


def test_too_little_memory_is_one_clear_error(monkeypatch):
    monkeypatch.setattr(_engine, "available_memory", lambda: 2**29)
    with pytest.raises(ConfigError, match="fewer processes"):
        _engine.check_memory(2**20, 8)


def test_without_the_engine_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(ConfigError, match=r"hemstitch\[parallel\]"):
        _engine.import_ray()


# -- machines that are too slow ----------------------------------------------------------------------------------------


def test_a_shard_that_never_answers_ends_the_run_with_a_message(monkeypatch):
    monkeypatch.setattr(_server, "START_SECONDS", 0.02)
    monkeypatch.setattr(_server, "RETRY_SECONDS", 0.001)
    server = _server.RemoteServer.__new__(_server.RemoteServer)
    calls = []
    dead = Handle(None, {"status": lambda: calls.append(0) or "before"})
    server._ray, server._patience, server.shards = FakeEngine(), 0.02, [dead]
    with pytest.raises(RunError, match="shard 0 .* has not answered"):
        server._call(0, "status")
    assert len(calls) > 1


def test_an_engine_that_cannot_start_is_a_message(monkeypatch, tmp_path):
    class Slow:
        def init(self, **options):
            raise Exception("the node timed out during startup\nand more")

    monkeypatch.setattr(_engine, "_loopback", nullcontext)
    with pytest.raises(RunError, match=r"did not start on this machine \(the node timed out during startup\)"):
        _engine._start(Slow(), 1, 1, tmp_path)


def test_a_cluster_that_does_not_answer_is_a_message_at_once():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(RunError, match=f"nobody answers at '127.0.0.1:{port}'"):
        _engine._join(None, f"127.0.0.1:{port}")


@pytest.mark.parametrize("environment, says", [
    ({}, "none is set here"),
    ({"RAY_AUTH_MODE": "token"}, "neither RAY_AUTH_TOKEN nor"),
    ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "x"}, "the token in RAY_AUTH_TOKEN is not the one"),
])
def test_a_cluster_that_lets_nobody_in_is_a_message_about_the_token(monkeypatch, environment, says):
    def refuse(**options):
        raise ConnectionError("Unauthenticated\nand more")

    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    engine = SimpleNamespace(init=refuse, exceptions=SimpleNamespace(RayError=Lost), __version__="2.60",
                             util=SimpleNamespace(get_node_ip_address=lambda: "127.0.0.1"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with pytest.raises(RunError, match=says):
            _engine._join(engine, f"127.0.0.1:{listener.getsockname()[1]}")


# -- what is left of an engine -----------------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks into /proc")
def test_the_reaper_ends_the_processes_of_a_session_when_its_own_parent_is_gone(tmp_path):
    session = tmp_path / "session"
    session.mkdir()
    sleeps = [sys.executable, "-c", "import time; time.sleep(60)"]
    with (session / "other.log").open("w") as log:         # such as a child that has inherited an open log
        processes = {"session": subprocess.Popen([*sleeps, f"--log={session}/raylet.log"]),
                     "other": subprocess.Popen(sleeps, stdout=log)}
    try:
        with _engine._reaper() as reaper:
            reaper.write(f"{session}\n")
        assert processes["session"].wait(timeout=30) == -signal.SIGKILL
        assert processes["other"].poll() is None and not session.exists()
    finally:
        for process in processes.values():
            process.kill()
            process.wait()


def test_the_reaper_of_an_engine_that_never_began_ends_nobody():
    with _engine._reaper():
        pass


def test_a_shard_that_raises_at_the_start_is_told_at_once():
    server = _server.RemoteServer.__new__(_server.RemoteServer)
    died = FakeEngine.exceptions.RayActorError("an error raised in its creation task: no snapshot")
    server._ray, server._patience = FakeEngine(), 1000.0
    server.shards = [SimpleNamespace(status=SimpleNamespace(remote=lambda: Future(died)))]
    with pytest.raises(RunError, match="cannot start.*no snapshot"):
        server._call(0, "status")
