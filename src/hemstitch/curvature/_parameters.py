"""Parameters as one flat vector: the space in which curvature, conjugate gradients and line searches live."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from hemstitch.errors import MisuseError

Vector = Float[Tensor, " param"]
"""One number per parameter, in the order of the parameters."""


class FlatParameters:
    """Parameters in a fixed order, read and written as one vector.

    The vector has the parameters' type, but at least float32: directions of half-precision parameters would lose what
    conjugate gradients need. A tied parameter counts once. A frozen one (``requires_grad=False``) keeps its place and
    has derivative zero, so that thawing a layer does not move the others.

    Args:
        params: tensors, all on one device.
    """

    def __init__(self, params: Iterable[Tensor]) -> None:
        self.params: list[Tensor] = list({id(param): param for param in params}.values())
        if not any(param.requires_grad for param in self.params):
            raise MisuseError(f"none of the {len(self.params)} parameters requires a gradient: "
                              "there is nothing to differentiate")
        devices = {param.device for param in self.params}
        if len(devices) > 1:
            raise MisuseError(f"the parameters must lie on one device, found {sorted(map(str, devices))}")
        self.device = self.params[0].device
        self.dtype = torch.float32
        for param in self.params:
            self.dtype = torch.promote_types(self.dtype, param.dtype)
        self.sizes = [param.numel() for param in self.params]
        self.numel = sum(self.sizes)
        self.trainable = [k for k, param in enumerate(self.params) if param.requires_grad]

    @property
    def trainable_params(self) -> list[Tensor]:
        """The parameters that require a gradient."""
        return [self.params[k] for k in self.trainable]

    def split(self, flat: Vector) -> list[Tensor]:
        """Views of ``flat`` in the shapes of the parameters (copies in their type if that is another)."""
        return [part.view_as(param).to(param.dtype)
                for part, param in zip(flat.split(self.sizes), self.params, strict=True)]

    def split_trainable(self, flat: Vector) -> list[Tensor]:
        """:meth:`split`, the parameters that require a gradient only."""
        parts = self.split(flat)
        return [parts[k] for k in self.trainable]

    def flatten_trainable(self, parts: Sequence[Tensor | None]) -> Vector:
        """One vector from a tensor (or ``None`` for zeros) per parameter that requires a gradient."""
        rows: list[Tensor | None] = [None] * len(self.params)
        for k, part in zip(self.trainable, parts, strict=True):
            rows[k] = part
        zero = torch.zeros((), dtype=self.dtype, device=self.device)
        return torch.cat([zero.expand(size) if row is None else row.detach().reshape(-1).to(self.dtype)
                          for row, size in zip(rows, self.sizes, strict=True)])

    def read(self) -> Vector:
        """A copy of the current values."""
        return torch.cat([param.detach().reshape(-1).to(self.dtype) for param in self.params])

    @torch.no_grad()
    def write_(self, flat: Vector) -> None:
        """Set the values in place; frozen parameters are left alone."""
        for param, part in zip(self.trainable_params, self.split_trainable(flat), strict=True):
            param.copy_(part)

    def version(self) -> int:
        """A number that changes whenever a parameter is changed in place."""
        return sum(param._version for param in self.params)
