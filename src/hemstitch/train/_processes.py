"""Runs over several processes: started and looked after by this one, or joined where torchrun has started them.

Every worker runs the same loop on its share of the data; what it writes and says counts only while it is the first of
its group. When the first one dies the next takes over, from the state that all had after the last average. A worker
that fails, other than by dying, ends the run: the others stop at the next average, and the reason is the run's.
"""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import hemstitch.errors
from hemstitch.comm import LocalReducer, ProcessGroupReducer, Reducer
from hemstitch.errors import ConfigError, HemstitchError, RunError
from hemstitch.parallel import LocalWorkers
from hemstitch.train import _options as o
from hemstitch.train._build import Run, build_run
from hemstitch.train._console import Console
from hemstitch.train._loop import Interrupted, Loop, Watch
from hemstitch.train._recipe import Recipe, restore_recipe
from hemstitch.train._run_folder import METRICS, JsonLines, RunFolder
from hemstitch.train._workers import gather

if TYPE_CHECKING:
    from hemstitch.parallel.ray import RayWorkers

STOP = "hemstitch/stop"         # key in the workers' store
POLL_SECONDS = 0.2


class OnlyFirst(JsonLines):
    """Lines that only the first worker writes."""

    def __init__(self, path: Path, reducer: Reducer) -> None:
        super().__init__(path)
        self.reducer = reducer

    def append(self, entries: Any) -> None:
        """Write the entries, if this is the first worker."""
        if self.reducer.rank == 0:
            super().append(entries)


class WorkerFolder(RunFolder):
    """The run folder of several workers: all read, the first one writes."""

    def __init__(self, path: Path, reducer: Reducer) -> None:
        super().__init__(path)
        self.reducer = reducer
        self.metrics, self.events = (OnlyFirst(lines.path, reducer) for lines in (self.metrics, self.events))

    def save_checkpoint(self, step: int, state: dict[str, Any], *, keep: int, best_step: int | None) -> Path:
        """See :meth:`RunFolder.save_checkpoint`."""
        if self.reducer.rank > 0:
            return self.checkpoint_path(step)
        return super().save_checkpoint(step, state, keep=keep, best_step=best_step)

    def write_diagram(self, name: str, diagram: dict[str, Any]) -> None:
        """See :meth:`RunFolder.write_diagram`."""
        if self.reducer.rank == 0:
            super().write_diagram(name, diagram)


# -- started by torchrun ---------------------------------------------------------------------------------------------


@contextmanager
def joined(recipe: Recipe) -> Iterator[Reducer]:
    """The group of workers that torchrun has started; a single worker otherwise.

    Raises:
        ConfigError: the recipe has no use for several processes.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or int(os.environ.get("WORLD_SIZE", 1)) == 1:
        yield LocalReducer()
        return
    options = recipe.parallel
    if not isinstance(options, o.WorkerProcesses):
        raise ConfigError(
            f"torchrun has started {os.environ['WORLD_SIZE']} processes, but parallel.kind = "
            f"{recipe.kinds['parallel']!r} is for one: take data-parallel or averaging, or start hemstitch itself"
        )
    if torch.cuda.is_available() and recipe.train.device != "cpu":
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    with ProcessGroupReducer.from_environment(
        timeout=options.timeout, address=options.address or None, backend=options.backend
    ) as reducer:
        yield reducer


def common_folder(path: Path, reducer: Reducer) -> RunFolder:
    """The first worker's run folder, for all of them."""
    if isinstance(reducer, LocalReducer):
        return RunFolder(path)
    return WorkerFolder(Path(gather(reducer, {"path": str(path)})[0]["path"]), reducer)


# -- started here ----------------------------------------------------------------------------------------------------


def starts_workers(recipe: Recipe, reducer: Reducer) -> bool:
    """Whether this process only looks after those that train."""
    return isinstance(reducer, LocalReducer) and num_processes(recipe.parallel) > 1


def num_processes(options: Any) -> int:
    """How many processes a run has if it is not started by torchrun."""
    if isinstance(options, o.Averaging):
        return options.most_workers
    return options.workers if isinstance(options, o.DataParallel) else 1


