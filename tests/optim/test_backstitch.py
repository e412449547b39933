"""Backstitch: the contract over several optimizers, the three ways to drive it, what is counted once, misuse."""

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn

from hemstitch.errors import ConfigError, MisuseError
from hemstitch.optim import SGD, Backstitch, NaturalGradient, component_groups
from hemstitch.optim._displacements import displace
from hemstitch.testing import OptimizerContract, quadratic, tiny_convnet, tiny_mlp

# -- the contract ----------------------------------------------------------------------------------------------


class BackstitchContract(OptimizerContract):
    """Interval 2: the steps of each test contain pairs and ordinary ones."""

    def inner(self, params, **options):
        raise NotImplementedError

    def make(self, params, **options):
        own = {key: options.pop(key) for key in ("scale", "interval", "phase", "warmup_steps") if key in options}
        return Backstitch(self.inner(params, **options), **{"scale": 0.5, "interval": 2} | own)

    bad_options = ({"lr": -1.0}, {"scale": -0.1}, {"interval": 0}, {"interval": 2, "phase": 2}, {"warmup_steps": -1})

    def test_a_pair_that_is_taken_back_leaves_nothing(self):
        """Inside a pair the state is refused; given up, the run goes on to the bit as if it had never begun."""
        one, two = self.problem(), self.problem()
        optimizer, other = self.build(one), self.build(two)
        for index in range(self.num_steps):  # even: a pair is next
            self.step(one, optimizer, index)
            self.step(two, other, index)
        assert optimizer.begin() == "first"
        self.closure(one, optimizer, self.num_steps + 1)()  # not the batch that follows
        optimizer.step()
        assert not torch.equal(flat(one), flat(two))
        for ask in (optimizer.state_dict, lambda: copy.deepcopy(optimizer)):
            with pytest.raises(MisuseError, match="abandon"):
                ask()
        optimizer.abandon()
        got, expected = optimizer.state_dict(), other.state_dict()
        torch.testing.assert_close(got["state"], expected["state"], rtol=0, atol=0)
        assert got["backstitch"] == expected["backstitch"]
        for index in range(self.num_steps, 2 * self.num_steps):
            self.step(one, optimizer, index)
            self.step(two, other, index)
        assert torch.equal(flat(one), flat(two))


class TestOverSGD(BackstitchContract):
    def inner(self, params, **options):
        return SGD(params, **{"lr": 0.2, "l2": 1e-3} | options)


class TestOverMomentumSGD(BackstitchContract):
    def inner(self, params, **options):
        return SGD(params, **{"lr": 0.2, "momentum": 0.5, "l2": 1e-3} | options)


class TestOverTorchSGD(BackstitchContract):
    def inner(self, params, **options):
        return torch.optim.SGD(params, **{"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3} | options)


class TestOverAdamW(BackstitchContract):
    def inner(self, params, **options):
        return torch.optim.AdamW(params, **{"lr": 0.01} | options)


class TestOverAdam(BackstitchContract):
    def inner(self, params, **options):
        return torch.optim.Adam(params, **{"lr": 0.01, "weight_decay": 1e-3} | options)


class TestOverNaturalGradient(BackstitchContract):
    def inner(self, params, **options):
        return SGD(params, **{"lr": 0.2} | options)

    def build(self, problem):
        natural = NaturalGradient(problem.model, update_period=2, loss_reduction="mean")
        return Backstitch(self.inner(component_groups(problem.model)), 0.5, 2, natural_gradient=natural)

    def parts(self, problem, optimizer):
        return super().parts(problem, optimizer) | {"natural": optimizer.natural_gradient}


# -- the three ways to drive it --------------------------------------------------------------------------------

def flat(problem):
    return torch.cat([p.detach().reshape(-1) for p in problem.model.parameters()])


def build(problem=None, inner=None, **options):
    problem = problem or tiny_mlp(dtype=torch.float64)
    inner = inner or (lambda model: SGD(component_groups(model, l2=1e-3), lr=0.2))
    return problem, Backstitch(inner(problem.model), **{"scale": 0.5, "interval": 3, "phase": 1} | options)


def backward(problem, optimizer, index):
    optimizer.zero_grad()
    problem.evaluate(index).backward()


def by_closure(problem, optimizer, steps):
    for index in range(steps):
        optimizer.step(problem.closure(optimizer, index))


def by_phases(problem, optimizer, steps):
    for index in range(steps):
        for _ in optimizer.phases():
            backward(problem, optimizer, index)
            optimizer.step()


def by_batches(problem, optimizer, steps):
    for index in optimizer.batches(range(steps)):
        backward(problem, optimizer, index)
        optimizer.step()


def by_trainer_that_fetches_ahead(problem, optimizer, steps):
    """The loader runs three batches ahead of the steps."""
    for index in list(optimizer.batches(range(steps), announce=False)):
        optimizer.begin()
        backward(problem, optimizer, index)
        optimizer.step()


@pytest.mark.parametrize("drive", [by_phases, by_batches, by_trainer_that_fetches_ahead])
def test_every_way_to_drive_it_gives_the_same(drive):
    (one, first), (two, second) = build(), build()
    by_closure(one, first, 7)
    drive(two, second, 7)
    assert torch.equal(flat(one), flat(two))
    assert first.num_batches == second.num_batches == 7
    assert second.report().num_pairs == 2 and second.report().num_ordinary == 5


def test_phases_are_named_and_follow_the_schedule():
    problem, optimizer = build()
    names = []
    for index in range(3):
        for phase in optimizer.phases():
            names.append(phase)
            backward(problem, optimizer, index)
            optimizer.step()
    assert names == ["ordinary", "first", "second", "ordinary"]


def test_slow_start():
    _, optimizer = build(interval=1, phase=0, warmup_steps=4, scale=0.8)
    assert [optimizer.scale_at(batch) for batch in range(6)] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 0.8])
    assert [optimizer.num_passes(batch) for batch in range(3)] == [1, 2, 2]


