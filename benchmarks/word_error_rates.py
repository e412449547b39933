"""Word error rates of recipes over seeds, by `hemstitch train`: python benchmarks/word_error_rates.py FOLDER [RECIPE ...]

Every run is a folder FOLDER/RECIPE-sSEED; a finished one is not repeated, an unfinished one is resumed. Writes
results/word_error_rates.json with each seed's dev and test rates, the interval of each, parameters and time.
"""

import json
import statistics
import subprocess
import sys
from pathlib import Path

from _common import RESULTS, environment, write_result

SEEDS = {"an4": (1, 2, 3), "an4-small": (1,), "fsdd": (1,)}


def run(folder, recipe, seed):
    """The result of a run, made if need be."""
    path = folder / f"{recipe}-s{seed}"
    tool = [sys.executable, "-m", "hemstitch.cli"]
    if not (path / "config.json").exists():
        subprocess.run([*tool, "train", recipe, "--seed", str(seed), "--run", str(path), "--train.threads", "1"], check=True)
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
        found[recipe] = {"mean_test_wer": round(statistics.mean(rates), 4), "test_wer": rates, "runs": rows,
                         "command": f"python benchmarks/word_error_rates.py FOLDER {recipe}"}
    write_result("word_error_rates", {"what": "word error rates of recipes", "recipes": found, **environment()})


if __name__ == "__main__":
    main()
