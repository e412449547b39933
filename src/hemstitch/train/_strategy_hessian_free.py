"""Hessian-free optimisation as a strategy: each step draws samples of its own and counts as an epoch.

The criterion is used through :class:`hemstitch.criteria.CurvedCriterion`: whatever objective has a curvature at the
outputs can be trained, frame or sequence criterion. Over several workers give a reducer: sums over fixed shards make
the result the same, to the bit, whatever their number. When a worker is lost the others begin the step anew, with its
shards dealt out among them: its death costs at most one run of conjugate gradients and changes no bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from hemstitch.comm import Reducer
from hemstitch.criteria import CurvedCriterion
from hemstitch.curvature import ProgressTest
from hemstitch.errors import ConfigError
from hemstitch.optim import HessianFree, HessianFreeReport
from hemstitch.sampling import BatchSource
from hemstitch.train import _options as o
from hemstitch.train._hessian_free_data import HessianFreeData
from hemstitch.train._recipe import Recipe
from hemstitch.train._strategies import Batch, StepReport
from hemstitch.train._workers import insist, sum_values


class KnownLoss:
    """A loss, or its curvature, that is there already: what a micro-batch of a Hessian-free step carries."""

    def __init__(self, loss: Tensor | None, product: Callable[[Tensor], Tensor] | None = None) -> None:
        self.loss, self.product = loss, product

    def __call__(self, outputs: Tensor) -> Tensor:
        """The summed loss."""
        assert self.loss is not None
        return self.loss

    def curvature(self, outputs: Tensor) -> Callable[[Tensor], Tensor]:
        """v -> H v at the outputs."""
        assert self.product is not None
        return self.product


class HessianFreeSteps:
    """One Hessian-free step.

    Args:
        optimizer: its samples are those of ``data``.
        model: the network.
        criterion: with its curvature at the outputs.
        data: what each role sees.

    Attributes:
        watch: ``None``, or called with a few words after each pass, for progress bars.
        is_asked_to_stop: whether somebody wants the run to stop: told to the other workers after each step.
        agreed_to_stop: whether all know that somebody does.
    """

    def __init__(
        self, optimizer: HessianFree, model: nn.Module, criterion: CurvedCriterion, data: HessianFreeData
    ) -> None:
        self.optimizer, self.model, self.criterion, self.data = optimizer, model, criterion, data
        self.watch: Callable[[str], None] | None = None
        self.is_asked_to_stop: Callable[[], bool] = lambda: False
        self.errors: float | None = None  # None: the criterion counts none
        self._told_to_stop = False
        optimizer.on_pass = self._tell

    def step(self, source: BatchSource[Batch]) -> StepReport:
        """Draw samples, take a truncated Newton step or refuse it; only a loss that is not finite is no step."""
        sizes = {role: self.data.num_items(role) for role in self.data.units}
        reducer = self.optimizer.reducer
        insist(lambda: self._attempt(source), reducer)
        own = self.errors or 0.0, float(self.errors is not None), float(self.is_asked_to_stop())
        errors, counted, stop = sum_values(reducer, own)
        self._told_to_stop = stop > 0
        source.indices.position = 1
        report = self.optimizer.report()
        assert report is not None
        finite = math.isfinite(report.gradient_loss)
        passes = report.passes
        return StepReport(
            loss=(report.gradient_loss if finite else report.loss_before) * report.weights.get("gradient", 1.0),
            weight=report.weights.get("gradient", 1.0),
            errors=errors if counted else None,
            samples=sizes["gradient"],
            forward=forward_passes(passes, sizes),
            backward=passes["gradient"] * sizes["gradient"] + passes["curvature"] * sizes["curvature"],
            gradient_norm=report.gradient_norm,
            applied=not report.outcome.startswith("non-finite"),
            extra=diagnostics(report, sizes),
        )

    def micro_batches(self, role: str, source: BatchSource[Batch]) -> Iterator[tuple[Tensor, KnownLoss, float]]:
        """What the optimizer's closure yields."""
        for items in self.data.batches(role, self.optimizer):
            batch = source.select(items)
            outputs = self.model(batch.inputs)
            if role == "curvature":
                found = self.criterion.curvature(outputs.detach(), batch.targets)
                yield outputs, KnownLoss(None, found.product), found.weight
                continue
            objective = self.criterion(outputs, batch.targets)
            errors = getattr(objective, "errors", None)
            if role == "gradient" and errors is not None:
                self.errors = (self.errors or 0.0) + errors
            yield outputs, KnownLoss(objective.loss), objective.weight

    @property
    def agreed_to_stop(self) -> bool:
        """Whether all workers know that somebody wants the run to stop."""
        return self.is_asked_to_stop() if self.optimizer.reducer.world == 1 else self._told_to_stop

    def _attempt(self, source: BatchSource[Batch]) -> None:
        self.errors = None
        self.optimizer.step(lambda role: self.micro_batches(role, source))

    def _tell(self, role: str, count: int) -> None:
        if self.watch is not None:
            words = {"gradient": "gradient", "curvature": f"conjugate gradients {count}", "evaluate": f"loss {count}"}
            self.watch(words[role])


def forward_passes(passes: dict[str, int], sizes: dict[str, int]) -> float:
    """Samples sent forward. A product is two forward passes (the layers' inputs and their change) and one backward."""
    kept_graph = 1 if passes["curvature"] else 0
    return (
        passes["gradient"] * sizes["gradient"]
        + (2 * passes["curvature"] + kept_graph) * sizes["curvature"]
        + passes["evaluate"] * sizes["evaluate"]
    )


