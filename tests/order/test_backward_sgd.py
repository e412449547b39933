"""Backward SGD in a training loop: what a look sees, what is left in the model, what is spent and kept."""

import copy
import io

import pytest
import torch
from order_problems import class_batches, flat, gap, here, mlp, regression_batches, twin
from torch import nn
from torch.optim import SGD, Adam

from hemstitch.errors import MisuseError, NonFiniteError, RunError
from hemstitch.order import BackwardSGD

MSE = nn.MSELoss()
OPTIMIZERS = {
    "sgd": lambda p: SGD(p, lr=0.1),
    "decay": lambda p: SGD(p, lr=0.1, weight_decay=0.3),
    "momentum": lambda p: SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    "adam": lambda p: Adam(p, lr=0.05),
}


def observed(model, batches, make_optimizer=OPTIMIZERS["sgd"], loss=MSE, **options):
    order = BackwardSGD(model, loss, make_optimizer(model.parameters()), **options)
    for batch in batches:
        order.observe(batch)
    return order


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_any_optimizer_is_the_map(name, batch_size):
    model, batches = mlp(2, 4, 1), regression_batches(6, batch_size)
    origin = here(model)
    order = observed(model, batches, OPTIMIZERS[name])
    for k in (1, 3, 6):
        assert gap(order.parameters_at(k), twin(model, MSE, batches[:k][::-1], OPTIMIZERS[name])) < 1e-14
    assert gap(order.parameters(), order.parameters_at(6)) == 0
    assert torch.equal(here(model), origin)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("tail", [2, 9])
def test_fixed_tail_carries_the_state_of_its_head(name, tail):
    model, batches = mlp(2, 4, 1), regression_batches(6)
    start = copy.deepcopy(model)
    order = BackwardSGD(model, MSE, OPTIMIZERS[name](model.parameters()), mode="fixed_tail", tail=tail)
    for k, batch in enumerate(batches, 1):
        order.observe(batch)
        applied = batches[tail:k] + batches[: min(k, tail)][::-1]
        assert gap(order.parameters(), twin(start, MSE, applied, OPTIMIZERS[name])) < 1e-14
    head = batches[tail:]
    assert gap(dict(model.named_parameters()), twin(start, MSE, head, OPTIMIZERS[name])) < 1e-14


def test_fixed_tail_keeps_its_tail_only():
    order = observed(mlp(2, 4, 1), regression_batches(8), mode="fixed_tail", tail=3)
    report = order.report()
    assert (report.num_stored, report.stored_bytes) == (3, 3 * (4 + 2) * 8)
    order.parameters()
    assert order.report().backward_passes == 5 + 3


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("horizon", [3, 100])
def test_tail_after_an_average_of_forward_iterates(name, horizon):
    model, batches = mlp(2, 4, 1), regression_batches(8)
    start = copy.deepcopy(model)
    order = BackwardSGD(model, MSE, OPTIMIZERS[name](model.parameters()), mode="fixed_tail", tail=2,
                        head_horizon=horizon)
    optimizer, average = OPTIMIZERS[name](start.parameters()), None
    for count, batch in enumerate(batches, -1):
        order.observe(batch)
        if count > 0:
            optimizer.zero_grad()
            MSE(start(batch[0]), batch[1]).backward()
            optimizer.step()
            average = here(start) if average is None else average.lerp(here(start), max(1 / horizon, 1 / count))
    assert torch.equal(here(model), here(start))
    nn.utils.vector_to_parameters(average, start.parameters())
    for inputs, targets in batches[1::-1]:  # the tail, with the optimizer's state of the newest iterate
        optimizer.zero_grad()
        MSE(start(inputs), targets).backward()
        optimizer.step()
    assert gap(order.parameters(), dict(start.named_parameters())) < 1e-14


