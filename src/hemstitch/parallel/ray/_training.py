"""Asynchronous stochastic gradient descent on real processes: the counterpart of `AsynchronousSimulation`.

Replicas, decoders, shards of the parameter server and an evaluation replica are processes; replicas and decoders run
the code of the simulation on a real clock. This process starts them, watches them and replaces what dies; nobody waits
for it.

=========================  =============================================================================================
replica's process dies     the others go on; its gradient under way is applied once or not at all; a new process begins
decoder dies               its replicas wait until it is back, the others go on
shard dies                 a pause of seconds; at most ``snapshot_every`` of its updates are undone, and counted
process stopped, cut off   after ``patience`` it is replaced; what it sends when it comes back is refused
this process dies          all others end; a new one begins with the parameters that were saved last
=========================  =============================================================================================

Not promised: the same result twice, each batch exactly once, survival of the machine this process runs on.

Reference: Heigold et al., ICASSP 2014, section 3; Dean et al., NIPS 2012, section 4.1.
"""

from __future__ import annotations

import math
import os
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from hemstitch.errors import ConfigError
from hemstitch.parallel._asynchronous import AsynchronousReport, Evaluation
from hemstitch.parallel._bounded_step import StepRule
from hemstitch.parallel._decoders import Decoding
from hemstitch.parallel._replica import Gradient
from hemstitch.parallel.ray._crew import Attendant, Crew
from hemstitch.parallel.ray._engine import connected, temporary_folder
from hemstitch.parallel.ray._hosts import PROGRAM, DecoderHost, EvaluationHost, Program, ReplicaHost
from hemstitch.parallel.ray._link import Layout, lost_errors
from hemstitch.parallel.ray._server import RemoteServer
from hemstitch.parallel.ray._shard import ServerShard

POLL_SECONDS = 0.1
GRACE_SECONDS = 5.0         # for processes to end by themselves
FOR_EVER = 2**62            # batches


@dataclass(frozen=True)
class RealReport(AsynchronousReport):
    """What has happened since the beginning, failures included.

    Attributes:
        batches: handed out.
        answered: of these, applied or refused.
        abandoned: of these, died with a worker.
        under_way: of these, not yet answered.
        loss, gradient_norm: means over everything applied.
        lost_updates: applied, then undone by the death of a shard, over all shards.
        shard_restarts: of all shards.
        messages: what went wrong, in the order of time: (seconds, text).
    """

    batches: int = 0
    answered: int = 0
    abandoned: int = 0
    under_way: int = 0
    loss: float = math.nan
    gradient_norm: float = math.nan
    lost_updates: int = 0
    shard_restarts: int = 0
    messages: tuple[tuple[float, str], ...] = field(default=(), repr=False)


