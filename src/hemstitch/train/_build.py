"""From a recipe to the parts of a run: which class each ``kind`` stands for."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from hemstitch.comm import LocalReducer, Reducer
from hemstitch.errors import ConfigError
from hemstitch.models import (
    Blstm,
    FeedForward,
    Lstm,
    PNormNetwork,
    RecurrentLanguageModel,
    Tdnn,
    TdnnLstm,
    resnet18,
    resnet50,
    vgg19,
)
from hemstitch.optim import SGD, Backstitch, NaturalGradient, component_groups
from hemstitch.train import _options as o
from hemstitch.train._chunks import ChunkTask
from hemstitch.train._console import Console
from hemstitch.train._ctc import CtcTask
from hemstitch.train._frames import FrameTask
from hemstitch.train._images import ImageTask
from hemstitch.train._in_parallel import backstitch_phase, cluster_of, in_parallel
from hemstitch.train._lattices import LatticeTask
from hemstitch.train._layerwise import check_layerwise, grow, shallow_recipe
from hemstitch.train._loop import Loop
from hemstitch.train._recipe import Recipe
from hemstitch.train._replica_gradient import ReplicaGradient, weight_decay
from hemstitch.train._run_folder import RunFolder
from hemstitch.train._schedules import Schedule
from hemstitch.train._sequences import LatticeFreeTask
from hemstitch.train._start import FormerRun, freeze_parameters
from hemstitch.train._strategies import ClosureSteps, Gradient, SinglePass, Strategy
from hemstitch.train._strategy_average import AveragedSteps
from hemstitch.train._strategy_hessian_free import build_hessian_free
from hemstitch.train._strategy_order import BackwardSteps, OrderAverageGradient
from hemstitch.train._strategy_replicas import ReplicaSteps
from hemstitch.train._strategy_simulated import SimulatedReplicaSteps
from hemstitch.train._text import ContinuedLanguageModel, TextTask
from hemstitch.train._workers import Worker

MODELS: dict[type, Callable[..., nn.Module]] = {
    o.FeedForwardModel: FeedForward,
    o.MlpModel: FeedForward,
    o.PNormModel: PNormNetwork,
    o.TdnnModel: Tdnn,
    o.LstmModel: Lstm,
    o.BlstmModel: Blstm,
    o.TdnnLstmModel: TdnnLstm,
    o.ResnetModel: lambda num_channels, num_outputs, depth, width: {18: resnet18, 50: resnet50}[depth](
        num_outputs, width=width, num_channels=num_channels
    ),
    o.VggModel: lambda num_channels, num_outputs, width: vgg19(num_outputs, width=width, num_channels=num_channels),
}

RECURRENT = (o.LstmModel, o.BlstmModel, o.TdnnLstmModel)


def build_device(options: o.Training) -> torch.device:
    """The device that the recipe asks for; also sets the number of threads."""
    if options.threads:
        torch.set_num_threads(options.threads)
    available = torch.cuda.is_available()
    if options.device == "cuda" and not available:
        raise ConfigError(
            "train.device = 'cuda', but this torch sees no GPU. Use cpu, or install a CUDA build of torch."
        )
    return torch.device("cuda" if options.device == "cuda" or (options.device == "auto" and available) else "cpu")


def build_task(recipe: Recipe, device: torch.device, console: Console, kept: Mapping[str, Any] | None = None) -> Any:
    """Data and supervision; ``kept``: what a run folder has kept of its preparations."""
    if isinstance(recipe.data, o.TextData):
        return TextTask(recipe, device)
    if isinstance(recipe.data, o.ImageData):
        return ImageTask(recipe.data, device, flat=isinstance(recipe.model, o.MlpModel))
    if isinstance(recipe.criterion, o.LatticeTraining):
        return LatticeTask(recipe, device, console, kept)
    if isinstance(recipe.criterion, o.LatticeFreeMmi):
        return LatticeFreeTask(recipe, device, console, kept)
    if isinstance(recipe.criterion, o.Ctc):
        return CtcTask(recipe, device, console, kept)
    if isinstance(recipe.model, RECURRENT) and not recipe.criterion.chunk:
        raise ConfigError(f"model.kind = {recipe.kinds['model']!r} with cross-entropy: set criterion.chunk, such as "
                          "40 frames (alone, each would cost a whole warm-up), and train.batch_size = 32")  # fmt: skip
    if getattr(recipe.model, "subsampling", 1) != 1:
        raise ConfigError("criterion.kind = 'cross-entropy' has a target for each frame: set model.subsampling = 1")
    return (ChunkTask if recipe.criterion.chunk else FrameTask)(recipe, device, console, kept)


def build_model(recipe: Recipe, num_inputs: int, num_outputs: int) -> nn.Module:
    """The network, its weights drawn from the recipe's seed."""
    torch.manual_seed(recipe.seed)
    options = dataclasses.asdict(recipe.model)
    if isinstance(recipe.model, o.MlpModel):
        options |= {"left_context": 0, "right_context": 0}
    if isinstance(recipe.model, o.LstmLanguageModel):
        return ContinuedLanguageModel(RecurrentLanguageModel(num_outputs, **options))
    if has_second_head(recipe):
        options |= {"xent_head": True}
    return MODELS[type(recipe.model)](num_inputs, num_outputs, **options)


