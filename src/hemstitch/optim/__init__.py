"""Update rules with the torch.optim contract."""

from hemstitch.optim._component_groups import component_groups
from hemstitch.optim._sgd import SGD, MaxChangeReport
from hemstitch.optim._update_rule import UpdateRule

__all__ = ["SGD", "MaxChangeReport", "UpdateRule", "component_groups"]
