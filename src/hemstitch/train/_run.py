"""Start, resume and finish a run: what the command line and a notebook call."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch

from hemstitch.comm import Reducer
from hemstitch.errors import ConfigError, HemstitchError, NonFiniteError, RunError
from hemstitch.train._build import Run, build_run
from hemstitch.train._checkpoint import load_checkpoint
from hemstitch.train._console import Console
from hemstitch.train._first_stage import with_first_stage
from hemstitch.train._loop import Interrupted, Loop, Watch
from hemstitch.train._processes import common_folder, joined, starts_workers, supervise
from hemstitch.train._recipe import Recipe, restore_recipe
from hemstitch.train._run_folder import RESULT, RunFolder, next_run_path, read_json
from hemstitch.train._strategies import StepReport
from hemstitch.train._workers import own_random_numbers

WARM_UP_SECONDS = 5.0
"""A first step that takes longer than this is not made twice by a dry run."""


def train(recipe: Recipe, path: Path | None = None, console: Console | None = None, watch: Watch | None = None) -> Path:
    """Train a recipe from the start; returns the run folder, which then holds result.json.

    Args:
        recipe: what to do.
        path: the run folder; ``None``: ``runs/<name>-<number>``.
        console: where messages go; ``None``: standard error.
        watch: called at every look with the share of the epochs that is done and the values on dev.

    Raises:
        HemstitchError: bad input, a folder that cannot be written, non-finite values.
        Interrupted: stopped by a signal; ``resume`` continues.
    """
    with joined(recipe) as reducer:
        console = (console or Console()) if reducer.rank == 0 else Console(quiet=True)
        if reducer.world == 1:
            recipe = with_first_stage(recipe, console, train, resume)
        elif recipe.start.recipe is not None and recipe.start.run is None:
            raise ConfigError("start.recipe does not go with torchrun: its workers would all train the first stage. "
                              "Train it on its own and give its folder as start.run")
        run = build_run(recipe, console, None, reducer)
        if reducer.rank == 0:
            path = path or next_run_path(Path("runs"), recipe.name)
            RunFolder.create(path, recipe.with_origins()).keep(getattr(run.task, "kept", dict)())
            console.say(f"run folder: {path}")
        folder = common_folder(path or Path(), reducer)
        loop = run.begin(folder)
        own_random_numbers(reducer.rank, recipe.seed)
        return _go(run, folder, loop, watch, reducer)


def resume(path: Path, console: Console | None = None, watch: Watch | None = None) -> Path:
    """Continue a run that was killed or stopped, to the same bits as if it had not been.

    A finished run is left as it is.
    """
    console = console or Console()
    folder = RunFolder.open(path)
    if (path / RESULT).exists() and read_json(path / RESULT).get("status") == "finished":
        console.say(f"{path}: finished already")
        return path
    recipe = restore_recipe(folder.config())
    with joined(recipe) as reducer:
        run = build_run(recipe, console if reducer.rank == 0 else Console(quiet=True), folder.kept(), reducer)
        folder = common_folder(path, reducer)
        found = folder.load_newest()
        state, complaints = found or (None, [])
        if reducer.rank == 0:
            folder.keep(getattr(run.task, "kept", dict)())
            folder.rewind(state)
        loop = run.begin(folder) if state is None else run.loop(folder)
        own_random_numbers(reducer.rank, recipe.seed)
        if state is not None:
            loop.load_state_dict(state)
        for complaint in complaints:
            loop.event("checkpoint", complaint, level="warning")
        run.console.say(f"{path}: continuing after step {loop.progress.step}")
        return _go(run, folder, loop, watch, reducer)


def _go(run: Run, folder: RunFolder, loop: Loop, watch: Watch | None, reducer: Reducer) -> Path:
    loop.watch = watch
    if loop.progress.step == 0:
        for kind, message in getattr(run.task, "notices", []):
            loop.event(kind, message, level="warning")
    try:
        if starts_workers(run.recipe, reducer):
            supervise(run, folder, loop, watch)
        else:
            loop.run()
        if reducer.rank > 0:
            return folder.path
        loop.event("finish", f"testing the network of step {loop.progress.best_step}, the best on dev")
        load_best(loop, folder)
        outcome = run.task.finish(run.model, folder, run.console)
    except Interrupted as stop:
        stop.path = folder.path
        raise
    except HemstitchError as error:
        reason = {"error": str(error), "error_type": type(error).__name__}
        folder.write_result({"status": "failed", **reason, "summary": summary(loop)})
        raise
    folder.write_result({"status": "finished", "summary": summary(loop), **outcome})
    return folder.path


def load_best(loop: Loop, folder: RunFolder) -> None:
    """Give the model the parameters that were best on dev, and the task the state that went with them."""
    if loop.progress.best_step < 0:
        raise NonFiniteError(f"{folder.path}: the dev loss was never finite. Lower update.lr or set train.clip.")
    state = load_checkpoint(folder.checkpoint_path(loop.progress.best_step))
    loop.model.load_state_dict(state.get("look") or state["model"])
    loop.task.load_state_dict(state["task"])


def load_trained(path: Path, console: Console, overrides: dict[str, Any] | None = None) -> tuple[Run, RunFolder]:
    """A finished (or stopped) run with its best network, for decoding."""
    folder = RunFolder.open(path)
    config = folder.config()
    for key, value in (overrides or {}).items():
        config[key] = {"value": value, "origin": "command line"}
    run = build_run(restore_recipe(config), console, folder.kept())
    found = folder.load_newest()
    if found is None:
        raise RunError(f"{path}: no checkpoint yet, nothing to decode with. `hemstitch resume` it first.")
    loop = run.loop(folder)
    loop.load_state_dict(found[0])
    if loop.progress.best_step >= 0 and folder.checkpoint_path(loop.progress.best_step).exists():
        load_best(loop, folder)
    return run, folder


def summary(loop: Loop) -> dict[str, Any]:
    """Headline numbers of a run."""
    progress = loop.progress
    per_epoch = loop.source.indices.num_items
    return {
        "parameters": sum(p.numel() for p in loop.model.parameters()),
        "steps": progress.step,
        "forward_passes": progress.forward / per_epoch,
        "backward_passes": progress.backward / per_epoch,
        "wall_seconds": round(progress.wall, 2),
        "cpu_seconds": round(progress.cpu, 2),
        "best_dev_loss": progress.best_loss,
        "best_step": progress.best_step,
        "non_finite_steps": progress.non_finite,
    }


def peak_memory() -> float:
    """Most memory that this process has held so far, in bytes; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _timed_step(run: Run) -> tuple[StepReport, float]:
    begin = time.perf_counter()
    return run.strategy.step(run.source), time.perf_counter() - begin