def test_scheduled_learning_rates_belong_to_their_step():
    model, batches = mlp(2, 4, 1), regression_batches(5)
    optimizer = SGD(model.parameters(), lr=0.2)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    order = BackwardSGD(model, MSE, optimizer)
    for batch in batches:
        order.observe(batch)
        optimizer.step()  # no gradient: nothing moves, but the scheduler wants it before its own step
        scheduler.step()
    expected = {name: p.detach() for name, p in model.named_parameters()}
    for step in reversed(range(5)):
        moved = copy.deepcopy(model)
        moved.load_state_dict(expected)
        expected = twin(moved, MSE, [batches[step]], lambda p, lr=0.2 * 0.5**step: SGD(p, lr=lr))
    assert gap(order.parameters(), expected) < 1e-14
    assert optimizer.param_groups[0]["lr"] == 0.2 * 0.5**5
    order.finish()
    assert optimizer.param_groups[0]["lr"] == 0.2 * 0.5**5


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_window_of_one_is_the_ordinary_order(name):
    model, batches = mlp(2, 4, 1), regression_batches(6)
    expected = twin(model, MSE, batches, OPTIMIZERS[name])
    order = observed(model, batches, OPTIMIZERS[name], window=1)
    assert gap(order.parameters(), expected) < 1e-14
    assert order.report().backward_passes == order.report().num_resets == 6


@pytest.mark.parametrize("hold", [False, True])
def test_windows_start_from_the_end_of_the_last_one(hold):
    model, batches = mlp(2, 4, 1), regression_batches(8)
    start = copy.deepcopy(model)
    order = observed(model, batches, OPTIMIZERS["momentum"], window=3, hold=hold)
    applied = batches[:3][::-1] + batches[3:6][::-1] + ([] if hold else batches[6:][::-1])
    assert gap(order.parameters(), twin(start, MSE, applied, OPTIMIZERS["momentum"])) < 1e-14
    assert order.report().origin_step == 6
    with pytest.raises(MisuseError, match=r"6\.\.8"):
        order.parameters_at(5)


def test_fresh_state_at_each_origin():
    model, batches = mlp(2, 4, 1), regression_batches(6)
    middle = copy.deepcopy(model)
    middle.load_state_dict(twin(model, MSE, batches[:3][::-1], OPTIMIZERS["adam"]))
    order = observed(model, batches, OPTIMIZERS["adam"], window=3, fresh_state=True)
    assert gap(order.parameters(), twin(middle, MSE, batches[3:][::-1], OPTIMIZERS["adam"])) < 1e-14


@pytest.mark.parametrize("is_better", [True, False])
def test_reset_only_when_the_new_trajectory_is_better(is_better):
    model, batches = mlp(2, 4, 1), regression_batches(6)
    start = copy.deepcopy(model)
    old = twin(start, MSE, batches[::-1], OPTIMIZERS["sgd"])
    new = twin(start, MSE, batches[:3][::-1] + batches[3:][::-1], OPTIMIZERS["sgd"])
    target = flat(new if is_better else old)
    order = observed(model, batches, window=3, reset="better", score=lambda m: float((here(m) - target).norm()))
    assert order.report().num_resets == int(is_better)
    assert order.report().origin_step == (3 if is_better else 0)
    assert gap(order.parameters(), new if is_better else old) < 1e-14
    held = observed(copy.deepcopy(start), batches, window=3, hold=True, reset="better",
                    score=lambda m: float((here(m) - target).norm()))
    assert gap(held.parameters(), new if is_better else old) < 1e-14


@pytest.mark.parametrize("name", ["sgd", "momentum"])
def test_backward_phase_between_forward_ones(name):
    model, batches = mlp(2, 4, 1), regression_batches(9)
    start = copy.deepcopy(model)
    order = BackwardSGD(model, MSE, OPTIMIZERS[name](model.parameters()), start=3, stop=6)
    phases = []
    for k, batch in enumerate(batches, 1):
        loss = order.observe(batch)
        phases.append(order.phase)
        assert (loss is None) == (order.phase == "backward")
        applied = batches[: min(k, 3)] + batches[3 : min(k, 6)][::-1] + batches[6:k]
        assert gap(order.parameters(), twin(start, MSE, applied, OPTIMIZERS[name])) < 1e-14
    assert phases == ["forward"] * 3 + ["backward"] * 3 + ["forward"] * 3
    assert order.report().num_stored == 0
    with pytest.raises(MisuseError, match="no backward trajectory"):
        order.parameters_at(5)


