"""Rows that a Fisher estimate learns from, however they are stored, and norms that nobody has to wait for."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

Scalar = float | Tensor
"""A float on the CPU; elsewhere a 0-d tensor, which nobody has to wait for."""

BLOCK_BYTES = 2**19
"""Of rows that stay in a core's cache, with what becomes of them, from one product to the next."""
LEAST_ROWS = 32
"""In a block: products of fewer are slow."""


class Rows(Protocol):
    """Rows that an estimate can learn from, however they are stored.

    Attributes:
        shape: (N, D).
        like: a tensor of their type and device.
        norm: |X|.
    """

    shape: tuple[int, int]
    like: Tensor
    norm: Scalar

    def double(self) -> Rows:
        """The same in double precision."""

    def scores(self, factor: Tensor) -> Tensor:
        """H = X W', in any layout."""

    def scatter(self, scores: Tensor) -> Tensor:
        """L = H'H, (rank, rank)."""

    def cross(self, scores: Tensor) -> Tensor:
        """J = H'X, (rank, D)."""


class DenseRows:
    """`Rows` as a matrix (N, D)."""

    def __init__(self, x: Tensor) -> None:
        self.like, self.shape = x, x.shape

    @cached_property
    def norm(self) -> Scalar:
        """|X|."""
        return norm(self.like)

    def double(self) -> DenseRows:
        """The same in double precision."""
        return DenseRows(self.like.double())

    def precondition(self, factor: Tensor) -> tuple[Tensor, Tensor, Scalar]:
        """H, X - HW and the norm of that; sets the norm of X.

        On the CPU by blocks of rows, so that each is fetched from memory once, not again for each product and norm.
        """
        x = self.like
        scores, y = x.new_empty(len(x), len(factor)), torch.empty_like(x)
        count = min(len(x) // LEAST_ROWS, round(x.numel() * x.itemsize / BLOCK_BYTES)) if x.device.type == "cpu" else 1
        if count <= 1:
            before, after = self._precondition_block(factor, x, scores, y)
        else:
            blocks = zip(x.chunk(count), scores.chunk(count), y.chunk(count), strict=True)
            norms = [self._precondition_block(factor, *block) for block in blocks]
            before, after = (math.hypot(*parts) for parts in zip(*norms, strict=True))
        self.norm = self._whole_norm(before)
        return scores, y, after

    def _precondition_block(self, factor: Tensor, x: Tensor, scores: Tensor, y: Tensor) -> tuple[Scalar, Scalar]:
        """Fill ``scores`` and ``y``; the norms of ``x`` and ``y``."""
        before = norm(x)
        torch.mm(x, factor.T, out=scores)
        torch.addmm(x, scores, factor, alpha=-1, out=y)
        return before, norm(y)

    def _whole_norm(self, of_matrix: Scalar) -> Scalar:
        return of_matrix

    def scores(self, factor: Tensor) -> Tensor:
        """H = X W', (N, rank)."""
        return self.like @ factor.T

    def scatter(self, scores: Tensor) -> Tensor:
        """L = H'H, (rank, rank)."""
        return scores.T @ scores

    def cross(self, scores: Tensor) -> Tensor:
        """J = H'X, (rank, D)."""
        return (self.like.T @ scores).T


class AffineRows(DenseRows):
    """`Rows` [x, 1] of a matrix (N, D) and an appended one, which is never written."""

    def __init__(self, x: Tensor) -> None:
        self.like, self.shape = x, (x.shape[0], x.shape[1] + 1)

    @cached_property
    def norm(self) -> Scalar:
        """|[X, 1]|."""
        return self._whole_norm(norm(self.like))

    def double(self) -> AffineRows:
        """The same in double precision."""
        return AffineRows(self.like.double())

    def _precondition_block(self, factor: Tensor, x: Tensor, scores: Tensor, y: Tensor) -> tuple[Scalar, Scalar]:
        before, weight = norm(x), factor[:, :-1]
        torch.addmm(factor[:, -1], x, weight.T, out=scores)
        torch.addmm(x, scores, weight, alpha=-1, out=y)
        return before, norm(y)

    def _whole_norm(self, of_matrix: Scalar) -> Scalar:
        return root(of_matrix * of_matrix + self.shape[0])

    def scores(self, factor: Tensor) -> Tensor:
        """H = [X, 1] W', (N, rank)."""
        return torch.addmm(factor[:, -1], self.like, factor[:, :-1].T)

    def cross(self, scores: Tensor) -> Tensor:
        """J = H'[X, 1], (rank, D + 1)."""
        sums = scores.new_empty(self.shape[1], scores.shape[1])
        torch.mm(self.like.T, scores, out=sums[:-1])
        torch.sum(scores, 0, out=sums[-1])
        return sums.T


def norm(x: Tensor) -> Scalar:
    """Root of the sum of squares."""
    return number(torch.linalg.vector_norm(x))


def number(x: Tensor) -> Scalar:
    """A number on the CPU; elsewhere left where it is, so that nothing waits for it."""
    return x.item() if x.device.type == "cpu" else x


def root(square: Scalar) -> Scalar:
    """Square root of a sum of squares, which rounding may have made negative."""
    return square.clamp(min=0).sqrt() if isinstance(square, Tensor) else math.sqrt(max(square, 0.0))


def ratio(before: Scalar, after: Scalar) -> Scalar:
    """before / after; 1 where both are zero, ``after`` underflowed, or a number is not finite."""
    if isinstance(before, Tensor) or isinstance(after, Tensor):
        return (before / after).nan_to_num(1.0, 1.0)
    return before / after if after > 0 and before < math.inf else 1.0
