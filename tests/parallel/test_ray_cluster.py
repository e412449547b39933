"""Runs on a cluster that is there already, given by address, with a token; `make test-ray`."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="needs the engine: pip install 'hemstitch[parallel]'")

from hemstitch.parallel.ray._reaper import processes_of

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks into /proc")]

MOST_SECONDS = 240
ASYNCHRONOUS = ["--parallel.kind", "async", "--parallel.replicas", "3", "--parallel.processes", "2", "--update.kind",
                "sgd", "--update.momentum", "0", "--update.lr", "0.05", "--schedule.kind", "constant"]
AVERAGING = ["--parallel.kind", "averaging", "--parallel.launcher", "ray", "--parallel.workers", "2",
             "--parallel.every", "60"]
WORKERS = ("ray::ReplicaHost", "ray::ServerShard", "ray::Member")


class Cluster:
    """On the loopback address, as the documents say."""

    def __init__(self):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port = listener.getsockname()[1]
        self.address, self.temporary = f"127.0.0.1:{self.port}", f"/tmp/hs-{secrets.token_hex(3)}"
        plain = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        self.environment = {**plain, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--node-ip-address", "127.0.0.1",
                 "--port", str(self.port), "--num-cpus", "8", "--include-dashboard", "false", "--object-store-memory",
                 "100000000", "--temp-dir", self.temporary]
        subprocess.run(start, check=True, stdout=subprocess.DEVNULL, timeout=MOST_SECONDS, env={
            **self.environment, "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0"})

    def end(self):
        """Whatever still runs of it."""
        while pids := processes_of(self.temporary):
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)
        shutil.rmtree(self.temporary, ignore_errors=True)

    def listens_on(self):
        """Local addresses of its port, in hexadecimal."""
        lines = [line.split() for name in ("tcp", "tcp6")
                 for line in Path("/proc/net", name).read_text().splitlines()[1:]]
        return {line[1].split(":")[0] for line in lines
                if line[3] == "0A" and int(line[1].rsplit(":", 1)[1], 16) == self.port}

    def workers(self):
        """Processes of runs."""
        commands = [Path(f"/proc/{pid}/cmdline") for pid in processes_of(self.temporary)]
        return [text for command in commands if command.exists() and (text := command.read_text()).startswith(WORKERS)]


@pytest.fixture(scope="module")
def cluster():
    cluster = Cluster()
    yield cluster
    cluster.end()


def start(cluster, recipe, run, settings, environment=None, **options):
    command = [sys.executable, "-m", "hemstitch.cli", "train", str(recipe), "--run", str(run), "--quiet",
               "--parallel.address", cluster.address, *settings]
    return subprocess.Popen(command, env={**cluster.environment, "TMPDIR": str(run.parent), **(environment or {})},
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)


def said(process):
    text, _ = process.communicate(timeout=MOST_SECONDS)
    return text


def until(condition):
    deadline = time.monotonic() + MOST_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_only_this_machine_can_reach_it(cluster):
    assert cluster.listens_on() <= {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}


@pytest.mark.parametrize("settings", [ASYNCHRONOUS, AVERAGING], ids=["asynchronous", "averaging"])
def test_the_same_recipe_runs_on_a_cluster_and_leaves_it_as_it_was(cluster, tiny_recipe, tmp_path, settings):
    process = start(cluster, tiny_recipe, tmp_path / "run", settings)
    text = said(process)
    assert process.returncode == 0, text
    assert json.loads((tmp_path / "run/result.json").read_text())["status"] == "finished"
    until(lambda: not cluster.workers())
    assert cluster.listens_on() and not list(tmp_path.glob("hemstitch-*"))


def test_a_run_that_is_killed_leaves_the_cluster_as_it_was(cluster, tiny_recipe, tmp_path):
    process = start(cluster, tiny_recipe, tmp_path / "run", [*ASYNCHRONOUS, "--train.epochs", "100000"])
    until(lambda: len(cluster.workers()) == 3)
    assert len(list(tmp_path.glob("hemstitch-*"))) == 1
    process.kill()
    said(process)
    until(lambda: not cluster.workers() and not list(tmp_path.glob("hemstitch-*")))
    assert cluster.listens_on()


@pytest.mark.parametrize("environment, says", [
    ({"RAY_AUTH_TOKEN": "0" * 64}, "the token in RAY_AUTH_TOKEN is not the one that the cluster was started with"),
    ({"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": ""}, "none is set here"),
], ids=["wrong", "missing"])
def test_without_the_token_nobody_gets_in(cluster, tiny_recipe, tmp_path, environment, says):
    process = start(cluster, tiny_recipe, tmp_path / "run", ASYNCHRONOUS, environment)
    text = " ".join(said(process).split())
    assert process.returncode not in (0, None) and says in text and "Traceback" not in text
    assert not cluster.workers()
