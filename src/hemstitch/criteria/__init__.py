"""Training criteria: cross-entropy, lattice-free MMI, lattice MMI and its kin."""

from hemstitch.criteria._cross_entropy import IGNORED, CrossEntropy, FrameObjective
from hemstitch.criteria._lattice_free_mmi import LatticeFreeMMI, OuterGradient, SequenceObjective, overlap_weights
from hemstitch.criteria._output_curvature import CurvedCriterion, OutputCurvature
from hemstitch.criteria._path_sums import denominator, numerator
from hemstitch.graphs import Graph

__all__ = [
    "IGNORED",
    "CrossEntropy",
    "CurvedCriterion",
    "FrameObjective",
    "Graph",
    "LatticeFreeMMI",
    "OuterGradient",
    "OutputCurvature",
    "SequenceObjective",
    "denominator",
    "numerator",
    "overlap_weights",
]
