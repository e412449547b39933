"""The process-group reducer: the additions of `tree_sum`, all or nothing, and what happens when a worker is lost.

Groups of real connections, whose members mostly live in threads of this process; processes are killed at the end.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from hemstitch.comm import (
    Expelled,
    MemberLost,
    ProcessGroupReducer,
    Reducer,
    connect_store,
    declare_lost,
    host_store,
    tree_sum,
)
from hemstitch.comm._process_group import _Broken
from hemstitch.errors import ConfigError, MisuseError, RunError
from hemstitch.parallel import LocalWorkers, WorkerFailed

LARGE = 40_001


@pytest.fixture
def store():
    return host_store()


def together(store, world, program, *, timeout=20.0, **options):
    """Run ``program(reducer)`` in ``world`` threads; results or exceptions in the order of the ranks."""

    def member(rank):
        with ProcessGroupReducer(connect_store("127.0.0.1", store.port), rank, world, timeout=timeout,
                                 **options) as reducer:
            return program(reducer)

    with ThreadPoolExecutor(world) as pool:
        futures = [pool.submit(member, rank) for rank in range(world)]
    return [future.exception() or future.result() for future in futures]


def numbers(rank, size, dtype=torch.float32):
    generator = torch.Generator().manual_seed(rank)
    return (torch.randn(size, generator=generator) * 10.0 ** (rank - 2)).to(dtype)


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("shared_memory", [True, False])
def test_sums_have_the_bits_of_the_tree_whatever_way_they_take(store, world, shared_memory):
    sizes = [5, LARGE]

    def program(reducer):
        flats = [numbers(reducer.rank, size) for size in sizes]
        return [reducer.sum_(flat, weight=reducer.rank + 0.5) for flat in flats], flats

    for weights, flats in together(store, world, program, shared_memory=shared_memory):
        assert weights == [world**2 / 2] * 2
        for size, flat in zip(sizes, flats):
            assert torch.equal(flat, tree_sum([numbers(rank, size) for rank in range(world)]))


def test_large_sums_use_shared_memory_only_if_allowed(store):
    def program(reducer):
        reducer.sum_(torch.ones(LARGE))
        return reducer._arena is not None and reducer._arena.size >= 4 * LARGE

    assert together(store, 2, program) == [True, True]
    assert together(host_store(), 2, program, shared_memory=False) == [False, False]


@pytest.mark.parametrize("shared_memory", [True, False])
def test_many_tensors_are_scaled_and_summed_at_once(store, shared_memory):
    """Mixed types, no flat copy by the caller; scale 0 keeps even NaN out; half precision is summed in single."""
    shapes = [((3, 7000), torch.float32), ((0,), torch.float32), ((5,), torch.float64), ((300,), torch.bfloat16)]
    scales = [0.25, 0.75, 0.0]

    def program(reducer):
        own = [numbers(reducer.rank, shape, dtype) for shape, dtype in shapes]
        if reducer.rank == 2:
            own[0].fill_(float("nan"))
        reducer.sum_tensors_(own, scales[reducer.rank], weight=1.0)
        return own

    for own in together(store, 3, program, shared_memory=shared_memory):
        for tensor, (shape, dtype) in zip(own, shapes):
            single = torch.float64 if dtype == torch.float64 else torch.float32
            parts = [scales[rank] * numbers(rank, shape, dtype).to(single) for rank in range(2)]
            torch.testing.assert_close(tensor, (parts[0] + parts[1]).to(dtype), rtol=0, atol=0)


def test_strided_tensors_are_reduced_in_place(store):
    def program(reducer):
        columns = torch.ones(200, 400)[:, ::2]
        reducer.sum_tensors_([columns], 1.0)
        return columns

    assert all((columns == 2).all() for columns in together(store, 2, program))


def test_it_is_a_reducer(store):
    reducer, = together(store, 1, lambda reducer: reducer)
    assert isinstance(reducer, Reducer)


def test_different_sizes_are_refused_by_all(store):
    errors = together(store, 2, lambda reducer: reducer.sum_(torch.ones(3 + reducer.rank)))
    assert all(isinstance(error, MisuseError) for error in errors)
    assert "3 numbers in 16 bytes, 4 numbers" in str(errors[0])


def test_everything_listens_on_the_loopback_address(store):
    def program(reducer):
        reducer.sum_(torch.ones(3))
        return listening_addresses()

    for addresses in together(store, 2, program):
        assert addresses and addresses <= {"127.0.0.1"}


def listening_addresses():
    """Local addresses on which this process listens, from the kernel's own table."""
    inodes = set()
    for link in Path("/proc/self/fd").iterdir():
        try:
            inodes.add(os.readlink(link))
        except OSError:
            continue
    addresses = set()
    for family, table in ((socket.AF_INET, "tcp"), (socket.AF_INET6, "tcp6")):
        for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in inodes:
                words = bytes.fromhex(fields[1].split(":")[0])
                addresses.add(socket.inet_ntop(family, b"".join(words[i:i + 4][::-1] for i in range(0, len(words), 4))))
    return addresses


