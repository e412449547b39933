"""Backstitch: a small step backwards, then a larger one forwards, on the same minibatch.

    theta' = theta + scale nu g(theta)             gradient on the batch, natural gradient frozen
    theta  = theta' - (1 + scale) nu g(theta')     gradient on the same batch at theta'

**What it does.** Expanding g(theta') = g + scale nu H g + ..., the pair is one step (equation 17)

    theta - nu g - nu^2 (scale + scale^2) H g + O(nu^3)

Training on a finite set pulls the parameters towards an optimum of that set whose expected offset from the true one
is (1/I) E[H H^-1 g] (equation 13; I samples, H and g of one sample, the inverse of the expected Hessian between
them): the same sample enters both factors. The extra term -H g of the same sample has the opposite sign. Where the
expected Hessian is the identity, which is what natural gradient brings about, nu (scale + scale^2) = 1/I would cancel
it.

**What must be the same in both passes**, and is taken care of here: the data, the random numbers (dropout), the
Fisher estimate (frozen in the first pass: it must not have seen this minibatch), the bounds on the change (so both
passes shorten at the same length), and what must be counted once: batch-norm statistics, weight decay, momentum.

**Over optimizers with state**, which the paper leaves open: the first pass moves by -scale times the displacement
that the optimizer would make, on throw-away state and without weight decay; the second commits its state and moves by
1 + scale times its displacement, with the decay counted once. Old gradients in the momentum then enter the pair with
weight -scale + (1 + scale) = 1, as in an ordinary step, and for any displacement D(g), equation 17 becomes D(g) + (1
+ scale) (D(g') - D(g)): the correction is through the gradient of this batch only.

An interval of m applies it to every m-th minibatch; scale 1.0, interval 4 does about what 0.3, interval 1 does, for
25 % more passes instead of 100 %.

Reference: Wang, Peddinti, Xu, Zhang, Povey, Khudanpur, "Backstitch: counteracting finite-sample bias via negative
steps", Interspeech 2017. Departure: a batch that is not finite in either pass is left out as a whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.optim import Optimizer

from hemstitch.errors import MisuseError
from hemstitch.optim._moves import Mover, Scratch, TorchMover
from hemstitch.optim._passes import Freezable, Passes
from hemstitch.optim._update_rule import UpdateRule, check, gradients, keep_types


@dataclass(frozen=True)
class BackstitchReport:
    """What was done since construction.

    Attributes:
        num_pairs: backstitch pairs completed.
        num_ordinary: ordinary steps completed.
        num_refused: batches left out because a gradient was not finite.
        num_undone: first passes taken back because the second never came.
        scale: of the next step, with the slow start.
        losses: of the passes of the last ``step(closure)``: at theta, and at theta' if it was a pair.
    """

    num_pairs: int
    num_ordinary: int
    num_refused: int
    num_undone: int
    scale: float
    losses: tuple[Any, ...]


class Backstitch(UpdateRule):
    """Two-step training of any optimizer: -scale times its step, then 1 + scale times it, on the same minibatch.

    ::

        loss = optimizer.step(closure)                  # closure: zero_grad, forward, backward, return the loss

        for phase in optimizer.phases():                # the same by hand: own clipping, GradScaler ...
            optimizer.zero_grad()
            model(batch).backward()
            optimizer.step()

        for batch in optimizer.batches(loader):         # for loops that know only step(): batches come once or twice
            optimizer.zero_grad()
            model(batch).backward()
            optimizer.step()

    A trainer that fetches batches ahead takes ``optimizer.batches(loader, announce=False)`` as its loader and calls
    ``optimizer.begin()`` before each forward pass; with a token for the batch if it may skip steps.

    Args:
        optimizer: what to step with; shares its parameter groups and state with this one. Attach schedulers here.
        scale: alpha, >= 0; 0.3 with interval 1 and 1.0 with interval 4 are in use, 0.8 for language models.
        interval: minibatches per pair, >= 1.
        phase: pairs are made where minibatch % interval == phase; give parallel jobs different ones.
        warmup_steps: minibatches over which the scale grows linearly from 0; switching it on at once is a shock.
        natural_gradient: frozen in the first pass.
        model: whose buffers the first pass must leave alone; by default those of all layers that run. Needed under
            torch.compile.
        reverse: make the long positive step first and the negative one second; theory predicts the same, practice
            less.

    Raises:
        ConfigError: an option out of range.
        MisuseError: the optimizer needs a closure itself; a phase is left out, or cut by another step; the state is
            asked for inside a pair.

    Cost: two forward-backward passes instead of one every `interval` minibatches, and a copy of the parameters.
    """

    passes_per_step: ClassVar[int] = 2
    _step_supports_amp_scaling = True  # GradScaler then tells step() about overflow, instead of not calling it

    def __init__(
        self,
        optimizer: Optimizer,
        scale: float = 1.0,
        interval: int = 4,
        phase: int = 0,
        warmup_steps: int = 0,
        natural_gradient: Freezable | None = None,
        *,
        model: nn.Module | None = None,
        reverse: bool = False,
    ) -> None:
        check(0 <= scale < float("inf"), f"scale must be at least 0, got {scale}")
        check(interval >= 1, f"interval must be at least 1 minibatch, got {interval}")
        check(0 <= phase < interval, f"phase must be in 0 .. interval - 1 = {interval - 1}, got {phase}")
        check(warmup_steps >= 0, f"warmup_steps must be at least 0, got {warmup_steps}")
        self.scale, self.interval, self.phase, self.warmup_steps = float(scale), interval, phase, warmup_steps
        self.natural_gradient, self.reverse = natural_gradient, reverse
        self.model = getattr(natural_gradient, "model", None) if model is None else model
        self._mover: Mover = optimizer if hasattr(optimizer, "move") else TorchMover(optimizer)
        super().__init__(optimizer.param_groups, optimizer.defaults)
        self.optimizer = optimizer
        self._share()
        self.num_batches = 0
        self._num_pairs = self._num_ordinary = self._num_refused = self._num_undone = 0
        self._losses: tuple[Any, ...] = ()
        self._passes: Passes | None = None
        self._scratch = Scratch()
        self._announced = False
        self._token: object = None

    # -- the schedule ------------------------------------------------------------------------------------------

    def scale_at(self, batch: int) -> float:
        """Alpha for a minibatch, counted from 0."""
        return self.scale * min(1.0, batch / self.warmup_steps) if self.warmup_steps else self.scale

    def num_passes(self, batch: int) -> int:
        """How often a minibatch, counted from 0, goes through the network: 1 or 2."""
        return 2 if batch % self.interval == self.phase and self.scale_at(batch) > 0 else 1

    # -- three ways to drive it --------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """With a closure: the whole step on a minibatch. Without: apply the gradients of the pass under way.

        Args:
            closure: clears the gradients, runs forward and backward, returns the loss; called once or twice.

        Returns:
            The loss at the parameters before the step.
        """
        if closure is None:
            self._apply()
            return None
        if hasattr(self, "found_inf"):
            raise MisuseError("a GradScaler cannot unscale what a closure computes: write "
                              "`for _ in optimizer.phases():` with zero_grad, scaler.scale(loss).backward(), "
                              "scaler.step(optimizer) and scaler.update() in it")
        losses = []
        with closing(self.phases()) as phases:
            for _ in phases:
                with torch.enable_grad():
                    losses.append(closure())
                self._apply()
        self._losses = tuple(loss.detach() if isinstance(loss, torch.Tensor) else loss for loss in losses)
        return losses[0]

    def phases(self) -> Iterator[str]:
        """The passes over the next minibatch, for hand-written loops; each body ends in ``optimizer.step()``.

        Yields ``ordinary``, or ``first`` and ``second``. Left early, the step is taken back.
        """
        self._require_idle()
        passes = self._passes = self._new_passes()
        try:
            for name in passes.names:
                passes.enter()
                yield name
                if not passes.is_stepped:
                    raise MisuseError("the body of `for _ in optimizer.phases():` must end with optimizer.step() "
                                      "(or scaler.step(optimizer))")
                if passes.is_refused:
                    break
            self._finish(passes)
        finally:
            if self._passes is passes:  # left by an exception or break
                passes.undo()
                self._passes = None

    def batches(self, loader: Iterable[Any], *, announce: bool = True) -> Iterator[Any]:
        """The loader's minibatches, each as often as it must pass; for loops that know only ``step()``.

        Args:
            loader: minibatches.
            announce: call `begin` before handing out each; False where batches are fetched ahead of their step.
        """
        first = self.num_batches
        for index, batch in enumerate(loader):
            token = object()
            for _ in range(self.num_passes(self.num_batches if announce else first + index)):
                if announce:
                    self.begin(token)
                yield batch
        if announce:
            self._end_announced()

    def begin(self, token: object = None) -> str:
        """Announce the next forward pass, for trainers that call ``step()`` without a closure.

        Call it before every forward pass of a minibatch, also if the step after it may be skipped. If the first pass
        of a pair was skipped, the second becomes an ordinary step; if the second never comes, the first is taken
        back.

        Args:
            token: names the minibatch; ``None``: passes come in the order of `batches`.

        Returns:
            ``ordinary``, ``first`` or ``second``.
        """
        if not self._announced:
            self._require_idle()
        passes = self._passes
        if passes is not None:
            if passes.is_over or (token is not None and token != self._token):
                self._end_announced()
                passes = None
            elif not passes.num_moved:
                passes = self._passes = self._new_passes(pair=False)
        if passes is None:
            passes = self._passes = self._new_passes()
        self._announced, self._token = True, token
        return passes.enter()

    def up_to_step(self, closure: Callable[[], Any]) -> Any:
        """All of a minibatch but its last ``step()``, for trainers that make that themselves after one pass.

        Of a pair the first pass and its step are made here, then the second pass, whose gradients are left for the
        trainer's step.

        Args:
            closure: forward and backward, and what the trainer does to gradients before its step (clipping); returns
                the loss. Gradients must be clear before.

        Returns:
            The loss at the parameters before the minibatch.

        Raises:
            MisuseError: the step of the minibatch before never came, as where gradients are accumulated over several
                calls.
        """
        if self._passes is not None:
            raise MisuseError("up_to_step() again before the step() of the minibatch before: for gradients accumulated "
                              "over several calls use `for _ in optimizer.phases():` in a loop of your own, or one "
                              "call (gradient_accumulation_steps = 1) with larger batches")
        token = object()
        try:
            name = self.begin(token)
            loss = closure()
            if name == "first":
                self.step()
                self.zero_grad()
                self.begin(token)
                closure()
        except BaseException:
            self.abandon()
            raise
        return loss

    # -- one minibatch -----------------------------------------------------------------------------------------

    def _new_passes(self, pair: bool = True) -> Passes:
        scale = self.scale_at(self.num_batches)
        pair = pair and self.num_passes(self.num_batches) == 2
        return Passes(self, self._mover, scale if pair else None, self.reverse, self.natural_gradient, self.model,
                      self._scratch)

    def _apply(self) -> None:
        """Step by the gradients at hand."""
        if self._passes is None:
            if self.num_passes(self.num_batches) == 2:
                raise MisuseError(
                    f"minibatch {self.num_batches} is due for two passes: use step(closure), "
                    "`for _ in optimizer.phases():`, `for batch in optimizer.batches(loader):`, "
                    "or call begin() before each forward pass")
            passes = self._passes = self._new_passes()
            passes.enter()
            self._announced = True
        passes = self._passes
        if passes.is_stepped:
            raise MisuseError("a second step() in one pass: every forward pass is followed by one step()")
        passes.apply(self._unscale())
        if self._announced and passes.is_over:
            self._end_announced()

    def _unscale(self) -> bool:
        """Undo the factor of a GradScaler that called us; whether the gradients are free of overflow."""
        scale, overflow = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        if scale is not None:
            _, grads = gradients(self)
            torch._foreach_mul_(grads, float(1.0 / scale.double()))
        return overflow is None or not bool(overflow)

    def _end_announced(self) -> None:
        passes, self._announced = self._passes, False
        if passes is not None:
            self._finish(passes)

    def _finish(self, passes: Passes) -> None:
        """Count the minibatch; take back a pair that lacks its second half."""
        if passes.is_complete:
            self._num_pairs += len(passes.names) == 2
            self._num_ordinary += len(passes.names) == 1
        else:
            self._num_refused += passes.is_refused
            self._num_undone += passes.num_moved > 0 and not passes.is_refused
            passes.undo()
        self.num_batches += 1
        self._passes = None

    def _require_idle(self) -> None:
        if self._passes is not None:
            raise MisuseError(f"minibatch {self.num_batches} is in its {self._passes.name} pass: finish it with "
                              "step(), or take it back with abandon()")

    def abandon(self) -> None:
        """Go back to the parameters before the minibatch under way, if there is one."""
        if self._passes is not None:
            self._passes.undo()
        self._passes, self._announced = None, False

    # -- groups and state --------------------------------------------------------------------------------------

    def _share(self) -> None:
        """The inner optimizer's groups and state are this one's."""
        self.param_groups, self.state = self.optimizer.param_groups, self.optimizer.state

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the inner optimizer."""
        if "optimizer" not in self.__dict__:  # while torch's constructor registers the groups that we share
            super().add_param_group(param_group)
            return
        self.optimizer.add_param_group(param_group)

    def report(self) -> BackstitchReport:
        """What was done so far."""
        return BackstitchReport(self._num_pairs, self._num_ordinary, self._num_refused, self._num_undone,
                                self.scale_at(self.num_batches), self._losses)

    def state_dict(self) -> dict[str, Any]:
        """That of the inner optimizer, with the number of minibatches seen under ``backstitch``.

        Raises:
            MisuseError: between the two passes of a pair, when the model's parameters are not those of any step.
        """
        self._require_idle()
        return self.optimizer.state_dict() | {"backstitch": {"num_batches": self.num_batches}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the inner optimizer and the count of minibatches.

        Raises:
            ConfigError: saved without backstitch; load it into the inner optimizer instead.
        """
        self._require_idle()
        check("backstitch" in state_dict, "this state was saved without backstitch: load it with "
              "optimizer.optimizer.load_state_dict(...), the count of minibatches then starts at 0")
        inner = {key: value for key, value in state_dict.items() if key != "backstitch"}
        self.optimizer.load_state_dict(inner)
        keep_types(self.optimizer, inner)
        self.num_batches = int(state_dict["backstitch"]["num_batches"])
        self._share()

    def __getstate__(self) -> dict[str, Any]:
        """For copying and pickling: refused inside a pair."""
        self._require_idle()
        return super().__getstate__()

    def __repr__(self) -> str:
        return (f"Backstitch(scale={self.scale:g}, interval={self.interval}, phase={self.phase}, "
                f"warmup_steps={self.warmup_steps})\n{self.optimizer!r}")
