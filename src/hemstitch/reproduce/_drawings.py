"""Figures of the papers that explain and measure nothing."""

from __future__ import annotations

from hemstitch.reproduce._entry import Entry

ENTRIES = [
    Entry(
        name="drawings", paper=2, title="Figures 1, 2 and 3: replicas and server, shuffling, the auxiliary function",
        paper_says="how the parts work together, and why the auxiliary function has the gradient of the objective",
        unavailable="drawings without measurements; paper-2/figure-4 and data-shuffling measure what they explain",
    ),
    Entry(
        name="drawing", paper=5, title="Figure 1: forward and backward iterations",
        paper_says="backward iterations begin with the newest batch and run through all batches before it",
        unavailable="a drawing without measurements; paper-5/figure-4 to 9 measure what it explains",
    ),
]  # fmt: skip
