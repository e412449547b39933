"""Training criteria: cross-entropy, lattice-free MMI, lattice MMI and its kin."""

from hemstitch.criteria._cross_entropy import IGNORED, CrossEntropy, FrameObjective

__all__ = ["IGNORED", "CrossEntropy", "FrameObjective"]