# -- losses ------------------------------------------------------------------------------------------------------------


def lose(reducer):
    """What the others see of a process that is killed: its connections break."""
    reducer._close_groups()
    declare_lost(reducer._members.store, reducer.member)


def test_survivors_keep_their_numbers_regroup_and_repeat(store):
    def program(reducer):
        flat = torch.full((LARGE,), float(reducer.rank))
        reducer.sum_(flat.clone())
        if reducer.rank == 1:
            return lose(reducer)
        before = flat.clone()
        with pytest.raises(MemberLost) as caught:
            reducer.sum_(flat, 1.0)
        assert torch.equal(flat, before)
        weight = reducer.sum_(flat, 1.0)
        return caught.value.ranks, caught.value.generation, reducer.rank, reducer.world, weight, float(flat[0])

    results = together(store, 4, program)
    assert results[0] == ((1,), 0, 0, 3, 3.0, 5.0)
    assert [result[2] for result in results if result] == [0, 1, 2]


PHASES = {"header": 1, "data": 2, "commit": 3}


def die_at(reducer, exchange, die):
    """Let the reducer call ``die`` just before its n-th exchange of a small sum."""
    count = iter(range(1, 100))

    def dying(method):
        return lambda argument: die() if next(count) == exchange else method(argument)

    reducer._gather, reducer._sum_all = dying(reducer._gather), dying(reducer._sum_all)


@pytest.mark.parametrize("phase", PHASES)
def test_a_death_at_any_phase_leaves_all_survivors_with_the_same_decision(store, phase):
    def program(reducer):
        if reducer.rank == 2:
            die_at(reducer, PHASES[phase], lambda: (lose(reducer), sys.exit()))
            reducer.sum_(torch.ones(4))
        flat = torch.ones(4)
        with pytest.raises(MemberLost):
            reducer.sum_(flat)
        assert (flat == 1).all()
        reducer.sum_(flat)
        return flat[0].item()

    assert together(store, 3, program)[:2] == [2.0, 2.0]


def die_in_the_middle(reducer, exchange):
    """Worker 2 is killed while its n-th message is under way; the others sum on. What each got, loss included."""
    wait, count = reducer._wait, iter(range(1, 100))

    def wait_or_die(work):
        if next(count) == exchange:
            os.kill(os.getpid(), signal.SIGKILL)
        wait(work)

    if reducer.rank == 2:
        reducer._wait = wait_or_die
    history = []
    for _ in range(3):
        flat = torch.ones(4)
        try:
            reducer.sum_(flat)
        except MemberLost:
            assert (flat == 1).all()
        history.append(flat[0].item())
    return history


@pytest.mark.slow
@pytest.mark.parametrize("exchange", [1, 2, 3, 4])
def test_killed_with_a_message_under_way(exchange):
    """A message may have reached some and not others: they decide alike all the same."""
    with LocalWorkers(die_in_the_middle, 3, args=(exchange,), threads=1) as workers:
        first, second = workers.results(timeout=60, tolerate_losses=True)
    assert first == second
    assert first in ([1.0, 2.0, 2.0], [3.0, 1.0, 2.0], [3.0, 3.0, 1.0])


def test_who_alone_missed_the_end_learns_the_outcome_from_the_store(store):
    """Worker 0 has the result and goes on; worker 1 lost its connection a moment too early, and takes it too."""
    passed = threading.Event()

    def program(reducer):
        if reducer.rank == 0:
            settle = reducer._members.settle
            reducer._members.settle = lambda *args: (settle(*args), passed.set())[0]
        else:
            gather, calls = reducer._gather, []

            def late_failure(values):
                calls.append(values)
                rows = gather(values)
                if len(calls) == 2:
                    assert passed.wait(10)
                    raise _Broken
                return rows

            reducer._gather = late_failure
        flat = torch.ones(3)
        reducer.sum_(flat)
        return flat[0].item()

    assert together(store, 2, program) == [2.0, 2.0]


def test_one_that_was_away_too_long_is_expelled(store):
    back = threading.Event()

    def program(reducer):
        reducer.sum_(torch.ones(1))
        if reducer.rank == 1:
            assert back.wait(20)
            with pytest.raises(Expelled, match="away for longer"):
                reducer.sum_(torch.ones(1))
            return None
        with pytest.raises(MemberLost) as caught:
            reducer.sum_(torch.ones(1))
        total = reducer.sum_(torch.ones(1), 4.0)
        back.set()
        return caught.value.ranks, total

    assert together(store, 3, program, timeout=1.0)[0] == ((1,), 8.0)


