"""The order of the updates: backward SGD, windows, fixed tail, brackets, order average."""

from hemstitch.order._backward_sgd import BackwardSGD
from hemstitch.order._diagnostics import OrderComparison, compare_orders, contraction_along, contraction_factor
from hemstitch.order._iterates import backward_iterates, fixed_tail_iterates, forward_iterates
from hemstitch.order._objective import Objective
from hemstitch.order._order_average import OrderAverage
from hemstitch.order._order_report import OrderReport
from hemstitch.order._probe import OrderDiagnosis, OrderProbe
from hemstitch.order._second_order import (
    OrderWarning,
    bracket_iterate,
    lie_bracket_correction,
    order_average_gradient,
    single_order_gradient,
)

__all__ = [
    "BackwardSGD",
    "Objective",
    "OrderAverage",
    "OrderComparison",
    "OrderDiagnosis",
    "OrderProbe",
    "OrderReport",
    "OrderWarning",
    "backward_iterates",
    "bracket_iterate",
    "compare_orders",
    "contraction_along",
    "contraction_factor",
    "fixed_tail_iterates",
    "forward_iterates",
    "lie_bracket_correction",
    "order_average_gradient",
    "single_order_gradient",
]
