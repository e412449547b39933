"""Backward iterates: golden numbers, the slow twin, and that every engine gives the same."""

import pytest
import torch
from order_problems import backward_twin, class_batches, flat, gap, here, mlp, regression_batches, twin
from torch import nn

from hemstitch.errors import MisuseError, NonFiniteError
from hemstitch.order import BackwardSGD, Objective, backward_iterates, fixed_tail_iterates, forward_iterates
from hemstitch.order._maps import Maps

ENGINES = ["fused", "vmap", "loop"]
MSE = nn.MSELoss()


def golden_gap(data, prefix, iterates):
    return max(float((p - torch.from_numpy(data[f"{prefix}_{k}_{i}"])).abs().max())
               for k, parameters in iterates.items() for i, p in enumerate(parameters.values()))


@pytest.mark.parametrize("engine", ENGINES)
def test_golden_backward(golden, engine):
    data, model, batches, lr = golden
    iterates = backward_iterates(model, MSE, batches, lr, [1, 2, 3, 10, 50, 200], engine=engine)
    assert golden_gap(data, "bwd", iterates) < 1e-10


def test_golden_forward(golden):
    data, model, batches, lr = golden
    assert golden_gap(data, "fwd", forward_iterates(model, MSE, batches, lr, [1, 2, 3, 10, 50, 200])) < 1e-10


