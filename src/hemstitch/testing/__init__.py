"""Public helpers for tests: the optimizer contract suite, small problems, tiny data, oracles."""

from hemstitch.testing._optimizer_contract import OptimizerContract
from hemstitch.testing._problems import Problem, quadratic, tiny_convnet, tiny_mlp
from hemstitch.testing._tiny_data import write_idx, write_tiny_corpus, write_tiny_images, write_tiny_text

__all__ = [
    "OptimizerContract",
    "Problem",
    "quadratic",
    "tiny_convnet",
    "tiny_mlp",
    "write_idx",
    "write_tiny_corpus",
    "write_tiny_images",
    "write_tiny_text",
]