def has_second_head(recipe: Recipe) -> bool:
    """Whether the network has an output layer for cross-entropy besides."""
    return isinstance(recipe.criterion, o.LatticeFreeMmi) and recipe.criterion.xent_regularize > 0


def build_natural_gradient(recipe: Recipe, model: nn.Module) -> NaturalGradient | None:
    """Natural gradient in the layers of the model, if the recipe asks for it."""
    options = recipe.gradient
    if not isinstance(options, o.NaturalGradientOptions):
        return None
    settings = dataclasses.asdict(options)
    ranks = {key: settings.pop(key) or "auto" for key in ("rank_in", "rank_out")}
    return NaturalGradient(model, **ranks, **settings, loss_reduction="mean")


def build_optimizer(
    recipe: Recipe, model: nn.Module, natural: NaturalGradient | None, rank: int = 0
) -> torch.optim.Optimizer:
    """The update rule, with backstitch around it if the recipe asks for it, staggered over the workers."""
    optimizer, stitch = build_update(recipe, model), recipe.backstitch
    if stitch.scale == 0:
        return optimizer
    return Backstitch(
        optimizer,
        stitch.scale,
        stitch.interval,
        phase=(recipe.seed + backstitch_phase(recipe, rank)) % stitch.interval,
        warmup_steps=stitch.warmup_steps,
        natural_gradient=natural,
        model=model,
    )