def test_first_loss_comes_back_and_both_are_reported():
    problem, optimizer = build(phase=0)
    before = problem.evaluate(0)
    loss = optimizer.step(problem.closure(optimizer, 0))
    assert torch.equal(loss, before)
    first, second = optimizer.report().losses
    assert torch.equal(first, loss) and second > loss  # a step backwards: worse


def test_scale_zero_is_the_inner_optimizer():
    (one, optimizer), two = build(scale=0.0), tiny_mlp(dtype=torch.float64)
    plain = SGD(component_groups(two.model, l2=1e-3), lr=0.2)
    by_closure(one, optimizer, 5)
    for index in range(5):
        plain.step(two.closure(plain, index))
    assert torch.equal(flat(one), flat(two))


# -- what each pass does ---------------------------------------------------------------------------------------

def gradient(problem, point, index):
    """Of one batch at a point."""
    twin = copy.deepcopy(problem)
    nn.utils.vector_to_parameters(point, twin.model.parameters())
    return torch.cat([g.reshape(-1) for g in torch.autograd.grad(twin.evaluate(index), list(twin.model.parameters()))])


@pytest.mark.parametrize("reverse", [False, True])
def test_pair_is_two_steps_with_weight_decay_once(reverse):
    """Equations 15 and 16, written out."""
    problem, optimizer = build(phase=0, inner=lambda m: SGD(m.parameters(), lr=0.2, l2=0.01, global_max_change=0),
                               reverse=reverse)
    theta, nu, alpha, decay = flat(problem), 0.2, 0.5, 0.02
    if reverse:
        middle = theta - (1 + alpha) * nu * gradient(problem, theta, 0) - nu * decay * theta
        expected = middle + alpha * nu * gradient(problem, middle, 0)
    else:
        middle = theta + alpha * nu * gradient(problem, theta, 0)
        expected = middle - (1 + alpha) * nu * gradient(problem, middle, 0) - nu * decay * middle
    by_closure(problem, optimizer, 1)
    torch.testing.assert_close(flat(problem), expected)


def test_both_passes_are_bounded_at_the_same_change():
    """A bound that bites: the passes move by exactly scale and 1 + scale times it."""
    problem, optimizer = build(phase=0, scale=0.5, inner=lambda m: SGD(m.parameters(), lr=5.0, global_max_change=0.01))
    points = [flat(problem)]
    for _ in optimizer.phases():
        backward(problem, optimizer, 0)
        optimizer.step()
        points.append(flat(problem))
    assert (points[1] - points[0]).norm().item() == pytest.approx(0.005)
    assert (points[2] - points[1]).norm().item() == pytest.approx(0.015)