class AsynchronousTraining:
    """Asynchronous SGD of many replicas in several processes.

        with AsynchronousTraining(theta, gradient_of, batch, num_replicas=10, rule=StepRule(lr=0.001)) as training:
            report = training.run(updates=10_000)
            training.rule = replace(training.rule, lr=0.0001)
            report = training.run(updates=20_000)               # goes on
            theta = training.parameters

    Args:
        parameters: flat, on the CPU; copied.
        gradient_of: replica -> its gradient function, made in the replica's process: (flat parameters, batch) -> (flat
            gradient, mean loss, samples); the parameters must be left as they are.
        batch: number -> batch. Batches are handed out by number, so replicas share them in proportion to their speed;
            k // n is the epoch if an epoch has n of them.
        num_replicas: n, >= 1.
        rule: learning rate and bounds on the change, applied by the server.
        fetch_every: batches that a replica computes with the same parameters.
        decoding: decoders that compute outer gradients, for sequence criteria, instead of ``batch``. The utterances of
            a worker that comes back begin anew.
        num_processes: in which the replicas live; 0: one per processor of this machine, or per replica on a cluster.
        num_decoders: processes that decode; 0: as many as there are processes with replicas.
        num_shards: of the server.
        evaluate: parameters -> values, called in a process of its own.
        renew: called with what `renew` is given, in each process with replicas, in decoders, and where is evaluated.
        address: of a running cluster; empty: start one here, for as long as this lasts.
        folder: for snapshots; seen by all machines. Empty: a temporary one.
        snapshot_every: most updates that the death of a shard may undo.
        patience: seconds without a sign of life after which a process is replaced.
        first_batch: number of the first batch, to go on with a run.
        threads: of torch in each process.

    Everything that crosses to another process must be picklable (functions defined in a script or notebook are).

    Raises:
        ConfigError: an option out of range, the engine is not installed, too little memory.
        RunError: the cluster cannot be joined.

    Cost: per fetch and push together two copies of the parameters and one pass of the server over them.
    """

    shard_class: type[ServerShard] = ServerShard

    def __init__(
        self,
        parameters: Tensor,
        gradient_of: Callable[[int], Gradient],
        batch: Callable[[int], Any] | None = None,
        *,
        num_replicas: int = 1,
        rule: StepRule,
        fetch_every: int = 1,
        decoding: Decoding | None = None,
        num_processes: int = 0,
        num_decoders: int = 0,
        num_shards: int = 1,
        evaluate: Callable[[Tensor], dict[str, float]] | None = None,
        renew: Callable[[Any], None] | None = None,
        address: str = "",
        folder: str | Path = "",
        snapshot_every: int = 100,
        patience: float = 30.0,
        first_batch: int = 0,
        threads: int = 1,
    ) -> None:
        if min(num_replicas, fetch_every, num_shards, snapshot_every) < 1 or patience <= 0:
            raise ConfigError("num_replicas, fetch_every, num_shards and snapshot_every must be >= 1 and patience > 0, "
                              f"got {num_replicas}, {fetch_every}, {num_shards}, {snapshot_every} and {patience}")
        if (batch is None) == (decoding is None):
            raise ConfigError("give either batch, or decoding, whose utterances become the batches")
        self.num_replicas, self.patience = num_replicas, patience
        self._news: tuple[Any, ...] = ()
        processes = min(num_replicas, num_processes or (num_replicas if address else os.cpu_count() or 1))
        decoders = (num_decoders or processes) if decoding is not None else 0
        self._first_batch, self._start = first_batch, time.time()
        self._evaluations: list[Evaluation] = []
        self._evaluation: Any = None                        # the future of the one under way
        self._loss_before = (0.0, 0.0)
        self._crews: list[Crew] = []
        self._others: list[Attendant] = []
        self._server: Any = None
        self._messages: list[tuple[float, str]] = []
        size = parameters.numel() * parameters.element_size()
        with ExitStack() as resources:                      # closed at once if anything here fails
            self._ray = resources.enter_context(connected(
                address, num_cpus=processes + decoders + num_shards + 1, store_bytes=2 * (num_replicas + 2) * size,
                num_processes=processes + decoders + num_shards))
            self._folder = Path(folder or resources.enter_context(temporary_folder())).resolve()
            resources.callback(self._end_processes)
            self._write(Program(gradient_of, batch, decoding, evaluate, renew))
            self._server = RemoteServer(self._ray, self.shard_class, self._folder, parameters, rule, num_shards,
                                        snapshot_every, first_batch, patience, self._tell)
            decoders = [self._other(DecoderHost, f"decoder {number}", threads) for number in range(decoders)]
            self._evaluator = self._other(EvaluationHost, "the evaluation replica", threads) if evaluate else None
            layout = Layout(self._server.cuts, bool(rule.components))
            for place in range(processes):
                self._start_crew(list(range(place, num_replicas, processes)), layout, fetch_every, decoders, threads)
            self._resources = resources.pop_all()

    # -- training --------------------------------------------------------------------------------------------------

    @property
    def parameters(self) -> Tensor:
        """(parameter,) the current parameters: a copy."""
        return self._server.parameters

    @property
    def rule(self) -> StepRule:
        """The server's step rule; may be replaced at any time."""
        return self._server.rule

    @rule.setter
    def rule(self, rule: StepRule) -> None:
        self._server.rule = rule

    def run(
        self,
        *,
        updates: int | None = None,
        seconds: float = math.inf,
        samples: float = math.inf,
        batches: int | None = None,
        evaluate_every: int = 0,
    ) -> RealReport:
        """Go on until one of the limits, counted from the beginning, is reached; then let all replicas rest.

        What is under way at that moment is still applied, so that a limit is exceeded by up to one gradient per
        replica; only ``batches`` is exact.

        Args:
            updates, seconds, samples: limits.
            batches: handed out; the run ends when all are answered, or died with their worker.
            evaluate_every: updates between evaluations, the first one before any; 0: none.

        Raises:
            ConfigError: no limit, or nothing to evaluate with.
            WorkerFailed: the program of a replica raised.
        """
        if updates is None and batches is None and min(seconds, samples) == math.inf:
            raise ConfigError("give a limit: updates, seconds, samples or batches")
        if evaluate_every and self._evaluator is None:
            raise ConfigError("there is nothing to evaluate with: give evaluate=...")
        most = math.inf if updates is None else updates
        self.proceed(batches)
        while not self.is_idle:
            first = self._server.status[0]
            if first["version"] >= most or first["samples"] >= samples or time.time() - self._start >= seconds:
                break
            self.watch(evaluate_every=evaluate_every)
        self.pause()
        self._collect_evaluation(wait=True)
        return self.report()

    def proceed(self, batches: int | None = None) -> None:
        """Let the replicas work, up to so many batches; returns at once: call `watch` from time to time."""
        self._server.allow(FOR_EVER if batches is None else self._first_batch + batches)
        self._server.refresh()

    def watch(self, timeout: float = POLL_SECONDS, evaluate_every: int = 0) -> None:
        """Look after the processes: collect what they have done, replace those that are gone.

        Args:
            timeout: seconds to wait for news.
            evaluate_every: see `run`.
        """
        begin = time.monotonic()
        self._server.poll(timeout)
        for process in [*self._crews, *self._others]:
            process.poll()
        self._collect_evaluation()
        due = len(self._evaluations) * evaluate_every
        if evaluate_every and self._evaluation is None and self._others[-1].facts and (
            self._server.status[0]["version"] >= due
        ):
            self._evaluation = self._evaluator.evaluate.remote()
        time.sleep(max(0.0, timeout - (time.monotonic() - begin)))

    def pause(self) -> None:
        """Hand out nothing more and wait until everything under way is answered, or its worker is known to be dead."""
        self._server.allow(0)
        self._server.refresh()
        while not self.is_idle:
            self.watch()

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way, to no shard, and nothing more will be."""
        first, *others = self._server.status
        return all(crew.has_ended for crew in self._crews) or (
            first["under_way"] == 0 and first["next_batch"] >= first["limit"]
            and all(shard["last_pushes"] == first["last_pushes"] for shard in others))

    def reset(self, parameters: Tensor) -> None:
        """Go on from other parameters, when all replicas rest."""
        self.pause()
        self._server.reset(parameters.detach().cpu())

    def renew(self, news: Any) -> None:
        """Call ``renew(news)`` in every process, before its next gradient, decoding or evaluation."""
        self._news = (news,)
        for crew in self._crews:
            crew.call("renew", news)
        for other in self._others:
            self._give_news(other.handle)

    def report(self) -> RealReport:
        """What has happened so far, as far as known here; `watch` brings news."""
        status = self._server.status
        first = status[0]
        busy = [crew.facts["busy"] for crew in self._crews if crew.facts]
        return RealReport(
            seconds=time.time() - self._start,
            updates=first["version"],
            samples=first["samples"],
            gradients=first["answered"],
            inner=self._server.inner.merged(),
            outer=self._server.outer.merged(),
            counts=sum((shard["counts"] for shard in status), Counter()),
            failures=sum(crew.num_failures * len(crew.workers) for crew in self._crews),
            busy=sum(busy) / len(busy) if busy else math.nan,
            evaluations=tuple(self._evaluations),
            batches=first["next_batch"] - self._first_batch,
            answered=first["answered"],
            abandoned=first["abandoned"],
            under_way=first["under_way"],
            loss=first["loss"] / first["samples"] if first["samples"] else math.nan,
            gradient_norm=first["norm"] / first["counts"]["accepted"] if first["counts"]["accepted"] else math.nan,
            lost_updates=sum(shard["lost"] for shard in status),
            shard_restarts=sum(shard["starts"] - 1 for shard in status),
            messages=tuple(self._messages),
        )

    @property
    def pids(self) -> dict[str, list[int]]:
        """Process ids by what they do: ``replicas``, ``shards``, ``others`` (decoders, then the evaluation replica)."""
        return {"replicas": [crew.facts["pid"] for crew in self._crews if crew.facts],
                "shards": [status["pid"] for status in self._server.status],
                "others": [other.facts["pid"] for other in self._others if other.facts]}

    def wait_until_ready(self) -> None:
        """Wait until every process has shown itself."""
        while not all(process.facts for process in [*self._crews, *self._others]):
            self.watch()

    # -- beginning and end -----------------------------------------------------------------------------------------

    def close(self) -> None:
        """End all processes, and the engine if it was started here."""
        self._resources.close()

    def __enter__(self) -> AsynchronousTraining:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _write(self, program: Program) -> None:
        from ray import cloudpickle

        (self._folder / PROGRAM).write_bytes(cloudpickle.dumps(program))

    def _other(self, host: type, name: str, threads: int) -> Any:
        actor = self._ray.remote(num_cpus=1, max_restarts=-1, max_task_retries=0, concurrency_groups={"signs": 1})(host)
        handle = actor.remote(str(self._folder), self._server.names, threads)
        self._others.append(Attendant(self._ray, handle, name, self.patience, self._tell,
                                      lambda: self._give_news(handle)))
        return handle

    def _give_news(self, handle: Any) -> None:
        if self._news:
            handle.renew.remote(*self._news)

    def _start_crew(self, workers: list[int], layout: Layout, fetch_every: int, decoders: list[Any],
                    threads: int) -> None:
        actor = self._ray.remote(num_cpus=1, max_restarts=0, max_task_retries=0, max_concurrency=2)(ReplicaHost)
        mine = [decoders[worker % len(decoders)] for worker in workers] if decoders else []

        def start() -> Any:
            handle = actor.remote(str(self._folder), self._server.names, layout, workers, fetch_every, mine, threads)
            self._give_news(handle)
            return handle

        self._crews.append(Crew(self._ray, start, workers, self.patience, self._tell))

    def _tell(self, message: str) -> None:
        self._messages.append((time.time() - self._start, message))

    def _collect_evaluation(self, wait: bool = False) -> None:
        if self._evaluation is None or not (wait or self._ray.wait([self._evaluation], timeout=0)[0]):
            return
        future, self._evaluation = self._evaluation, None
        try:
            seconds, version, values = self._ray.get(future)
        except lost_errors(self._ray):
            self._tell("the evaluation replica died: looks again later")
            self._others[-1].is_lost()
            return
        first, (loss, samples) = self._server.status[0], self._loss_before
        gained = first["samples"] - samples
        self._loss_before = (first["loss"], first["samples"])
        self._evaluations.append(Evaluation(seconds - self._start, version, first["samples"], values,
                                            (first["loss"] - loss) / gained if gained else math.nan))

    def _end_processes(self) -> None:
        for crew in self._crews:
            with suppress(Exception):
                crew.call("stop")
        deadline = time.monotonic() + GRACE_SECONDS
        for crew in self._crews:
            with suppress(Exception):
                crew.wait_for_end(deadline)
                crew.kill()
        for handle in [*(other.handle for other in self._others), *getattr(self._server, "shards", ())]:
            with suppress(Exception):
                self._ray.kill(handle, no_restart=True)
