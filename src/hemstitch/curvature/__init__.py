"""Curvature of a loss: linear operators, conjugate gradients, preconditioners, online low-rank Fisher."""