def test_batches_are_made_again_with_the_same_randomness():
    model, x, noises = mlp(2, 4, 1), torch.rand(10, 2, dtype=torch.float64), {}

    def make_batch(index):
        noise = torch.randn(2, dtype=torch.float64)
        noises.setdefault(int(index), []).append(noise)
        return (x[index] + noise).unsqueeze(0), x[index].sum().reshape(1, 1)

    order = observed(model, torch.arange(5), make_batch=make_batch, seed=7)
    assert gap(order.parameters(), order.parameters()) == 0
    assert all(len(drawn) >= 2 and all(torch.equal(noise, drawn[0]) for noise in drawn) for drawn in noises.values())
    assert len({float(drawn[0][0]) for drawn in noises.values()}) == 5
    assert order.report().stored_bytes == 5 * 8


def test_looks_at_several_steps_are_computed_together():
    model, batches = mlp(2, 4, 1), regression_batches(7)
    order = observed(model, batches)
    results = order.evaluate_at([7, 2, 4], here)
    assert list(results) == [2, 4, 7]
    assert order.report().backward_passes == 13 and order.report().engine.startswith("fused")
    for k, theta in results.items():
        assert torch.equal(theta, flat(order.parameters_at(k)))


def test_looking_in_eval_mode_does_not_change_the_maps():
    model = nn.Sequential(nn.Linear(2, 8), nn.Dropout(0.5), nn.Linear(8, 1)).double()
    order = observed(model, regression_batches(4))
    expected = order.parameters()
    model.eval()
    with order.applied() as shown:
        assert shown is model and not model.training
        assert torch.equal(here(model), flat(expected))
    assert not any(module.training for module in model.modules())
    assert torch.allclose(order.evaluate_at([3, 4], here)[4], flat(expected), rtol=0, atol=1e-14)


def norm_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)).double()


