"""Ray as the engine: started inside this process on a laptop, or reached by address on a cluster.

Embedded, nothing needs to be installed or started before and nothing is left after: all processes listen on the
loopback address only and want a token that is drawn anew each time. For several machines the cluster is
started with Ray's own tools, with a token (``RAY_AUTH_MODE=token``), and given by address.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import ModuleType
from typing import IO, Any

from hemstitch.errors import ConfigError, RunError

MEBIBYTE = 2**20
LEAST_STORE = 80 * MEBIBYTE         # the engine wants no less
BASE_MEMORY = 450 * MEBIBYTE        # the engine's own processes
MEMORY_PER_PROCESS = 300 * MEBIBYTE
SHARED_MEMORY = Path("/dev/shm")
ANSWER_SECONDS = 5.0        # for a cluster to take a connection
LOOPBACK = ("127.0.0.1", "localhost")
LONGEST_TEMPORARY = 20      # letters of a folder in which the engine's sockets, at most 107 in all, still have room


def import_ray() -> ModuleType:
    """The engine.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import ray
    except ImportError:
        raise ConfigError("asynchronous workers run on Ray, which is not installed: pip install 'hemstitch[parallel]'. "
                          "Without it, the simulated system runs in one process.") from None
    return ray


@contextmanager
def connected(address: str = "", *, num_cpus: int = 2, store_bytes: int = 0, num_processes: int = 2) -> Iterator[Any]:
    """The engine, ready; what was started here is ended at the end.

    If this process is connected already, that connection is used and left alone.

    Args:
        address: of a running cluster, such as ``10.0.0.1:6379`` or ``auto``; empty: start one inside this process.
        num_cpus: processors of the embedded cluster, in the engine's books.
        store_bytes: of shared memory for messages under way.
        num_processes: that will be started, for the check of the memory.

    Raises:
        ConfigError: the engine is not installed, or there is too little memory or shared memory.
        RunError: the engine cannot start, or the cluster does not answer or refuses the token.
    """
    if not address:
        store_bytes = max(store_bytes, LEAST_STORE)
        check_memory(store_bytes, num_processes)
    with _environment(_joining_settings() if address else _private_settings()):
        ray = import_ray()
        if ray.is_initialized():
            yield ray
            return
        _apply_authentication()
        with nullcontext() if address else temporary_folder(_short_place()) as folder:
            try:
                with _own_signals():
                    if address:
                        _join(ray, address)
                    else:
                        _start(ray, num_cpus, store_bytes, folder)
                yield ray
            finally:
                with _own_signals():
                    ray.shutdown()
    if not address:
        _apply_authentication()


def check_memory(store_bytes: int, num_processes: int) -> None:
    """Whether this machine can hold the workers; one clear error now instead of a dead process later.

    Raises:
        ConfigError: too little memory, or too little of it shared.
    """
    if SHARED_MEMORY.is_dir():
        free = shutil.disk_usage(SHARED_MEMORY).free
        if free < store_bytes:
            raise ConfigError(
                f"{SHARED_MEMORY} has {free / MEBIBYTE:.0f} MiB free, the messages of the workers need "
                f"{store_bytes / MEBIBYTE:.0f} MiB. In a container start it with a larger one (docker run --shm-size="
                f"{2 * store_bytes // MEBIBYTE}m), or use fewer replicas.")
    needed, available = store_bytes + BASE_MEMORY + num_processes * MEMORY_PER_PROCESS, available_memory()
    if available is not None and available < needed:
        raise ConfigError(f"{num_processes} worker processes need about {needed / MEBIBYTE:.0f} MiB of memory, "
                          f"{available / MEBIBYTE:.0f} MiB are free: use fewer processes (several replicas share one).")


def available_memory() -> int | None:
    """Bytes that processes can still take, by the system or the container's limit; ``None`` where it is not told."""
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
        with suppress(OSError, ValueError):                 # "max" where there is no limit
            limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
            free = min(free, limit - int(Path("/sys/fs/cgroup/memory.current").read_text()))
        return free
    return None


def _start(ray: ModuleType, num_cpus: int, store_bytes: int, folder: Path) -> None:
    """Start an engine here, with its logs and sockets in ``folder``."""
    try:
        with _loopback():
            ray.init(
                address="local", num_cpus=num_cpus, include_dashboard=False, object_store_memory=store_bytes,
                _node_ip_address="127.0.0.1", _temp_dir=str(folder), log_to_driver=False, configure_logging=False,
                logging_level=logging.ERROR)
    except Exception as error:  # the engine raises nothing narrower
        raise RunError(f"Ray did not start on this machine ({str(error).splitlines()[0]}). A machine that is very busy "
                       "is too slow for Ray's own limits: try again, or train without processes (parallel.kind = "
                       "'simulated-async').") from error