def test_momentum_sees_each_batch_once():
    """After a pair the momentum holds the gradient of the second pass, and nothing of the first."""
    problem, optimizer = build(phase=0, inner=lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9))
    by_closure(problem, optimizer, 1)
    momentum = torch.cat([optimizer.state[p]["momentum_buffer"].reshape(-1) for p in problem.model.parameters()])
    last = torch.cat([p.grad.reshape(-1) for p in problem.model.parameters()])
    torch.testing.assert_close(momentum, last)


def test_adam_counts_one_step_per_batch():
    problem, optimizer = build(interval=1, phase=0, inner=lambda m: torch.optim.Adam(m.parameters(), lr=0.01))
    by_closure(problem, optimizer, 4)
    assert {int(state["step"]) for state in optimizer.state.values()} == {4}


class Unknown(torch.optim.AdamW):
    """An optimizer that torch does not know, so that nothing is taken for granted about its step."""


@pytest.mark.parametrize("inner", [torch.optim.AdamW, Unknown])
def test_pair_over_an_optimizer_with_state(inner):
    """By hand: displacements of copies of the inner optimizer, the first of them thrown away."""
    make = lambda m: inner(m.parameters(), lr=0.01, weight_decay=0.1)
    problem, optimizer = build(inner=make, interval=4, phase=3, scale=0.5)
    by_closure(problem, optimizer, 3)

    def displacement(problem, inner, weight_decay):
        problem, inner = copy.deepcopy((problem, inner))
        inner.param_groups[0]["weight_decay"] = weight_decay
        before = flat(problem)
        backward(problem, inner, 3)
        inner.step()
        return flat(problem) - before

    start = flat(problem)
    point = start - 0.5 * displacement(problem, optimizer.optimizer, 0.0)
    middle, copied = copy.deepcopy((problem, optimizer.optimizer))
    nn.utils.vector_to_parameters(point, middle.model.parameters())
    expected = point + 1.5 * displacement(middle, copied, 0.1 / 1.5)
    by_closure_from(problem, optimizer, 3)
    torch.testing.assert_close(flat(problem), expected)


def by_closure_from(problem, optimizer, index):
    optimizer.step(problem.closure(optimizer, index))


PROPORTIONAL = ["SGD", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "Adagrad", "RMSprop", "Adadelta"]


@pytest.mark.parametrize("name", PROPORTIONAL)
def test_step_of_torch_optimizers_is_proportional_to_the_learning_rate(name):
    """What `_moves` relies on: -0.7 times the learning rate is -0.7 times the step, with decay, in the fifth step."""
    make = lambda problem: getattr(torch.optim, name)(problem.model.parameters(), lr=0.01, weight_decay=0.1)
    problem = tiny_mlp(dtype=torch.float64)
    optimizer = make(problem)
    for index in range(4):
        optimizer.step(problem.closure(optimizer, index))
    moves = []
    for factor in (1.0, -0.7):
        twin, copied = copy.deepcopy((problem, optimizer))
        copied.param_groups[0]["lr"] *= factor
        copied.step(twin.closure(copied, 4))
        moves.append((flat(twin) - flat(problem)) / factor)
        state = [t.clone() for own in copied.state.values() for t in own.values() if isinstance(t, torch.Tensor)]
        moves.append(torch.cat([t.reshape(-1).double() for t in state]) if state else torch.zeros(1))
    torch.testing.assert_close(moves[2:], moves[:2])


THROWN_AWAY = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
    "dampening": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.5),
    "Nesterov": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1, betas=(0.8, 0.9)),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, eps=0.1),
    "maximize": lambda p: torch.optim.AdamW(p, lr=0.001, maximize=True),
    "amsgrad": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
}


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", THROWN_AWAY)
def test_step_from_state_that_is_only_read_is_the_step_on_a_copy(name, reverse, monkeypatch):
    """Five pairs, from the first step on; those with options that are not known are made on a copy."""
    ends, done = [], []
    for known in (True, False):
        problem, optimizer = build(inner=lambda m: THROWN_AWAY[name](m.parameters()), interval=1, phase=0,
                                   reverse=reverse)
        if not known:
            monkeypatch.setattr("hemstitch.optim._moves.displace", lambda *_: False)
        else:
            monkeypatch.setattr("hemstitch.optim._moves.displace", lambda *a: done.append(displace(*a)) or done[-1])
        by_closure(problem, optimizer, 5)
        ends += [flat(problem), copy.deepcopy(list(optimizer.state.values()))]
    torch.testing.assert_close(ends[:2], ends[2:])
    odd = name in ("maximize", "amsgrad") or (reverse and name in ("momentum", "Adam", "AdamW"))
    assert any(done) != odd and len(done) >= 5