def supervise(run: Run, folder: RunFolder, loop: Loop, watch: Watch | None) -> None:
    """Start the workers, wait for them, and take over what they have learned.

    Raises:
        Interrupted: asked to stop; the workers have saved what there was.
        HemstitchError: what a worker has raised.
    """
    options, quiet = run.recipe.parallel, run.console.console.quiet
    if options.backend == "nccl":
        raise ConfigError("parallel.backend = 'nccl' needs one GPU per process, which torchrun hands out: start the "
                          "run with torchrun, or take gloo")  # fmt: skip
    if loop.progress.step == 0:
        loop.save()                                         # with it all workers begin
    looks = _new_looks(folder, run.recipe.train.epochs)
    with launched(run.recipe, (str(folder.path.resolve()), quiet)) as workers, _forwarded_signals(workers):
        while (results := _results(workers)) is None:
            for share, values in next(looks) if watch else ():
                watch(share, values)
        losses = workers.losses()
    for result in results:
        if result["status"] == "failed":
            raise getattr(hemstitch.errors, result["type"], RunError)(result["message"])
    found = folder.load_newest()
    loop.tick()
    if found is not None:
        loop.load_state_dict(found[0])
    for loss in losses:
        loop.event("worker-lost", loss.splitlines()[0], level="warning")
    if any(result["status"] == "stopped" for result in results):
        raise Interrupted


def launched(recipe: Recipe, args: tuple[Any, ...]) -> LocalWorkers | RayWorkers:
    """The workers, started in the way that the recipe says."""
    options, threads = recipe.parallel, recipe.train.threads
    if options.launcher == "ray":
        from hemstitch.parallel.ray import RayWorkers

        return RayWorkers(work, num_processes(options), args=args, timeout=options.timeout, threads=threads or 1,
                          address=options.address)
    return LocalWorkers(work, num_processes(options), args=args, timeout=options.timeout, threads=threads)


def work(reducer: ProcessGroupReducer, path: str, quiet: bool) -> dict[str, str]:
    """The life of one worker: says how it ended."""
    try:
        folder = WorkerFolder(Path(path), reducer)
        recipe = restore_recipe(folder.config())
        run = build_run(recipe, Console(quiet=quiet or reducer.rank > 0), folder.kept(), reducer)
        loop = run.loop(folder)
        loop.strategy.is_asked_to_stop = lambda: loop.stop_requested or reducer.store.check([STOP])
        loop.load_state_dict(folder.load_newest()[0])
        loop.run()
    except Interrupted:
        return {"status": "stopped"}
    except HemstitchError as error:
        reducer.store.set(STOP, "1")
        return {"status": "failed", "type": type(error).__name__, "message": str(error)}
    return {"status": "finished"}


def _results(workers: LocalWorkers | RayWorkers) -> list[dict[str, str]] | None:
    try:
        return workers.results(timeout=POLL_SECONDS, tolerate_losses=True)
    except TimeoutError:
        return None


def _new_looks(folder: RunFolder, epochs: int) -> Iterator[list[tuple[float, dict[str, float]]]]:
    """What was seen on dev since the last time, for ever: share of the epochs that was done, and values."""
    seen = folder.metrics.length()
    while True:
        with open(folder.path / METRICS, "ab+") as file:
            file.seek(seen)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        seen += len(whole)
        looks: dict[float, dict[str, float]] = {}
        for row in map(json.loads, whole.splitlines()):
            if row["split"] == "dev":
                looks.setdefault(row["epoch"], {})[row["name"]] = row["value"]
        yield [(round(epoch) / epochs, values) for epoch, values in looks.items()]


@contextmanager
def _forwarded_signals(workers: LocalWorkers | RayWorkers) -> Iterator[None]:
    """Tell the workers to stop at the next average when this process is asked to; a second time ends them at once."""

    def stop(number: int, frame: Any) -> None:
        if workers.store.check([STOP]):
            raise KeyboardInterrupt
        workers.store.set(STOP, "1")

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