def diagnostics(report: HessianFreeReport, sizes: dict[str, int]) -> dict[str, float]:
    """The report of a step as numbers to log; what is not finite is left out."""
    values = {
        "accepted": float(report.accepted),
        "cg_iterations": float(report.cg_iterations),
        "cg_iterate_taken": float(report.iterate),
        "damping": report.damping,
        "rho": report.rho,
        "step_length": report.step_length,
        "held_out_loss": report.loss_before,
        "held_out_loss_after": report.loss_after,
        "gradient_noise": report.noise,
        f"cg_stopped_by_{report.cg_reason or 'nothing'}": 1.0,
        **{f"samples_{role}": float(sizes[role]) for role in ("gradient", "curvature")},
        **{f"passes_{role}": float(count) for role, count in report.passes.items()},
        **{f"seconds_{role}": seconds for role, seconds in report.seconds.items()},
        **{f"cpu_seconds_{role}": seconds for role, seconds in report.cpu_seconds.items()},
    }
    return {name: value for name, value in values.items() if math.isfinite(value)}


class TaskCriterion:
    """A task as a criterion with curvature: where ``task.criterion`` is a method."""

    def __init__(self, task: Any) -> None:
        self.task = task

    def __call__(self, outputs: Tensor, targets: Any) -> Any:
        """The objective."""
        return self.task.criterion(outputs, targets)

    def curvature(self, outputs: Tensor, targets: Any) -> Any:
        """The curvature at the outputs."""
        return self.task.curvature(outputs, targets)


def curved_criterion(recipe: Recipe, task: Any) -> CurvedCriterion:
    """What is minimised.

    Raises:
        ConfigError: it has no curvature at the outputs.
    """
    if isinstance(task.criterion, CurvedCriterion):
        return task.criterion
    if hasattr(task, "curvature"):
        return TaskCriterion(task)
    raise ConfigError(f"update.kind = 'hessian-free': criterion.kind = {recipe.kinds['criterion']!r} has no curvature "
                      "at the outputs (hemstitch.criteria.CurvedCriterion); take cross-entropy, lattice-free-mmi or a "
                      "lattice criterion")  # fmt: skip


def check_combination(recipe: Recipe) -> None:
    """Refuse what makes no sense beside Hessian-free steps.

    Raises:
        ConfigError: with the reason.
    """
    reasons = {
        f"data.kind = {recipe.kinds['data']!r}": (
            recipe.kinds["data"] not in ("speech", "images"),
            "its batches continue one another, so that no sample of them can be drawn",
        ),
        f"parallel.kind = {recipe.kinds['parallel']!r}": (
            recipe.kinds["parallel"] not in ("local", "data-parallel"),
            "a step needs the sums of all workers, none can take one by itself; use parallel.kind = 'data-parallel'",
        ),
        "gradient.kind = 'natural'": (
            recipe.kinds["gradient"] != "plain",
            "it changes the gradient within the layers, and conjugate gradients need that of the loss; the damped "
            "Gauss-Newton matrix takes the part of the Fisher matrix",
        ),
        "backstitch.scale above 0": (
            recipe.backstitch.scale > 0,
            "a step backwards corrects the bias of small batches, of which there are none here",
        ),
        f"order.kind = {recipe.kinds['order']!r}": (
            recipe.kinds["order"] != "forward",
            "there is no sequence of batches to apply in another order",
        ),
        "train.clip above 0": (recipe.train.clip > 0, "damping and line search bound the step"),
        "train.precision = 'bf16'": (
            recipe.train.precision != "float32",
            "conjugate gradients lose their conjugacy in eight bits of mantissa",
        ),
        f"schedule.kind = {recipe.kinds['schedule']!r} or a warm-up": (
            recipe.kinds["schedule"] != "constant" or recipe.schedule.warmup > 0,
            "the line search sets the length of a step; use schedule.kind = 'constant'",
        ),
    }
    for what, (is_wrong, reason) in reasons.items():
        if is_wrong:
            raise ConfigError(f"update.kind = 'hessian-free' does not go with {what}: {reason}.")


def build_hessian_free(
    recipe: Recipe, task: Any, model: nn.Module, source: BatchSource[Batch], reducer: Reducer | None = None
) -> tuple[HessianFree, HessianFreeSteps, BatchSource[Batch]]:
    """Optimizer, strategy and source of a run.

    Args:
        recipe: its update is of kind hessian-free.
        task, model: what learns what.
        source: of the whole training part, for one worker whatever their number; its order is not used.
        reducer: speaks to other workers; all of them make the same calls.
    """
    check_combination(recipe)
    if reducer is not None and reducer.world > 1 and any(isinstance(m, nn.modules.batchnorm._NormBase)
                                                         for m in model.modules()):  # fmt: skip
        raise ConfigError("update.kind = 'hessian-free' over several workers: batch normalisation keeps running "
                          "statistics that each worker would have for itself; take model.norm = 'rms' or 'none'")
    options: o.HessianFree = recipe.update
    criterion = curved_criterion(recipe, task)
    data = HessianFreeData(task, source, options, recipe.train.batch_size, recipe.seed)
    name = {"none": None, "lbfgs": "lbfgs" if options.rebuild == "between" else "lbfgs_within"}
    optimizer = HessianFree(
        [p for p in model.parameters() if p.requires_grad],
        damping=options.damping,
        weight_decay=options.weight_decay,
        max_cg=options.max_cg,
        progress=ProgressTest(tolerance=options.cg_tolerance),
        carry=options.carry,
        preconditioner=name.get(options.preconditioner, options.preconditioner),  # type: ignore[arg-type]
        num_pairs=options.num_pairs,
        keep_pairs=options.keep_pairs,
        samples=data.samples,
        reducer=reducer,
        num_shards=options.shards,
        keep_graphs=options.keep_graphs,
        model=model,
        seed=recipe.seed,
    )
    return optimizer, HessianFreeSteps(optimizer, model, criterion, data), data.source
