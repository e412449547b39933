"""What every optimizer must keep to, as tests that a new optimizer inherits by writing one method.

    class TestMyOptimizer(OptimizerContract):
        def make(self, params, **options):
            return MyOptimizer(params, **{"lr": 0.05} | options)

The suite is parameterised by what the optimizer's class declares (absent: as torch.optim's own classes behave):

- ``passes_per_step`` (1): the most forward-backward passes that one step makes.
- ``needs_closure`` (False): whether ``step()`` without a closure is refused.
- ``supports_grad_scaler`` (True): whether it works under ``torch.amp.GradScaler``, or says that it does not.
- ``refuses_nonfinite`` (False): whether a gradient with NaN or inf leaves parameters and state untouched.

Runs under pytest, but needs nothing of it.
"""

from __future__ import annotations

import copy
import io
import random
import unittest
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.testing import assert_close

from hemstitch.errors import HemstitchError
from hemstitch.testing._problems import Problem, tiny_mlp

REFUSALS = (HemstitchError, ValueError, TypeError, RuntimeError, AssertionError)


class OptimizerContract:
    """Base class of the contract tests; subclasses are named ``Test...`` and define `make`.

    Attributes:
        bad_options: keyword arguments that `make` must refuse, one dictionary per case.
        num_steps: steps before saving or copying; at least the period of what the optimizer does periodically.
    """

    bad_options: tuple[dict[str, Any], ...] = ({"lr": -1.0},)
    num_steps = 4

    # -- what a subclass defines or overrides ----------------------------------------------------------------------

    def make(self, params: Any, **options: Any) -> Optimizer:
        """The optimizer over parameters or parameter groups, with a learning rate at which the small network learns."""
        raise NotImplementedError("define make(params, **options) in the subclass of OptimizerContract")

    def problem(self, dtype: torch.dtype = torch.float32) -> Problem:
        """The problem to train on."""
        return tiny_mlp(dtype=dtype)

    def build(self, problem: Problem) -> Optimizer:
        """The optimizer for a whole problem; override it if the optimizer must know the model."""
        return self.make(problem.model.parameters())

    def parts(self, problem: Problem, optimizer: Optimizer) -> dict[str, Any]:
        """Everything with a state_dict that a checkpoint must hold."""
        return {"model": problem.model, "optimizer": optimizer}

    def closure(self, problem: Problem, optimizer: Optimizer, index: int) -> Callable[..., Any]:
        """The closure for one batch; override it for an optimizer with a protocol of its own."""
        return problem.closure(optimizer, index)

    def step(self, problem: Problem, optimizer: Optimizer, index: int) -> None:
        """One step as this optimizer is normally driven."""
        closure = self.closure(problem, optimizer, index)
        if _wants_closure(optimizer):
            optimizer.step(closure)
        else:
            closure()
            optimizer.step()

    # -- construction ----------------------------------------------------------------------------------------------

    def test_refuses_bad_options(self):
        for options in self.bad_options:
            with _refused((HemstitchError, ValueError, TypeError)):
                self.make(self.problem().model.parameters(), **options)

    def test_refuses_no_parameters(self):
        with _refused((HemstitchError, ValueError)):
            self.make([])

    def test_shows_its_options(self):
        assert "lr" in repr(self.build(self.problem()))

    # -- parameters and groups -------------------------------------------------------------------------------------

    def test_learns(self):
        problem = self.problem()
        optimizer = self.build(problem)
        before = problem.total()
        for index in range(20):
            self.step(problem, optimizer, index)
        assert problem.total() < before, f"20 steps did not lower the loss: {before} -> {problem.total()}"

    def test_groups_have_their_own_learning_rate(self):
        problem = self.problem()
        first, *rest = problem.model.parameters()
        optimizer = self.make([{"params": [first], "lr": 0.0}, {"params": rest}])
        before = _parameters(problem)
        self.step(problem, optimizer, 0)
        moved = [not torch.equal(old, new) for old, new in zip(before, _parameters(problem), strict=True)]
        assert not moved[0] and all(moved[1:]), f"moved: {moved}; only the group with lr = 0 should stay"

    def test_takes_another_group(self):
        problem = self.problem()
        *most, last = problem.model.parameters()
        optimizer = self.make(most)
        optimizer.add_param_group({"params": [last]})
        before = last.detach().clone()
        self.step(problem, optimizer, 0)
        assert not torch.equal(before, last), "the parameter of the added group did not move"

    def test_leaves_parameters_without_gradient(self):
        problem = self.problem()
        unused = torch.nn.Parameter(torch.ones(3))
        optimizer = self.make([*problem.model.parameters(), unused])
        for index in range(self.num_steps):
            self.step(problem, optimizer, index)
        assert_close(unused.data, torch.ones(3), rtol=0, atol=0)

    def test_leaves_frozen_parameters(self):
        problem = self.problem()
        frozen = next(problem.model.parameters())
        frozen.requires_grad_(False)
        optimizer = self.build(problem)
        before = _parameters(problem)
        for index in range(self.num_steps):
            self.step(problem, optimizer, index)
        after = _parameters(problem)
        assert torch.equal(before[0], after[0]), "a frozen parameter moved"
        assert not torch.equal(before[1], after[1]), "the others should have moved"

    # -- state -----------------------------------------------------------------------------------------------------

    def test_resumes_equal_to_the_bit(self):
        self._check_resume(torch.float32)

    def test_resumes_with_bfloat16_parameters(self):
        self._check_resume(torch.bfloat16)

    def _check_resume(self, dtype: torch.dtype) -> None:
        """Save in the middle, load into a fresh optimizer; the rest of the run must be the same."""
        first, second = self.problem(dtype), self.problem(dtype)
        optimizer = self.build(first)
        for index in range(self.num_steps):
            self.step(first, optimizer, index)
        saved = _through_a_file({name: part.state_dict() for name, part in self.parts(first, optimizer).items()})
        resumed = self.build(second)
        for name, part in self.parts(second, resumed).items():
            part.load_state_dict(saved[name])
        assert _dtypes(resumed.state_dict()) == _dtypes(optimizer.state_dict()), "loading changed the state's types"
        for index in range(self.num_steps, 2 * self.num_steps):
            self.step(first, optimizer, index)
            self.step(second, resumed, index)
        _assert_same(first, second)

    def test_refuses_the_state_of_another_model(self):
        problem = self.problem()
        optimizer = self.build(problem)
        other = self.make([{"params": [p]} for p in self.problem().model.parameters()][:1])
        with _refused(REFUSALS):
            optimizer.load_state_dict(other.state_dict())

    def test_copies_deeply(self):
        problem = self.problem()
        optimizer = self.build(problem)
        for index in range(self.num_steps):
            self.step(problem, optimizer, index)
        other, copied = copy.deepcopy((problem, optimizer))
        before = _parameters(other)
        for index in range(self.num_steps, 2 * self.num_steps):
            self.step(problem, optimizer, index)
        for old, new in zip(before, _parameters(other), strict=True):
            assert torch.equal(old, new), "a step of the original moved the copy"
        for index in range(self.num_steps, 2 * self.num_steps):
            self.step(other, copied, index)
        _assert_same(problem, other)

    # -- the step --------------------------------------------------------------------------------------------------

    def test_closure_runs_as_often_as_declared_and_its_loss_comes_back(self):
        problem = self.problem()
        optimizer = self.build(problem)
        losses: list[Any] = []
        inner = self.closure(problem, optimizer, 0)

        def closure(*args: Any, **kwargs: Any) -> Any:
            assert torch.is_grad_enabled(), "closures run with gradients enabled"
            losses.append(inner(*args, **kwargs))
            return losses[-1]

        returned = optimizer.step(closure)
        passes = getattr(optimizer, "passes_per_step", 1)
        assert 1 <= len(losses) <= passes, f"{len(losses)} passes, but the class declares {passes}"
        if isinstance(losses[0], Tensor):
            assert_close(torch.as_tensor(returned), torch.as_tensor(losses[0]), rtol=0, atol=0)

    def test_refuses_a_step_without_its_closure(self):
        optimizer = self.build(self.problem())
        if not getattr(optimizer, "needs_closure", False):
            raise unittest.SkipTest("needs no closure")
        with _refused(REFUSALS):
            optimizer.step()

    def test_follows_a_scheduler(self):
        problem = self.problem()
        optimizer = self.build(problem)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1.0 if epoch < 2 else 0.0)
        for index in range(2):
            before = _parameters(problem)
            self.step(problem, optimizer, index)
            scheduler.step()
            assert not _equal(before, _parameters(problem)), "no step while the learning rate is positive"
        before = _parameters(problem)
        self.step(problem, optimizer, 2)
        assert _equal(before, _parameters(problem)), "a step although the scheduler set the learning rate to zero"

    def test_calls_step_hooks_once(self):
        problem = self.problem()
        optimizer = self.build(problem)
        calls: list[str] = []
        optimizer.register_step_pre_hook(lambda *_: calls.append("pre"))
        optimizer.register_step_post_hook(lambda *_: calls.append("post"))
        self.step(problem, optimizer, 0)
        assert calls == ["pre", "post"], f"hooks ran as {calls}"

    def test_leaves_global_random_numbers_alone(self):
        problem = self.problem()
        optimizer = self.build(problem)
        before, python_before = torch.get_rng_state(), random.getstate()
        self.step(problem, optimizer, 0)
        assert torch.equal(before, torch.get_rng_state()) and python_before == random.getstate()

    # -- mixed precision and bad numbers ---------------------------------------------------------------------------

    def test_grad_scaler(self):
        """Under a GradScaler the same steps, and none where the gradient overflowed; or a refusal."""
        plain, scaled = self.problem(), self.problem()
        optimizer, other = self.build(plain), self.build(scaled)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        if not getattr(optimizer, "supports_grad_scaler", True):
            with _refused(REFUSALS):
                _scaled_step(scaled, other, scaler, 0)
            return
        for index in range(self.num_steps):
            self.step(plain, optimizer, index)
            _scaled_step(scaled, other, scaler, index)
        _assert_same(plain, scaled, rtol=1e-5)
        before = _parameters(scaled)
        _scaled_step(scaled, other, scaler, 0, factor=float("inf"))
        assert _equal(before, _parameters(scaled)), "a step with an overflowed gradient"
        assert scaler.get_scale() < 1024.0

    def test_refuses_a_closure_through_grad_scaler(self):
        """A positional closure slips past GradScaler, which then unscales the gradients of an earlier pass."""
        problem = self.problem()
        optimizer = self.build(problem)
        if getattr(optimizer, "passes_per_step", 1) == 1:
            raise unittest.SkipTest("one pass: use the scaler without a closure")
        scaler = torch.amp.GradScaler("cpu")
        scaler.scale(problem.evaluate()).backward()
        with _refused((HemstitchError,)):
            scaler.step(optimizer, self.closure(problem, optimizer, 0))

    def test_refuses_gradients_that_are_not_finite(self):
        problem = self.problem()
        optimizer = self.build(problem)
        if not getattr(optimizer, "refuses_nonfinite", False):
            raise unittest.SkipTest("does not declare refuses_nonfinite")
        for index in range(self.num_steps):
            self.step(problem, optimizer, index)
        for factor in (float("nan"), float("inf")):
            before = _parameters(problem)
            loss = lambda outputs, targets, f=factor: f * problem.loss(outputs, targets)
            self.step(Problem(problem.model, loss, problem.batches), optimizer, 0)
            assert _equal(before, _parameters(problem)), f"a step along a gradient times {factor}"
        state = {name: part.state_dict() for name, part in self.parts(problem, optimizer).items()}
        assert all(torch.isfinite(t).all() for t in _tensors(state)), "NaN or inf entered the state"
        self.step(problem, optimizer, 0)
        assert not _equal(before, _parameters(problem)), "the optimizer did not recover"


