"""Backward SGD as a way to run a training loop: what is kept, what is applied when, what a look sees.

The loop hands over each batch once. Up to ``start`` steps the inner optimizer trains as usual. Then the model stands
still at the trajectory's origin while batches are kept, and a look computes T_1 ... T_n(origin) on demand: iterates
that nobody looks at cost nothing. Between calls the model always holds the point from which training would continue
(the forward iterate, or the origin); the iterate itself is shown inside ``with order.applied():``.

This is no ``torch.optim.Optimizer``: an optimizer is shown gradients, whereas this order must see old batches again.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from typing import Any, Literal

from torch import Tensor, nn
from torch.optim import Optimizer

from hemstitch.errors import MisuseError, RunError
from hemstitch.order._head import HeadAverage
from hemstitch.order._maps import EngineName, Maps, Point, Stateful, Update
from hemstitch.order._objective import Loss, Objective, Parameters, device_of
from hemstitch.order._order_report import OrderReport, num_bytes
from hemstitch.order._statistics import has_batch_norm, reestimate_statistics

_VERSION = 2


class BackwardSGD:
    """Train in backward order: at step n all batches since the origin are applied again, the newest first.

        mode="exact":       theta_n = T_1 T_2 ... T_n(theta_0)
        mode="fixed_tail":  theta_n = T_1 ... T_m (T_n ... T_{m+1}(theta_0))

    T_i is one step of ``optimizer`` on batch i, whatever the optimizer. Its state starts at theta_0 as it is there and
    follows the order of application. Beyond the paper: only iterates that are looked at are computed; trajectories
    looked at together are moved together; the fixed tail, which has the law of the backward iterate at the cost of
    m + 1 gradients; a tail after an average of forward iterates (``head_horizon``), which is as steady as the exact
    order in less time; a reset only where it pays, which the paper proposes (section 5).

    >>> import torch
    >>> net = torch.nn.Linear(2, 1)
    >>> order = BackwardSGD(net, torch.nn.MSELoss(), torch.optim.SGD(net.parameters(), lr=0.1))
    >>> for _ in range(20):
    ...     _ = order.observe((torch.rand(4, 2), torch.rand(4, 1)))
    >>> with order.applied():
    ...     output = net(torch.rand(1, 2))
    >>> order.report().backward_passes
    20

    Args:
        model: the network.
        loss: ``loss(outputs, targets)``, or an :class:`Objective` for batches of another shape.
        optimizer: the inner optimizer over the model's parameters. Learning rates may be scheduled: T_i keeps the
            settings of step i.
        mode: see above.
        tail: m >= 1, batches of the fixed tail.
        head_horizon: the fixed tail starts from a moving average of the newest about so many forward iterates: what m
            maps leave of the head's noise is small to begin with. Costs one copy of the parameters and no gradient, but
            gives up the law of the backward iterate. 1: from the newest one.
        window: w >= 1: a window ends every w steps and the trajectory may start anew; ``None``: never. With
            ``window=1`` the order is the ordinary one.
        reset: "always": each window starts from the last one's end. "better": at the end of a window, a trajectory that
            starts one window ago competes with the one at hand, and wins if its score is lower.
        score: ``score(model)``, lower is better, for ``reset="better"``; for example the loss on held-out data.
        hold: show the iterate at the end of the last window, which is stable, instead of the running one, which is
            noisy just after a reset. Costs one gradient a step, as plain SGD.
        start: ordinary steps before the backward order begins.
        stop: last step in backward order (an early phase only); ordinary steps go on from its iterate.
        fresh_state: clear optimizer state (to what it was at construction) whenever a trajectory starts; default: it is
            carried over a reset.
        make_batch: ``make_batch(item)`` makes the batch from what ``observe`` was given (say, indices) each time it is
            needed; torch's random state in it is replayed. ``None``: batches themselves are kept, by reference.
        stateful: other parts that change in a step (a natural gradient), with ``state_dict`` and ``load_state_dict``.
        engine: "auto", or insist on "fused" (chains of Linear with ReLU, tanh or sigmoid), "vmap", "loop" (any).
            The first two serve plain ``torch.optim.SGD`` without momentum. All give the same iterates up to rounding.
        memory: bytes for trajectories that move together.
        seed: of the randomness (dropout, ``make_batch``) of batch i, which is drawn from ``seed + i``.
        statistics_batches: newest batches from which batch-norm statistics are re-estimated for a look.

    Raises:
        MisuseError: settings contradict each other.

    Cost: a look at step n costs n - origin gradients ("exact") or min(m, n - origin) ("fixed_tail"; and one more each
    step). Memory: the batches since the origin, or m of them.

    Reference: Dherin et al., "Training in reverse" (arXiv:2502.01557), sections 1, 2 and 5.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss | Objective,
        optimizer: Optimizer,
        *,
        mode: Literal["exact", "fixed_tail"] = "exact",
        tail: int = 50,
        head_horizon: int = 1,
        window: int | None = None,
        reset: Literal["always", "better"] = "always",
        score: Callable[[nn.Module], float] | None = None,
        hold: bool = False,
        start: int = 0,
        stop: int | None = None,
        fresh_state: bool = False,
        make_batch: Callable[[Any], Any] | None = None,
        stateful: Sequence[Stateful] = (),
        engine: EngineName = "auto",
        memory: int | None = None,
        seed: int = 0,
        statistics_batches: int = 50,
    ):
        _validate(mode, tail, head_horizon, window, reset, score, hold, start, stop)
        self.model = model
        self.num_steps = 0
        self._maps = Maps(model, Objective.of(loss), optimizer, make_batch=make_batch, stateful=stateful,
                          engine=engine, memory=memory)
        self._tail = tail if mode == "fixed_tail" else None
        self._head = HeadAverage(head_horizon)
        self._window, self._score, self._hold = window, score if reset == "better" else None, hold
        self._start, self._stop, self._seed = start, stop, seed
        self._fresh_states = self._maps.snapshot().states if fresh_state else None
        self._origin_step: int | None = None
        self._updates: list[Update] = []
        self._mark: Point | None = None  # the iterate at the end of the last window, when it is not the origin
        self._newest: Update | None = None
        self._num_resets = 0
        self._recent: deque[Update] = deque(maxlen=statistics_batches if has_batch_norm(model) else 0)

    @property
    def phase(self) -> Literal["forward", "backward"]:
        """Which way the batches observed last were, or the first one will be, applied."""
        step = max(self.num_steps, 1)
        return "backward" if self._start < step and (self._stop is None or step <= self._stop) else "forward"

    def observe(self, item: Any) -> Tensor | None:
        """Take the next batch (or what ``make_batch`` makes it from).

        Returns:
            Its loss where a step was taken (forward phases, the head of a fixed tail), else ``None``.

        Raises:
            NonFiniteError: the step taken would not be finite; the model is left as it was.
        """
        self.num_steps += 1
        update = self._newest = self._maps.update(item, self._seed + self.num_steps)
        if self.phase == "forward":
            return self._apply(update)
        if self._origin_step is None:
            self._begin(self._maps.snapshot(), self.num_steps - 1)
        try:
            if len(self._updates) == self._tail:
                return self._lengthen_head(update)
            self._updates.append(update)
            self._recent.append(update)
        finally:  # a step that was refused counts as well
            if self.num_steps == self._stop:
                self._settle()
            elif self._window and (self.num_steps - self._origin_step) % self._window == 0:
                self._end_window()
        return None

    def parameters(self) -> Parameters:
        """The iterate that a look at this step is shown, {name: parameter}, as a copy; a forward phase's as it is."""
        return self._shown_point().parameters

    def parameters_at(self, step: int) -> Parameters:
        """The backward iterate of any step since the origin (fixed tail: of this step, or up to ``tail`` steps on).

        Raises:
            MisuseError: the batches of that step are not kept.
        """
        return self._point(step).parameters

    def evaluate_at(self, steps: Iterable[int], function: Callable[[nn.Module], Any]) -> dict[int, Any]:
        """``function(model)`` with the model at the iterates of several steps, which are computed together.

        Args:
            steps: as in :meth:`parameters_at`.
            function: must not change the model; what it returns is kept, so return numbers, not the model.

        Returns:
            {step: result}.
        """
        steps = sorted(set(steps))
        here = self._start_point()
        results = {}
        for index, end in self._maps.descend(self._updates, [(here, self._count(step)) for step in steps]):
            with self._showing(end):
                results[steps[index]] = function(self.model)
        return {step: results[step] for step in steps}

    def both_orders(self, function: Callable[[nn.Module], float]) -> tuple[float, float] | None:
        """``function(model)`` at the forward and at the shown iterate of this step; ``None`` in a forward phase.

        The forward one is where the head of a fixed tail stands; in exact mode T_n ... T_1(origin) is computed for it.
        """
        if self._origin_step is None:
            return None
        forward = self._maps.snapshot()
        if self._tail is None and self._updates:
            ((_, forward),) = self._maps.descend(self._updates[::-1], [(forward, len(self._updates))])
        values = []
        for point in (forward, self._shown_point()):
            with self._showing(point):
                values.append(float(function(self.model)))
        return values[0], values[1]

    def stretched(self, displacement: Parameters) -> Parameters:
        """T_n(theta + d) - T_n(theta) for the newest map T_n, theta where the model is, d = ``displacement``.

        Raises:
            MisuseError: no batch was observed since the start or the last ``load_state_dict``.
        """
        if self._newest is None:
            raise MisuseError("BackwardSGD: there is no newest map yet; call observe first")
        here = self._maps.snapshot()
        moved = {name: here.parameters[name] + d for name, d in displacement.items()}
        there = replace(here, parameters=here.parameters | moved)
        ends = dict(self._maps.descend([self._newest], [(here, 1), (there, 1)]))
        return {name: ends[1].parameters[name] - ends[0].parameters[name] for name in displacement}

    @contextmanager
    def applied(self, step: int | None = None) -> Iterator[nn.Module]:
        """Show an iterate in the model: this step's as in :meth:`parameters`, or that of ``step``.

        Batch-norm statistics are estimated anew from the newest batches; on leaving, everything is as it was. In a
        forward phase the model is shown as it is.
        """
        if step is None and self._origin_step is None:
            yield self.model
            return
        with self._showing(self._shown_point() if step is None else self._point(step)):
            yield self.model

    def finish(self) -> None:
        """Leave the iterate that a look is shown in the model, with its statistics; the next batch starts from it."""
        if self._origin_step is not None:
            self._settle(self._shown_point())

    def report(self) -> OrderReport:
        """Passes spent and memory held so far."""
        passes = self._maps.passes
        return OrderReport(
            num_steps=self.num_steps, phase=self.phase, origin_step=self._origin_step,
            num_stored=len(self._updates), stored_bytes=sum(num_bytes(update.item) for update in self._updates),
            num_resets=self._num_resets, forward_passes=passes.forward, backward_passes=passes.backward,
            engine=self._maps.engine_note,
        )

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on, beside the state of the model, the optimizer and other stateful parts."""
        return {
            "version": _VERSION,
            "num_steps": self.num_steps,
            "origin_step": self._origin_step,
            "num_resets": self._num_resets,
            "modes": self._maps.modes,
            "passes": asdict(self._maps.passes),
            "updates": [vars(update) for update in self._updates],
            "recent": [vars(update) for update in self._recent],
            "mark": None if self._mark is None else vars(self._mark),
            "fresh_states": self._fresh_states,
            "head": {"members": self._head.num_members, "average": self._head.parameters},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`; load the model and the optimizer as well.

        Raises:
            RunError: the state is of another version.
        """
        if state.get("version") != _VERSION:
            raise RunError(f"BackwardSGD: expected state of version {_VERSION}, got {state.get('version')!r}; "
                           "resume with the release that wrote it")
        state = copy.deepcopy(state)
        self.num_steps, self._origin_step = state["num_steps"], state["origin_step"]
        self._num_resets, self._fresh_states = state["num_resets"], state["fresh_states"]
        self._maps.passes.forward, self._maps.passes.backward = state["passes"]["forward"], state["passes"]["backward"]
        self._maps.modes = state["modes"]
        device = device_of(self.model)
        self._head.num_members = state["head"]["members"]
        self._head.parameters = {name: a.to(device) for name, a in state["head"]["average"].items()}
        self._updates = [Update(**update) for update in state["updates"]]
        self._recent.clear()
        self._recent.extend(Update(**update) for update in state["recent"])
        self._mark = None if state["mark"] is None else Point(**state["mark"]).to(device)

    def _apply(self, update: Update) -> Tensor:
        loss = self._maps.apply(update, guarded=True)
        self._recent.append(update)
        return loss

    def _lengthen_head(self, update: Update) -> Tensor:
        loss = self._apply(update)
        self._head.add(dict(self.model.named_parameters()))
        return loss

    def _begin(self, point: Point, step: int, updates: Sequence[Update] = ()) -> None:
        """Start a trajectory at ``point``."""
        self._maps.restore(point if self._fresh_states is None else replace(point, states=self._fresh_states))
        self._origin_step, self._updates, self._mark = step, list(updates), None
        self._head.clear()

    def _settle(self, point: Point | None = None) -> None:
        """End the trajectory where it is and stay there, in the ordinary order until the next batch says otherwise."""
        self._maps.restore(point or self._point(self.num_steps))
        reestimate_statistics(self._maps, self._recent)
        self._origin_step, self._updates, self._mark = None, [], None
        self._head.clear()

    def _end_window(self) -> None:
        end = self._point(self.num_steps)
        if self._score is None:
            self._begin(end, self.num_steps)
            self._num_resets += 1
            return
        if self._mark is not None:
            end = self._better(end, self._mark)
        self._mark = end

    def _better(self, incumbent: Point, rival_origin: Point) -> Point:
        """Let a trajectory that starts one window ago take over if its end scores lower."""
        window = self._updates[-self._window :]
        if self._fresh_states is not None:
            rival_origin = replace(rival_origin, states=self._fresh_states)
        ((_, rival),) = self._maps.descend(window, [(rival_origin, len(window))])
        scores = []
        for point in (incumbent, rival):
            with self._showing(point):
                scores.append(float(self._score(self.model)))
        if not scores[1] < scores[0]:
            return incumbent
        self._begin(rival_origin, self.num_steps - len(window), window)
        self._num_resets += 1
        return rival

    def _shown_point(self) -> Point:
        if self._origin_step is None or (self._hold and self._mark is None):
            return self._maps.snapshot()
        return self._mark if self._hold else self._point(self.num_steps)

    def _point(self, step: int) -> Point:
        count = self._count(step)
        ((_, end),) = self._maps.descend(self._updates, [(self._start_point(), count)])
        return end

    def _start_point(self) -> Point:
        """Where the maps that are kept are applied: the model's point, or the average over the head."""
        return self._head.point(self._maps.snapshot())

    def _count(self, step: int) -> int:
        """How many maps lead from the model's point to the iterate of ``step``."""
        if self._origin_step is None:
            raise MisuseError(f"BackwardSGD: no backward trajectory at step {self.num_steps}; it runs from step "
                              f"{self._start + 1} to {self._stop or 'the end'}")
        count, num_stored = step - self._origin_step, len(self._updates)
        has_head = self.num_steps - self._origin_step > num_stored
        if step == self.num_steps:
            return num_stored
        if has_head or not 0 <= count <= num_stored:
            kept = f"{self._origin_step}..{self.num_steps}" if not has_head else f"{self.num_steps} only"
            raise MisuseError(f"BackwardSGD: no iterate for step {step}; steps kept: {kept}")
        return count

    @contextmanager
    def _showing(self, point: Point) -> Iterator[None]:
        with self._maps.workspace():
            self._maps.restore(point, states=False)
            reestimate_statistics(self._maps, self._recent)
            yield


def _validate(mode, tail, head_horizon, window, reset, score, hold, start, stop) -> None:
    problems = {
        f"mode must be 'exact' or 'fixed_tail', got {mode!r}": mode not in ("exact", "fixed_tail"),
        f"tail must be at least 1, got {tail}": tail < 1,
        f"head_horizon must be at least 1, got {head_horizon}": head_horizon < 1,
        "head_horizon needs mode='fixed_tail'": head_horizon > 1 and mode == "exact",
        f"window must be at least 1 or None, got {window}": window is not None and window < 1,
        f"reset must be 'always' or 'better', got {reset!r}": reset not in ("always", "better"),
        "reset='better' needs window and score": reset == "better" and (window is None or score is None),
        "reset='better' needs mode='exact' (it applies the newest batches again)": (
            reset == "better" and mode == "fixed_tail"),
        "hold=True needs window": hold and window is None,
        f"0 <= start < stop is needed, got start={start}, stop={stop}": (
            start < 0 or (stop is not None and stop <= start)),
    }
    wrong = [message for message, is_wrong in problems.items() if is_wrong]
    if wrong:
        raise MisuseError("BackwardSGD: " + "; ".join(wrong))
