"""Training criteria: cross-entropy, lattice-free MMI, lattice MMI and its kin."""

from hemstitch.criteria._auxiliary import AuxiliaryFunction, bound_strength
from hemstitch.criteria._cross_entropy import IGNORED, CrossEntropy, FrameObjective
from hemstitch.criteria._ctc import Ctc, CtcObjective
from hemstitch.criteria._frame_accuracy import FrameAccuracy
from hemstitch.criteria._lattice import LatticeCriterion, LatticeMBR, LatticeMMI
from hemstitch.criteria._lattice_free_mmi import LatticeFreeMMI, OuterGradient, SequenceObjective, overlap_weights
from hemstitch.criteria._lattice_gradient import (
    LatticeObjective,
    LatticeOptions,
    LatticeOuterGradient,
    UtteranceGradient,
)
from hemstitch.criteria._output_curvature import CurvedCriterion, OutputCurvature
from hemstitch.criteria._path_sums import denominator, numerator
from hemstitch.graphs import Graph

__all__ = [
    "IGNORED",
    "AuxiliaryFunction",
    "CrossEntropy",
    "Ctc",
    "CtcObjective",
    "CurvedCriterion",
    "FrameAccuracy",
    "FrameObjective",
    "Graph",
    "LatticeCriterion",
    "LatticeFreeMMI",
    "LatticeMBR",
    "LatticeMMI",
    "LatticeObjective",
    "LatticeOptions",
    "LatticeOuterGradient",
    "OuterGradient",
    "OutputCurvature",
    "SequenceObjective",
    "UtteranceGradient",
    "bound_strength",
    "denominator",
    "numerator",
    "overlap_weights",
]
