"""Paper 2, what needs one worker only: MMI over lattices, from a network that cross-entropy has trained.

All runs of the laptop scale begin with the network of the recipe an4-small (three layers of 256), trained once on the
official parts of AN4, and once for each fold for the comparison of word error rates that pools all folds. One seed. As
in the paper, looks at the held-out part recognise with the weak language model of training (a unigram, as in the
recipes), the test with the corpus's own.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hemstitch.graphs import arc_weights
from hemstitch.reproduce._entry import Entry, Line, Outcome, Part, Plot, Row, Scale, choose
from hemstitch.reproduce._method_runs import QUIET, Settings
from hemstitch.reproduce._training import recipe, trained
from hemstitch.train._build import Run, build_run
from hemstitch.train._experiments._cross_validation import Method, cross_validate
from hemstitch.train._first_stage import after_first_stage
from hemstitch.train._run_folder import RESULT

Results = Mapping[str, dict[str, Any]]
DECODE: Settings = {"decode.prior_scale": [0.4], "decode.acoustic_scale": [0.1, 0.15],
                    "decode.word_penalty": [0.0, 2.0, 4.0]}  # fmt: skip
FROM_SCRATCH: Settings = {"start.recipe": None, "start.alignment": False}
SMOKE: Settings = {**FROM_SCRATCH, "model.hidden": [8], "features.deltas": 0, "hmm.flat_start": 2,
                   "hmm.position_dependent": False}  # fmt: skip
CROSS_ENTROPY: Settings = {"criterion.kind": "cross-entropy", "hmm.realign": []}
AT_THE_START = 1e-12
"""A learning rate at which a network stays where it is."""


def settings(scale: Scale, own: Settings) -> dict[str, Any]:
    """Those of a second stage. A hidden layer is three modules: linear, ReLU, dropout."""
    sizes = choose(scale, smoke=SMOKE, laptop={}, paper={"model.hidden": [1024] * 4})
    hidden = choose(scale, smoke=r"^layers\.[0-2]\.", laptop=r"^layers\.[0-8]\.", paper=r"^layers\.(\d|1[01])\.")
    frozen = {"start.freeze": [hidden]} if "start.freeze" in own else {}
    return {**DECODE, **own, **sizes, **frozen}


def curves_part(scale: Scale, name: str, own: Settings) -> Part:
    """A run that several entries use, with the network that it begins with looked at."""

    def part(folder: Path) -> dict[str, Any]:
        shared = folder.parents[1] / "runs" / name.replace(", ", "-").replace(" ", "-")
        wanted = recipe(scale, "an4-mmi", shared, settings(scale, own))
        done = trained(wanted, shared)
        begin = build_run(after_first_stage(wanted), QUIET)
        before = begin.task.evaluate(begin.model)
        looks = {key: [before[key], *done.curve("dev", key)["y"]] for key in ("loss", "error", "wer")}
        means = {key: float(np.mean(done.curve("train", key)["y"] or [0.0]))
                 for key in ("cancelled_frames", "rejected_frames", "references_added", "arcs_per_frame")}  # fmt: skip
        return {**looks, **means, "test": done.result.get("wer", {}).get("test")}

    return part


def curves_parts(*names: str) -> Callable[[Scale], Mapping[str, Part]]:
    """Parts by name."""
    return lambda scale: {name: curves_part(scale, name, VARIANTS[name]) for name in names}


FRAMES: Settings = {"criterion.unit": "frame", "train.batch_size": 64, "train.epochs": 2, "update.lr": 0.05}
CONTROL: Settings = {"criterion.denominator": False, "criterion.numerator": "alignment"}
SCRATCH: Settings = {**FRAMES, **FROM_SCRATCH, **CONTROL, "criterion.acoustic_scale": 1.0}
RATES = (0.05, 0.2)
"""From scratch: what an order of the frames costs depends on how much of the last frames a network keeps."""
ORDERS, STARTS = ("none", "on-the-fly", "full"), ("from scratch", "trained")
VARIANTS: dict[str, Settings] = {
    "MMI": {},
    "MMI, last layer": {"start.freeze": ["the hidden layers"]},
    "without denominator, aligned once": {**CONTROL, "criterion.realign": "once"},
    "without denominator, aligned always": {**CONTROL, "criterion.realign": "on-the-fly"},
    **{f"from scratch, {order}, rate {rate:g}": {**SCRATCH, "criterion.shuffling": order, "update.lr": rate}
       for order in ORDERS for rate in RATES},
    **{f"trained, {order}": {**FRAMES, "criterion.shuffling": order} for order in ORDERS},
}


def line(label: str, values: list[float]) -> Line:
    """Values at the start and after each epoch."""
    return Line(label=label, x=list(range(len(values))), y=values)


def looks(results: Results, key: str, title: str, percent: bool = True) -> Plot:
    """A value on the held-out part, of all runs."""
    return Plot(title=title, x_label="epochs of sequence training", percent=percent, log_y=False,
                lines=[line(name, run[key]) for name, run in results.items()])  # fmt: skip


def end_rows(results: Results, paper: Mapping[str, str]) -> list[Row]:
    """Values of each run at its end, and at the beginning of the first; runs that diverged are left out."""
    rows = []
    for name, run in results.items():
        test = run["test"]
        if not test or run["loss"][-1] is None:
            continue
        rows += [Row(quantity=f"{name}: test word error rate", ours=test["rate"], low=test["low"], high=test["high"],
                     paper=paper.get(name, ""), percent=True),
                 Row(quantity=f"{name}: held-out word error rate, unigram, from {run['wer'][0]:.2%} to",
                     ours=run["wer"][-1], percent=True),
                 Row(quantity=f"{name}: held-out criterion per frame, from {run['loss'][0] or math.nan:.4f} to",
                     ours=run["loss"][-1])]  # fmt: skip
    return rows


def best_rates(results: Results) -> dict[str, dict[str, Any]]:
    """Each order with the rate of the lowest held-out criterion at the end."""
    def criterion(name: str) -> float:
        last = results[name]["loss"][-1]
        return math.inf if last is None else last

    orders = dict.fromkeys(name.partition(", rate ")[0] for name in results)
    return {order: results[min((n for n in results if n.partition(", rate ")[0] == order), key=criterion)]
            for order in orders}  # fmt: skip


def shuffling(every: Results) -> Outcome:
    """Three ways to shuffle, from scratch and from a trained network."""
    said, fits, results = [], [], best_rates(every)
    for start in STARTS:
        none, fly, full = (results[f"{start}, {order}"] for order in ORDERS)
        losses = [math.inf if run["loss"][-1] is None else run["loss"][-1] for run in (none, fly, full)]
        fits += [losses[0] > max(losses[1:]), abs(losses[1] - losses[2]) < abs(losses[0] - losses[2])]
        rates = ", ".join(f"{run['test']['rate']:.2%}" if run["test"] else "diverged" for run in (none, fly, full))
        said.append(f"{start}: {rates} (held-out criterion {', '.join(f'{loss:.4f}' for loss in losses)})")
    return Outcome(
        verdict="reproduced" if all(fits) else "partly" if any(fits) else "not reproduced",
        summary=f"Test word error rates without shuffling, shuffled on the fly and in full; {'; '.join(said)}. From "
                "scratch the criterion is cross-entropy, in the frames' order of sequence training, each order at the "
                f"better of the learning rates {' and '.join(f'{rate:g}' for rate in RATES)}; from the trained network "
                "MMI at one rate, with gradients as old as the last lattice of the utterance: by full shuffling up to "
                "an epoch. The verdict is about the held-out criterion, which is steadier than word errors: none "
                "worst, on the fly nearer to full. One seed.",
        rows=end_rows(results, {"from scratch, none": "15.2 %", "from scratch, on-the-fly": "14.5 %",
                                "from scratch, full": "14.4 %"}),
        plots=[looks({k: r for k, r in every.items() if k.startswith(start)}, "loss",
                     f"Held-out criterion per frame, {start}", percent=False) for start in STARTS],
    )  # fmt: skip


def figure_6(results: Results) -> Outcome:
    """Frame error against word error."""
    run = results["MMI"]
    words, frames = (run[key][-1] - run[key][0] for key in ("wer", "error"))
    verdict = "reproduced" if words < 0 < frames else "partly" if words < 0 else "not reproduced"
    return Outcome(
        verdict=verdict,
        summary=f"While MMI goes from {run['loss'][0]:.4f} to {run['loss'][-1]:.4f} per frame on the held-out part, "
                f"word errors change by {100 * words:+.2f} points and frame errors by {100 * frames:+.2f} points. "
                "One seed.",
        rows=[Row(quantity=f"held-out {what}, from {run[key][0]:.2%} to", ours=run[key][-1], percent=True,
                  paper=paper) for key, what, paper in (("wer", "word error rate, unigram", "falls"),
                                                        ("error", "frame error rate", "rises"))],
        plots=[Plot(title="Held-out frame error against word error", x_label="word error rate", percent=True,
                    log_y=False, lines=[Line(label="MMI", x=run["wer"], y=run["error"])])],
    )  # fmt: skip


def figure_7(results: Results) -> Outcome:
    """The last layer alone, and all layers."""
    every, last = results["MMI"], results["MMI, last layer"]
    improved = every["loss"][0] - every["loss"][-1]
    share = (last["loss"][0] - last["loss"][-1]) / improved if improved > 0 else 0.0
    better = every["loss"][-1] < last["loss"][-1] < last["loss"][0]
    return Outcome(
        verdict="reproduced" if better else "partly" if last["loss"][-1] < last["loss"][0] else "not reproduced",
        summary=f"The last layer alone brings {share:.0%} of what all layers bring in the held-out criterion; test "
                f"word error rates {last['test']['rate']:.2%} and {every['test']['rate']:.2%}. One seed.",
        rows=end_rows(results, {"MMI": "10.9 %", "MMI, last layer": "10.9 %"}),
        plots=[looks(results, "loss", "Held-out criterion per frame", percent=False),
               looks(results, "wer", "Held-out word error rate, unigram")],
    )  # fmt: skip


def controls(results: Results) -> Outcome:
    """MMI's gain is not due to its surroundings."""
    change = {name: run["wer"][-1] - run["wer"][0] for name, run in results.items()}
    others = [value for name, value in change.items() if name != "MMI"]
    verdict = "reproduced" if change["MMI"] < min(0.0, *others) else "partly" if change["MMI"] < 0 else "not reproduced"
    said = ", ".join(f"{name} {100 * value:+.2f}" for name, value in change.items())
    return Outcome(
        verdict=verdict,
        summary=f"Change of the held-out word error rate with the unigram, in points: {said}. Without the denominator "
                "it is cross-entropy, times kappa, at the same learning rate. One seed.",
        rows=end_rows(results, {}),
        plots=[looks(results, "wer", "Held-out word error rate, unigram")],
    )  # fmt: skip