DECAYING = {
    "ours": lambda p: SGD(p, lr=0.1, l2=0.05, global_max_change=0),
    "ours, momentum": lambda p: SGD(p, lr=0.1, l2=0.05, momentum=0.9, global_max_change=0),
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=0.1),
    "SGD, momentum": lambda p: torch.optim.SGD(p, lr=0.01, weight_decay=0.1, momentum=0.9),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1),
    "unknown": lambda p: Unknown(p, lr=0.1, weight_decay=0.1),
}


@pytest.mark.parametrize("name", DECAYING)
def test_weight_decay_counts_once(name):
    """With a gradient of zero only the decay is left: as much after 40 batches as without backstitch.

    With momentum only nearly so, as the decay of old batches in the momentum moves the first pass as well.
    """
    ends = []
    for wrap in (lambda o: o, lambda o: Backstitch(o, scale=1.0, interval=1)):
        parameter = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
        optimizer = wrap(DECAYING[name]([parameter]))
        for _ in range(40):
            parameter.grad = torch.zeros(1, dtype=torch.float64)
            optimizer.step(lambda: torch.zeros(()))
        ends.append(parameter.item())
    assert ends[1] == pytest.approx(ends[0], rel=0.02 if "momentum" in name else 1e-12)
    assert ends[0] < 1.9


def test_same_random_numbers_in_both_passes():
    drawn = []

    def closure():
        drawn.append((torch.rand(1).item(), random.random(), np.random.rand()))
        parameter.grad = torch.zeros(1)
        return torch.zeros(())

    parameter = nn.Parameter(torch.zeros(1))
    optimizer = Backstitch(SGD([parameter]), interval=1)
    for _ in range(2):
        optimizer.step(closure)
    assert drawn[0] == drawn[1] != drawn[2] == drawn[3]


@pytest.mark.parametrize("known", [False, True])
def test_batch_norm_statistics_count_once(known):
    """As many updates as batches, from the second pass; with the model given, or found as it runs."""
    problem = tiny_convnet(dropout=0.5)
    optimizer = Backstitch(SGD(problem.model.parameters(), lr=0.1), interval=2, model=problem.model if known else None)
    norm = problem.model[1]
    for index in range(4):
        before = norm.running_mean.clone()
        for phase in optimizer.phases():
            backward(problem, optimizer, index)
            during = norm.running_mean.clone()
            optimizer.step()
            assert torch.equal(norm.running_mean, before if phase == "first" else during)
    assert norm.num_batches_tracked == 4


def test_natural_gradient_is_frozen_in_the_first_pass_only():
    problem = tiny_mlp()
    natural = NaturalGradient(problem.model)
    optimizer = Backstitch(SGD(problem.model.parameters()), natural_gradient=natural)
    seen = []
    for phase in optimizer.phases():
        seen.append((phase, natural.frozen))
        backward(problem, optimizer, 0)
        optimizer.step()
    assert seen == [("first", True), ("second", False)] and not natural.frozen
    natural.freeze()
    optimizer = Backstitch(SGD(problem.model.parameters()), natural_gradient=natural)
    by_closure(problem, optimizer, 1)
    assert natural.frozen, "the user's own freeze stays"


# -- half a pair -----------------------------------------------------------------------------------------------

def test_second_pass_that_is_not_finite_takes_the_first_back():
    problem, optimizer = build(phase=0)
    before, factors = flat(problem), iter([1.0, float("nan")])

    def closure():
        optimizer.zero_grad()
        (next(factors) * problem.evaluate(0)).backward()
        return torch.zeros(())

    optimizer.step(closure)
    assert torch.equal(flat(problem), before) and optimizer.report().num_refused == 1
    by_closure(problem, optimizer, 1)
    assert not torch.equal(flat(problem), before)


@pytest.mark.parametrize("leave", ["break", "raise"])
def test_leaving_a_pair_takes_it_back(leave):
    problem, optimizer = build(phase=0)
    before = flat(problem)
    try:
        for phase in optimizer.phases():
            if phase == "second":
                assert not torch.equal(flat(problem), before)
                if leave == "break":
                    break
                raise KeyError
            backward(problem, optimizer, 0)
            optimizer.step()
    except KeyError:
        pass
    assert torch.equal(flat(problem), before) and optimizer.num_batches == 0
    optimizer.state_dict()