class ResidualNet(nn.Module):
    """Not a chain of layers, with convolution and normalisation: what the fused engine refuses and vmap takes."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.again = nn.Conv2d(4, 4, 3, padding=1)
        self.out = nn.Linear(4, 3)

    def forward(self, x):
        h = self.norm(self.conv(x)).relu()
        return self.out((h + self.again(h)).mean((2, 3)))


def residual_net(dtype=torch.float64):
    torch.manual_seed(0)
    return ResidualNet().to(dtype)


CASES = {
    "tanh": (lambda: mlp(2, 7, 5, 1), MSE, lambda: regression_batches(9)),
    "batch of one": (lambda: mlp(2, 7, 1, activation=nn.ReLU), MSE, lambda: regression_batches(9, 1)),
    "no bias, nested, identity": (
        lambda: nn.Sequential(nn.Flatten(), nn.Sequential(nn.Linear(2, 4, bias=False), nn.Identity(), nn.Sigmoid()),
                              nn.Linear(4, 1)).double(), nn.functional.mse_loss, lambda: regression_batches(9)),
    "classes": (lambda: mlp(5, 6, 3), nn.CrossEntropyLoss(), lambda: class_batches(9)),
    "other loss": (lambda: mlp(5, 6, 3), nn.CrossEntropyLoss(label_smoothing=0.1), lambda: class_batches(9)),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("engine", ENGINES)
def test_engines_meet_the_twin(case, engine):
    make_model, loss, make_batches = CASES[case]
    model, batches = make_model(), make_batches()
    before = here(model)
    iterates = backward_iterates(model, loss, batches, 0.1, [0, 1, 4, 9], engine=engine)
    assert list(iterates) == [0, 1, 4, 9]
    assert max(gap(p, backward_twin(model, loss, batches, k, 0.1)) for k, p in iterates.items()) < 1e-13
    assert torch.equal(here(model), before)


def test_ignored_targets_do_not_count():
    model, loss = mlp(5, 6, 3), nn.CrossEntropyLoss()
    batches = class_batches(4)
    for _, targets in batches:
        targets[0] = loss.ignore_index
    ends = [backward_iterates(model, loss, batches, 0.1, engine=engine)[4] for engine in ENGINES]
    assert gap(ends[0], ends[2]) < 1e-14 and gap(ends[1], ends[2]) < 1e-14


@pytest.mark.parametrize("engine", ["vmap", "loop"])
def test_batch_norm_uses_batch_statistics_and_is_left_alone(engine):
    model, batches, loss = residual_net(), class_batches(5, shape=(1, 6, 6)), nn.CrossEntropyLoss()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    end = backward_iterates(model, loss, batches, 0.1, [2, 5], engine=engine)[5]
    assert gap(end, backward_twin(model, loss, batches, 5, 0.1)) < 1e-13
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_frozen_batch_norm_uses_its_running_statistics():
    model, batches, loss = residual_net().eval(), class_batches(5, shape=(1, 6, 6)), nn.CrossEntropyLoss()
    end = backward_iterates(model, loss, batches, 0.1, [2, 5], engine="vmap")[5]
    assert gap(end, backward_twin(model, loss, batches, 5, 0.1)) < 1e-13


def test_dropout_is_the_same_each_time_and_in_each_engine():
    model = nn.Sequential(nn.Linear(2, 20), nn.Dropout(0.5), nn.Linear(20, 1)).double()
    batches = regression_batches(6)
    ends = {engine: backward_iterates(model, MSE, batches, 0.1, [3, 6], engine=engine) for engine in ("vmap", "loop")}
    expected = twin(model, MSE, batches[::-1], lambda p: torch.optim.SGD(p, lr=0.1), seeds=list(range(6))[::-1])
    assert gap(ends["loop"][6], expected) < 1e-14
    assert gap(ends["vmap"][6], expected) < 1e-14 and gap(ends["vmap"][3], ends["loop"][3]) < 1e-14


@pytest.mark.parametrize("engine", ENGINES)
def test_frozen_parameters_stay(engine):
    model, batches = mlp(2, 4, 1), regression_batches(5)
    model[0].weight.requires_grad_(False)
    end = backward_iterates(model, MSE, batches, 0.1, [2, 5], engine=engine)[5]
    assert torch.equal(end["0.weight"], model[0].weight)
    assert gap(end, backward_twin(model, MSE, batches, 5, 0.1)) < 1e-14


@pytest.mark.parametrize("engine", ["fused", "vmap"])
@pytest.mark.parametrize("memory", [1, 3000, None])
def test_chunks_change_nothing(engine, memory):
    model, batches = mlp(2, 4, 1), regression_batches(12)
    at = list(range(13))
    iterates = backward_iterates(model, MSE, batches, 0.1, at, engine=engine, memory=memory)
    expected = backward_iterates(model, MSE, batches, 0.1, at, engine="loop")
    assert max(gap(iterates[k], expected[k]) for k in at) < 1e-14


def test_objective_takes_batches_of_any_shape():
    model, batches = mlp(2, 4, 1), regression_batches(5)
    objective = Objective(lambda model, batch: MSE(model(batch["x"]), batch["y"]))
    named = [{"x": x, "y": y, "id": "utterance"} for x, y in batches]
    for engine in ("vmap", "loop"):
        end = backward_iterates(model, objective, named, 0.1, [3, 5], engine=engine)[5]
        assert gap(end, backward_twin(model, MSE, batches, 5, 0.1)) < 1e-14


def test_gradients_and_randomness_are_left_alone():
    model, batches = mlp(2, 4, 1), regression_batches(3)
    MSE(model(batches[0][0]), batches[0][1]).backward()
    gradient, state = model[0].weight.grad.clone(), torch.get_rng_state()
    for engine in ENGINES:
        backward_iterates(model, MSE, batches, 0.1, [2, 3], engine=engine)
    assert torch.equal(model[0].weight.grad, gradient)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("tail", [1, 3, 20])
def test_fixed_tail_is_its_formula(tail):
    model, batches = mlp(2, 4, 1), regression_batches(10)
    iterates = fixed_tail_iterates(model, MSE, batches, 0.1, [2, 5, 10], tail=tail)
    for k, parameters in iterates.items():
        order = batches[tail:k] + batches[: min(tail, k)][::-1]
        assert gap(parameters, twin(model, MSE, order, lambda p: torch.optim.SGD(p, lr=0.1))) < 1e-14


def test_tail_after_an_average_is_that_of_the_training_loop():
    model, batches = mlp(2, 4, 1), regression_batches(10)
    iterates = fixed_tail_iterates(model, MSE, batches, 0.1, [2, 6, 10], tail=3, head_horizon=4)
    order = BackwardSGD(model, MSE, torch.optim.SGD(model.parameters(), lr=0.1), mode="fixed_tail", tail=3,
                        head_horizon=4)
    for step, batch in enumerate(batches, 1):
        order.observe(batch)
        if step in iterates:
            assert gap(iterates[step], order.parameters()) < 1e-14


class Tied(nn.Module):
    """One tensor in two modules."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(2, 2), nn.Linear(2, 2)
        self.down.weight = self.up.weight

    def forward(self, x):
        return self.down(self.up(x).tanh()).sum(1, keepdim=True)


def test_tied_weights_move_together():
    torch.manual_seed(0)
    model, batches = Tied().double(), regression_batches(4)
    end = backward_iterates(model, MSE, batches, 0.1, [3, 4], engine="vmap")[4]
    assert gap(end, backward_twin(model, MSE, batches, 4, 0.1)) < 1e-14
    chain = mlp(2, 2, 2, 1)
    chain[2].weight = chain[0].weight
    end = backward_iterates(chain, MSE, batches, 0.1, [3, 4])[4]
    assert gap(end, backward_twin(chain, MSE, batches, 4, 0.1)) < 1e-14