# -- cost ------------------------------------------------------------------------------------------------------------


def cost_part(scale: Scale) -> Mapping[str, Part]:
    """Processor time of steps, by what they do."""
    frames = choose(scale, smoke=200, laptop=20_000, paper=200_000)
    ways = {"cross-entropy": {**CROSS_ENTROPY, "train.batch_size": 200},
            "MMI, frames": {"criterion.unit": "frame", "train.batch_size": 32},
            "MMI": {}}  # fmt: skip

    def part(folder: Path) -> dict[str, Any]:
        found = {}
        for name, own in ways.items():
            wanted = recipe(scale, "an4-mmi", folder, settings(scale, own))
            first = after_first_stage(wanted)
            if first is not wanted and not (first.start.run / RESULT).is_file():  # type: ignore[operator]
                trained(wanted, folder / "start")
            run = build_run(first, QUIET)
            found[name], found[f"{name}, cancelled"] = seconds_per_frame(run, frames)
        return found | lattice_seconds(run)

    return {"steps": part}


def seconds_per_frame(run: Run, frames: int) -> tuple[float, float]:
    """(processor seconds of the steps that use up so many frames, by frame; the mean share of cancelled ones)."""
    run.strategy.step(run.source)  # compiles kernels
    used, begin, cancelled = 0, time.process_time(), []
    while used < frames:
        report = run.strategy.step(run.source)
        used += samples_of(run, report.samples)
        cancelled += [report.extra["cancelled_frames"]] if "cancelled_frames" in report.extra else []
    return (time.process_time() - begin) / used, float(np.mean(cancelled)) if cancelled else 0.0


