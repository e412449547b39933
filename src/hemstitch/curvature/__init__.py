"""Curvature of a loss: linear operators, conjugate gradients, preconditioners, online low-rank Fisher."""

from hemstitch.curvature._conjugate_gradient import CGResult, Preconditioner, ProgressTest, conjugate_gradient
from hemstitch.curvature._damping import LevenbergMarquardt
from hemstitch.curvature._diagonal import DiagonalPreconditioner, fisher_diagonal, jacobi_diagonal
from hemstitch.curvature._fisher import fisher
from hemstitch.curvature._forward import twice_differentiable
from hemstitch.curvature._gauss_newton import gauss_newton, gauss_newton_of_outputs
from hemstitch.curvature._hessian import hessian
from hemstitch.curvature._lbfgs import LBFGSPreconditioner, PairStore
from hemstitch.curvature._line_search import Backtracking, LineSearch, armijo, backtrack
from hemstitch.curvature._online_fisher import FisherReport, OnlineNaturalGradient
from hemstitch.curvature._operator import LinearOperator
from hemstitch.curvature._output_curvature import loss_fisher, loss_hessian, occupancy_product
from hemstitch.curvature._parameters import FlatParameters
from hemstitch.curvature._simple_natural_gradient import simple_natural_gradient
from hemstitch.curvature._target_loss import TargetLoss

__all__ = [
    "Backtracking",
    "CGResult",
    "DiagonalPreconditioner",
    "FisherReport",
    "FlatParameters",
    "LBFGSPreconditioner",
    "LevenbergMarquardt",
    "LineSearch",
    "LinearOperator",
    "OnlineNaturalGradient",
    "PairStore",
    "Preconditioner",
    "ProgressTest",
    "TargetLoss",
    "armijo",
    "backtrack",
    "conjugate_gradient",
    "fisher",
    "fisher_diagonal",
    "gauss_newton",
    "gauss_newton_of_outputs",
    "hessian",
    "jacobi_diagonal",
    "loss_fisher",
    "loss_hessian",
    "occupancy_product",
    "simple_natural_gradient",
    "twice_differentiable",
]
