"""Experiments of many runs: the tuner, the comparison of methods, and how surely it sees a small gain."""

from hemstitch.train._experiments._cross_validation import (
    Comparison,
    CrossValidation,
    Method,
    MethodResult,
    cross_validate,
)
from hemstitch.train._experiments._paired_bootstrap import Gain, PairedErrors
from hemstitch.train._experiments._pooling import read_counts
from hemstitch.train._experiments._power import Detection, detection_power, measured_agreement, model_words, words_like
from hemstitch.train._experiments._runs import Cost, vary
from hemstitch.train._experiments._sweep import SweepResult, Trial, sweep, tuned_recipe

__all__ = [
    "Comparison",
    "Cost",
    "CrossValidation",
    "Detection",
    "Gain",
    "Method",
    "MethodResult",
    "PairedErrors",
    "SweepResult",
    "Trial",
    "cross_validate",
    "detection_power",
    "measured_agreement",
    "model_words",
    "read_counts",
    "sweep",
    "tuned_recipe",
    "vary",
    "words_like",
]
