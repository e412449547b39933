"""Paper 1, sections 3 and 4: the order of the two steps, what natural gradient may know, and switching it on late."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from hemstitch.optim import Backstitch, NaturalGradient
from hemstitch.reproduce._entry import Entry, Line, Outcome, Part, Plot, Row, Scale, choose
from hemstitch.reproduce._method_runs import (
    AN4,
    AN4_SIZES,
    NATURAL,
    QUIET,
    SGD,
    Settings,
    by_method,
    mean_of,
    mean_row,
)
from hemstitch.reproduce._training import recipe
from hemstitch.train._build import Run, build_run

Results = Mapping[str, dict[str, Any]]
Change = Callable[[Backstitch], None]
STITCH: Settings = {"backstitch.scale": 0.3, "backstitch.interval": 1}


class LearnsFirst:
    """Natural gradient the wrong way round: it learns in the first pass of a pair, and not in the second."""

    def __init__(self, natural: NaturalGradient) -> None:
        self.natural, self.frozen = natural, False
        natural.freeze(True)

    def freeze(self, on: bool = True) -> None:
        """What is asked of it in the first pass, done the other way round."""
        self.frozen = on
        self.natural.freeze(not on)


def contaminate(optimizer: Backstitch) -> None:
    """The second pass sees estimates that know its minibatch."""
    optimizer.natural_gradient = LearnsFirst(optimizer.natural_gradient)


def turn(optimizer: Backstitch) -> None:
    """The long step forwards first, then the one backwards."""
    optimizer.reverse = True


def updates(run: Run, epochs: float) -> Iterator[int]:
    """Train with the schedule of the recipe, without looking; yields the number of updates after each."""
    rates = [group["lr"] for group in run.optimizer.param_groups]
    indices = run.source.indices
    per_epoch = indices.batches_per_epoch
    for step in range(round(epochs * per_epoch)):
        factor = run.schedule.factor(step / per_epoch)
        for group, rate in zip(run.optimizer.param_groups, rates):
            group["lr"] = rate * factor
        run.strategy.step(run.source)
        yield step + 1


@torch.no_grad()
def training_loss(run: Run) -> float:
    """Mean loss of the network, without dropout, on every tenth frame of the training data."""
    items = torch.arange(0, run.source.indices.items_per_epoch, 10)
    run.model.eval()
    batch = run.source.collate(items)
    objective = run.task.criterion(run.model(batch.inputs), batch.targets)
    run.model.train()
    return float(objective.loss) / objective.weight


def dev_loss(run: Run) -> float:
    """Mean loss on the dev part."""
    value = run.task.evaluate(run.model)["loss"]
    run.model.train()
    return value


def an4_run(scale: Scale, folder: Path, settings: Settings) -> Run:
    """The small AN4 recipe with frame cross-entropy, ready to be driven by hand."""
    run = build_run(recipe(scale, "an4-small", folder, {**AN4, **AN4_SIZES[scale], **settings}), QUIET)
    run.model.train()
    return run


# -- order, contaminated estimates, without natural gradient ---------------------------------------------------------

METHODS: Mapping[str, tuple[Settings, Change | None]] = {
    "natural gradient": ({**NATURAL, "update.lr": 1.0}, None),
    "natural gradient, backstitch": ({**NATURAL, **STITCH, "update.lr": 1.0}, None),
    "natural gradient, backstitch reversed": ({**NATURAL, **STITCH, "update.lr": 1.0}, turn),
    "natural gradient, backstitch with estimates contaminated": ({**NATURAL, **STITCH, "update.lr": 1.0}, contaminate),
    "plain gradient": ({**SGD, "update.lr": 1.0}, None),
    "plain gradient, backstitch": ({**SGD, **STITCH, "update.lr": 1.0}, None),
}


def variant_parts(scale: Scale) -> dict[str, Part]:
    """Each for as many epochs."""
    epochs = choose(scale, smoke=1, laptop=4, paper=10)

    def part_of(settings: Settings, change: Change | None, seed: int) -> Part:
        own = {"train.epochs": epochs, "seed": seed, **settings}
        own |= {"gradient.update_period": 1} if settings["gradient.kind"] == "natural" else {}

        def part(folder: Path) -> dict[str, Any]:
            run = an4_run(scale, folder, own)
            if change is not None:
                change(run.optimizer)
            steps = list(updates(run, epochs))
            return {"updates": len(steps), "dev": dev_loss(run), "train": training_loss(run)}

        return part

    seeds = range(1, choose(scale, smoke=1, laptop=2, paper=3) + 1)
    return {f"{name}, seed {seed}": part_of(settings, change, seed)
            for name, (settings, change) in METHODS.items() for seed in seeds}  # fmt: skip


def variants(results: Results) -> Outcome:
    """Who gains what on dev."""
    methods = by_method(results)
    rows = [row for name, group in methods.items() for row in (
        mean_row(f"dev cross-entropy, {name}", group, "dev"),
        mean_row(f"training cross-entropy, {name}", group, "train"),
    ) if row is not None]  # fmt: skip
    dev = {name: mean_of(group, "dev") for name, group in methods.items()}

    def gain(name: str) -> float:
        base = name.partition(",")[0]
        return 1 - dev[name] / dev[base]

    gains = {name: gain(name) for name in METHODS if "backstitch" in name}
    rows += [Row(quantity=f"relative reduction of dev cross-entropy by backstitch, {name}", ours=value, percent=True)
             for name, value in gains.items()]  # fmt: skip
    right, reversed_, wrong, plain = gains.values()
    claims = {
        "helps": right > 0,
        "helps less reversed": reversed_ < right,
        "helps less with contaminated estimates": wrong < right,
        "helps less without natural gradient": plain < right,
        "but still helps without it": plain > 0,
    }
    held = [text for text, is_so in claims.items() if is_so]
    failed = [text for text, is_so in claims.items() if not is_so]
    return Outcome(
        verdict="reproduced" if not failed else "partly" if held else "not reproduced",
        summary="Frame cross-entropy on AN4 with scale 0.3 on every minibatch, Fisher estimates updated on every "
                f"minibatch, {len(methods['natural gradient'])} seeds, each method at the same learning rate for as "
                f"many epochs. What the paper says and is seen here: backstitch {'; '.join(held) or '(nothing)'}. "
                f"Not seen: {'; '.join(failed) or '(nothing)'}.",
        rows=rows,
    )  # fmt: skip


# -- switched on in mid-training -------------------------------------------------------------------------------------

WAYS: Mapping[str, float] = {"not switched on": -1.0, "at once": 0.0, "slowly": 0.5}
"""Epochs over which the scale grows; -1: never."""


def shock_parts(scale: Scale) -> dict[str, Part]:
    """One epoch and a half without, then one with, the losses looked at often."""
    before, after, every = choose(scale, smoke=(0.5, 0.5, 4), laptop=(1.5, 1.0, 40), paper=(5.0, 5.0, 40))

    def part_of(grows: float, seed: int) -> Part:
        own = {**NATURAL, "update.lr": 1.0, "schedule.kind": "constant", "train.epochs": 100,
               "backstitch.scale": 1.0, "backstitch.interval": 1, "seed": seed}  # fmt: skip

        def part(folder: Path) -> dict[str, Any]:
            run = an4_run(scale, folder, own)
            run.optimizer.scale = 0.0
            first = list(updates(run, before))[-1]
            looks: dict[str, list[float]] = {"x": [0.0], "dev": [dev_loss(run)], "train": [training_loss(run)]}
            if grows >= 0:
                run.optimizer.scale, run.optimizer.num_batches = 1.0, 0
                run.optimizer.warmup_steps = round(grows * first / before)
            for step in updates(run, after):
                if step % every == 0 or step in (5, 10, 20):
                    looks["x"].append(step)
                    looks["dev"].append(dev_loss(run))
                    looks["train"].append(training_loss(run))
            return looks

        return part

    seeds = range(1, choose(scale, smoke=1, laptop=2, paper=3) + 1)
    return {f"{name}, seed {seed}": part_of(grows, seed) for name, grows in WAYS.items() for seed in seeds}


def shock(results: Results) -> Outcome:
    """How far the losses rise above those of training that goes on without, at worst and at the end."""
    methods = by_method(results)
    rows, worst, last = [], {}, {}
    for name in ("at once", "slowly"):
        for split in ("dev", "train"):
            pairs = zip(methods[name], methods["not switched on"])
            apart = [[a - b for a, b in zip(ours[split], base[split])] for ours, base in pairs]
            worst[name, split] = sum(max(d) for d in apart) / len(apart)
            last[name, split] = sum(d[-1] for d in apart) / len(apart)
            rows += [Row(quantity=f"{split} cross-entropy above that without, switched on {name}, {when}",
                         ours=value[name, split], seeds=len(apart))
                     for when, value in (("at worst", worst), ("at the end", last))]  # fmt: skip
    base = methods["not switched on"][0]["dev"][0]
    sharp = all(worst["at once", split] > 0.01 * base for split in ("dev", "train"))
    reversed_ = all(last["at once", split] < 0.5 * worst["at once", split] for split in ("dev", "train"))
    softer = all(worst["slowly", split] < worst["at once", split] for split in ("dev", "train"))
    verdict = "reproduced" if sharp and reversed_ and softer else "partly" if sharp or softer else "not reproduced"
    return Outcome(
        verdict=verdict,
        summary=f"Scale 1.0 on every minibatch from an epoch and a half on, AN4: the dev loss rises by up to "
                f"{worst['at once', 'dev']:.3f}, the training loss by up to {worst['at once', 'train']:.3f}, over a "
                f"run that goes on without; after one more epoch {last['at once', 'dev']:+.3f} and "
                f"{last['at once', 'train']:+.3f} are left. With a scale that grows over half an epoch: at worst "
                f"{worst['slowly', 'dev']:.3f} and {worst['slowly', 'train']:.3f}. Means over "
                f"{len(methods['at once'])} seeds.",
        rows=rows,
        plots=[Plot(title=f"{split} cross-entropy, seed 1", x_label="updates since it was switched on", log_y=False,
                    lines=[Line(label=name, x=group[0]["x"], y=group[0][split]) for name, group in methods.items()])
               for split in ("dev", "train")],
    )  # fmt: skip


ENTRIES = [
    Entry(name="variants", paper=1, minutes=8, parts=variant_parts, conclude=variants,
          title="Sections 3 and 4.2 to 4.3: reversed order, contaminated Fisher estimates, without natural gradient",
          paper_says="Less improvement with the steps in reversed order, and without natural gradient; worse results "
                     "where the Fisher estimates are updated in the first step."),
    Entry(name="slow-start", paper=1, minutes=3, parts=shock_parts, conclude=shock,
          title="Section 4.6: backstitch switched on in mid-training, at once and slowly",
          paper_says="A sharp degradation of training and validation objective, rather quickly reversed; hence a scale "
                     "that grows from zero."),
]  # fmt: skip
