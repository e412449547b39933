"""Update rules with the torch.optim contract."""

from hemstitch.optim._backstitch import Backstitch, BackstitchReport
from hemstitch.optim._component_groups import component_groups
from hemstitch.optim._hessian_free import HessianFree
from hemstitch.optim._hessian_free_closure import batch_closure
from hemstitch.optim._hessian_free_report import HessianFreeReport
from hemstitch.optim._natural_gradient import NaturalGradient, plain_gradients
from hemstitch.optim._sgd import SGD, MaxChangeReport
from hemstitch.optim._update_rule import UpdateRule

__all__ = [
    "SGD",
    "Backstitch",
    "BackstitchReport",
    "HessianFree",
    "HessianFreeReport",
    "MaxChangeReport",
    "NaturalGradient",
    "UpdateRule",
    "batch_closure",
    "component_groups",
    "plain_gradients",
]
