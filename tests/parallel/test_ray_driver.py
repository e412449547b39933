"""The process that was started ends, in order or not: nothing of it is left, and the run can be resumed.

Each test has an embedded cluster of its own, one after the other; `make test-ray`.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="needs the engine: pip install 'hemstitch[parallel]'")

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default"),
              pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks into /proc")]

MOST_SECONDS = 240
SETTINGS = ["--parallel.kind", "async", "--parallel.replicas", "3", "--parallel.processes", "1", "--update.kind", "sgd",
            "--update.momentum", "0", "--update.lr", "0.05", "--schedule.kind", "constant", "--train.epochs", "6",
            "--train.checkpoint_every", "5"]
AVERAGING = ["--parallel.kind", "averaging", "--parallel.launcher", "ray", "--parallel.workers", "2",
             "--parallel.every", "60", "--train.epochs", "400", "--train.checkpoint_every", "5"]
PROGRAM = """
import os, signal, sys, time
import torch
from hemstitch.parallel import StepRule
from hemstitch.parallel.ray import AsynchronousTraining

def gradient(parameters, batch):
    time.sleep(0.02)
    return torch.ones_like(parameters), 0.0, 1.0

signal.signal(signal.SIGTERM, lambda *_: print("asked to stop", flush=True))
with AsynchronousTraining(torch.zeros(4), lambda worker: gradient, lambda number: number, num_replicas=2,
                          num_processes=1, rule=StepRule(0.01), patience=8.0) as training:
    training.wait_until_ready()
    print("ready", flush=True)
    report = training.run(**{limit})
    if {fails}:
        raise SystemExit("something else went wrong")
    print("ending", flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
os.kill(os.getpid(), signal.SIGTERM)
print("updates", report.updates, "replaced", report.failures + report.shard_restarts, flush=True)
"""
KILLED_WHILE_SAVING = """
import os, signal, sys
from hemstitch.train import _checkpoint
from hemstitch.cli import main

save, replace, calls = _checkpoint.save, os.replace, []

def die(*arguments):
    calls.append(arguments)
    if "safetensors" in str(arguments[-1]) and len(calls) >= 3:
        os.kill(os.getpid(), signal.SIGKILL)        # the new file is complete, but has not got its name
    return replace(*arguments)

os.replace = die
sys.exit(main())
"""


class Started:
    """A process and everything that has come from it.

    Attributes:
        folders: temporary ones, by whoever was in them: the engine's session, and that of the server.
    """

    def __init__(self, arguments, temporary):
        self.process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, text=True,
                                        env={**os.environ, "TMPDIR": str(temporary)})
        self._temporary = temporary
        self.family, self.ports, self.shared, self.folders = {}, set(), set(), set()

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def wait_for(self, condition):
        """Until something is so; remembers who is there."""
        deadline = time.monotonic() + MOST_SECONDS
        while not condition():
            assert self.process.poll() is None and time.monotonic() < deadline, self.process.stdout.read()
            time.sleep(0.1)
        self.look()

    def look(self):
        """Remember all descendants with the times of their starts, ports, files in shared memory, and folders."""
        children = {}
        for entry in Path("/proc").glob("[0-9]*"):
            if (found := birth(int(entry.name))) is not None:
                children.setdefault(found[0], []).append((int(entry.name), found[1]))
        todo = [self.process.pid]
        while todo:
            for pid, start in children.get(todo.pop(), []):
                self.family[pid] = start
                todo.append(pid)
        self.ports |= listening(self.family)
        self.shared |= set().union(*map(shared_files, self.family))
        sessions = [file for pid in self.family for file in open_files(pid) if "/session_" in file]
        self.folders |= {*self._temporary.glob("hemstitch-*"),
                         *(Path(file[: file.index("/session_")]) for file in sessions)}

    def left(self):
        """What there still is of it."""
        alive = {pid for pid, start in self.family.items() if (birth(pid) or (0, None))[1] == start}
        return (alive, self.ports & listening(None), {name for name in self.shared if Path(name).exists()},
                {folder for folder in self.folders if folder.exists()})

    def assert_nothing_is_left(self, seconds, num_processes=8):
        deadline = time.monotonic() + seconds
        while any(self.left()) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert self.left() == (set(), set(), set(), set())
        assert len(self.family) >= num_processes and self.ports and self.shared and self.folders    # it was there


def birth(pid):
    """Parent and start of a process; ``None`` if there is none, or it is a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else (int(fields[1]), int(fields[19]))


def shared_files(pid):
    """Files in shared memory that a process has mapped."""
    try:
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
    except OSError:
        return set()
    return {line.split(maxsplit=5)[5].removesuffix(" (deleted)") for line in lines if "/dev/shm/" in line}


def open_files(pid):
    """What a process has open."""
    try:
        return [os.readlink(file) for file in Path(f"/proc/{pid}/fd").iterdir()]
    except OSError:
        return []


def listening(pids):
    """TCP ports on which some processes (``None``: any) listen."""
    inodes = None
    if pids is not None:
        inodes = {name[8:-1] for pid in pids for name in open_files(pid) if name.startswith("socket:[")}
    lines = [line.split() for name in ("tcp", "tcp6") for line in Path("/proc/net", name).read_text().splitlines()[1:]]
    return {int(line[1].rsplit(":", 1)[1], 16) for line in lines
            if line[3] == "0A" and (inodes is None or line[9] in inodes)}


@pytest.mark.parametrize("how", ["end", "error", "SIGINT", "SIGKILL"])
def test_nothing_is_left(how, tmp_path):
    limit = {"updates": 60} if how in ("end", "error") else {"seconds": 10**6}
    text = PROGRAM.replace("{limit}", repr(limit)).replace("{fails}", str(how == "error"))
    with Started(["-c", text], tmp_path) as started:
        assert started.process.stdout.readline() == "ready\n"
        started.look()
        if how.startswith("SIG"):
            time.sleep(1.0)
            started.process.send_signal(getattr(signal, how))
        said, _ = started.process.communicate(timeout=MOST_SECONDS)
        assert (started.process.returncode == 0) == (how == "end")
        if how == "end":                                    # the answer to a signal is the program's own, to the end
            assert said.startswith("ending\nasked to stop\nasked to stop\nupdates 6")
        started.assert_nothing_is_left(seconds=5.0 if how == "SIGKILL" else 1.0)


def program(**limit):
    return PROGRAM.replace("{limit}", repr(limit)).replace("{fails}", "False")


@pytest.mark.parametrize("num_processes", [2, 4, 6, 8, 10])
def test_nothing_is_left_of_one_killed_while_it_starts(num_processes, tmp_path):
    with Started(["-c", program(seconds=10**6)], tmp_path) as started:
        started.wait_for(lambda: started.look() or (len(started.family) >= num_processes and started.shared))
        started.process.kill()
        started.process.wait()
        started.assert_nothing_is_left(seconds=8.0, num_processes=num_processes)


def test_nothing_is_left_of_one_killed_while_it_ends(tmp_path):
    with Started(["-c", program(updates=60)], tmp_path) as started:
        assert started.process.stdout.readline() == "ready\n"
        started.look()
        assert started.process.stdout.readline() == "ending\n"
        time.sleep(0.3)
        started.process.kill()
        started.process.wait()
        started.assert_nothing_is_left(seconds=5.0)


def test_one_that_is_stopped_for_a_while_replaces_nobody_when_it_goes_on(tmp_path):
    with Started(["-c", program(seconds=30)], tmp_path) as started:
        assert started.process.stdout.readline() == "ready\n"
        time.sleep(1.0)
        started.process.send_signal(signal.SIGSTOP)
        time.sleep(15.0)                                    # its patience with the others is 8 s
        started.process.send_signal(signal.SIGCONT)
        said, _ = started.process.communicate(timeout=MOST_SECONDS)
        assert said.endswith("replaced 0\n")


def samples(run):
    """Samples trained on, by the last training line of the metrics."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return max(line["samples"] for line in lines if line["split"] == "train")


def finish(run):
    """Resume to the end; what the run then says of itself."""
    done = subprocess.run([sys.executable, "-m", "hemstitch.cli", "resume", str(run), "--quiet"], capture_output=True,
                          text=True, timeout=2 * MOST_SECONDS)
    assert done.returncode == 0, done.stderr
    assert json.loads((run / "result.json").read_text())["status"] == "finished"
    return samples(run)


def test_averaging_goes_on_where_it_was_ended(tiny_recipe, tmp_path):
    run = tmp_path / "run"
    command = ["-m", "hemstitch.cli", "train", str(tiny_recipe), "--run", str(run), "--quiet", *AVERAGING]
    with Started(command, tmp_path) as started:
        started.wait_for(lambda: len(list(run.glob("checkpoints/*.safetensors"))) >= 2)
        started.process.kill()
        started.process.wait()
        started.assert_nothing_is_left(seconds=5.0)
    finish(run)


@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM", "while saving"])
def test_a_run_goes_on_where_it_was_ended(tiny_recipe, tmp_path, how):
    run = tmp_path / "run"
    program = ["-c", KILLED_WHILE_SAVING] if how == "while saving" else ["-m", "hemstitch.cli"]
    command = [*program, "train", str(tiny_recipe), "--run", str(run), "--quiet", *SETTINGS]
    with Started(command, tmp_path) as started:
        if how == "while saving":
            while started.process.poll() is None:
                started.look()
                time.sleep(0.2)
            assert started.process.returncode == -signal.SIGKILL
        else:
            started.wait_for(lambda: len(list(run.glob("checkpoints/*.safetensors"))) >= 2)
            started.process.send_signal(getattr(signal, how))
            said, _ = started.process.communicate(timeout=MOST_SECONDS)
            assert started.process.returncode == {"SIGKILL": -9, "SIGTERM": 130}[how]
            assert how == "SIGKILL" or "hemstitch resume" in said
        started.assert_nothing_is_left(seconds=5.0)
    assert finish(run) == 6 * 270