def _wants_closure(optimizer: Optimizer) -> bool:
    return getattr(optimizer, "needs_closure", False) or getattr(optimizer, "passes_per_step", 1) > 1


def _scaled_step(
    problem: Problem, optimizer: Optimizer, scaler: torch.amp.GradScaler, index: int, factor: float = 1.0
) -> None:
    """The usual loop of mixed precision; optimizers with two passes hand out their phases."""
    for _ in optimizer.phases() if hasattr(optimizer, "phases") else (None,):
        optimizer.zero_grad()
        scaler.scale(factor * problem.evaluate(index)).backward()
        scaler.step(optimizer)
        scaler.update()


def _refused(errors: tuple[type[Exception], ...]) -> Any:
    return unittest.TestCase().assertRaises(errors)


def _parameters(problem: Problem) -> list[Tensor]:
    return [p.detach().clone() for p in problem.model.parameters()]


def _equal(old: list[Tensor], new: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(old, new, strict=True))


def _assert_same(first: Problem, second: Problem, rtol: float = 0.0) -> None:
    assert_close(first.model.state_dict(), second.model.state_dict(), rtol=rtol, atol=rtol)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def _dtypes(state: Any) -> list[torch.dtype]:
    return [tensor.dtype for tensor in _tensors(state)]


def _through_a_file(state: dict[str, Any]) -> dict[str, Any]:
    """Save and load without executing code, as a checkpoint would."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)
