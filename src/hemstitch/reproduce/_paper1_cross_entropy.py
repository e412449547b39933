"""Paper 1, Table 2: recurrent networks by cross-entropy with and without backstitch, on all folds of pooled AN4."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hemstitch.reproduce._entry import Entry, Outcome, Part, Row, Scale, choose
from hemstitch.reproduce._method_runs import AN4, NATURAL, QUIET, Settings
from hemstitch.reproduce._paper1_lfmmi import NETWORKS, TINY_DATA, TINY_NETWORK
from hemstitch.reproduce._training import recipe
from hemstitch.train._experiments._cross_validation import Method, cross_validate
from hemstitch.train._experiments._runs import folder_name
from hemstitch.train._run_folder import RESULT, read_json

Results = Mapping[str, dict[str, Any]]

SEED = 1
CHUNKS: Settings = {**AN4, **NATURAL, "update.lr": 3.0, "features.deltas": 0, "criterion.chunk": 80,
                    "train.batch_size": 32, "train.clip": 0.0, "decode.acoustic_scale": [0.1, 0.2]}  # fmt: skip
BASELINE, CONTROL = "momentum 0.5", "momentum 0.5, as many epochs as backstitch"
PLAIN = "neither, as many epochs"
METHODS: Mapping[str, Settings] = {
    "backstitch 1.0 on every fourth": {"backstitch.scale": 1.0, "backstitch.interval": 4},
    "backstitch 0.3 on every minibatch": {"backstitch.scale": 0.3, "backstitch.interval": 1},
    CONTROL: {"update.momentum": 0.5},
    BASELINE: {"update.momentum": 0.5},
    PLAIN: {},
}
"""As in the paper, the baselines of recurrent cross-entropy systems have momentum and backstitch has none; the last
method tells the two effects apart."""
STITCHED = tuple(METHODS)[:2]


def _folds(scale: Scale, network: str) -> Part:
    """At scale laptop two folds: every speaker is tested, by a network that was trained on the other half."""
    short, long = choose(scale, smoke=(1, 2), laptop=(4, 6), paper=(8, 16))
    folds = choose(scale, smoke=2, laptop=2, paper=5)
    sizes = {**TINY_NETWORK[network], **TINY_DATA} if scale == "smoke" else NETWORKS[network][scale]

    def part(folder: Path) -> dict[str, Any]:
        def method(name: str, own: Settings) -> Method:
            wanted = {**CHUNKS, **sizes, **own, "train.epochs": short if name == BASELINE else long}
            return Method(name=name, recipe=recipe(scale, f"an4-{network}", folder, wanted))

        methods = [method(name, own) for name, own in METHODS.items()]
        found = cross_validate(methods, folds=folds, seeds=(SEED,), out=folder / "folds", official=False, console=QUIET)
        runs = {name: [read_json(folder / "folds" / folder_name(name) / f"fold={fold},seed={SEED}" / RESULT)["summary"]
                       for fold in range(1, folds + 1)] for name in METHODS}  # fmt: skip
        kept = ("methods", "comparisons", "words", "units", "folds")
        return {key: value for key, value in found.as_json().items() if key in kept} | {
            "dev": {name: sum(run["best_dev_loss"] for run in of) / folds for name, of in runs.items()}}  # fmt: skip

    return part


def conclude(results: Results) -> Outcome:
    """Word error rates of both networks and the relative reductions, with their intervals."""
    rows, said, verdicts = [], [], []
    for network, found in results.items():
        for method in found["methods"]:
            rows += [Row(quantity=f"{network}, {method['name']}: word error rate", ours=method["rate"],
                         low=method["low"], high=method["high"], percent=True),
                     Row(quantity=f"{network}, {method['name']}: dev cross-entropy, mean over folds",
                         ours=found["dev"][method["name"]])]  # fmt: skip
        gains = {(pair["a"], pair["b"]): pair for pair in found["comparisons"]}
        for stitched in STITCHED:
            for against in (BASELINE, CONTROL, PLAIN):
                gain = gains[stitched, against]
                paper = "1 % to 5 %" if against == BASELINE else ""
                rows.append(Row(quantity=f"{network}: fewer errors by {stitched} than by {against}, relative",
                                paper=paper, ours=gain["relative"] or 0.0, low=gain["relative_low"],
                                high=gain["relative_high"], percent=True))  # fmt: skip
        best = min(STITCHED, key=lambda name: found["dev"][name])
        verdicts.append(gains[best, CONTROL]["verdict"])
        told = {"better": "fewer errors than", "worse": "more errors than", "unclear": "about as many errors as"}
        against = []
        for name, what in ((CONTROL, "momentum"), (PLAIN, "neither")):
            gain = gains[best, name]
            against.append(f"{told[gain['verdict']]} {what} (relative reduction {gain['relative'] or 0.0:+.1%})")
        said.append(f"{network}: {best}, the better of the two on dev, makes {', and '.join(against)}")
    one = next(iter(results.values()))
    better = [verdict == "better" for verdict in verdicts]
    return Outcome(
        verdict="reproduced" if all(better) else "partly" if any(better) else "not reproduced",
        summary=f"Frame cross-entropy with natural gradient, {one['words']} words of {one['units']} speakers in "
                f"{one['folds']} folds; at equal epochs: {'; '.join(said)}. Backstitch gets half as many epochs more "
                "than the baseline, and its second passes besides. All have one learning rate, which was chosen with "
                "momentum (of 1 and 3). 95 % intervals: paired bootstrap over speakers; one seed, so they do not say "
                "how other seeds would do.",
        rows=rows,
    )  # fmt: skip


ENTRIES = [
    Entry(name=f"table-2-{network}", paper=1, minutes=14, conclude=conclude,
          parts=lambda scale, network=network: {network: _folds(scale, network)},
          title=f"Table 2: {network.upper()} by cross-entropy, pooled AN4, against momentum",
          paper_says="1 to 5 % fewer word errors in cross-entropy systems, with 1.5 to 2 times the epochs.")
    for network in NETWORKS
]  # fmt: skip
