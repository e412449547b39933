"""A cluster of two machines, which are network namespaces of this one: cut apart, and one of them lost.

Needs the right to make namespaces (root) and the system's tool `ip`; `make test-ray`.
"""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("ray", reason="needs the engine: pip install 'hemstitch[parallel]'")

pytestmark = pytest.mark.slow

MOST_SECONDS = 300
HEAD, OTHER = ("hemstitch-a", "10.77.0.1"), ("hemstitch-b", "10.77.0.2")
PATIENCE = 10.0
DRIVER = f"""
import json, sys, time
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from ray_system import check_counts, counted_training

folder = Path(sys.argv[1])
with counted_training(folder, num_replicas=3, num_processes=3, num_shards=2, snapshot_every=20, patience={PATIENCE},
                      address="{HEAD[1]}:6399") as training:
    training.wait_until_ready()
    training.proceed(10**9)
    while not (folder / "finish").exists():
        for _ in range(5):
            training.watch()
        report = training.report()
        print(json.dumps({{"answered": report.answered, "failures": report.failures, "pids": training.pids,
                           "restarts": report.shard_restarts, "counts": report.counts}}), flush=True)
    training.pause()
    check_counts(training, folder)
    report = training.report()
    print(json.dumps({{"is_exact": True, "answered": report.answered, "lost": report.lost_updates,
                       "messages": report.messages}}), flush=True)
"""


def run(*command):
    """A command of the system that must succeed."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def inside(machine, *command):
    """The command as it runs on one of the machines."""
    return ["ip", "netns", "exec", machine[0], *command]


def cut():
    """Let no packet arrive: each machine is told a wrong hardware address of the other."""
    for machine, peer in (HEAD, OTHER), (OTHER, HEAD):
        run(*inside(machine, "ip", "neigh", "replace", peer[1], "lladdr", "02:00:00:00:00:99", "dev", "cable", "nud",
                    "permanent"))


def mend():
    """Let them find each other again."""
    for machine, peer in (HEAD, OTHER), (OTHER, HEAD):
        run(*inside(machine, "ip", "neigh", "del", peer[1], "dev", "cable"))


@pytest.fixture(scope="module")
def machines():
    """Two namespaces with a cable between them."""
    if not (shutil.which("ip") and hasattr(os, "geteuid") and os.geteuid() == 0):
        pytest.skip("needs root and the system's `ip` to make network namespaces")
    try:
        run("ip", "netns", "add", HEAD[0])
        run("ip", "netns", "add", OTHER[0])
        run("ip", "link", "add", "cable", "netns", HEAD[0], "type", "veth", "peer", "name", "cable", "netns", OTHER[0])
        for machine in HEAD, OTHER:
            run(*inside(machine, "ip", "address", "add", f"{machine[1]}/24", "dev", "cable"))
            for device in "lo", "cable":
                run(*inside(machine, "ip", "link", "set", device, "up"))
    except subprocess.CalledProcessError as error:
        remove_machines()
        pytest.skip(f"this machine has no network namespaces: {error.stderr}")
    yield
    remove_machines()


def remove_machines():
    """End what still runs there, then the namespaces."""
    for machine in HEAD, OTHER:
        for pid in subprocess.run(["ip", "netns", "pids", machine[0]], capture_output=True, text=True).stdout.split():
            os.kill(int(pid), signal.SIGKILL)
        subprocess.run(["ip", "netns", "del", machine[0]], capture_output=True)


@pytest.fixture
def cluster(machines, tmp_path):
    """An engine on both machines, with a token."""
    temporary = f"/tmp/hs-{secrets.token_hex(3)}"           # short: it holds sockets
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32),
                   "RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--object-store-memory", "100000000",
             "--node-ip-address"]
    for machine, options in (
        (HEAD, ["--head", "--port", "6399", "--num-cpus", "3", "--include-dashboard", "false",
                "--temp-dir", temporary]),
        (OTHER, ["--address", f"{HEAD[1]}:6399", "--num-cpus", "2"]),
    ):
        subprocess.run(inside(machine, *start, machine[1], *options), check=True, env=environment, timeout=MOST_SECONDS,
                       stdout=subprocess.DEVNULL)
    folder = tmp_path / "server"
    folder.mkdir()
    driver = subprocess.Popen(inside(HEAD, sys.executable, "-c", DRIVER, str(folder)), env=environment, text=True,
                              stdout=subprocess.PIPE)
    yield Cluster(driver, folder)
    driver.kill()
    driver.communicate()
    for machine in HEAD, OTHER:
        for pid in run("ip", "netns", "pids", machine[0]).split():
            os.kill(int(pid), signal.SIGKILL)
    shutil.rmtree(temporary, ignore_errors=True)


class Cluster:
    """The driver as seen from outside: it tells how things stand."""

    def __init__(self, driver, folder):
        self.driver, self.folder = driver, folder

    def listen(self):
        """What it says next."""
        while (line := self.driver.stdout.readline()) and not line.startswith("{"):
            pass                                            # the engine tells of a death
        assert line, f"the driver ended with {self.driver.wait()}"
        return json.loads(line)

    def until(self, condition):
        """What it says when something is so."""
        deadline = time.monotonic() + MOST_SECONDS
        while not condition(news := self.listen()):
            assert time.monotonic() < deadline, news
        return news

    def finish(self):
        """Let it count, and end."""
        (self.folder / "finish").touch()
        outcome = self.until(lambda news: "is_exact" in news)
        assert self.driver.wait(timeout=60) == 0
        return outcome


def far_pids():
    """Processes on the other machine."""
    return {int(pid) for pid in run("ip", "netns", "pids", OTHER[0]).split()}


@pytest.mark.parametrize("seconds", [3, 30])
def test_a_partition(cluster, seconds):
    before = cluster.until(lambda news: news["answered"] > 50)
    assert set(before["pids"]["replicas"]) & far_pids()                 # some of it is really there
    cut()
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        during = cluster.listen()
    mend()
    if seconds < PATIENCE:
        assert during["failures"] == before["failures"]                 # nobody was given up
    after = cluster.until(lambda news: news["answered"] > during["answered"] + 100)
    if seconds > 2 * PATIENCE:
        assert after["failures"] + after["restarts"] > before["failures"] + before["restarts"]
    assert cluster.finish()["lost"] <= 20 * max(1, after["restarts"])


@pytest.mark.parametrize("how", ["SIGKILL", "SIGSTOP"])
def test_a_machine_is_lost(cluster, how):
    before = cluster.until(lambda news: news["answered"] > 50)
    assert set(before["pids"]["replicas"]) & far_pids()
    for pid in far_pids():
        os.kill(pid, getattr(signal, how))
    cluster.until(lambda news: news["failures"] > before["failures"] and len(news["pids"]["replicas"]) == 3
                  and news["answered"] > before["answered"] + 200)
    assert cluster.finish()["answered"] > before["answered"]
