"""Paper 1: lattice-free MMI with and without backstitch, in recurrent networks, and against cross-entropy and CTC."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hemstitch.reproduce._entry import Entry, Line, Outcome, Part, Plot, Row, Scale, choose
from hemstitch.reproduce._method_runs import QUIET, Settings
from hemstitch.reproduce._training import recipe, trained
from hemstitch.train import load_trained
from hemstitch.train._experiments._paired_bootstrap import PairedErrors
from hemstitch.train._experiments._pooling import pool, read_counts
from hemstitch.train._experiments._runs import folder_name

Results = Mapping[str, dict[str, Any]]

TINY_NETWORK: Mapping[str, Settings] = {
    "feed-forward": {"model.hidden": [8]},
    "tdnn": {"model.width": 8, "model.offsets": [[-1, 0, 1]]},
    "tdnn-lstm": {"model.width": 8, "model.num_cells": 8, "model.num_recurrent": 4, "model.num_nonrecurrent": 4},
    "blstm": {"model.num_layers": 1, "model.num_cells": 8, "model.num_recurrent": 4, "model.num_nonrecurrent": 4},
}
TINY_DATA: Settings = {"features.deltas": 0, "hmm.flat_start": 2, "hmm.position_dependent": False}
RARELY: Settings = {"backstitch.scale": 1.0, "backstitch.interval": 4, "backstitch.warmup_steps": 200}
BASELINE = "no backstitch"
STITCHED = "backstitch 1.0 on every fourth minibatch"


def _settings(scale: Scale, network: str, settings: Settings) -> Settings:
    return {**settings, **(TINY_DATA | TINY_NETWORK[network])} if scale == "smoke" else settings


# -- against cross-entropy and CTC, on pooled data -------------------------------------------------------------------

CROSS_ENTROPY = "cross-entropy"
BIGRAM: Settings = {"decode.language_model": "2-gram"}
"""Of the words of the training transcripts."""
SYSTEMS: Mapping[str, tuple[str, str, Settings]] = {
    CROSS_ENTROPY: ("an4-small", "feed-forward", {
        **BIGRAM, "average.kind": "swa", "decode.beam": 24.0, "decode.acoustic_scale": [0.2, 0.3, 0.4],
        "decode.prior_scale": [0.2, 0.4, 0.7], "decode.word_penalty": [2.0, 4.0, 6.0]}),
    "LF-MMI": ("an4-lfmmi-aligned", "tdnn", BIGRAM),
    "LF-MMI + backstitch": ("an4-lfmmi-aligned", "tdnn", {**BIGRAM, **RARELY, "train.epochs": 10}),
}  # fmt: skip
"""Name -> recipe, kind of its network, what is set in it: 12 passes each, 0.45 and 0.46 million parameters.

