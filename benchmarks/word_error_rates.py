"""Word error rates of recipes over seeds, by `hemstitch train`: python benchmarks/word_error_rates.py FOLDER [RECIPE ...]

Every run is a folder FOLDER/RECIPE-sSEED (FOLDER/RECIPE-SPEAKER where speakers are left out in turn); a finished one is
not repeated, an unfinished one is resumed. Writes results/word_error_rates.json with each seed's dev and test rates, the
interval of each, parameters and time.
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


def main():
    folder, recipes = Path(sys.argv[1]), sys.argv[2:] or list(SEEDS)
    old = RESULTS / "word_error_rates.json"
    found = json.loads(old.read_text())["recipes"] if old.exists() else {}
    for recipe in recipes:
        rows = [run(folder, recipe, seed) for seed in SEEDS[recipe]]
        rates = [row["wer"]["test"]["rate"] for row in rows]
        words = sum(row["wer"]["test"]["words"] for row in rows)
        errors = sum(row["wer"]["test"][kind] for row in rows for kind in ("insertions", "deletions", "substitutions"))
        found[recipe] = {"pooled_test_wer": round(errors / words, 4), "mean_test_wer": round(statistics.mean(rates), 4), "test_wer": rates, "runs": rows,
                         "command": f"python benchmarks/word_error_rates.py FOLDER {recipe}"}
    write_result("word_error_rates", {"what": "word error rates of recipes", "recipes": found, **environment()})


if __name__ == "__main__":
    main()
