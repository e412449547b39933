"""Configuration, the loop, step strategies, checkpoints, run folder."""

from hemstitch.train._config import options_of
from hemstitch.train._console import Console
from hemstitch.train._corpora import make_corpus
from hemstitch.train._experiments import (
    Comparison,
    Cost,
    CrossValidation,
    Method,
    MethodResult,
    SweepResult,
    Trial,
    cross_validate,
    sweep,
)
from hemstitch.train._recipe import SECTIONS, TOP_LEVEL, Recipe, load_recipe, options_class
from hemstitch.train._run import Interrupted, dry_run, load_trained, resume, train

__all__ = [
    "SECTIONS",
    "TOP_LEVEL",
    "Comparison",
    "Console",
    "Cost",
    "CrossValidation",
    "Interrupted",
    "Method",
    "MethodResult",
    "Recipe",
    "SweepResult",
    "Trial",
    "cross_validate",
    "dry_run",
    "load_recipe",
    "load_trained",
    "make_corpus",
    "options_class",
    "options_of",
    "resume",
    "sweep",
    "train",
]
