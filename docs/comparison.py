"""The comparison on the README's first screen: a picture and a table from the committed outcome files.

Writes docs/comparison.svg and what stands between the two marks in README.md; `make results` calls it.
"""

import json
import re
import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results" / "laptop" / "together"
CRITERIA = {"cross-entropy": "frame cross-entropy", "lattice-free-mmi": "lattice-free MMI"}
BEGIN, END = "<!-- comparison: written by docs/comparison.py -->", "<!-- end of the comparison -->"
RATE, GAIN, PASSES, SECONDS, TUNING = (
    "pooled word error rate", "fewer errors than AdamW, relative", "passes of a run", "CPU seconds of a run",
    "CPU seconds of tuning",
)  # fmt: skip


def outcomes():
    """Criterion -> its outcome, of those that have been run."""
    paths = {text: RESULTS / f"{name}.json" for name, text in CRITERIA.items()}
    return {text: json.loads(path.read_text(encoding="utf-8")) for text, path in paths.items() if path.is_file()}


def methods(outcome):
    """Method -> quantity -> row, in the order of their errors."""
    found = {}
    for row in outcome["rows"]:
        method, _, quantity = row["quantity"].partition(": ")
        found.setdefault(method, {})[quantity.split(",")[0] if quantity.startswith(TUNING) else quantity] = row
    return dict(sorted(found.items(), key=lambda item: item[1][RATE]["ours"]))


def table(outcome):
    """The methods as a Markdown table."""
    lines = ["| method | word error rate, pooled | fewer errors than AdamW | passes | CPU s | CPU s to tune |",
             "|---|---|---|---|---|---|"]  # fmt: skip
    for name, rows in methods(outcome).items():
        rate, gain = rows[RATE], rows.get(GAIN)
        less = "" if gain is None else f"{gain['ours']:.0%} ({gain['low']:.0%} to {gain['high']:.0%})"
        lines.append(f"| {name} | {rate['ours']:.1%} ({rate['low']:.1%} to {rate['high']:.1%}) | {less} | "
                     + " | ".join(f"{rows[key]['ours']:.3g}" for key in (PASSES, SECONDS, TUNING)) + " |")  # fmt: skip
    return lines


def block(found):
    """What the README says."""
    if not found:
        return f"{BEGIN}\n{END}"
    lines = [BEGIN, "", "![word error rates of all methods](docs/comparison.svg)", ""]
    for text, outcome in found.items():
        lines += [f"**AN4, {text}.** {outcome['summary']}", "", *table(outcome), "",
                  f"`{outcome['command']}`; intervals are 95 %.", ""]  # fmt: skip
    return "\n".join([*lines, END])


def picture(found, path):
    """Rates with their intervals, one plot for each criterion."""
    plt.rcParams.update({"svg.hashsalt": "hemstitch", "svg.fonttype": "none", "font.size": 9})
    size = (4.6 * len(found) + 1, 2.9)
    figure, plots = plt.subplots(1, len(found), figsize=size, squeeze=False, layout="constrained")
    for plot, (text, outcome) in zip(plots[0], found.items(), strict=True):
        names = methods(outcome)
        for height, rows in enumerate(reversed(names.values())):
            rate = rows[RATE]
            plot.plot([100 * rate["low"], 100 * rate["high"]], [height, height], color="#9ab", linewidth=3)
            plot.plot(100 * rate["ours"], height, "o", color="#d33" if GAIN not in rows else "#259")
        plot.set_yticks(range(len(names)), list(reversed(names)))
        plot.set(title=f"AN4, {text}", xlabel="word error rate in %, pooled over folds; 95 %")
        plot.spines[["top", "right"]].set_visible(False)
        plot.grid(axis="x", alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None}, facecolor="white")


def main():
    """Write both; with --check only say whether the README is up to date."""
    readme = ROOT / "README.md"
    text = readme.read_text(encoding="utf-8")
    new = re.sub(f"{re.escape(BEGIN)}.*{re.escape(END)}", lambda _: block(outcomes()), text, flags=re.DOTALL)
    if "--check" in sys.argv:
        sys.exit(0 if new == text else "README.md is not what the outcome files say: make results")
    readme.write_text(new, encoding="utf-8")
    picture(outcomes(), ROOT / "docs" / "comparison.svg")


if __name__ == "__main__":
    main()
