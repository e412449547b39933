"""Hessian-free steps: the optimizer contract, algorithm 1 against a dense twin, and what a step promises."""

import copy
import math
from typing import ClassVar

import pytest
import torch
from torch import nn

from hemstitch.curvature import TargetLoss, gauss_newton, hessian
from hemstitch.errors import ConfigError, MisuseError
from hemstitch.optim import HessianFree, batch_closure
from hemstitch.sampling import GrowingSample, SampleGrowth
from hemstitch.testing import OptimizerContract, tiny_convnet, tiny_mlp


def role_closure(problem, index=0, **options):
    """One batch for the gradient and the curvature, all of them held out."""
    held_out = tuple(torch.cat(part) for part in zip(*problem.batches))
    return batch_closure(problem.model, problem.loss, *problem.batches[index % len(problem.batches)],
                         held_out=held_out, **options)


class HessianFreeContract(OptimizerContract):
    options: ClassVar[dict] = {}
    bad_options = ({"lr": -1.0}, {"damping": 0.0}, {"damping_factor": -1.0}, {"weight_decay": -1.0}, {"max_cg": 0},
                   {"carry": 1.0}, {"preconditioner": "magic"}, {"num_shards": 3}, {"num_pairs": 0},
                   {"samples": {"training": GrowingSample(1, SampleGrowth(start=1))}})

    def make(self, params, **options):
        return HessianFree(params, **self.options | options)

    def closure(self, problem, optimizer, index):
        return role_closure(problem, index)


class TestPlain(HessianFreeContract):
    pass


class TestPreconditioned(HessianFreeContract):
    options: ClassVar[dict] = dict(preconditioner="lbfgs", num_pairs=8, damping=0.1)


class TestPreconditionedWithin(HessianFreeContract):
    options: ClassVar[dict] = dict(preconditioner="lbfgs_within", num_pairs=8, damping=0.1)


class TestWithFisherDiagonalAndDecay(HessianFreeContract):
    options: ClassVar[dict] = dict(preconditioner="fisher", damping=0.1)


class TestWithJacobiAndSamples(HessianFreeContract):
    options: ClassVar[dict] = dict(preconditioner="jacobi", damping=0.1)

    def make(self, params, **options):
        samples = {"gradient": GrowingSample(16, SampleGrowth(start=4, theta=0.5)),
                   "curvature": GrowingSample(16, SampleGrowth(start=2, factor=1.3), nested=False)}
        return super().make(params, samples=samples, **options)

    def closure(self, problem, optimizer, index):
        return role_closure(problem, index, sample=optimizer.sample, batch_size=3)


# -- algorithm 1 -------------------------------------------------------------------------------------------------------


def flat(problem):
    return torch.cat([param.detach().flatten() for param in problem.model.parameters()])


