"""Public helpers for tests: the optimizer contract suite, small problems, oracles."""

from hemstitch.testing._optimizer_contract import OptimizerContract
from hemstitch.testing._problems import Problem, quadratic, tiny_convnet, tiny_mlp

__all__ = ["OptimizerContract", "Problem", "quadratic", "tiny_convnet", "tiny_mlp"]
