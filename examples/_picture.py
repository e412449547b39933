"""What the examples share: a small figure, saved beside the script or where --out says."""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt


def save(figure, script):
    """Write ``<script>.svg``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("."), help="folder of the picture")
    path = parser.parse_args().out / f"{Path(script).stem}.svg"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
    print(path)


def axes(title, x_label, y_label, **scales):
    """A figure with one plot."""
    plt.rcParams.update({"svg.hashsalt": "hemstitch", "svg.fonttype": "none"})
    figure, plot = plt.subplots(figsize=(6, 3.4))
    plot.set(title=title, xlabel=x_label, ylabel=y_label, **scales)
    plot.spines[["top", "right"]].set_visible(False)
    return figure, plot