def test_closure_that_fails_in_the_second_pass_takes_the_first_back():
    problem, optimizer = build(phase=0)
    before, calls = flat(problem), []

    def closure():
        calls.append(1)
        if len(calls) == 2:
            raise KeyError
        backward(problem, optimizer, 0)
        return torch.zeros(())

    with pytest.raises(KeyError):
        optimizer.step(closure)
    assert torch.equal(flat(problem), before)


def trainer(optimizer, problem, passes, skip):
    """Announced passes over named batches; the step after pass number k is skipped for k in ``skip``."""
    for number, batch in enumerate(passes):
        optimizer.begin(batch)
        backward(problem, optimizer, batch)
        if number not in skip:
            optimizer.step()


def test_skipped_second_step_does_not_straddle_two_batches():
    (one, optimizer), (two, other) = build(phase=0), build(phase=0)
    trainer(optimizer, one, [0, 0, 1, 2], skip={1})
    other.num_batches = 1  # as if batch 0 had never been
    trainer(other, two, [1, 2], skip={})
    assert torch.equal(flat(one), flat(two)) and optimizer.report().num_undone == 1


def test_skipped_first_step_makes_the_second_ordinary():
    (one, optimizer), two = build(phase=0), tiny_mlp(dtype=torch.float64)
    plain = SGD(component_groups(two.model, l2=1e-3), lr=0.2)
    trainer(optimizer, one, [0, 0, 1], skip={0})
    for index in range(2):
        plain.step(two.closure(plain, index))
    assert torch.equal(flat(one), flat(two))


def test_overflow_in_the_second_pass_under_a_grad_scaler():
    problem, optimizer = build(tiny_mlp(), phase=0)
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    before = flat(problem)
    for phase in optimizer.phases():
        optimizer.zero_grad()
        scaler.scale(problem.evaluate(0) * (float("inf") if phase == "second" else 1.0)).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(problem.model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
    assert torch.equal(flat(problem), before) and scaler.get_scale() == 8.0


# -- misuse ----------------------------------------------------------------------------------------------------

def test_plain_step_where_a_pair_is_due_is_refused_with_the_ways_out():
    problem, optimizer = build(phase=0)
    backward(problem, optimizer, 0)
    with pytest.raises(MisuseError, match=r"step\(closure\).*phases.*batches.*begin"):
        optimizer.step()


def test_state_inside_a_pair_is_refused():
    problem, optimizer = build(phase=0)
    before = flat(problem)
    optimizer.begin()
    backward(problem, optimizer, 0)
    optimizer.step()
    for ask in (optimizer.state_dict, lambda: copy.deepcopy(optimizer), lambda: next(optimizer.phases()),
                lambda: optimizer.load_state_dict({})):
        with pytest.raises(MisuseError, match="abandon"):
            ask()
    optimizer.abandon()
    assert torch.equal(flat(problem), before)
    optimizer.state_dict()


def test_phase_without_a_step_and_two_steps_in_a_phase_are_refused():
    problem, optimizer = build(phase=0)
    with pytest.raises(MisuseError, match="must end with"):
        for _ in optimizer.phases():
            backward(problem, optimizer, 0)
    with pytest.raises(MisuseError, match="second step"):
        for _ in optimizer.phases():
            backward(problem, optimizer, 0)
            optimizer.step()
            optimizer.step()


@pytest.mark.parametrize("inner", [torch.optim.LBFGS, lambda p: Backstitch(torch.optim.SGD(p))])
def test_optimizers_with_passes_of_their_own_are_refused(inner):
    with pytest.raises(MisuseError):
        Backstitch(inner(list(tiny_mlp().model.parameters())))


def test_state_without_backstitch_is_refused_with_the_way_out():
    _, optimizer = build()
    plain = optimizer.optimizer.state_dict()
    with pytest.raises(ConfigError, match=r"optimizer.optimizer.load_state_dict"):
        optimizer.load_state_dict(plain)
    optimizer.optimizer.load_state_dict(plain)


def test_scheduler_and_groups_are_shared():
    _, optimizer = build(quadratic(), inner=lambda m: torch.optim.SGD(m.parameters(), lr=1.0))
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 0.25)
    assert optimizer.optimizer.param_groups[0]["lr"] == 0.25
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.param_groups is optimizer.optimizer.param_groups and optimizer.state is optimizer.optimizer.state