def test_a_new_worker_is_admitted_at_the_next_regroup(store):
    def newcomer():
        with ProcessGroupReducer(connect_store("127.0.0.1", store.port), timeout=20) as reducer:
            return reducer.rank, reducer.sum_(torch.ones(1), 10.0)

    def program(reducer):
        while reducer.rank == 0 and not reducer.num_waiting():
            time.sleep(0.01)
        reducer.sum_(torch.ones(1))
        reducer.regroup()
        assert reducer.num_waiting() == 0
        return reducer.world, reducer.sum_(torch.ones(1), 1.0)

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(newcomer)
        assert together(store, 2, program) == [(3, 12.0)] * 2
        assert future.result() == (2, 12.0)


def test_leaving_is_noticed_at_once(store):
    def program(reducer):
        if reducer.rank == 0:
            return None
        start = time.monotonic()
        with pytest.raises(MemberLost):
            reducer.sum_(torch.ones(1))
        return time.monotonic() - start

    assert together(store, 2, program)[1] < 3.0


def test_a_store_that_ended_is_one_clear_error():
    store = host_store()
    reducer = ProcessGroupReducer(connect_store("127.0.0.1", store.port), 0, 1, timeout=1.0)
    del store
    with pytest.raises(RunError, match="does not answer"):
        reducer.regroup()


def test_impossible_ranks_are_refused(store):
    with pytest.raises(ConfigError, match="rank < world"):
        ProcessGroupReducer(store, 2, 2)


# -- processes ---------------------------------------------------------------------------------------------------------


def rounds_until_alone(reducer, folder):
    """Sum until a worker is missing, then twice more; the time of each success and what was summed."""
    history, lost = [], 0
    number = 10.0 ** reducer.rank
    while lost == 0 or len(history) < lost + 2:
        flat = torch.full((LARGE,), number)
        try:
            weight = reducer.sum_(flat, weight=number)
        except MemberLost as error:
            lost = len(history)
            (folder / "lost").write_text(str(error.ranks))
            continue
        assert (flat == weight).all()
        history.append((time.monotonic(), weight))
        (folder / f"running{reducer.member}").touch()
    return history


def test_survivors_go_on_within_three_seconds_of_a_kill(tmp_path):
    with LocalWorkers(rounds_until_alone, 3, args=(tmp_path,), threads=1) as workers:
        while not all((tmp_path / f"running{rank}").exists() for rank in range(3)):
            time.sleep(0.02)
        killed = time.monotonic()
        os.kill(workers.pids[1], signal.SIGKILL)
        histories = workers.results(timeout=60, tolerate_losses=True)
    assert len(histories) == 2
    for history in histories:
        after = [(moment, weight) for moment, weight in history if weight != 111.0]
        assert [weight for _, weight in after] == [101.0] * 2
        assert after[0][0] - killed < 3.0
    assert not any(is_running(pid) for pid in workers.pids)


def fail_at_once(reducer, message):
    if reducer.rank == 1:
        raise ValueError(message)
    reducer.sum_(torch.ones(1))


def test_a_worker_that_raises_ends_the_others_and_tells_why():
    with LocalWorkers(fail_at_once, 2, args=("the very cause",), threads=1) as workers:
        with pytest.raises(WorkerFailed, match="the very cause"):
            workers.results(timeout=60)
        assert not any(is_running(pid) for pid in workers.pids)


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


PARENT = """
import sys, time
from hemstitch.parallel import LocalWorkers

def wait(reducer):
    time.sleep(600)

if __name__ == "__main__":
    workers = LocalWorkers(wait, 2, threads=1)
    print(*workers.pids, flush=True)
    workers.results()
"""


@pytest.mark.slow
def test_nothing_is_left_running_when_the_parent_is_killed(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    parent = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    pids = [int(word) for word in parent.stdout.readline().split()]
    time.sleep(5.0)
    assert len(pids) == 2 and all(map(is_running, pids))
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 4.0
    while any(map(is_running, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_running, pids))


UNDER_TORCHRUN = """
import torch
from hemstitch.comm import ProcessGroupReducer

with ProcessGroupReducer.from_environment() as reducer:
    flat = torch.ones(50_000)
    print("total", reducer.sum_(flat, 3.0), float(flat[-1]), flush=True)
"""


@pytest.mark.slow
def test_under_torchrun(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(UNDER_TORCHRUN)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout.count("total 6.0 2.0") == 2, done.stderr


def test_outside_torchrun_the_missing_variable_is_named(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ConfigError, match="RANK"):
        ProcessGroupReducer.from_environment()


def test_several_machines_need_an_address(monkeypatch):
    values = dict(RANK="0", WORLD_SIZE="4", LOCAL_WORLD_SIZE="2", MASTER_ADDR="10.0.0.1", MASTER_PORT="1")
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="address"):
        ProcessGroupReducer.from_environment()
