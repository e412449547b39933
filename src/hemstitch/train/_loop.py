"""The training loop.

One pass of ``while`` is one step: set the learning rate, let the strategy take its data and step, log. At the end of an
epoch: look at the dev part, let the task renew its supervision (realignment), save. Everything that changes is in
``Loop.state_dict``, so that a run which was killed at any moment continues from its last checkpoint to the same bits.
"""

from __future__ import annotations

import copy
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from hemstitch.errors import ConfigError, NonFiniteError, RunError
from hemstitch.sampling import BatchSource
from hemstitch.train._console import Console
from hemstitch.train._natural_report import fisher_values
from hemstitch.train._options import Training
from hemstitch.train._progress import Progress, Window
from hemstitch.train._run_folder import RunFolder
from hemstitch.train._schedules import Schedule
from hemstitch.train._strategies import Batch, StepReport, Strategy


class Task(Protocol):
    """What is learned: data, supervision and the final test."""

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Values on the dev part; ``loss`` is the one that is minimised."""

    def after_epoch(self, epoch: int, model: nn.Module) -> list[tuple[str, str]]:
        """Renew the supervision if it is due; returns (kind, message) events, none if nothing changed.

        A task whose ``renews(epoch)`` says that nothing is due is not asked.
        """

    def state_dict(self) -> dict[str, Any]:
        """What :meth:`after_epoch` has changed."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore it."""


class Interrupted(Exception):
    """The run was asked to stop; its state is saved.

    Attributes:
        path: the run folder to resume.
    """

    path: Path | None = None


Watch = Callable[[float, dict[str, float]], None]
"""Called at every look with the share of the epochs that is done and the values on dev; may raise to end the run."""


