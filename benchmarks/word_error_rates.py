"""Word error rates of recipes over seeds, by `hemstitch train`: python benchmarks/word_error_rates.py FOLDER [RECIPE ...]

Every run is a folder FOLDER/RECIPE-sSEED (FOLDER/RECIPE-SPEAKER where speakers are left out in turn); a finished one is
not repeated, an unfinished one is resumed. Writes results/word_error_rates.json with each seed's dev and test rates, the
interval of each, parameters and time, and ../docs/word-error-rates.md from all that is in it.
"""

import json
import statistics
import subprocess
import sys
from pathlib import Path

from _common import RESULTS, environment, write_result

SEEDS = {
    "an4": (1, 2, 3), "an4-cd": (1, 2, 3), "an4-small": (1,), "an4-blstm": (1,), "an4-tdnn-lstm": (1,), "an4-ctc": (1,),
    "fsdd": (1,), "fsdd-unseen-speaker": ("jackson", "lucas", "nicolas", "theo", "yweweler"), "yesno": (1, 2, 3),
}
"""Seeds of each recipe; of fsdd-unseen-speaker the speakers that are left out in turn."""


def run(folder, recipe, seed):
    """The result of a run, made if need be."""
    path, settings = folder / f"{recipe}-s{seed}", ["--seed", str(seed)]
    if isinstance(seed, str):
        path, settings = folder / f"{recipe}-{seed}", ["--seed", "1", "--data.importer_options", f'["leave_out={seed}"]',
                                                       "--data.corpus", f"runs/corpora/fsdd-without-{seed}"]
    tool = [sys.executable, "-m", "hemstitch.cli"]
    if not (path / "config.json").exists():
        subprocess.run([*tool, "train", recipe, *settings, "--run", str(path), "--train.threads", "1"], check=True)
    elif not (path / "result.json").exists():
        subprocess.run([*tool, "resume", str(path)], check=True)
    result = json.loads((path / "result.json").read_text())
    return {"seed": seed, "wer": result["wer"], "decode": result["decode"], "summary": result["summary"]}


def pooled(rows, part):
    """Errors over words of all runs together."""
    counts = [row["wer"][part] for row in rows]
    errors = sum(c[kind] for c in counts for kind in ("insertions", "deletions", "substitutions"))
    return errors / sum(c["words"] for c in counts)


def page(found, machine):
    """The results as a page of the documents."""
    lines = ["# Word error rates of the recipes", "",
             "What `hemstitch train RECIPE --seed N` gives, made by `python benchmarks/word_error_rates.py FOLDER`; where speakers "
             "are left out in turn, each is the test part of one run. Scales are chosen on dev. The interval is that of "
             "the first run (95 %, bootstrap by speaker, by utterance where there is but one); time is CPU time on one "
             f"core of an {machine['processor']}.", "",
             "| recipe | parameters | minutes | dev | test | each run | 95 % of the first |", "|---|---|---|---|---|---|---|"]
    for recipe, entry in found.items():
        rows = entry["runs"]
        first, summary = rows[0]["wer"]["test"], rows[0]["summary"]
        each = ", ".join(f"{row['seed']}: {row['wer']['test']['rate']:.1%}" for row in rows)
        lines.append(f"| {recipe} | {summary['parameters']:,} | {summary['cpu_seconds'] / 60:.1f} | {pooled(rows, 'dev'):.2%} "
                     f"| {pooled(rows, 'test'):.2%} | {each} | {first['low']:.1%} to {first['high']:.1%} |")
    return "\n".join([*lines, "", NOTES])


NOTES = """- `an4-ctc` is there for orientation: without an alignment, 37 minutes of speech are little.
- In one of yesno's 24 test files seven words are spoken, not eight as its name says: 1 error in 192 words, 0.52 %, is
  everything right.
- AN4's test part has 773 words, so a tenth more or less is nine errors: to compare methods, see
  [comparing methods](how-to/compare-methods.md).
"""


def main():
    folder, recipes = Path(sys.argv[1]), sys.argv[2:] or list(SEEDS)
    old = RESULTS / "word_error_rates.json"
    found = json.loads(old.read_text())["recipes"] if old.exists() else {}
    for recipe in recipes:
        rows = [run(folder, recipe, seed) for seed in SEEDS[recipe]]
        rates = [row["wer"]["test"]["rate"] for row in rows]
        found[recipe] = {"pooled_test_wer": round(pooled(rows, "test"), 4), "mean_test_wer": round(statistics.mean(rates), 4), "test_wer": rates, "runs": rows,
                         "command": f"python benchmarks/word_error_rates.py FOLDER {recipe}"}
    machine = environment()
    write_result("word_error_rates", {"what": "word error rates of recipes", "recipes": found, **machine})
    (RESULTS.parent.parent / "docs" / "word-error-rates.md").write_text(page(found, machine), encoding="utf-8")


if __name__ == "__main__":
    main()