def dry_run(recipe: Recipe, console: Console) -> dict[str, Any]:
    """Shapes, parameters, passes and memory of a recipe, measured on a step or two that are thrown away."""
    run = build_run(recipe, console)
    parameters = sum(p.numel() for p in run.model.parameters())
    batch = run.source.select(torch.arange(min(recipe.train.batch_size, run.source.indices.num_items)))
    with torch.no_grad():
        outputs = run.model(batch.inputs)
        outputs = outputs[0] if isinstance(outputs, tuple) else outputs  # there may be a second output layer
    report, seconds = _timed_step(run)
    if seconds < WARM_UP_SECONDS and not run.source.indices.at_epoch_end:  # the first one compiles and allocates
        seconds = min(seconds, _timed_step(run)[1])
    getattr(run.strategy, "close", lambda: None)()
    state = sum(
        t.numel() * t.element_size()
        for s in run.optimizer.state.values()
        for t in s.values()
        if isinstance(t, torch.Tensor)
    )
    batches = run.source.indices.batches_per_epoch
    return {
        **run.task.facts(),
        "input batch": tuple(batch.inputs.shape),
        "output batch": tuple(outputs.shape),
        "parameters": parameters,
        "steps per epoch": batches,
        "steps": batches * recipe.train.epochs,
        "forward passes per step": report.forward / report.samples,
        "backward passes per step": report.backward / report.samples,
        "parameters and gradient, MB": round(8 * parameters / 1e6, 1),
        "optimizer state, MB": round(state / 1e6, 1),
        "peak memory of this process, data included, MB": round(peak_memory() / 1e6),
        "a step, seconds": round(seconds, 4),
        "all steps at that speed, minutes": round(seconds * batches * recipe.train.epochs / 60, 1),
    }


__all__ = ["Interrupted", "dry_run", "load_trained", "resume", "train"]