def samples_of(run: Run, samples: int) -> int:
    """Frames: batches of whole utterances count those."""
    lengths = np.diff(run.task.parts["train"].offsets)
    whole = getattr(run.recipe.criterion, "unit", "frame") == "utterance"
    return round(samples * float(lengths.mean())) if whole else samples


def lattice_seconds(run: Run) -> dict[str, float]:
    """Processor seconds by frame of making lattices, and of both sums over them with their frames' occupancies."""
    task, found = run.task, {"lattices": 0.0, "forward-backward": 0.0}
    utterances = range(min(40, len(task.parts["train"].utterances)))
    outputs, references = task.outputs(task.parts["train"], utterances), task.references(utterances)
    for index in utterances:
        begin = time.process_time()
        lattice, _ = task.objective.lattice(outputs[index].numpy(), references[index])
        middle = time.process_time()
        task.objective.sums(lattice, arc_weights(lattice), references[index])
        found["lattices"] += middle - begin
        found["forward-backward"] += time.process_time() - middle
    frames = sum(len(outputs[index]) for index in utterances)
    return {name: seconds / frames for name, seconds in found.items()}


def cost(results: Results) -> Outcome:
    """An MMI step against a cross-entropy step, the share of cancelled frames."""
    found = results["steps"]
    ratio = {name: found[name] / found["cross-entropy"] for name in ("MMI", "MMI, frames")}
    share = found["forward-backward"] / found["MMI"]
    return Outcome(
        verdict="reproduced" if ratio["MMI"] < 3 else "partly" if ratio["MMI"] < 6 else "not reproduced",
        summary=f"By frame of data, MMI costs {ratio['MMI']:.2f} times as much as cross-entropy on shuffled frames, in "
                f"batches of 8 utterances; {ratio['MMI, frames']:.2f} times in batches of 32 frames that do not cancel "
                f"(paper: about 2 times). {found['MMI, frames, cancelled']:.0%} of the frames cancel (paper: 85 %, "
                "with a network that knows its task better). Forward and backward passes over lattices are "
                f"{share:.1%} of an MMI step, making the lattices {found['lattices'] / found['MMI']:.1%}.",
        rows=[Row(quantity="MMI step / cross-entropy step, utterances", ours=ratio["MMI"], paper="about 2"),
              Row(quantity="MMI step / cross-entropy step, frames", ours=ratio["MMI, frames"], paper="about 2"),
              Row(quantity="frames that cancel", ours=found["MMI, frames, cancelled"], paper="85 %", percent=True),
              Row(quantity="lattice forward-backward / MMI step", ours=share, percent=True),
              Row(quantity="making lattices / MMI step", ours=found["lattices"] / found["MMI"], percent=True)],
    )  # fmt: skip


