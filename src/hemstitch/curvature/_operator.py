"""What every curvature operator is: a square matrix known by its products."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

from hemstitch.curvature._parameters import FlatParameters, Vector
from hemstitch.errors import MisuseError


class LinearOperator(ABC):
    """A symmetric (param, param) matrix of which only the products ``A @ v`` are computed.

    It belongs to the parameter values at which it was built and refuses to be used at others. A subclass defines
    ``_product(v)`` for one vector.

    Attributes:
        shape: (n, n), n the number of parameters.
        dtype, device: of the vectors.
    """

    def __init__(self, layout: FlatParameters) -> None:
        self.layout = layout
        self.shape = (layout.numel, layout.numel)
        self.dtype, self.device = layout.dtype, layout.device
        self._version = layout.version()

    def __matmul__(self, v: Tensor) -> Tensor:
        """A v for v of shape (n,), or the columns A v_j for v of shape (n, k).

        Raises:
            MisuseError: wrong shape, or the parameters have changed since the operator was built.
        """
        if v.ndim not in (1, 2) or v.shape[0] != self.shape[0]:
            raise MisuseError(f"expected a vector ({self.shape[0]},) or matrix ({self.shape[0]}, k) in the order of "
                              f"the parameters, got {tuple(v.shape)}")
        if self.layout.version() != self._version:
            raise MisuseError("the parameters were changed in place after this operator was built: build a new one")
        v = v.detach().to(dtype=self.dtype, device=self.device)
        if v.ndim == 1:
            return self._product(v.contiguous())
        if v.shape[1] == 0:
            return v.clone()
        return torch.stack([self._product(column.contiguous()) for column in v.unbind(1)], dim=1)

    @abstractmethod
    def _product(self, v: Vector) -> Vector:
        """A v for one contiguous vector."""

    def dense(self) -> Float[Tensor, "param param"]:
        """The matrix itself. Cost: n products and n^2 numbers; for small networks and tests."""
        return self @ torch.eye(self.shape[0], dtype=self.dtype, device=self.device)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(shape={self.shape}, dtype={self.dtype})"