def twin(problem, num_steps, damping, decay=0.0):
    """Algorithm 1 with dense matrices, written down literally; returns the parameters and dampings after each step."""
    params, (inputs, targets) = list(problem.model.parameters()), problem.batches[0]

    def put(theta):
        torch.nn.utils.vector_to_parameters(theta, params)

    def loss_at(theta):
        put(theta)
        return problem.loss(problem.model(inputs), targets).item() + 0.5 * decay * (theta @ theta).item()

    theta, start, history = flat(problem), None, []
    for _ in range(num_steps):
        put(theta)
        grads = torch.autograd.grad(problem.loss(problem.model(inputs), targets), params)
        g = torch.cat([grad.flatten() for grad in grads]) + decay * theta
        G = gauss_newton(problem.model, problem.loss, inputs, targets).dense()
        B = G + (damping + decay) * torch.eye(len(g), dtype=g.dtype)
        d = torch.zeros_like(g) if start is None else start
        r, values, iterates, keep, i = B @ d + g, [], [], [math.ceil(1.3**j) for j in range(40)], 0
        p = -r
        quadratic = lambda x: (g @ x + 0.5 * x @ B @ x).item()
        values.append(quadratic(d))
        while True:
            alpha = (r @ r) / (p @ B @ p)
            d, old = d + alpha * p, r
            r = r + alpha * (B @ p)
            p = -r + (r @ r) / (old @ old) * p
            i += 1
            values.append(quadratic(d))
            k = max(10, i // 10)
            stop = i > k and values[i] < 0 and (values[i] - values[i - k]) / values[i] < k * 5e-4
            if i in keep or stop:
                iterates.append(d)
            if stop:
                break
        before, losses = loss_at(theta), [loss_at(theta + x) for x in iterates]
        best = len(iterates) - 1
        for k in range(len(iterates) - 2, -1, -1):
            if losses[k] >= losses[best] and losses[best] <= before:
                break
            best = k if losses[k] < losses[best] else best
        if losses[best] > before:
            damping, start = 1.5 * damping, None
        else:
            alpha, x = 1.0, iterates[best]
            while loss_at(theta + alpha * x) > before + 1e-2 * alpha * (g @ x).item():
                alpha *= 0.8
            rho = (losses[-1] - before) / values[-1]
            damping *= 1.5 if rho < 0.25 else 2 / 3 if rho > 0.75 else 1.0
            theta, start = theta + alpha * x, 0.95 * iterates[-1]
        history.append((theta, damping))
    put(history[-1][0])
    return history


@pytest.mark.parametrize(("damping", "decay"), [(1.0, 0.0), (1e-4, 0.0), (0.1, 0.05)])
def test_steps_are_those_of_the_dense_twin(damping, decay):
    """The small damping overshoots: rejections and backtracking occur. (Later steps amplify rounding 10^9 times.)"""
    problem = tiny_mlp(dtype=torch.float64, batch=40)
    expected = twin(copy.deepcopy(problem), 5, damping, decay)
    optimizer = HessianFree(problem.model.parameters(), damping=damping, weight_decay=decay)
    closure = batch_closure(problem.model, problem.loss, *problem.batches[0])
    for theta, next_damping in expected:
        optimizer.step(closure)
        assert optimizer.report().next_damping == pytest.approx(next_damping)
        torch.testing.assert_close(flat(problem), theta, rtol=1e-6, atol=1e-8)


def run(optimizer, closure, num_steps):
    reports = []
    for _ in range(num_steps):
        optimizer.step(closure)
        reports.append(optimizer.report())
    return reports


@pytest.mark.parametrize("preconditioner", [None, "lbfgs", "lbfgs_within", "fisher", "jacobi"])
def test_no_step_raises_the_held_out_loss_and_the_damping_follows_rho(preconditioner):
    problem = tiny_mlp(batch=12)
    held_out = problem.batches[1]
    closure = batch_closure(problem.model, problem.loss, *problem.batches[0], held_out=held_out)
    optimizer = HessianFree(problem.model.parameters(), damping=1e-5, preconditioner=preconditioner)
    reports = []
    for _ in range(30):
        before = flat(problem)
        reports += run(optimizer, closure, 1)
        report = reports[-1]
        assert report.loss_after <= report.loss_before
        assert problem.evaluate(1).item() == pytest.approx(report.loss_after, rel=1e-5)
        assert report.accepted != torch.equal(before, flat(problem))
        failed = not report.accepted or report.rho < 0.25
        factor = 1.5 if failed else 2 / 3 if report.rho > 0.75 else 1.0
        assert report.next_damping == pytest.approx(max(1e-10, factor * report.damping))
    assert any(report.accepted for report in reports) and not all(report.accepted for report in reports)
    assert any(report.next_damping > report.damping for report in reports)


def test_a_rejected_step_forgets_the_direction_and_an_accepted_one_carries_it():
    problem = tiny_mlp(batch=12)
    closure = batch_closure(problem.model, problem.loss, *problem.batches[0], held_out=problem.batches[1])
    optimizer = HessianFree(problem.model.parameters(), damping=1e-5)
    outcomes = set()
    for _ in range(30):
        optimizer.step(closure)
        outcomes.add(optimizer.report().accepted)
        assert (optimizer.direction is not None) == optimizer.report().accepted
    assert outcomes == {True, False}


# -- passes ------------------------------------------------------------------------------------------------------------


def trained(num_steps=2, *, problem=None, wrap=None, **options):
    """Parameters after some steps on a fresh copy of a problem."""
    problem = tiny_mlp(dtype=torch.float64) if problem is None else copy.deepcopy(problem)
    closure_options = {name: options.pop(name) for name in ("batch_size", "engine") if name in options}
    optimizer = HessianFree(problem.model.parameters(), **options)
    closure = batch_closure(problem.model, problem.loss, *problem.batches[0], **closure_options)
    reports = run(optimizer, closure if wrap is None else wrap(closure), num_steps)
    assert all(report.accepted for report in reports)
    return flat(problem)


@pytest.mark.parametrize("options", [
    dict(batch_size=5), dict(engine="r_operator"), dict(engine="dual_forward"), dict(keep_graphs=False),
    dict(wrap=lambda closure: lambda role: list(closure(role))),
    dict(wrap=lambda closure: lambda role: [(z, lambda outputs, f=f: f(outputs), w) for z, f, w in closure(role)])],
    ids=["micro-batches", "r_operator", "dual_forward", "recomputed", "a list", "double backward at the outputs"])
def test_the_same_steps_however_the_passes_are_made(options):
    torch.testing.assert_close(trained(**options), trained(), rtol=1e-8, atol=1e-10)


def test_a_summed_loss_with_its_weight_is_the_mean_loss():
    problem, summed = tiny_mlp(dtype=torch.float64), tiny_mlp(dtype=torch.float64, reduction="sum")
    torch.testing.assert_close(trained(problem=summed), trained(problem=problem), rtol=1e-9, atol=1e-12)


class Noted(nn.Module):
    """Notes the random number each pass draws."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.drawn = inner, []

    def forward(self, x):
        self.drawn.append(torch.rand(()).item())
        return self.inner(x)


def test_passes_of_a_step_draw_the_same_random_numbers_and_the_next_step_others():
    problem = tiny_mlp()
    model, drawn = Noted(problem.model), []
    optimizer = HessianFree(model.parameters())
    closure = batch_closure(model, problem.loss, *problem.batches[0])
    for _ in range(2):
        optimizer.step(closure)
        assert len(model.drawn) >= 4 and len(set(model.drawn)) == 1
        drawn.append(model.drawn.pop())
        model.drawn.clear()
    assert drawn[0] != drawn[1]


def test_dropout_is_part_of_the_function_a_step_minimises():
    problem = tiny_convnet(dropout=0.5)
    optimizer = HessianFree(problem.model.parameters())
    assert all(report.accepted for report in run(optimizer, role_closure(problem), 5))


def test_running_statistics_see_one_forward_pass_per_step():
    problem = tiny_convnet(dtype=torch.float64)
    norm, (inputs, targets) = problem.model[1], problem.batches[0]
    reference = copy.deepcopy(problem.model)
    optimizer = HessianFree(problem.model.parameters())
    for step in range(3):
        reference.load_state_dict(problem.model.state_dict())
        reference(inputs)
        optimizer.step(batch_closure(problem.model, problem.loss, inputs, targets))
        assert optimizer.report().passes["curvature"] > 1
        assert norm.num_batches_tracked == step + 1
        torch.testing.assert_close(norm.running_mean, reference[1].running_mean)


def test_a_failing_closure_takes_the_whole_step_back():
    problem = tiny_mlp()
    inner, calls = role_closure(problem), []

    def closure(role):
        calls.append(role)
        if calls.count("evaluate") == 3:
            raise KeyboardInterrupt
        return inner(role)

    optimizer = HessianFree(problem.model.parameters(), preconditioner="lbfgs")
    state, before = copy.deepcopy(optimizer.state_dict()), flat(problem)
    with pytest.raises(KeyboardInterrupt):
        optimizer.step(closure)
    assert torch.equal(before, flat(problem)) and str(optimizer.state_dict()) == str(state)
    optimizer.step(inner)
    assert optimizer.report().accepted


@pytest.mark.parametrize(("role", "factor", "outcome"), [
    ("evaluate", math.nan, "non-finite loss"), ("gradient", math.inf, "non-finite gradient"),
    ("curvature", math.nan, "no direction")])
def test_bad_numbers_are_named_and_kept_out(role, factor, outcome):
    problem = tiny_mlp()

    def closure(asked):
        for outputs, loss, weight in role_closure(problem)(asked):
            bad = TargetLoss(lambda z, _: factor * loss(z), None)
            yield outputs, bad if asked == role else loss, weight

    before, optimizer = flat(problem), HessianFree(problem.model.parameters())
    optimizer.step(closure)
    report = optimizer.report()
    assert (report.outcome, report.accepted) == (outcome, False)
    assert torch.equal(before, flat(problem)) and optimizer.direction is None
    assert report.next_damping == report.damping * (1.5 if role == "curvature" else 1.0)


def test_the_report_counts_passes_and_their_cost():
    problem = tiny_mlp(batch=16)
    rows = torch.arange(16)
    sample = lambda role, num_items: rows[:8] if role == "curvature" else rows
    optimizer = HessianFree(problem.model.parameters())
    report = run(optimizer, batch_closure(problem.model, problem.loss, *problem.batches[0], sample=sample), 2)[-1]
    passes = report.passes
    assert passes["gradient"] == 1 and passes["curvature"] == report.cg_iterations + 1
    assert report.weights == {"gradient": 16, "curvature": 8, "evaluate": 16}
    assert report.cost == pytest.approx(16 + 8 * 4 / 3 * passes["curvature"] + 16 / 3 * passes["evaluate"])
    assert report.step == 1 and all(seconds > 0 for seconds in report.seconds.values())


class Attentive(nn.Module):
    """Attention and a recurrent layer as a user writes them, with a tied and an unused parameter."""

    def __init__(self):
        super().__init__()
        self.qkv, self.lstm = nn.Linear(8, 24), nn.LSTM(8, 8, batch_first=True)
        self.last, self.unused = nn.Linear(8, 8), nn.Linear(2, 2)
        self.first = nn.Linear(8, 8)
        self.first.weight = self.last.weight

    def forward(self, x):
        q, k, v = self.qkv(self.first(x)).unsqueeze(1).chunk(3, dim=-1)
        return self.last(self.lstm(nn.functional.scaled_dot_product_attention(q, k, v).squeeze(1))[0])


@pytest.mark.parametrize("keep_graphs", [True, False])
def test_attention_recurrence_tied_and_unused_parameters(keep_graphs):
    torch.manual_seed(0)
    model, x = Attentive(), torch.randn(4, 16, 8)
    closure = batch_closure(model, nn.MSELoss(), x, x.roll(1, 1))
    optimizer = HessianFree(model.parameters(), damping=0.1, keep_graphs=keep_graphs, max_cg=20)
    reports = run(optimizer, closure, 3)
    assert all(report.accepted for report in reports) and reports[-1].loss_after < reports[0].loss_before


# -- groups ------------------------------------------------------------------------------------------------------------


def test_damping_factor_and_weight_decay_are_per_group():
    problem = tiny_mlp(dtype=torch.float64)
    first, *rest = problem.model.parameters()
    inputs, targets = problem.batches[0]
    groups = [dict(params=[first], damping_factor=3.0, weight_decay=0.2), dict(params=rest)]
    optimizer = HessianFree(groups, damping=0.5)
    before, size = flat(problem), first.numel()
    diagonal = torch.full_like(before, 0.5)
    diagonal[:size] = 3 * 0.5 + 0.2
    decay = torch.zeros_like(before)
    decay[:size] = 0.2
    grads = torch.autograd.grad(problem.evaluate(), list(problem.model.parameters()))
    g = torch.cat([grad.flatten() for grad in grads])
    G = gauss_newton(problem.model, problem.loss, inputs, targets).dense()
    expected = torch.linalg.solve(G + diagonal.diag(), -(g + decay * before))
    optimizer.step(batch_closure(problem.model, problem.loss, inputs, targets))
    report = optimizer.report()
    assert report.step_length == 1.0 and report.iterate == report.cg_iterations
    torch.testing.assert_close(flat(problem) - before, expected, rtol=1e-2, atol=1e-4)
    assert report.loss_before - (0.1 * before[:size] @ before[:size]).item() == pytest.approx(
        trained_loss(problem, before, inputs, targets))


def trained_loss(problem, theta, inputs, targets):
    torch.nn.utils.vector_to_parameters(theta, problem.model.parameters())
    return problem.loss(problem.model(inputs), targets).item()


def test_weight_decay_leaves_frozen_parameters_alone():
    problem = tiny_mlp()
    frozen = problem.model[0].weight.requires_grad_(False)
    before = frozen.clone()
    optimizer = HessianFree(problem.model.parameters(), weight_decay=0.1)
    assert all(report.accepted for report in run(optimizer, role_closure(problem), 3))
    assert torch.equal(frozen, before)


# -- the curvature may be any operator -------------------------------------------------------------------------------


def test_the_closure_may_give_curvature_operators():
    """With the Hessian of a linear model's squared error, which is its Gauss-Newton matrix."""
    model, x = nn.Linear(3, 1).double(), torch.randn(20, 3, dtype=torch.float64)
    y = x @ torch.ones(3, 1, dtype=torch.float64)
    summed = nn.MSELoss(reduction="sum")

    def closure(role):
        if role == "curvature":
            yield hessian(model, summed, x, y), None, 20
        else:
            yield model(x), TargetLoss(summed, y), 20

    optimizer = HessianFree(model.parameters(), damping=1e-8)
    optimizer.step(closure)
    assert optimizer.report().loss_after < 1e-10

    wrong = hessian(model, summed, x, y, params=[model.weight])
    with pytest.raises(MisuseError, match="has 3 parameters, the optimizer has 4"):
        optimizer.step(lambda role: [(wrong, None, 20)] if role == "curvature" else closure(role))


# -- samples -----------------------------------------------------------------------------------------------------------


def test_samples_are_fixed_in_a_step_and_grow_after_it():
    problem, seen = tiny_mlp(batch=64), []
    samples = {"gradient": GrowingSample(64, SampleGrowth(start=8, factor=2.0)),
               "curvature": GrowingSample(64, SampleGrowth(start=4, factor=1.5), nested=False)}
    optimizer = HessianFree(problem.model.parameters(), samples=samples)

    def sample(role, num_items):
        seen.append((role, tuple(optimizer.sample(role, num_items).tolist())))
        return optimizer.sample(role, num_items)

    closure = batch_closure(problem.model, problem.loss, *problem.batches[0], sample=sample)
    per_step = []
    for _ in range(3):
        optimizer.step(closure)
        per_step.append({role: {rows for r, rows in seen if r == role} for role, _ in seen})
        seen.clear()
    assert all(len(rows) == 1 for step in per_step for rows in step.values())
    assert [len(*step["gradient"]) for step in per_step] == [8, 16, 32]
    assert [len(*step["curvature"]) for step in per_step] == [4, 6, 9]
    assert all(len(*step["evaluate"]) == 64 for step in per_step)


def test_the_variance_rule_gets_the_noise_of_the_gradient():
    problem = tiny_mlp(batch=64, dtype=torch.float64)
    growth = SampleGrowth(start=16, theta=0.3)
    optimizer = HessianFree(problem.model.parameters(), samples={"gradient": GrowingSample(64, growth)})
    inputs, targets = problem.batches[0]
    rows = optimizer.samples["gradient"].indices()
    params = list(problem.model.parameters())
    each = torch.stack([torch.cat([grad.flatten() for grad in torch.autograd.grad(
        problem.loss(problem.model(inputs[row, None]), targets[row, None]), params)]) for row in rows])
    noise = (each.var(0).sum() / 16 / each.mean(0).square().sum()).item()
    optimizer.step(batch_closure(problem.model, problem.loss, inputs, targets, sample=optimizer.sample, batch_size=1))
    assert optimizer.report().noise == pytest.approx(noise)
    assert optimizer.samples["gradient"].size == growth.after(16, 1, 64, noise) > 16


# -- misuse ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("closure", "message"), [
    (lambda: torch.ones(()), "batch_closure"),
    (lambda role: torch.ones(()), "batch_closure.*returned Tensor"),
    (lambda role: [torch.ones(3)], "batch_closure.*gave tensor"),
    (lambda role: [(torch.ones(3), torch.sum, -1.0)], "gave"),
    (lambda role: [(torch.ones(3), lambda z: z, 1.0)], "must be one number"),
    (lambda role: [], "gave no data"),
    (None, "needs a closure.*batch_closure"),
])
def test_other_closures_are_refused_with_the_way_to_the_right_one(closure, message):
    optimizer = HessianFree(tiny_mlp().model.parameters())
    with pytest.raises(MisuseError, match=message):
        optimizer.step(closure)


def test_rows_are_only_for_the_closure():
    optimizer = HessianFree(tiny_mlp().model.parameters())
    with pytest.raises(MisuseError, match="while step"):
        optimizer.sample("gradient", 10)
    with pytest.raises(MisuseError, match="pass num_items"):
        optimizer.step(lambda role: optimizer.sample(role))
    with pytest.raises(MisuseError, match="reduction"):
        batch_closure(nn.Linear(1, 1), nn.MSELoss(reduction="none"), torch.ones(1), torch.ones(1))


def test_states_of_other_optimizers_are_refused():
    params = list(tiny_mlp().model.parameters())
    optimizer = HessianFree(params)
    with pytest.raises(ConfigError, match="not saved by HessianFree"):
        optimizer.load_state_dict(torch.optim.SGD(params, lr=0.1).state_dict())
    with pytest.raises(ConfigError, match="samples for"):
        HessianFree(params, samples={"gradient": GrowingSample(9, SampleGrowth(start=1))}).load_state_dict(
            optimizer.state_dict())