class CustomIdentity(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return g


class Custom(nn.Module):
    def forward(self, x):
        return CustomIdentity.apply(x)


def test_loop_serves_what_vmap_cannot_and_says_why():
    model, batches = nn.Sequential(nn.Linear(2, 3), Custom(), nn.Linear(3, 1)).double(), regression_batches(4)
    maps = Maps(model, Objective.of(MSE), torch.optim.SGD(model.parameters(), lr=0.1))
    updates, origin = [maps.update(batch, 0) for batch in batches], maps.snapshot()
    ends = dict(maps.descend(updates, [(origin, 2), (origin, 4)]))
    assert gap(ends[1].parameters, backward_twin(model, MSE, batches, 4, 0.1)) < 1e-14
    assert maps.engine_note.startswith("loop; not fused:") and "vmap" in maps.engine_note
    assert maps.passes.backward == 6


def test_loss_that_looks_at_its_value_goes_through_the_loop():
    model, batches = mlp(2, 3, 1), regression_batches(4)
    loss = lambda outputs, targets: MSE(outputs, targets) * (2.0 if float(outputs.detach().sum()) > 1e9 else 1.0)
    end = backward_iterates(model, loss, batches, 0.1, [3, 4])[4]
    assert gap(end, backward_twin(model, MSE, batches, 4, 0.1)) < 1e-14
    with pytest.raises(MisuseError, match="not vmap"):
        backward_iterates(model, loss, batches, 0.1, [3, 4], engine="vmap")


@pytest.mark.parametrize("spoil", ["hook", "forward", "shared", "dimensions", "activations", "activation first"])
def test_fused_refuses_what_it_would_get_wrong(spoil):
    model, batches = mlp(2, 2, 2, 1), regression_batches(4)
    if spoil == "hook":
        model[0].register_forward_hook(lambda module, args, output: output * 2)
    elif spoil == "forward":
        model[0].forward = lambda x: x
    elif spoil == "shared":
        model[2] = model[0]
    elif spoil == "activations":
        model.insert(1, nn.Sigmoid())
    elif spoil == "activation first":
        model = nn.Sequential(nn.Flatten(), nn.ReLU(), *model)
    else:
        batches = [(x.unsqueeze(1), y.unsqueeze(1)) for x, y in batches]
    with pytest.raises(MisuseError, match="not fused"):
        backward_iterates(model, MSE, batches, 0.1, engine="fused")
    before = [x.clone() for x, _ in batches]
    end = backward_iterates(model, MSE, batches, 0.1, [3, 4])[4]
    assert gap(end, backward_twin(model, MSE, batches, 4, 0.1)) < 1e-14
    assert all(torch.equal(x, kept) for (x, _), kept in zip(batches, before))


@pytest.mark.parametrize("wrong", [{"at": [6]}, {"at": [-1]}, {"lr": 0.0}, {"engine": "magic"}, {"memory": 0}])
def test_misuse_is_refused(wrong):
    with pytest.raises(MisuseError):
        backward_iterates(mlp(2, 4, 1), MSE, regression_batches(5), **{"lr": 0.1, "at": [5], **wrong})


def test_wrong_batches_are_named():
    with pytest.raises(MisuseError, match="Objective"):
        backward_iterates(mlp(2, 4, 1), MSE, [torch.ones(2, 2, dtype=torch.float64)] * 2, 0.1)


@pytest.mark.parametrize("engine", ENGINES)
def test_divergence_is_an_error_and_leaves_the_model(engine):
    model, batches = mlp(2, 8, 1, activation=nn.ReLU), regression_batches(60)
    before = here(model)
    with pytest.raises(NonFiniteError, match="diverge"):
        backward_iterates(model, MSE, [(x * 30, y * 900) for x, y in batches], 1e3, engine=engine)
    assert torch.equal(here(model), before)


def test_forward_and_backward_agree_on_one_batch_only():
    model, batches = mlp(2, 4, 1), regression_batches(2)
    forward = forward_iterates(model, MSE, batches, 0.1, [1, 2])
    backward = backward_iterates(model, MSE, batches, 0.1, [1, 2])
    assert torch.equal(flat(forward[1]), flat(backward[1]))
    assert gap(forward[2], backward[2]) > 1e-4