# -- table 1 ---------------------------------------------------------------------------------------------------------

LONGER = "CE, as many epochs more"
METHODS: dict[str, tuple[str, Settings]] = {
    "MMI": ("an4-mmi", {}),
    "boosted MMI": ("an4-boosted-mmi", {}),
    "MPE": ("an4-mpe", {}),
    "sMBR": ("an4-smbr", {}),
    LONGER: ("an4-mmi", {**CROSS_ENTROPY, "update.lr": 0.05, "train.batch_size": 256}),
    "CE": ("an4-mmi", {**CROSS_ENTROPY, "update.lr": AT_THE_START, "train.batch_size": 256,
                       "train.epochs": 1}),
}
"""Name -> recipe, and what it sets besides."""


def table_1_parts(scale: Scale) -> Mapping[str, Part]:
    """All folds of AN4 together, and digit strings."""

    def pooled(folder: Path) -> dict[str, Any]:
        methods = [Method(name=name, recipe=recipe(scale, base, folder, settings(scale, own)))
                   for name, (base, own) in METHODS.items()]  # fmt: skip
        folds = choose(scale, smoke=2, laptop=5, paper=5)
        found = cross_validate(methods, folds=folds, seeds=(1,), out=folder / "folds", official=False, console=QUIET)
        kept = ("methods", "comparisons", "words", "units")
        return {key: value for key, value in found.as_json().items() if key in kept}

    def strings(folder: Path) -> dict[str, Any]:
        wide: Settings = {"decode.acoustic_scale": [0.1, 0.2, 0.4]}
        ways = {"CE": {**METHODS["CE"][1], **wide}, "MMI": wide}
        recipes = {name: recipe(scale, "fsdd-mmi", folder, settings(scale, own)) for name, own in ways.items()}
        return {name: trained(wanted, folder / name).result["wer"]["test"] for name, wanted in recipes.items()}

    return {"AN4": pooled, "FSDD": strings}


