"""Every table and figure of the five papers, re-run by one command, the papers' values beside ours.

One module per paper (or per group of its experiments) holds ``ENTRIES``; `_catalogue` joins them, `_engine` runs them
part by part, `_page` shows the outcomes.
"""

from hemstitch.reproduce._catalogue import catalogue
from hemstitch.reproduce._engine import read_outcomes, run_entry, select
from hemstitch.reproduce._entry import PAPERS, Entry, Line, Outcome, Plot, Row, Scale, choose, mean_and_interval
from hemstitch.reproduce._page import complete_list, markdown, tally, write_page
from hemstitch.reproduce._training import Trained, recipe, trained

__all__ = [
    "PAPERS",
    "Entry",
    "Line",
    "Outcome",
    "Plot",
    "Row",
    "Scale",
    "Trained",
    "catalogue",
    "choose",
    "complete_list",
    "markdown",
    "mean_and_interval",
    "read_outcomes",
    "recipe",
    "run_entry",
    "select",
    "tally",
    "trained",
    "write_page",
]
