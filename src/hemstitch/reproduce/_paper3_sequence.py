"""Paper 3 on the criterion it is about, lattice MMI on AN4: Hessian-free steps against utterance SGD; what saves time.

All runs begin with one network, trained a little by cross-entropy, and use its alignment. Costs are processor seconds
of training alone. "The same loss" is the dev MMI loss that all runs of a comparison reach.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hemstitch.reproduce._entry import Entry, Line, Outcome, Part, Plot, Row, Scale, choose
from hemstitch.reproduce._paper3 import ROLES, Results, common_loss, spent, steps_of, steps_to
from hemstitch.reproduce._training import Trained, recipe, trained
from hemstitch.train import Console
from hemstitch.train._build import build_run

GROWTH = {"update.sampling": "geometric", "update.gradient_start": 0.1, "update.gradient_factor": 1.4,
          "update.curvature_start": 0.25, "update.curvature_factor": 1.25}  # fmt: skip
PAIRS = {"update.preconditioner": "lbfgs", "update.num_pairs": 16}
HESSIAN_FREE: Mapping[str, Mapping[str, Any]] = {"none": {}, "PC-16": PAIRS, "geometric": GROWTH,
                                                 "PC-16, geometric": {**PAIRS, **GROWTH}}  # fmt: skip
SGD_RATES = (0.5, 2.0)


def sizes(scale: Scale) -> dict[str, Any]:
    """Network and decoding, the same for all runs."""
    common = {
        "model.hidden": choose(scale, smoke=[8], laptop=[128, 128], paper=[1024] * 5),
        "model.dropout": 0.0,
        "decode.prior_scale": [1.0],
        "decode.acoustic_scale": [0.2],
        "decode.word_penalty": [0.0],
    }
    if scale == "smoke":
        common |= {"features.deltas": 0, "hmm.flat_start": 2, "hmm.position_dependent": False}
    return common


def start(scale: Scale, shared: Path) -> Path:
    """The network that all runs begin with."""
    epochs = choose(scale, smoke=1, laptop=2, paper=12)
    settings = sizes(scale) | {"hmm.realign": [], "train.epochs": epochs}
    trained(recipe(scale, "an4-small", shared / "start", settings), shared / "start")
    return shared / "start" / "run"


def mmi(scale: Scale, shared: Path, name: str, settings: Mapping[str, Any]) -> Trained:
    """A run of MMI."""
    first = {"start.recipe": None, "start.run": str(start(scale, shared)), "start.alignment": True}
    wanted = recipe(scale, "an4-mmi", shared / name, sizes(scale) | {"hmm.realign": [], **first, **settings})
    if not (shared / name / "run").is_dir():
        run = build_run(wanted, Console(quiet=True))
        run.task.evaluate(run.model)  # compiles the lattice kernels, which must not count as training
    return trained(wanted, shared / name)


def hessian_free_part(scale: Scale, variant: str) -> Part:
    """Hessian-free steps."""

    def part(folder: Path) -> dict[str, Any]:
        settings = {
            "gradient.kind": "plain",
            "schedule.kind": "constant",
            "update.kind": "hessian-free",
            "update.damping": 0.1,
            "update.gradient_cap": choose(scale, smoke=1.0, laptop=0.3, paper=1.0),
            "update.curvature_cap": choose(scale, smoke=0.5, laptop=0.03, paper=0.02),
            "update.held_out": choose(scale, smoke=0.2, laptop=0.06, paper=0.05),
            "update.shards": 1,
            "train.epochs": choose(scale, smoke=2, laptop=7, paper=40),
            "train.log_every": 1,
            "train.keep": 1,
            **HESSIAN_FREE[variant],
        }
        return steps_of(mmi(scale, folder.parents[1] / "runs" / "mmi", f"hf-{variant.replace(', ', '-')}", settings))

    return part


def sgd_part(scale: Scale, kind: str, rate: float) -> Part:
    """Steps on small batches of utterances, as the recipe an4-mmi takes them."""

    def part(folder: Path) -> dict[str, Any]:
        settings = {"update.lr": rate, "train.epochs": choose(scale, smoke=1, laptop=3, paper=8)}
        if kind == "SGD":
            settings |= {"gradient.kind": "plain", "update.kind": "sgd", "update.momentum": 0.9}
        done = mmi(scale, folder.parents[1] / "runs" / "mmi", f"{kind.replace(' ', '-')}-{rate:g}", settings)
        seconds = done.curve("dev", "loss", "cpu_seconds")
        return {"dev_loss": seconds["y"], "seconds": seconds["x"], "word_error_rate": done.test_rate,
                "diverged": done.result.get("status") != "finished"}  # fmt: skip

    return part


def sequence_parts(scale: Scale) -> dict[str, Part]:
    """All runs."""
    rates = SGD_RATES[:1] if scale == "smoke" else SGD_RATES
    parts = {f"Hessian-free: {variant}": hessian_free_part(scale, variant) for variant in HESSIAN_FREE}
    parts |= {f"utterance SGD, rate {rate:g}": sgd_part(scale, "SGD", rate) for rate in rates}
    return parts | {"utterance SGD with natural gradient": sgd_part(scale, "natural SGD", 0.05)}


def sequence(results: Results) -> Outcome:
    """Hessian-free against SGD, and its variants against each other."""
    free = {name: run for name, run in results.items() if name.startswith("Hessian-free")}
    others = {name: run for name, run in results.items() if name not in free and not run["diverged"]}
    loss = common_loss(free)
    rows, seconds = [], {}
    plain = roles_to(free["Hessian-free: none"], loss)
    for name, run in free.items():
        roles = roles_to(run, loss)
        seconds[name] = math.fsum(roles.values())
        paper = "1.5 times" if name.endswith("PC-16, geometric") else ""
        rows += [Row(quantity=f"{name}: processor seconds to dev loss {loss:.4f}", ours=seconds[name]),
                 Row(quantity=f"{name}: times as fast as without", paper=paper,
                     ours=math.fsum(plain.values()) / seconds[name]),
                 *(Row(quantity=f"{name}: of these in the {role} passes", ours=value)
                   for role, value in roles.items())]  # fmt: skip
    rows += [Row(quantity=f"{name}: lowest dev loss", ours=min(run["dev_loss"])) for name, run in results.items()
             if run["dev_loss"]]  # fmt: skip
    rows += [Row(quantity=f"{name}: word error rate on test", ours=run["word_error_rate"], percent=True)
             for name, run in results.items() if run["word_error_rate"] is not None]  # fmt: skip
    gain = {name: math.fsum(plain.values()) / value for name, value in seconds.items()}
    both = "Hessian-free: PC-16, geometric"
    saved = {role: plain[role] - value for role, value in roles_to(free[both], loss).items()}
    sgd = min(others, key=lambda name: min(others[name]["dev_loss"]))
    ours = min(free, key=lambda name: min(free[name]["dev_loss"]))
    to_sgd = seconds_to(others[sgd], loss)
    reached = "does not reach that loss" if math.isnan(to_sgd) else f"takes {to_sgd:.0f} s to that loss"
    return Outcome(
        verdict="reproduced" if gain[both] >= 1.4 else "partly" if max(gain.values()) >= 1.2 else "not reproduced",
        summary=f"To dev MMI loss {loss:.4f}: {gain[both]:.2f} times as fast with preconditioning and sampling, "
                f"{gain['Hessian-free: PC-16']:.2f} with preconditioning alone, {gain['Hessian-free: geometric']:.2f} "
                f"with sampling alone. Of the seconds saved by both "
                f"{', '.join(f'{value:.1f} are of {role} passes' for role, value in saved.items())}. {sgd}, the best "
                f"of utterance SGD, {reached}; its lowest dev loss is {min(others[sgd]['dev_loss']):.4f}, that of "
                f"{ours} {min(free[ours]['dev_loss']):.4f}. One seed.",
        rows=rows,
        plots=[Plot(title="Dev MMI loss per frame", x_label="processor seconds", log_y=False,
                    lines=[Line(label=name, x=run["seconds"], y=run["dev_loss"][:len(run["seconds"])])
                           for name, run in {**free, **others}.items()])],
    )  # fmt: skip


def roles_to(run: Mapping[str, Any], loss: float) -> dict[str, float]:
    """Seconds of each kind of pass until the dev loss is reached."""
    steps = steps_to(dict(run), loss)
    return {role: spent(run[f"cpu_seconds_{role}"], steps) for role in ROLES}


def seconds_to(run: Mapping[str, Any], loss: float) -> float:
    """Seconds until the dev loss is reached, linear between looks; NaN if it never is."""
    points = list(zip(run["seconds"], run["dev_loss"]))
    if points and points[0][1] <= loss:
        return points[0][0]
    for (t0, y0), (t1, y1) in itertools.pairwise(points):
        if y1 <= loss < y0:
            return t0 + (t1 - t0) * (y0 - loss) / (y0 - y1)
    return math.nan


ENTRIES = [
    Entry(
        name="sequence", paper=3, minutes=6, parts=sequence_parts, conclude=sequence,
        title="Lattice MMI on AN4: Hessian-free steps against utterance SGD; preconditioning and sampling",
        paper_says="second-order methods do much better than utterance SGD in sequence training; preconditioning and "
                   "sampling make them 1.5 times as fast",
    ),
]  # fmt: skip
