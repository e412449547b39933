"""Natural gradient beside other methods of second order and adaptive ones, on speech and on images."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import partial

from hemstitch.reproduce._entry import Entry, Outcome, Part, Plot, Row, Scale, choose
from hemstitch.reproduce._method_runs import MOMENTUM, NATURAL, SGD, Settings, dev_line, frame_part, image_part
from hemstitch.reproduce._peer_gradients import library, with_kfac, with_optimizer
from hemstitch.reproduce._tuned import (
    Contender,
    Make,
    Results,
    contender_parts,
    mean_best,
    tuned_row,
    tuned_runs,
    tuning_note,
)

ADAMW: Settings = {"gradient.kind": "plain", "update.kind": "adamw"}
DAMPINGS = (0.01, 0.1)
RATES: Mapping[str, Mapping[str, tuple[float, ...]]] = {
    "AN4": {
        "natural gradient": (0.5, 1.0, 2.0, 4.0, 8.0),
        "momentum SGD": (0.02, 0.05, 0.1, 0.2),
        "AdamW": (5e-4, 1e-3, 2e-3, 4e-3, 8e-3),
        "SOAP": (5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 16e-3),
        "K-FAC": (0.03, 0.1, 0.3),
    },
    "Fashion-MNIST": {
        "natural gradient": (0.5, 1.0, 2.0, 4.0),
        "momentum SGD": (0.02, 0.05, 0.1, 0.2),
        "AdamW": (5e-4, 1e-3, 2e-3, 4e-3),
        "SOAP": (1e-3, 2e-3, 4e-3, 8e-3),
        "K-FAC": (0.03, 0.1, 0.3),
    },
}
TUNED: Mapping[str, Mapping[str, float]] = {
    "AN4": {"natural gradient": 4.0, "momentum SGD": 0.1, "AdamW": 4e-3, "SOAP": 8e-3, "K-FAC": 0.1},
    "Fashion-MNIST": {"natural gradient": 1.0, "momentum SGD": 0.1, "AdamW": 1e-3, "SOAP": 2e-3, "K-FAC": 0.1},
}


def contenders(data: str) -> dict[str, Contender]:
    """Ours, torch's, and those of other libraries that are installed."""

    def contender(kind: str, settings: Settings, change: object = None) -> Contender:
        return Contender(settings=settings, rates=RATES[data][kind], tuned=TUNED[data][kind], change=change)

    found = {"natural gradient": contender("natural gradient", NATURAL),
             "momentum SGD": contender("momentum SGD", MOMENTUM), "AdamW": contender("AdamW", ADAMW)}  # fmt: skip
    optimizers = library("pytorch_optimizer")
    if optimizers is not None:
        found["SOAP"] = contender("SOAP", ADAMW, lambda lr: partial(
            with_optimizer, make=partial(optimizers.SOAP, lr=lr, weight_decay=0.0)))  # fmt: skip
    if library("curvlinops") is not None:
        for damping in DAMPINGS:
            found[f"K-FAC of damping {damping:g}"] = contender(
                "K-FAC", SGD, lambda lr, damping=damping: partial(with_kfac, damping=damping))
    return found


def peer_parts(scale: Scale, make: Make, data: str, num_seeds: int) -> dict[str, Part]:
    """Each with its own learning rates."""
    epochs = choose(scale, smoke=1, laptop=2, paper=10)
    own = {kind: dataclasses.replace(c, settings={**c.settings, "train.epochs": epochs})
           for kind, c in contenders(data).items()}  # fmt: skip
    return contender_parts(scale, make, own, num_seeds)


def peers(results: Results, data: str) -> Outcome:
    """The best of each, per pass and in time."""
    kinds = list(dict.fromkeys(name.split(", rate ")[0] for name in results))
    runs = {kind: tuned_runs(results, kind)[1] for kind in kinds}
    rows = [tuned_row(results, kind, "dev cross-entropy") for kind in kinds]
    rows += [Row(quantity=f"CPU seconds of a run with {kind}", ours=min(r["cpu_seconds"][-1] for r in runs[kind]),
                 seeds=len(runs[kind])) for kind in kinds]  # fmt: skip
    order = sorted(kinds, key=lambda kind: mean_best(results, kind))
    absent = [f"{what} ({package} is not installed)" for what, package in (
        ("SOAP", "pytorch_optimizer"), ("K-FAC", "curvlinops-for-pytorch")) if what not in " ".join(kinds)]  # fmt: skip
    return Outcome(
        verdict="reproduced" if order[0] == "natural gradient" else "partly",
        summary=f"{data}, a few epochs, {tuning_note(results, kinds)}: in the order of dev loss {', '.join(order)}."
                + (f" Not had here: {', '.join(absent)}." if absent else "") + " K-FAC: factors of the last ten "
                "minibatches, renewed every tenth step, the same bounds on the change as natural gradient.",
        rows=rows,
        plots=[Plot(title="Dev cross-entropy", x_label=label, lines=[
            dev_line(kind, r[0], axis) for kind, r in runs.items()]) for label, axis in (
                ("forward + backward passes over the training set", "passes"), ("CPU seconds", "cpu"))],
    )  # fmt: skip


ENTRIES = [
    Entry(name="peers", paper=4, minutes=10,
          parts=partial(peer_parts, make=frame_part, data="AN4", num_seeds=1),
          conclude=partial(peers, data="Frame cross-entropy on AN4"),
          title="Natural gradient beside momentum, AdamW, SOAP and K-FAC",
          paper_says="Made no comparison with other methods of second order."),
    Entry(name="peers-images", paper=4, minutes=6,
          parts=partial(peer_parts, make=image_part, data="Fashion-MNIST", num_seeds=2),
          conclude=partial(peers, data="Fashion-MNIST, two hidden layers"),
          title="The same on images",
          paper_says="Made no experiments with images."),
]  # fmt: skip