Settings of both were chosen on a dev part of 13 of the official training speakers.
"""
OFFICIAL: Mapping[str, tuple[str, str, Settings]] = {
    CROSS_ENTROPY: SYSTEMS[CROSS_ENTROPY],
    "LF-MMI": SYSTEMS["LF-MMI"],
    "LF-MMI from a flat start": ("an4-lfmmi", "tdnn", {
        "model.dropout": 0.2, "train.epochs": 30, "decode.acoustic_scale": [1.0, 1.5, 2.0, 3.0],
        "decode.word_penalty": [0.0, 2.0, 4.0]}),
    "CTC": ("an4-ctc", "tdnn", {}),
}  # fmt: skip
"""Run on the official parts, for orientation."""


def _compared(scale: Scale) -> Mapping[str, tuple[str, str, Settings]]:
    """The systems that are run on all folds: at scale laptop time is left for two."""
    return dict(list(SYSTEMS.items())[:choose(scale, smoke=3, laptop=2, paper=3)])


def _tested(scale: Scale, system: tuple[str, str, Settings], data: str, cut: Settings) -> Part:
    """A run and, for each utterance of its test part, [speaker, words, errors].

    Where a system begins with alignments, they are those of the cross-entropy system on the same data.
    """
    name, network, settings = system

    def part(folder: Path) -> dict[str, Any]:
        wanted = {**_settings(scale, network, settings), **cut}
        if name == "an4-lfmmi-aligned":
            wanted["criterion.alignments"] = str(folder.parent / folder_name(f"{CROSS_ENTROPY}, {data}") / "run")
        done = trained(recipe(scale, name, folder, wanted), folder)
        return {"utterances": read_counts(folder / "run"), "test": done.test_rate,
                "cpu_seconds": done.result["summary"]["cpu_seconds"]}  # fmt: skip

    return part


def system_parts(scale: Scale) -> dict[str, Part]:
    """Every system on all folds of the pooled speakers, then some on the official parts; fewer at scale laptop."""
    folds = choose(scale, smoke=2, laptop=5, paper=5)
    seeds = range(1, choose(scale, smoke=1, laptop=1, paper=3) + 1)
    parts = {}
    for seed in seeds:
        for fold in range(1, folds + 1):
            data, cut = f"fold {fold}, seed {seed}", {"data.fold": fold, "data.folds": folds, "seed": seed}
            parts |= {f"{name}, {data}": _tested(scale, system, data, cut) for name, system in _compared(scale).items()}
    for name, system in OFFICIAL.items():
        if scale != "laptop" or name not in SYSTEMS:
            parts[f"{name}, official"] = _tested(scale, system, "official", {})
    return parts


def _pooled(results: Results) -> tuple[PairedErrors, list[str]]:
    """(system, seed, speaker) errors of all folds, and the names of the systems."""
    cells = {tuple(name.rsplit(", ", 2)): r["utterances"] for name, r in results.items() if ", fold " in name}
    names, folds, seeds = (list(dict.fromkeys(key[axis] for key in cells)) for axis in range(3))

    def counts(system: int, seed: int, fold: int) -> dict[str, tuple[str, int, int]]:
        found = cells[names[system], folds[fold - 1], seeds[seed]]
        return {utterance: tuple(row) for utterance, row in found.items()}

    return pool(counts, len(names), len(seeds), len(folds), 10_000), names


def systems(results: Results) -> Outcome:
    """Pooled error rates and relative differences with their intervals, the official rates beside them."""
    errors, names = _pooled(results)
    rows, seeds = [], errors.errors.shape[1]
    for index, name in enumerate(names):
        low, high = errors.interval(index)
        rows.append(Row(quantity=f"pooled word error rate, {name}", ours=float(errors.rates[index].mean()), low=low,
                        high=high, seeds=seeds, percent=True))  # fmt: skip
    gains = {(a, b): errors.gain(names.index(a), names.index(b)) for b, a in itertools.combinations(names, 2)}
    says = {("LF-MMI + backstitch", "LF-MMI"): "6 % to 10 %"}
    rows += [Row(quantity=f"fewer errors of {a} than of {b}, relative", paper=says.get((a, b), ""), ours=gain.relative,
                 low=gain.relative_low, high=gain.relative_high, seeds=seeds, percent=True)
             for (a, b), gain in gains.items()]  # fmt: skip
    for name in (name for name in OFFICIAL if f"{name}, official" in results):
        model = "2-gram" if name in SYSTEMS else "unigram"
        rows.append(Row(quantity=f"word error rate on the official test part, {name}, {model}",
                        ours=results[f"{name}, official"]["test"], percent=True))  # fmt: skip
        rows.append(Row(quantity=f"CPU seconds of that run, {name}", ours=results[f"{name}, official"]["cpu_seconds"]))
    told = {"better": "fewer errors than", "worse": "more errors than", "unclear": "about as many errors as"}
    said = "; ".join(f"{a} makes {told[gain.verdict]} {b}" for (a, b), gain in gains.items())
    better = [gain.verdict == "better" for gain in gains.values()]
    return Outcome(
        verdict="reproduced" if len(gains) > 1 and all(better) else "partly" if any(better) else "not reproduced",
        summary=f"{int(errors.words.sum())} words of {len(errors.words)} speakers in {len(np.unique(errors.folds))} "
                "folds, each tested by a network that never heard the speaker; 12 passes each, networks of 0.45 and "
                f"0.46 million parameters, searched with a 2-gram of the training transcripts. {said}. Intervals: "
                "95 %, paired bootstrap over speakers"
                f"{'; with one seed they do not say how other seeds would do' if seeds == 1 else ''}."
                f"{'' if len(names) > 2 else ' Backstitch: only at scale paper.'}",
        rows=rows,
    )  # fmt: skip


# -- recurrent networks ----------------------------------------------------------------------------------------------

NETWORKS: Mapping[str, Mapping[Scale, Settings]] = {
    "tdnn-lstm": {
        "smoke": {},
        "laptop": {"model.width": 96, "model.num_cells": 64, "model.num_recurrent": 32, "model.num_nonrecurrent": 32},
        "paper": {"model.width": 512, "model.num_cells": 512, "model.num_recurrent": 128,
                  "model.num_nonrecurrent": 128},
    },
    "blstm": {
        "smoke": {},
        "laptop": {"model.num_cells": 64, "model.num_recurrent": 32, "model.num_nonrecurrent": 32},
        "paper": {"model.num_layers": 3, "model.num_cells": 512, "model.num_recurrent": 128,
                  "model.num_nonrecurrent": 128},
    },
}  # fmt: skip


NOISE = 0.1
"""Relative differences of word error rates below this are within the noise of the held-out words at scale laptop."""


def _recurrent(scale: Scale, network: str, settings: Settings) -> Part:
    """An LF-MMI run of one output layer, so that losses in training and afterwards are of the same kind.

    All begin with the alignments of one cross-entropy network.
    """
    wanted = {**BIGRAM, "criterion.xent_regularize": 0.0, "model.kind": network, "model.subsampling": 3,
              **NETWORKS[network][scale], **settings}  # fmt: skip

    def part(folder: Path) -> dict[str, Any]:
        aligner = folder.parents[1] / "runs" / "alignments"
        trained(recipe(scale, "an4-small", aligner, _settings(scale, "feed-forward", {})), aligner)
        aligned = {**_settings(scale, network, wanted), "criterion.alignments": str(aligner / "run")}
        done = trained(recipe(scale, "an4-lfmmi-aligned", folder, aligned), folder)
        run, _ = load_trained(folder / "run", QUIET)
        losses = {name: run.task.evaluate(run.model, name)["loss"] for name in ("dev", "train")}
        return {**losses, "dev_curve": done.curve("dev", "loss"), "train_curve": done.curve("train", "loss"),
                "wer": {name: [w["rate"], w["words"]] for name, w in done.result["wer"].items()}}  # fmt: skip

    return part


def recurrent_parts(scale: Scale) -> dict[str, Part]:
    """Two networks with and without backstitch, for as many epochs."""
    epochs, seeds = choose(scale, smoke=1, laptop=12, paper=12), choose(scale, smoke=1, laptop=1, paper=3)
    methods: Mapping[str, Settings] = {BASELINE: {}, STITCHED: RARELY}
    return {f"{network}, {name}, seed {seed}": _recurrent(
                scale, network, {"train.epochs": epochs, "seed": seed, **own})
            for seed in range(1, seeds + 1) for network in NETWORKS for name, own in methods.items()}  # fmt: skip


def _mean(results: Results, prefix: str, value: Any) -> tuple[float, int]:
    found = [value(r) for name, r in results.items() if name.startswith(f"{prefix}, seed")]
    return sum(found) / len(found), len(found)


def _held_out(result: Mapping[str, Any]) -> float:
    """Word error rate of dev and test together."""
    return sum(rate * words for rate, words in result["wer"].values()) / sum(w for _, w in result["wer"].values())


def recurrent(results: Results) -> Outcome:
    """Word errors, objectives and the gap between them; the curves of Figure 1."""
    rows, said, better, clear = [], [], [], []
    paper = {"tdnn-lstm": "8.5 % to 10.0 %", "blstm": "5.8 % to 7.6 %"}  # AMI and Switchboard
    for network in NETWORKS:
        rates, gaps = [], []
        for method in (BASELINE, STITCHED):
            prefix = f"{network}, {method}"
            (rate, seeds), (dev, _), (train, _) = (_mean(results, prefix, value) for value in (
                _held_out, lambda r: r["dev"], lambda r: r["train"]))  # fmt: skip
            rates.append(rate)
            gaps.append(dev - train)
            rows += [Row(quantity=f"word error rate on dev and test, {prefix}", ours=rate, seeds=seeds, percent=True),
                     Row(quantity=f"dev loss per frame, {prefix}", ours=dev, seeds=seeds),
                     Row(quantity=f"gap between dev and training loss, {prefix}", ours=dev - train, seeds=seeds)]
        reduction = 1 - rates[1] / rates[0] if rates[0] else 0.0
        rows.append(Row(quantity=f"relative reduction of the word error rate by backstitch, {network}",
                        paper=paper[network], ours=reduction, seeds=seeds, percent=True))  # fmt: skip
        better += [rates[1] < rates[0], gaps[1] < gaps[0]]
        clear.append(reduction >= NOISE)
        said.append(f"{network}: word errors {'fewer' if better[-2] else 'not fewer'}, gap between dev and training "
                    f"objective {'smaller' if better[-1] else 'not smaller'}")  # fmt: skip
    curves = [Line(label=f"{name.rpartition(',')[0]}, {part}", **result[f"{part}_curve"])
              for name, result in results.items() if name.endswith("seed 1") for part in ("dev", "train")]
    return Outcome(
        verdict="reproduced" if all(better + clear) else "partly" if any(better) else "not reproduced",
        summary="LF-MMI on AN4 from alignments, with backstitch 1.0 on every fourth minibatch, as many epochs and a "
                f"quarter more passes than without. {'; '.join(said)}. Word errors are of 1,297 words at scale laptop, "
                "searched with a 2-gram of the training transcripts: differences of less than a tenth are within the "
                "noise.",
        rows=rows,
        plots=[Plot(title=f"Figure 1: loss per frame on dev and in training, {network}",
                    x_label="forward + backward passes over the training set",
                    lines=[line for line in curves if line.label.startswith(network)]) for network in NETWORKS],
    )  # fmt: skip


ENTRIES = [
    Entry(name="table-1", paper=1, minutes=15, parts=recurrent_parts, conclude=recurrent,
          title="Table 1 and Figure 1: LF-MMI systems, TDNN-LSTM and BLSTM, and the gap to the training objective",
          paper_says="6 to 10 % fewer word errors, most in a TDNN-LSTM; a smaller gap between training and validation "
                     "objectives."),
    Entry(name="lfmmi-against-ce-and-ctc", paper=1, minutes=30, parts=system_parts, conclude=systems,
          title="LF-MMI against cross-entropy on pooled AN4, with and without backstitch, and CTC for orientation",
          paper_says="LF-MMI systems are the best ones, and backstitch makes 6 to 10 % fewer errors in them; CTC does "
                     "not occur."),
]  # fmt: skip