@pytest.mark.parametrize("engine", ["vmap", "loop"])
def test_statistics_are_estimated_anew_where_one_looks(engine):
    model, batches, loss = norm_net(), class_batches(6, batch_size=8), nn.CrossEntropyLoss()
    order = observed(model, batches, loss=loss, engine=engine, statistics_batches=4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    expected = twin(model, loss, batches[::-1], OPTIMIZERS["sgd"])
    model.eval()
    with order.applied():
        assert gap(dict(model.named_parameters()), expected) < 1e-13
        hidden = [model[0](x) for x, _ in batches[2:]]
        torch.testing.assert_close(model[1].running_mean, torch.stack([h.mean(0) for h in hidden]).mean(0))
        torch.testing.assert_close(model[1].running_var, torch.stack([h.var(0) for h in hidden]).mean(0))
        assert model[1].momentum == 0.1 and not model[1].training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert order.report().forward_passes == 6 + 4 and order.report().backward_passes == 6


def test_frozen_statistics_stay():
    model, batches, loss = norm_net(), class_batches(4, batch_size=8), nn.CrossEntropyLoss()
    model[1].eval()
    model[1].running_mean.fill_(0.3)
    order = observed(model, batches, loss=loss)
    with order.applied():
        assert bool((model[1].running_mean == 0.3).all())
    assert gap(order.parameters(), twin(model, loss, batches[::-1], OPTIMIZERS["sgd"])) < 1e-14


class Fading:
    """A part with state: the n-th step of a trajectory sees its gradient divided by n."""

    def __init__(self, model):
        self.count = 0
        parameters = list(model.parameters())
        for p in parameters:
            p.register_hook(lambda g, is_first=p is parameters[-1]: self._fade(g, is_first))

    def _fade(self, gradient, is_first):
        self.count += int(is_first)  # the last layer's bias comes first in the backward pass
        return gradient / self.count

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


def test_stateful_parts_start_fresh_and_follow_the_order():
    model, batches = mlp(2, 4, 1), regression_batches(4)
    start = copy.deepcopy(model)
    order = observed(model, batches, stateful=[Fading(model)])
    expected = {name: p.detach() for name, p in start.named_parameters()}
    for n, batch in enumerate(batches[::-1], 1):
        start.load_state_dict(expected)
        expected = twin(start, MSE, [batch], lambda p, n=n: SGD(p, lr=0.1 / n))
    assert gap(order.parameters(), expected) < 1e-14
    assert gap(order.parameters(), expected) < 1e-14
    assert "stateful" in order.report().engine


def test_finish_leaves_the_iterate_in_the_model():
    model, batches = norm_net(), class_batches(5, batch_size=8)
    order = observed(model, batches, loss=nn.CrossEntropyLoss())
    with order.applied():
        shown = {name: value.clone() for name, value in model.state_dict().items()}
    order.finish()
    assert all(torch.allclose(value, shown[name]) for name, value in model.state_dict().items())
    order.observe(batches[0])
    assert order.report().origin_step == 5


@pytest.mark.parametrize("options", [
    {}, {"mode": "fixed_tail", "tail": 2}, {"mode": "fixed_tail", "tail": 2, "head_horizon": 2},
    {"start": 2, "stop": 6}, {"window": 2, "hold": True, "fresh_state": True},
    {"window": 2, "reset": "better", "score": lambda m: float(here(m).norm())},
])
def test_resume_is_exact_to_the_bit(options):
    batches = class_batches(9, batch_size=8)

    def begin():
        model = norm_net()
        optimizer = Adam(model.parameters(), lr=0.05)
        return model, optimizer, BackwardSGD(model, nn.CrossEntropyLoss(), optimizer, **options)

    model, optimizer, order = begin()
    for batch in batches[:5]:
        order.observe(batch)
    order.parameters()
    file = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict(), order.state_dict()], file)
    file.seek(0)
    resumed = begin()
    for part, state in zip(resumed, torch.load(file, weights_only=True)):
        part.load_state_dict(state)
    for batch in batches[5:]:
        order.observe(batch)
        resumed[2].observe(batch)
    assert torch.equal(flat(order.parameters()), flat(resumed[2].parameters()))
    assert torch.equal(here(model), here(resumed[0]))
    assert order.report() == resumed[2].report()


def test_foreign_state_is_refused():
    order = observed(mlp(2, 4, 1), [])
    with pytest.raises(RunError, match="version"):
        order.load_state_dict({"version": 99})


def test_steps_that_are_not_finite_are_refused():
    model = mlp(2, 4, 1)
    before = here(model)
    order = BackwardSGD(model, MSE, SGD(model.parameters(), lr=0.1), start=3)
    x, y = regression_batches(1)[0]
    with pytest.raises(NonFiniteError, match="not applied"):
        order.observe((x, y * float("inf")))
    assert torch.equal(here(model), before)


@pytest.mark.parametrize("options", [
    {"mode": "reverse"}, {"mode": "fixed_tail", "tail": 0}, {"mode": "fixed_tail", "head_horizon": 0},
    {"head_horizon": 5}, {"window": 0}, {"reset": "never"}, {"hold": True},
    {"reset": "better", "window": 3}, {"start": 5, "stop": 5}, {"engine": "quantum"},
    {"reset": "better", "window": 3, "score": lambda m: 0.0, "mode": "fixed_tail"},
])
def test_contradictions_are_refused(options):
    with pytest.raises(MisuseError):
        observed(mlp(2, 4, 1), [], **options)


def test_fixed_tail_cannot_look_back():
    order = observed(mlp(2, 4, 1), regression_batches(6), mode="fixed_tail", tail=2)
    with pytest.raises(MisuseError, match="6 only"):
        order.parameters_at(4)