def table_1(results: Results) -> Outcome:
    """Cross-entropy against sequence training."""
    an4, digits = results["AN4"], results["FSDD"]
    paper = {"CE": "13.0 % (Icelandic), 11.7 % (English)", "MMI": "10.9 %, 10.7 %"}
    rows = [Row(quantity=f"AN4, all folds, {m['name']}: word error rate", ours=m["rate"], low=m["low"], high=m["high"],
                paper=paper.get(m["name"], ""), percent=True) for m in an4["methods"]]  # fmt: skip
    said, best = [], 0.0
    for pair in an4["comparisons"]:
        if pair["b"] == "CE":
            gain, low, high = (pair[key] or 0.0 for key in ("relative", "relative_low", "relative_high"))
            best = best if pair["a"] == LONGER else max(best, gain)
            said.append(f"{pair['a']} {gain:+.1%} ({low:+.1%} to {high:+.1%})")
            rows.append(Row(quantity=f"AN4: relative reduction by {pair['a']}", ours=gain, low=low, high=high,
                            paper="16 %, 9 %" if pair["a"] == "MMI" else "", percent=True))  # fmt: skip
    rows += [Row(quantity=f"FSDD strings, {name}: word error rate", ours=r["rate"], low=r["low"], high=r["high"],
                 percent=True) for name, r in digits.items()]  # fmt: skip
    return Outcome(
        verdict="reproduced" if best >= 0.06 else "partly" if best > 0 else "not reproduced",
        summary=f"Relative reduction of the word error rate on AN4, {an4['words']} words of {an4['units']} speakers: "
                f"{', '.join(said)}. Digit strings: {digits['CE']['rate']:.2%} with cross-entropy, "
                f"{digits['MMI']['rate']:.2%} with MMI. 95 % intervals over speakers; one seed.",
        rows=rows,
    )  # fmt: skip


ENTRIES = [
    Entry(
        name="table-1", paper=2, title="Cross-entropy against MMI", minutes=20,
        paper_says="MMI lowers the word error rate from 13.0 % to 10.9 % and from 11.7 % to 10.7 %",
        parts=table_1_parts, conclude=table_1,
    ),
    Entry(
        name="data-shuffling", paper=2, title="Shuffling: none, on the fly, full", minutes=12,
        paper_says="15.2 % without shuffling, 14.5 % on the fly, 14.4 % with full shuffling",
        parts=curves_parts(*(name for name in VARIANTS if name.startswith(STARTS))), conclude=shuffling,
    ),
    Entry(
        name="figure-6", paper=2, title="Frame error against word error while MMI improves", minutes=4,
        paper_says="improving MMI lowers the word error and raises the frame error", parts=curves_parts("MMI"),
        conclude=figure_6,
    ),
    Entry(
        name="figure-7", paper=2, title="Updating the last layer or all layers", minutes=1,
        paper_says="all layers are slightly better on held-out data, the test word error is the same",
        parts=curves_parts("MMI", "MMI, last layer"), conclude=figure_7,
    ),
    Entry(
        name="no-denominator", paper=2, title="Controls: the same without the denominator", minutes=2,
        paper_says="realigning once or always without a denominator does not change the word error rate",
        parts=curves_parts("MMI", "without denominator, aligned once", "without denominator, aligned always"),
        conclude=controls,
    ),
    Entry(
        name="step-cost", paper=2, title="Cancelled frames, and an MMI step's cost against a CE step's", minutes=1,
        paper_says="85 % of the frames cancel; an MMI step takes about twice as long as a CE step", parts=cost_part,
        conclude=cost,
    ),
]  # fmt: skip
