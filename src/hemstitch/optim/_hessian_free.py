"""Hessian-free optimisation (Martens 2010; paper 3): a truncated Newton step per iteration, by conjugate gradients.

One step, with theta the parameters, L the loss on a held-out sample, g the gradient on a large and G the Gauss-Newton
matrix on a smaller sample, D = lambda F + W the damping (F the groups' factors, W their weight decay):

    d_1, d_2, ..., d_N  <-  conjugate gradients on q(d) = g'd + d'(G + D)d / 2, started at d_0, stopped when q stalls
    d                   <-  the best of the iterates d_i on L, walking back from d_N
    if L(theta + d) > L(theta):  lambda <- 3/2 lambda,  d_0 <- 0,  no step
    rho = (L(theta + d_N) - L(theta)) / q(d_N):   lambda <- 3/2 lambda below 1/4,  2/3 lambda above 3/4
    theta <- theta + alpha d  with Armijo's alpha,   d_0 <- 0.95 d_N

This is algorithm 1 of paper 3 with its slips mended: its rho is negative for every success, so that lambda would
shrink whatever the model promised; its walk over the iterates may return a worse one than it has seen; its rho compares
the loss at d_i with the model at d_N.

| here | paper 3 |
|---|---|
| `damping`, `carry`, `direction` | lambda, beta, d_0 |
| samples ``gradient``, ``curvature``, ``evaluate`` | S_g, S_cg, the held-out set |
| `num_pairs` | m of PC-m |
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from hemstitch.comm import LocalReducer, Reducer, shards_of
from hemstitch.curvature import FlatParameters, LevenbergMarquardt, PairStore, ProgressTest
from hemstitch.errors import MisuseError
from hemstitch.optim._hessian_free_passes import HOW_TO, ROLES, RoleClosure, RolePasses, check_closure
from hemstitch.optim._hessian_free_report import HessianFreeReport
from hemstitch.optim._hessian_free_step import PRECONDITIONERS, HessianFreeStep, PreconditionerName
from hemstitch.optim._passes import RandomState
from hemstitch.optim._update_rule import UpdateRule, check
from hemstitch.sampling import GrowingSample


class HessianFree(UpdateRule):
    """Hessian-free optimisation as a torch optimizer (equations in the module's docstring).

    ``step(closure)`` takes ``closure(role)`` that yields micro-batches ``(outputs, loss_fn, weight)`` for the roles

    - ``gradient``: the large sample; also the pass that counts for running statistics,
    - ``curvature``: the small sample; instead of outputs it may give a curvature operator of the summed loss, such as
      ``gauss_newton(model, loss, x, y, engine="r_operator")`` (``loss_fn`` is not used then),
    - ``evaluate``: the held-out sample that accepts or rejects steps: a third cut of the data, neither train nor dev.

    ``loss_fn(outputs)`` is the loss *summed* over the micro-batch, ``weight`` its number of frames or utterances:
    totals are sum(loss) / sum(weight), exact for every division into micro-batches and workers. Its curvature at the
    outputs comes from its method ``curvature(outputs)`` (:class:`hemstitch.curvature.TargetLoss`) or a double backward.
    Write the closure as a generator: then evaluations run without recording. The samples must stay the same within a
    step.

    Within a step dropout draws the same masks in every pass (a function of seed, step and shard; the global random
    state is untouched), running statistics are updated by the gradient pass alone, and if anything fails the parameters
    and the state are those before the step. NaN and inf never reach either. ``.grad`` is neither read nor written.

    Args:
        params: parameters or groups. Options of a group: ``lr``, ``damping_factor`` (its share of lambda),
            ``weight_decay`` (adds weight_decay |theta|^2 / 2 to the loss).
        lr: scales the direction before the line search; 1 is the method, less is for schedulers.
        damping: initial lambda > 0, in units of the curvature of the mean loss. It matters: see the concept page.
        damping_factor, weight_decay: defaults of the groups.
        damping_rule: how lambda follows rho.
        rho_with_damping: q in rho includes the damping term, as in paper 3.
        max_cg: conjugate gradient iterations at most.
        progress: when to stop them.
        carry: beta in [0, 1); the next run starts at carry d_N. 0 starts at zero.
        preconditioner: of conjugate gradients. ``None``; ``lbfgs``: the pairs of the run before, as in paper 3;
            ``lbfgs_within``: rebuilt while the run goes on; ``jacobi``, ``fisher``: diagonals, the baselines.
        num_pairs: m of L-BFGS; costs 4 m vectors of memory.
        keep_pairs: ``even`` is paper 3's, ``first`` saves more iterations (benchmarks/bench_hessian_free.py); see
            :class:`hemstitch.curvature.PairStore`.
        samples: growing samples by role, advanced once per step; read them in the closure by :meth:`sample`.
        reducer: speaks to other workers.
        num_shards: logical shards, a power of two, at least the largest number of workers; the result does not depend
            on the number of workers, to the bit. The closure reads its part by :meth:`sample` or :meth:`share`.
        keep_graphs: keep the graphs of the whole curvature sample during conjugate gradients; ``False`` recomputes
            them for each product, in about twice the time.
        model: whose running statistics to keep; by default those of all layers that run. Needed under torch.compile;
            useful on CUDA, where curvature passes do without cuDNN unless a model without recurrent layers is given.
        seed: of dropout within the steps and of the Jacobi probes.

    Attributes:
        on_pass: ``None``, or called with (role, passes of the step so far) after each pass: for progress bars.

    Raises:
        ConfigError: an option out of range.
        MisuseError: ``step`` without a role closure, under GradScaler, or with data not shared among shards.

    Cost of a step: 1 gradient, one product (4/3 gradient of the curvature sample) per iteration and one for a carried
    start, 2 to about 20 evaluations (1/3 gradient each). Memory: the graphs of the curvature sample, about 25 vectors.
    """

    passes_per_step: ClassVar[int] = 10_000        # no fixed bound: the report counts
    needs_closure: ClassVar[bool] = True
    needs_roles: ClassVar[bool] = True
    owns_sampling: ClassVar[bool] = True
    supports_grad_scaler: ClassVar[bool] = False
    _step_supports_amp_scaling = True              # a GradScaler then shows itself, and is refused

    def __init__(
        self,
        params: Any,
        lr: float = 1.0,
        *,
        damping: float = 1.0,
        damping_factor: float = 1.0,
        weight_decay: float = 0.0,
        damping_rule: LevenbergMarquardt | None = None,
        rho_with_damping: bool = True,
        max_cg: int = 250,
        progress: ProgressTest | None = None,
        carry: float = 0.95,
        preconditioner: PreconditionerName | None = None,
        num_pairs: int = 16,
        keep_pairs: Literal["even", "first", "last"] = "first",
        samples: Mapping[str, GrowingSample] | None = None,
        reducer: Reducer | None = None,
        num_shards: int = 1,
        keep_graphs: bool = True,
        model: nn.Module | None = None,
        seed: int = 0,
    ) -> None:
        check(lr >= 0, f"lr must be at least 0, got {lr}")
        check(damping > 0, f"damping must be positive, got {damping}")
        check(damping_factor >= 0 and weight_decay >= 0,
              f"damping_factor and weight_decay must be at least 0, got {damping_factor} and {weight_decay}")
        check(max_cg >= 1, f"max_cg must be at least 1, got {max_cg}")
        check(0 <= carry < 1, f"carry must be in [0, 1), got {carry}")
        check(preconditioner is None or preconditioner in PRECONDITIONERS,
              f"preconditioner must be None or one of {', '.join(PRECONDITIONERS)}, got {preconditioner!r}")
        unknown = sorted(set(samples or ()) - set(ROLES))
        check(not unknown, f"samples: unknown role {', '.join(unknown)}; the roles are {', '.join(ROLES)}")
        super().__init__(params, dict(lr=lr, damping_factor=damping_factor, weight_decay=weight_decay))
        self.damping, self.max_cg, self.carry, self.rho_with_damping = float(damping), max_cg, carry, rho_with_damping
        self.damping_rule = LevenbergMarquardt() if damping_rule is None else damping_rule
        self.progress = ProgressTest() if progress is None else progress
        self.preconditioner, self.keep_graphs, self.model, self.seed = preconditioner, keep_graphs, model, seed
        self.samples = dict(samples or {})
        self.reducer = LocalReducer() if reducer is None else reducer
        self.num_shards = num_shards
        shards_of(self.reducer.rank, self.reducer.world, num_shards)
        self.num_steps = 0
        self.direction: Tensor | None = None
        self.pairs, self.spare_pairs = PairStore(num_pairs, keep_pairs), PairStore(num_pairs, keep_pairs)
        self.on_pass: Callable[[str, int], None] | None = None
        self._shard: int | None = None
        self._is_shared = False
        self._report: HessianFreeReport | None = None

    # -- data ------------------------------------------------------------------------------------------------------

    @contextmanager
    def _in_shard(self, shard: int) -> Iterator[None]:
        self._shard, self._is_shared = shard, False
        try:
            yield
        finally:
            self._shard = None
        if self.num_shards > 1 and not self._is_shared:
            raise MisuseError(f"the data of {self.num_shards} logical shards must differ: take the closure's rows from "
                              "optimizer.sample(role) or optimizer.share(items)")

    def share(self, items: Any) -> Any:
        """Every num_shards-th of ``items`` (a tensor or sequence): the part of the shard the closure runs for."""
        if self._shard is None:
            raise MisuseError("share() and sample() are for the closure: call them while step(closure) runs it")
        self._is_shared = True
        return items[self._shard :: self.num_shards]

    def sample(self, role: str, num_items: int | None = None) -> Tensor:
        """(row,) int64: the rows of ``role`` for the shard the closure runs for; the same all through a step.

        Args:
            role: with a growing sample: its rows. Without: all of 0 ... num_items - 1.
            num_items: rows that there are.
        """
        if role in self.samples:
            return self.share(self.samples[role].indices())
        if num_items is None:
            raise MisuseError(f"there is no growing sample for role {role!r}: pass num_items, or "
                              f"samples={{{role!r}: GrowingSample(...)}}")
        return self.share(torch.arange(num_items))

    # -- the step --------------------------------------------------------------------------------------------------

    def step(self, closure: RoleClosure | None = None) -> float:
        """One step.

        Args:
            closure: yields the micro-batches of a role, see the class.

        Returns:
            The held-out loss before the step, with weight decay.
        """
        if closure is None:
            raise MisuseError(f"step() needs a closure: {HOW_TO}")
        if hasattr(self, "found_inf"):
            raise MisuseError("a GradScaler cannot scale what a closure computes: run Hessian-free steps without it, "
                              "in float32 or bfloat16")
        check_closure(closure)
        layout = FlatParameters(p for group in self.param_groups for p in group["params"])
        passes = RolePasses(closure, layout, self.reducer, self.num_shards, (self.seed, self.num_steps), self.model,
                            self._in_shard, self.on_pass)
        step = HessianFreeStep(self, layout, passes)
        random_state = RandomState({layout.device})
        try:
            with torch.no_grad():
                report = step.run()
        except BaseException:
            layout.write_(step.origin)
            raise
        finally:
            random_state.restore()
        self._commit(step, report)
        return report.loss_before

    def _commit(self, step: HessianFreeStep, report: HessianFreeReport) -> None:
        """Take over the state of a finished step."""
        self.damping = report.next_damping
        self.direction = step.result.x.mul(self.carry) if report.accepted and self.carry else None
        if self.direction is not None and not bool(torch.isfinite(self.direction).all()):
            self.direction = None
        if len(self.spare_pairs):
            self.pairs, self.spare_pairs = self.spare_pairs, self.pairs
            self.spare_pairs.clear()
        for sample in self.samples.values():
            sample.advance(report.noise)
        self.num_steps += 1
        self._report = report

    def report(self) -> HessianFreeReport | None:
        """What the last step did."""
        return self._report

    # -- state -----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """As in torch, and under ``hessian_free`` the damping, the carried direction, the pairs and the samples."""
        return super().state_dict() | {"hessian_free": {
            "damping": self.damping, "direction": self.direction, "pairs": self.pairs.state_dict(),
            "num_steps": self.num_steps, "seed": self.seed,
            "samples": {role: sample.state_dict() for role, sample in self.samples.items()}}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a saved state; a run goes on to the bit."""
        check("hessian_free" in state_dict, "this state was not saved by HessianFree")
        own = state_dict["hessian_free"]
        check(own["samples"].keys() == self.samples.keys(),
              f"the saved state has samples for {sorted(own['samples'])}, this optimizer for {sorted(self.samples)}")
        super().load_state_dict(state_dict)
        device = self.param_groups[0]["params"][0].device
        move = lambda tensor: None if tensor is None else tensor.to(device, copy=True)
        self.damping, self.num_steps, self.seed = own["damping"], own["num_steps"], own["seed"]
        self.direction = move(own["direction"])
        self.pairs.load_state_dict({**own["pairs"], "rows": move(own["pairs"]["rows"])})
        for role, sample in self.samples.items():
            sample.load_state_dict(own["samples"][role])