def _join(ray: ModuleType, address: str) -> None:
    host, _, port = address.rpartition(":")
    is_direct = port.isdigit() and "://" not in address
    if is_direct and not _answers(host, int(port)):
        raise RunError(f"nobody answers at {address!r}: is the cluster running (`ray status` on its first machine), "
                       "and is that the address given to `ray start --node-ip-address`, with its --port?")
    is_private = is_direct and host in LOOPBACK and not _answers(ray.util.get_node_ip_address(), int(port))
    try:
        with _loopback() if is_private else nullcontext():
            ray.init(address=address, log_to_driver=False, configure_logging=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
        raise RunError(f"the cluster at {address!r} does not let this process in ({str(error).splitlines()[0]}). "
                       f"{_about_token()} Otherwise: its Ray may be of another version than {ray.__version__}, which "
                       "is installed here.") from None


def _answers(host: str, port: int) -> bool:
    """Whether somebody listens there; the engine by itself would wait for minutes."""
    try:
        socket.create_connection((host, port), timeout=ANSWER_SECONDS).close()
    except OSError:
        return False
    return True


def _about_token() -> str:
    """What may be wrong with it, as far as it can be known here."""
    if os.environ.get("RAY_AUTH_MODE") != "token":
        return ("If it wants a token (it should): none is set here. Set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or "
                "RAY_AUTH_TOKEN_PATH to what the cluster was started with.")
    place = next((name for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH") if os.environ.get(name)), None)
    if place is None:
        return ("RAY_AUTH_MODE=token is set, but neither RAY_AUTH_TOKEN nor RAY_AUTH_TOKEN_PATH: set one to what the "
                "cluster was started with.")
    return f"Most likely the token in {place} is not the one that the cluster was started with."


@contextmanager
def _reaper() -> Iterator[IO[str]]:
    """A process that removes the folder written to it, and who uses it, when this one has ended, in order or not."""
    program = Path(__file__).with_name("_reaper.py")
    process = subprocess.Popen([sys.executable, "-I", "-S", str(program)], stdin=subprocess.PIPE, text=True, bufsize=1,
                               start_new_session=True)
    try:
        yield process.stdin
    finally:
        process.stdin.close()
        process.wait()


@contextmanager
def temporary_folder(place: str | None = None) -> Iterator[Path]:
    """A folder that is removed at the end, with the engine's processes that use it, also if this process is killed."""
    folder = Path(tempfile.mkdtemp(prefix="hemstitch-", dir=place)).resolve()
    with _reaper() as reaper:
        reaper.write(f"{folder}\n")
        yield folder


def _short_place() -> str:
    """Where temporary files go, if there is room for the names of sockets."""
    usual = tempfile.gettempdir()
    return usual if len(usual) <= LONGEST_TEMPORARY else "/tmp"


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep this process's answer to signals, which the engine replaces when it starts and when it ends."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                if handler is not None:                     # set by something other than Python: cannot be set again
                    signal.signal(number, handler)


@contextmanager
def _loopback() -> Iterator[None]:
    """Keep the engine from replacing 127.0.0.1 by the machine's address, which on Linux it does."""
    from ray._private import ray_constants

    before = getattr(ray_constants, "ENABLE_RAY_CLUSTER", True)
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def _private_settings() -> Mapping[str, str]:
    """The environment of an embedded engine: a token of its own, and processes that are as urgent as this one.

    By itself the engine gives its workers the niceness 15: beside any other busy program they all but stand still.
    """
    settings = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0"}
    if "RAY_AUTH_MODE" in os.environ:
        return settings
    return {**settings, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


def _joining_settings() -> Mapping[str, str]:
    """The environment of a process that joins a cluster: it is told once that it may not, after seconds."""
    settings = {"RAY_NUM_REDIS_GET_RETRIES": "3", "RAY_BACKEND_LOG_LEVEL": "error"}
    return {name: os.environ.get(name, value) for name, value in settings.items()}


def _apply_authentication() -> None:
    """Let the engine, which read the environment when it was imported, read it again."""
    with suppress(ImportError, AttributeError):
        from ray._raylet import AuthenticationTokenLoader, Config

        Config.initialize("")
        AuthenticationTokenLoader.instance().reset_cache()


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