class Loop:
    """A run in motion.

    Args:
        task, model, optimizer, strategy, schedule, source: the parts, see the module docstring.
        folder: where everything is written.
        options: the recipe's [train] section.
        console: progress bars and messages.
        stateful: whatever else has a ``state_dict`` that a resumed run needs, such as natural gradient.
    """

    def __init__(
        self,
        *,
        task: Task,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        strategy: Strategy,
        schedule: Schedule,
        source: BatchSource[Batch],
        folder: RunFolder,
        options: Training,
        console: Console,
        stateful: Mapping[str, Any] | None = None,
    ) -> None:
        self.task, self.model, self.optimizer, self.strategy = task, model, optimizer, strategy
        self.schedule, self.source, self.folder = schedule, source, folder
        self.options, self.console, self.stateful = options, console, dict(stateful or {})
        self.rates = [group["lr"] for group in optimizer.param_groups]
        self.initial = copy.deepcopy(self._learned())
        self.watch: Watch | None = None
        self.progress, self.window = Progress(), Window()
        self.clock = (time.perf_counter(), time.process_time())
        self.stop_requested = self.save_is_due = False
        if hasattr(strategy, "is_asked_to_stop"):
            strategy.is_asked_to_stop = lambda: self.stop_requested

    # -- running ---------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Train to the end of the last epoch.

        Raises:
            Interrupted: SIGINT or SIGTERM came; a checkpoint was written.
            NonFiniteError: a loss or gradient was not finite and the policy is to stop, or it happened too often.
        """
        handlers = self._catch_signals()
        if self.progress.step == 0 and self.options.non_finite == "roll-back":
            self.save()
        try:
            with self.console.progress(self.options.epochs * self.source.indices.batches_per_epoch) as bar:
                if hasattr(self.strategy, "watch"):  # a step that takes long tells how far it is
                    self.strategy.watch = lambda text: bar.update(self.progress.step, f"{self.description()}  {text}")
                while not self.finished:
                    if self.source.indices.at_epoch_end:
                        self.end_epoch()
                        if self.finished:
                            break
                    self.one_step()
                    bar.update(self.progress.step, self.description())
                    if self.should_stop:
                        if self.at_rest:
                            self.save()
                        raise Interrupted
                if self.should_stop:  # asked during the last look, which has saved
                    raise Interrupted
        finally:
            getattr(self.strategy, "close", lambda: None)()
            for number, handler in handlers.items():
                signal.signal(number, handler)

    @property
    def finished(self) -> bool:
        """Whether the last epoch has been looked at."""
        return self.progress.looked >= self.options.epochs

    @property
    def at_rest(self) -> bool:
        """Whether all there is to save is here: not between two averages, nor with gradients on their way."""
        return getattr(self.strategy, "at_rest", True)

    @property
    def should_stop(self) -> bool:
        """Whether the run is asked to stop; of several workers, whether they have agreed to."""
        return getattr(self.strategy, "agreed_to_stop", self.stop_requested)

    def one_step(self) -> None:
        """One update, or the decision not to make it."""
        indices = self.source.indices
        self._set_learning_rate(indices.epoch + indices.position / indices.items_per_epoch)
        report = self.strategy.step(self.source)
        progress = self.progress
        before, progress.step = progress.step, progress.step + report.updates
        progress.samples += report.samples
        progress.forward += report.forward
        progress.backward += report.backward
        if report.applied:
            self.window.add(report)
        else:
            self.handle_non_finite(report)
        for message in getattr(self.strategy, "take_news", list)():
            self.event("workers", message, level="warning")
        if _passes(self.options.log_every, before, progress.step):
            self.log_training()
        if self.options.checkpoint_every and _passes(self.options.checkpoint_every, before, progress.step):
            self.save_is_due = True
        if self.save_is_due and self.at_rest:
            self.save()

    def end_epoch(self) -> None:
        """Look at the dev part, renew the supervision, save, move to the next epoch."""
        indices, progress = self.source.indices, self.progress
        epoch = indices.epoch + 1
        self.log_training()
        for name, diagram in getattr(self.strategy, "diagrams", dict)().items():
            self.folder.write_diagram(name, diagram)
        if epoch % self.options.evaluate_every == 0 or epoch == self.options.epochs:
            with self.shown():
                values = self.task.evaluate(self.model)
            self.log("dev", values)
            self.console.look(epoch, self.options.epochs, progress.step, values)
            if values["loss"] < progress.best_loss:
                progress.best_loss, progress.best_step = values["loss"], progress.step
            if self.schedule.observe(values["loss"]):
                self.event("learning-rate", f"dev loss is flat: learning rate times {self.schedule.reduction:g}")
            if self.watch is not None:
                self.watch(epoch / self.options.epochs, values)
        if epoch < self.options.epochs:
            renewed = self.renew_supervision(epoch)
            for kind, message in renewed:
                self.event(kind, message)
            if renewed:  # dev losses before and after cannot be compared
                progress.best_loss = self.schedule.best = math.inf
            if any(kind == "restart" for kind, _ in renewed):
                self._load_learned(self.initial)
                self.schedule.start = epoch
        progress.looked = epoch
        indices.epoch, indices.position = epoch, 0
        self.save()

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Have the network that the strategy wants looked at (an average, say) in the model, inside."""
        strategy: Any = self.strategy
        if not hasattr(strategy, "shown"):
            yield
            return
        with strategy.shown():
            forward, backward = strategy.spent()
            self.progress.forward += forward
            self.progress.backward += backward
            yield

    def renew_supervision(self, epoch: int) -> list[tuple[str, str]]:
        """Let the task renew it, with the network that is looked at, and tell a strategy that keeps old batches."""
        if not getattr(self.task, "renews", lambda epoch: True)(epoch):
            return []
        with self.shown():
            renewed = self.task.after_epoch(epoch, self.model)
        if renewed and hasattr(self.strategy, "renewed"):
            self.strategy.renewed()
        return renewed

    def handle_non_finite(self, report: StepReport) -> None:
        """A loss or gradient that is not finite: stop, leave the step out, or roll back, as the recipe says."""
        progress, options = self.progress, self.options
        progress.non_finite += 1
        what = f"step {progress.step}: loss {report.loss:g}, gradient norm {report.gradient_norm}"
        if options.non_finite == "raise" or progress.non_finite > options.max_non_finite:
            self.event("non-finite", what, level="error")
            raise NonFiniteError(
                f"{what} (not finite; {progress.non_finite} such steps). The parameters were not touched. Lower "
                "update.lr or set train.clip; --train.non_finite skip leaves such steps out, roll-back returns to the "
                "last checkpoint."
            )
        if options.non_finite == "roll-back":
            self.roll_back(what)
        else:
            self.event("non-finite", f"{what}: step left out", level="warning")

    def roll_back(self, what: str) -> None:
        """Take model and optimizer from the last checkpoint, halve the learning rate, go on with the next data."""
        found = self.folder.load_newest()
        if found is None:
            raise NonFiniteError(f"{what}: there is no checkpoint to roll back to yet. Lower update.lr.")
        state = found[0]
        self._load_learned(state)
        self.schedule.reduction *= 0.5
        self.event(
            "non-finite",
            f"{what}: rolled back to step {state['progress']['step']}, learning rate times {self.schedule.reduction:g}",
            level="warning",
        )

    # -- writing ---------------------------------------------------------------------------------------------------

    def log(self, split: str, values: dict[str, float]) -> None:
        """Append values to metrics.jsonl, with every x-axis."""
        self.tick()
        progress, per_epoch = self.progress, self.source.indices.num_items
        axes = {
            "step": progress.step,
            "epoch": progress.samples / per_epoch,
            "samples": progress.samples,
            "forward_passes": progress.forward / per_epoch,
            "backward_passes": progress.backward / per_epoch,
            "wall_seconds": round(progress.wall, 3),
            "cpu_seconds": round(progress.cpu, 3),
            "split": split,
        }
        self.folder.metrics.append({**axes, "name": name, "value": value} for name, value in values.items())

    def log_training(self) -> None:
        """Log the averages since the last time, and what else the strategy tells."""
        window, values = self.window, {}
        if window.weight:
            values["loss"] = window.loss / window.weight
            values |= {} if window.errors is None else {"error": window.errors / window.weight}
        if window.steps:
            values["gradient_norm"] = window.norm / window.steps
        values |= {name: total / count for name, (total, count) in window.extra.items()}
        values |= getattr(self.strategy, "totals", dict)()
        values |= fisher_values(self.stateful.get("natural_gradient"))
        if not values:
            return
        self.log("train", values | {"learning_rate": self.optimizer.param_groups[0]["lr"]})
        self.window = Window()

    def event(self, kind: str, message: str, level: str = "info") -> None:
        """Append to events.jsonl and tell the user."""
        self.tick()
        now = {"wall_seconds": round(self.progress.wall, 3), "step": self.progress.step}
        self.folder.events.append([{**now, "level": level, "kind": kind, "message": message}])
        self.console.event(level, message)

    def save(self) -> None:
        """Write a checkpoint."""
        self.tick()
        self.save_is_due = False
        best = self.progress.best_step if self.progress.best_step >= 0 else None
        self.folder.save_checkpoint(self.progress.step, self.state_dict(), keep=self.options.keep, best_step=best)

    # -- state -----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs to go on to the same bits."""
        state = {
            **self._learned(),
            "schedule": self.schedule.state_dict(),
            "source": self.source.state_dict(),
            "task": self.task.state_dict(),
            "units": getattr(self.task, "units", ""),
            "progress": asdict(self.progress),
            "window": asdict(self.window),
            "random": torch.get_rng_state(),
        }
        if (look := getattr(self.strategy, "look", None)) is not None:
            state["look"] = look
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            state["random_cuda"] = torch.cuda.get_rng_state_all()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint."""
        torch.set_rng_state(state["random"])
        try:
            self._check_units(state)
            self._load_learned(state)
            for name in ("schedule", "source", "task"):
                getattr(self, name).load_state_dict(state[name])
            self.progress, self.window = Progress(**state["progress"]), Window(**state["window"])
        except (ConfigError, KeyError, TypeError, RuntimeError, ValueError) as error:
            raise RunError(f"the checkpoint does not fit this run's configuration and data: {error}") from None
        if hasattr(self.strategy, "look"):
            self.strategy.look = state.get("look")
        if "random_cuda" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["random_cuda"])

    def _check_units(self, state: dict[str, Any]) -> None:
        """A network whose outputs stand for other units would be trained, or searched, to no sense."""
        theirs, ours = state.get("units", ""), getattr(self.task, "units", "")
        if theirs and theirs != ours:
            raise ConfigError(f"its outputs stand for other phones or states than those of the corpus and recipe now "
                              f"(digest {theirs[:12]}, now {ours[:12]}): restore the lexicon it was trained with")

    def _learned(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "stateful": {name: part.state_dict() for name, part in self.stateful.items()},
        }

    def _load_learned(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for name, part in self.stateful.items():
            part.load_state_dict(state["stateful"][name])

    # -- small things ----------------------------------------------------------------------------------------------

    def description(self) -> str:
        """What stands beside the progress bar."""
        mean = self.window.loss / self.window.weight if self.window.weight else math.nan
        return f"epoch {self.source.indices.epoch + 1}/{self.options.epochs}  loss {mean:.3f}"

    def _set_learning_rate(self, epochs: float) -> None:
        factor = self.schedule.factor(epochs)
        for group, rate in zip(self.optimizer.param_groups, self.rates):
            group["lr"] = rate * factor

    def tick(self) -> None:
        """Count the seconds since the last time."""
        now = (time.perf_counter(), time.process_time())
        self.progress.wall += now[0] - self.clock[0]
        self.progress.cpu += now[1] - self.clock[1]
        self.clock = now

    def _catch_signals(self) -> dict[int, Any]:
        def request_stop(number: int, frame: Any) -> None:
            self.stop_requested = True

        try:
            return {number: signal.signal(number, request_stop) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not in the main thread: the caller stops the run in another way
            return {}


def _passes(interval: int, before: int, after: int) -> bool:
    """Whether a multiple of the interval was reached on the way."""
    return after // interval > before // interval
