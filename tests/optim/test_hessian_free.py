"""Hessian-free steps: the optimizer contract, algorithm 1 against a dense twin, and what a step promises."""

import copy
import math

import pytest
import torch
from torch import nn

from hemstitch.curvature import TargetLoss, gauss_newton, hessian
from hemstitch.errors import ConfigError, MisuseError
from hemstitch.optim import HessianFree, batch_closure
from hemstitch.sampling import GrowingSample, SampleGrowth
from hemstitch.testing import OptimizerContract
from hemstitch.testing._problems import tiny_convnet, tiny_mlp


def role_closure(problem, index=0, **options):
    """One batch for the gradient and the curvature, all of them held out."""
    held_out = tuple(torch.cat(part) for part in zip(*problem.batches))
    return batch_closure(problem.model, problem.loss, *problem.batches[index % len(problem.batches)],
                         held_out=held_out, **options)


class HessianFreeContract(OptimizerContract):
    bad_options = ({"lr": -1.0}, {"damping": 0.0}, {"damping_factor": -1.0}, {"weight_decay": -1.0}, {"max_cg": 0},
                   {"carry": 1.0}, {"preconditioner": "magic"}, {"num_shards": 3}, {"num_pairs": 0},
                   {"samples": {"training": GrowingSample(1, SampleGrowth(start=1))}})
    options: dict = {}

    def make(self, params, **options):
        return HessianFree(params, **self.options | options)

    def closure(self, problem, optimizer, index):
        return role_closure(problem, index)


class TestPlain(HessianFreeContract):
    pass


class TestPreconditioned(HessianFreeContract):
    options = dict(preconditioner="lbfgs", num_pairs=8, damping=0.1)


class TestPreconditionedWithin(HessianFreeContract):
    options = dict(preconditioner="lbfgs_within", num_pairs=8, damping=0.1)


class TestWithFisherDiagonalAndDecay(HessianFreeContract):
    options = dict(preconditioner="fisher", damping=0.1)


class TestWithJacobiAndSamples(HessianFreeContract):
    options = dict(preconditioner="jacobi", damping=0.1)

    def make(self, params, **options):
        samples = {"gradient": GrowingSample(16, SampleGrowth(start=4, theta=0.5)),
                   "curvature": GrowingSample(16, SampleGrowth(start=2, factor=1.3), nested=False)}
        return super().make(params, samples=samples, **options)

    def closure(self, problem, optimizer, index):
        return role_closure(problem, index, sample=optimizer.sample, batch_size=3)