def build_update(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    """The update rule itself."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    match recipe.update:
        case o.MaxChangeSgd(lr=lr, momentum=momentum, l2=l2, global_max_change=most) as options:
            groups = component_groups(model, max_change=options.max_change)
            for group in groups[-2:] if has_second_head(recipe) else groups[-1:]:
                group["max_change"] = options.output_max_change
            if has_second_head(recipe):  # its objective is scaled down: the usual rate for it (Kaldi)
                groups[-1]["lr_factor"] = 0.5 / recipe.criterion.xent_regularize
            return SGD(groups, lr, momentum=momentum, l2=l2, global_max_change=most)
        case o.MomentumSgd(lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=decay):
            return torch.optim.SGD(parameters, lr, momentum=momentum, nesterov=nesterov, weight_decay=decay)
        case o.Adam(lr=lr, beta1=beta1, beta2=beta2, weight_decay=decay):
            return torch.optim.Adam(parameters, lr, (beta1, beta2), weight_decay=decay)
        case o.AdamW(lr=lr, beta1=beta1, beta2=beta2, weight_decay=decay):
            return torch.optim.AdamW(parameters, lr, (beta1, beta2), weight_decay=decay)
    raise ConfigError(f"no optimizer for {recipe.update}")


def build_strategy(
    recipe: Recipe,
    task: Any,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    natural: NaturalGradient | None = None,
) -> Strategy:
    """How a step uses data, gradient and optimizer."""
    options, autocast = recipe.order, recipe.train.precision == "bf16"
    gradient = Gradient(model, task.criterion, autocast)
    if isinstance(options, o.BackwardOrder):
        return BackwardSteps(
            gradient,
            optimizer,
            options,
            collate=task.source(recipe.train.batch_size, recipe.seed).collate,
            clip=recipe.train.clip,
            seed=recipe.seed,
            score=(lambda model: task.evaluate(model)["loss"]) if options.needs_score else None,
            stateful=() if natural is None else (natural,),
            leaves_out=recipe.train.non_finite != "raise",
        )
    if isinstance(options, o.OrderAverageOptions):
        gradient = OrderAverageGradient(model, task.criterion, optimizer, options, autocast)
    steps = ClosureSteps if isinstance(optimizer, Backstitch) else SinglePass
    return steps(gradient, optimizer, clip=recipe.train.clip)


def build_worker(recipe: Recipe, task: Any, model: nn.Module, rank: int) -> Worker:
    """A worker with everything that is its own."""
    natural = build_natural_gradient(recipe, model)
    optimizer = build_optimizer(recipe, model, natural, rank)
    return Worker(model, optimizer, natural, build_strategy(recipe, task, model, optimizer, natural))


def build_simulated_replicas(recipe: Recipe, task: Any, worker: Worker, source: Any) -> SimulatedReplicaSteps:
    """Asynchronous training on a simulated clock; the first replica has the worker's network and natural gradient."""
    decay, device = weight_decay(worker.optimizer), next(worker.model.parameters()).device

    def make(replica: int) -> ReplicaGradient:
        model, natural = worker.model, worker.natural
        if replica and natural is not None:
            model = build_model(recipe, task.num_inputs, task.num_outputs).to(device)
            freeze_parameters(model, recipe.start.freeze)
            natural = build_natural_gradient(recipe, model)
        gradient = Gradient(model, task.criterion, recipe.train.precision == "bf16")
        return ReplicaGradient(gradient, decay, recipe.train.clip, natural)

    gradients = [make(replica) for replica in range(recipe.parallel.replicas)]
    return SimulatedReplicaSteps(recipe.parallel, worker.model, worker.optimizer, gradients, source,
                                 cluster_of(recipe.parallel))


def build_replicas(
    recipe: Recipe, task: Any, model: nn.Module, optimizer: torch.optim.Optimizer, source: Any
) -> ReplicaSteps:
    """Asynchronous training on real processes."""
    device, decay = next(model.parameters()).device, weight_decay(optimizer)

    def make(replica: int) -> ReplicaGradient:
        own = build_model(recipe, task.num_inputs, task.num_outputs).to(device)
        freeze_parameters(own, recipe.start.freeze)
        natural = build_natural_gradient(recipe, own)
        torch.manual_seed(recipe.seed + 1_000_003 * (replica + 1))  # dropout of its own
        gradient = Gradient(own, task.criterion, recipe.train.precision == "bf16")
        return ReplicaGradient(gradient, decay, recipe.train.clip, natural)

    options = recipe.train
    return ReplicaSteps(recipe.parallel, task, model, optimizer, make, source, options.epochs, options.threads)


@dataclasses.dataclass(frozen=True)
class Run:
    """The parts of a run before a folder is made for it."""

    recipe: Recipe
    task: Any
    model: nn.Module
    optimizer: torch.optim.Optimizer
    strategy: Strategy
    schedule: Schedule
    source: Any
    console: Console
    stateful: dict[str, Any]

    def begin(self, folder: RunFolder) -> Loop:
        """The run before its first step; a network that the recipe grows layer by layer is grown first."""
        if not self.recipe.start.layerwise:
            return self.loop(folder)
        begin = time.perf_counter(), time.process_time()
        device = next(self.model.parameters()).device
        shallow = build_model(shallow_recipe(self.recipe), self.task.num_inputs, self.task.num_outputs).to(device)
        growth = grow(self.recipe, self.task, shallow)
        self.model.load_state_dict(shallow.state_dict())
        loop = self.loop(folder)
        loop.clock = begin
        loop.progress.forward = loop.progress.backward = growth.samples
        depths = ", ".join(f"{loss:.3f}" for loss in growth.losses)
        loop.event("layerwise", f"grown layer by layer; training loss at each depth: {depths}")
        return loop

    def loop(self, folder: RunFolder) -> Loop:
        """The run in motion, writing to ``folder``."""
        return Loop(
            task=self.task,
            model=self.model,
            optimizer=self.optimizer,
            strategy=self.strategy,
            schedule=self.schedule,
            source=self.source,
            folder=folder,
            options=self.recipe.train,
            console=self.console,
            stateful=self.stateful,
        )


def build_run(
    recipe: Recipe, console: Console, kept: Mapping[str, Any] | None = None, reducer: Reducer | None = None
) -> Run:
    """Every part of a run.

    Args:
        recipe: what to do.
        console: messages.
        kept: what the folder of a run that goes on has kept (:meth:`RunFolder.kept`); ``None``: begin afresh.
        reducer: speaks to the other processes of the run, if there are any.
    """
    check_layerwise(recipe)
    reducer = reducer or LocalReducer()
    device = build_device(recipe.train)
    task = build_task(recipe, device, console, kept)
    model = build_model(recipe, task.num_inputs, task.num_outputs).to(device)
    task.bind(model)
    if kept is None and (former := FormerRun.of(recipe)) is not None:
        former.give(model)
    freeze_parameters(model, recipe.start.freeze)
    source = task.source(recipe.train.batch_size, recipe.seed)
    if isinstance(recipe.update, o.HessianFree):
        optimizer, strategy, source = build_hessian_free(recipe, task, model, source, reducer)
        worker = Worker(model, optimizer, None, strategy)
    else:
        worker = build_worker(recipe, task, model, reducer.rank)

    def another(rank: int) -> Worker:
        copy = build_model(recipe, task.num_inputs, task.num_outputs).to(device)
        freeze_parameters(copy, recipe.start.freeze)
        return build_worker(recipe, task, copy, rank)

    if isinstance(recipe.parallel, o.Replicas):
        strategy = build_replicas(recipe, task, model, worker.optimizer, source)
    elif isinstance(recipe.parallel, o.SimulatedAsynchronous):
        strategy = build_simulated_replicas(recipe, task, worker, source)
    else:
        strategy = in_parallel(recipe, worker, another, task, reducer)
    if not isinstance(recipe.average, o.NoAverage):
        statistics = task.source(recipe.train.batch_size, recipe.seed)
        strategy = AveragedSteps(strategy, model, recipe.average, recipe.train.epochs, statistics)
    stateful = {"natural_gradient": worker.natural, "strategy": strategy}
    return Run(
        recipe=recipe,
        task=task,
        model=model,
        optimizer=worker.optimizer,
        strategy=strategy,
        schedule=Schedule(recipe.schedule, recipe.train.epochs),
        source=source,
        console=console,
        stateful={name: part for name, part in stateful.items() if hasattr(part, "state_dict")},
    )
