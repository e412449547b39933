"""Natural gradient in layers: against slow twins, and working with everything torch does to a model."""

import copy
import logging

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hemstitch.curvature import OnlineNaturalGradient, simple_natural_gradient
from hemstitch.errors import ConfigError, MisuseError
from hemstitch.models import PerElementScale, ProjectedLstm
from hemstitch.optim import SGD, NaturalGradient, component_groups, plain_gradients
from hemstitch.testing import OptimizerContract, tiny_convnet, tiny_mlp


class TestNaturalSGD(OptimizerContract):
    def make(self, params, **options):
        return SGD(params, **{"lr": 0.2} | options)

    def build(self, problem):
        natural = NaturalGradient(problem.model, update_period=2, loss_reduction="mean")
        optimizer = self.make(component_groups(problem.model), momentum=0.5)
        optimizer.natural = natural
        return optimizer

    def parts(self, problem, optimizer):
        return super().parts(problem, optimizer) | {"natural": optimizer.natural}


class TestNaturalAdamW(TestNaturalSGD):
    def make(self, params, **options):
        return torch.optim.AdamW(params, **{"lr": 0.01} | {k: v for k, v in options.items() if k != "momentum"})


# -- layers against slow twins ---------------------------------------------------------------------------------

def rows_of_linear(layer, x, dy):
    return x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])


def rows_of_convolution(layer, x, dy):
    """im2col by torch's own unfold."""
    if layer.padding_mode != "zeros":
        x, padding = F.pad(x, layer._reversed_padding_repeated_twice, layer.padding_mode), (0, 0)
    else:
        padding = layer.padding
    size, stride, dilation = layer.kernel_size, layer.stride, layer.dilation
    if x.dim() == 3:
        x, size, padding, stride, dilation = x[:, :, None], (1, *size), (0, *padding), (1, *stride), (1, *dilation)
    columns = F.unfold(x, size, dilation, padding, stride)
    return columns.transpose(1, 2).flatten(0, 1), dy.flatten(2).transpose(1, 2).flatten(0, 1)


LAYERS = {
    "linear": (lambda: nn.Linear(6, 5), (12, 6), rows_of_linear),
    "no bias": (lambda: nn.Linear(6, 5, bias=False), (12, 6), rows_of_linear),
    "in time": (lambda: nn.Linear(6, 5), (3, 4, 6), rows_of_linear),
    "conv1d": (lambda: nn.Conv1d(3, 4, 3, dilation=2), (2, 3, 11), rows_of_convolution),
    "conv1d stride": (lambda: nn.Conv1d(3, 4, 2, stride=2, padding=1, bias=False), (2, 3, 9), rows_of_convolution),
    "conv2d": (lambda: nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=(1, 0)), (3, 2, 7, 5), rows_of_convolution),
    "conv2d circular": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (2, 2, 4, 4),
                        rows_of_convolution),
}


def twins(build):
    """The same layer twice, the second natural; float64."""
    torch.manual_seed(0)
    plain = build().double()
    layer = copy.deepcopy(plain)
    return plain, layer, NaturalGradient(layer, update_period=2)


@pytest.mark.parametrize("case", LAYERS)
def test_gradient_is_the_product_of_preconditioned_rows(case):
    build, shape, rows_of = LAYERS[case]
    plain, layer, natural = twins(build)
    sides = natural.layers[""].sides
    fisher_in, fisher_out = (OnlineNaturalGradient(rank=sides[s].rank, update_period=2) for s in ("in", "out"))
    for _ in range(4):
        x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        expected_y, y = plain(x), layer(x)
        torch.testing.assert_close(y, expected_y)
        dy = torch.randn_like(y)
        layer.zero_grad()
        y.backward(dy)
        torch.testing.assert_close(x.grad, torch.autograd.grad(expected_y, x, dy)[0])  # plain: not preconditioned
        inputs, derivatives = rows_of(plain, x.detach(), dy)
        if plain.bias is not None:
            inputs = torch.cat([inputs, inputs.new_ones(len(inputs), 1)], 1)
        (x_hat, s_in), (y_hat, s_out) = fisher_in.precondition(inputs), fisher_out.precondition(derivatives)
        product = s_in * s_out * y_hat.T @ x_hat
        weight = product if plain.bias is None else product[:, :-1]
        torch.testing.assert_close(layer.weight.grad, weight.reshape(layer.weight.shape))
        if plain.bias is not None:
            torch.testing.assert_close(layer.bias.grad, product[:, -1])


def test_per_element_scale():
    torch.manual_seed(0)
    layer = PerElementScale(6).double()
    natural, fisher = NaturalGradient(layer), OnlineNaturalGradient(rank=3, update_period=10)
    assert natural.layers[""].sides["out"].update_period == 10
    for _ in range(3):
        x, dy = torch.randn(2, 8, 6, dtype=torch.float64).unbind()
        layer.zero_grad()
        layer(x).backward(dy)
        rows, scale = fisher.precondition(x * dy)
        torch.testing.assert_close(layer.weight.grad, scale * rows.sum(0))


def test_simple_method():
    torch.manual_seed(0)
    layer = nn.Linear(6, 5).double()
    NaturalGradient(layer, method="simple", alpha=2.0)
    x, dy = torch.randn(12, 6, dtype=torch.float64), torch.randn(12, 5, dtype=torch.float64)
    layer(x).backward(dy)
    x_hat = simple_natural_gradient(torch.cat([x, x.new_ones(12, 1)], 1), 2.0)
    product = simple_natural_gradient(dy, 2.0).T @ x_hat
    torch.testing.assert_close(torch.cat([layer.weight.grad, layer.bias.grad[:, None]], 1), product)


def test_recurrent_layer_is_preconditioned_once_over_all_steps(monkeypatch):
    torch.manual_seed(0)
    lstm = ProjectedLstm(4, 5, 3, truncation=None).double()
    natural = NaturalGradient(lstm)
    assert sorted(natural.layers) == ["gates", "peepholes", "projection"]
    seen = []
    learn = OnlineNaturalGradient._learn
    monkeypatch.setattr(OnlineNaturalGradient, "_learn",
                        lambda self, rows, *rest: seen.append(tuple(rows.shape)) or learn(self, rows, *rest))
    outputs, _ = lstm(torch.randn(2, 7, 4, dtype=torch.float64))
    outputs.sum().backward()
    assert sorted(seen) == sorted([(14, 8), (14, 20), (14, 5), (14, 3), (14, 15)])  # 2 sequences x 7 steps
    with plain_gradients(lstm):
        natural_gradient = lstm.gates.weight.grad.clone()
        lstm.zero_grad()
        lstm(torch.randn(2, 7, 4, dtype=torch.float64))[0].sum().backward()
    assert not torch.allclose(lstm.gates.weight.grad, natural_gradient)


def test_ranks_follow_the_reference_rule():
    net = nn.Sequential(nn.Linear(100, 300), nn.Linear(30, 9), nn.Conv2d(8, 200, 5), nn.Conv1d(10, 8, 3))
    layers = NaturalGradient(net).layers
    ranks = {name: tuple(side.rank for side in rule.sides.values()) for name, rule in layers.items()}
    assert ranks == {"0": (20, 80), "1": (15, 5), "2": (80, 80), "3": (15, 4)}


def test_large_smoothing_gives_the_plain_gradient():
    plain, layer, natural = twins(lambda: nn.Linear(6, 5))
    natural.detach()
    NaturalGradient(layer, alpha=1e12)
    x, dy = torch.randn(12, 6, dtype=torch.float64), torch.randn(12, 5, dtype=torch.float64)
    plain(x).backward(dy)
    layer(x).backward(dy)
    torch.testing.assert_close(layer.weight.grad, plain.weight.grad)


# -- scale of the loss -----------------------------------------------------------------------------------------

def gradients(problem, index=0, factor=1.0):
    problem.model.zero_grad()
    (factor * problem.evaluate(index)).backward()
    return [p.grad.clone() for p in problem.model.parameters()]


def test_mean_and_sum_give_the_same_direction():
    mean, total = (tiny_mlp(reduction=r, dtype=torch.float64) for r in ("mean", "sum"))
    NaturalGradient(mean.model, loss_reduction="mean")
    NaturalGradient(total.model, loss_reduction="sum")
    for index in range(12):
        for a, b in zip(gradients(mean, index), gradients(total, index)):
            torch.testing.assert_close(16 * a, b)


def test_saying_sum_of_a_mean_all_but_switches_it_off():
    """Why loss_reduction exists: in a loss that is divided by a million, the derivatives drown in the floor epsilon."""
    honest, wrong = tiny_mlp(dtype=torch.float64), tiny_mlp(dtype=torch.float64)
    natural, misled = NaturalGradient(honest.model), NaturalGradient(wrong.model)
    for index in range(12):
        gradients(honest, index)
        gradients(wrong, index, factor=1e-6)
    shape = lambda natural: natural.report()["2"]["out"].effective_rank
    assert shape(misled) > 1.2 * shape(natural)


def test_grad_scaler_is_undone_in_the_estimates():
    plain, scaled = tiny_mlp(dtype=torch.float64), tiny_mlp(dtype=torch.float64)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    scaler.scale(torch.ones(()))  # the scale exists from the first use
    natural, other = NaturalGradient(plain.model), NaturalGradient(scaled.model, grad_scaler=scaler)
    for index in range(6):
        expected = gradients(plain, index)
        for a, b in zip(gradients(scaled, index, factor=2.0**12), expected):
            torch.testing.assert_close(a, 2.0**12 * b)
    torch.testing.assert_close(other.state_dict()["layers"]["0"]["out"]["factor"],
                               natural.state_dict()["layers"]["0"]["out"]["factor"])


def test_masked_rows_are_as_if_absent():
    torch.manual_seed(0)
    padded, packed = nn.Linear(4, 3).double(), nn.Linear(4, 3).double()
    packed.load_state_dict(padded.state_dict())
    natural, other = (NaturalGradient(m, loss_reduction="mean") for m in (padded, packed))
    mask = torch.arange(6) < torch.tensor([[6], [4], [1]])
    for _ in range(3):
        x, target = torch.randn(3, 6, 4, dtype=torch.float64), torch.randn(3, 6, 3, dtype=torch.float64)
        for layer, inputs, targets in ((padded, x, target), (packed, x[mask], target[mask])):
            layer.zero_grad()
            with natural.masked(mask):
                outputs = layer(inputs)
            outputs, targets = (t[mask] if t.dim() == 3 else t for t in (outputs, targets))
            F.mse_loss(outputs, targets).backward()
        torch.testing.assert_close(padded.weight.grad, packed.weight.grad)
    torch.testing.assert_close(natural.state_dict()["layers"][""], other.state_dict()["layers"][""])


def test_mask_of_a_convolution():
    """A window of one frame is a linear layer."""
    torch.manual_seed(0)
    linear, convolution = nn.Linear(4, 3).double(), nn.Conv1d(4, 3, 1).double()
    convolution.load_state_dict({"weight": linear.weight[:, :, None], "bias": linear.bias})
    mask = torch.arange(6) < torch.tensor([[6], [4], [1]])
    naturals = [NaturalGradient(m) for m in (linear, convolution)]
    for _ in range(3):
        x, dy = torch.randn(3, 6, 4, dtype=torch.float64), torch.randn(3, 6, 3, dtype=torch.float64)
        for layer in (linear, convolution):
            layer.zero_grad()
        with naturals[0].masked(mask), naturals[1].masked(mask):
            linear(x).backward(dy)
            convolution(x.transpose(1, 2)).backward(dy.transpose(1, 2))
        torch.testing.assert_close(convolution.weight.grad[:, :, 0], linear.weight.grad)
        torch.testing.assert_close(convolution.bias.grad, linear.bias.grad)


def test_mask_that_does_not_fit_is_refused():
    net = nn.Conv1d(2, 3, 3)
    natural = NaturalGradient(net)
    with pytest.raises(MisuseError, match="equal length"), natural.masked(torch.ones(2, 9)):
        net(torch.randn(2, 2, 9))


def test_mask_with_recurrent_layer_is_refused():
    lstm = ProjectedLstm(4, 5, 3)
    natural = NaturalGradient(lstm)
    with pytest.raises(MisuseError, match="equal length"), natural.masked(torch.ones(2, 7)):
        lstm(torch.randn(2, 7, 4))[0].sum().backward()


# -- with the rest of torch ------------------------------------------------------------------------------------

def test_model_keeps_its_names_and_detach_gives_the_plain_gradient_back():
    problem = tiny_mlp()
    names, expected = list(problem.model.state_dict()), gradients(problem)
    natural = NaturalGradient(problem.model)
    assert list(problem.model.state_dict()) == names
    assert not torch.allclose(gradients(problem)[0], expected[0])
    natural.detach()
    for a, b in zip(gradients(problem), expected):
        assert torch.equal(a, b)


def test_accumulation_adds_natural_gradients():
    one, two = tiny_mlp(), tiny_mlp()
    for problem in (one, two):
        NaturalGradient(problem.model)
    first, second = gradients(one, 0), gradients(one, 1)
    two.evaluate(0).backward()
    two.evaluate(1).backward()
    for a, b, c in zip(first, second, two.model.parameters()):
        torch.testing.assert_close(a + b, c.grad)


def test_frozen_estimates_do_not_learn():
    problem = tiny_mlp()
    natural = NaturalGradient(problem.model)
    gradients(problem)
    natural.freeze()
    before = natural.state_dict()
    gradients(problem, 1)
    natural.freeze(False)
    torch.testing.assert_close(natural.state_dict(), before, rtol=0, atol=0)
    gradients(problem, 1)
    assert not torch.equal(natural.state_dict()["layers"]["0"]["in"]["factor"], before["layers"]["0"]["in"]["factor"])


def test_autocast_keeps_float32_state():
    problem = tiny_mlp()
    natural = NaturalGradient(problem.model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = problem.model(problem.batches[0][0])
        assert outputs.dtype == torch.bfloat16
        problem.loss(outputs, problem.batches[0][1]).backward()
    state = natural.state_dict()["layers"]["2"]["out"]
    assert state["factor"].dtype == torch.float32 and problem.model[2].weight.grad.dtype == torch.float32


def test_not_a_number_passes_to_the_gradient_but_not_to_the_state():
    problem = tiny_mlp()
    natural = NaturalGradient(problem.model)
    gradients(problem)
    assert torch.isnan(gradients(problem, factor=float("nan"))[0]).all()
    assert all(torch.isfinite(side["factor"]).all() for layer in natural.state_dict()["layers"].values()
               for side in layer.values())
    assert natural.report()["0"]["out"].num_refused == 1
    assert all(torch.isfinite(g).all() for g in gradients(problem))


def test_copies_are_independent():
    problem = tiny_mlp()
    natural = NaturalGradient(problem.model)
    gradients(problem)
    model, copied = copy.deepcopy((problem.model, natural))
    assert model[0].forward.layer is model[0] and copied.layers["0"].layer is model[0]
    before = copied.state_dict()
    gradients(problem, 1)
    torch.testing.assert_close(copied.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_model_has_the_same_gradients(backend):
    eager, compiled = tiny_mlp(), tiny_mlp()
    for problem in (eager, compiled):
        NaturalGradient(problem.model)
    model = torch.compile(compiled.model, backend=backend)
    for index in range(3):
        expected = gradients(eager, index)
        compiled.model.zero_grad()
        inputs, targets = compiled.batches[index]
        compiled.loss(model(inputs), targets).backward()
        for a, b in zip(compiled.model.parameters(), expected):
            torch.testing.assert_close(a.grad, b)


def test_activation_checkpointing():
    problem, checkpointed = tiny_mlp(), tiny_mlp()
    for p in (problem, checkpointed):
        NaturalGradient(p.model, loss_reduction="mean")
    expected = gradients(problem)
    inputs, targets = checkpointed.batches[0]
    outputs = torch.utils.checkpoint.checkpoint(checkpointed.model, inputs, use_reentrant=False)
    checkpointed.loss(outputs, targets).backward()
    for a, b in zip(checkpointed.model.parameters(), expected):
        torch.testing.assert_close(a.grad, b)


def test_curvature_runs_under_plain_gradients():
    problem = tiny_mlp(dtype=torch.float64)
    expected = torch.autograd.functional.hvp(lambda w: hessian_loss(problem, w), problem.model[0].weight.detach(),
                                             torch.ones(7, 5, dtype=torch.float64))[1]
    NaturalGradient(problem.model)
    with plain_gradients(problem.model):
        got = torch.autograd.functional.hvp(lambda w: hessian_loss(problem, w), problem.model[0].weight.detach(),
                                            torch.ones(7, 5, dtype=torch.float64))[1]
    torch.testing.assert_close(got, expected)
    with pytest.raises(MisuseError, match="plain_gradients"):
        torch.autograd.grad(problem.evaluate(), list(problem.model.parameters()), create_graph=True)
    with pytest.raises(MisuseError, match="plain_gradients"):
        torch.func.vmap(problem.model)(torch.randn(4, 3, 5, dtype=torch.float64))


def hessian_loss(problem, weight):
    inputs, targets = problem.batches[0]
    outputs = torch.func.functional_call(problem.model, {"0.weight": weight}, (inputs,))
    return problem.loss(outputs, targets)


# -- choice of layers ------------------------------------------------------------------------------------------

def test_other_parameters_stay_plain_and_are_named_once(caplog):
    problem = tiny_convnet()
    with caplog.at_level(logging.INFO, "hemstitch"):
        natural = NaturalGradient(problem.model)
    assert natural.plain_parameters == ["1.weight", "1.bias"] and "plain gradient for 1.weight, 1.bias" in caplog.text
    plain = tiny_convnet()
    torch.testing.assert_close(gradients(problem)[3], gradients(plain)[3])


def test_grouped_and_transposed_convolutions_stay_plain():
    net = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.ConvTranspose2d(4, 4, 3), nn.Linear(3, 3))
    assert list(NaturalGradient(net).layers) == ["2"]


def test_overrides():
    net = nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 20), nn.Linear(20, 20))
    natural = NaturalGradient(net, overrides={".": {"rank_in": 3}, "1": {"method": "simple"}, "2": None})
    assert list(natural.layers) == ["0", "1"] and natural.layers["0"].sides["in"].rank == 3
    assert natural.layers["1"].sides["in"].report() is None
    assert natural.plain_parameters == ["2.weight", "2.bias"]


@pytest.mark.parametrize("options, message", [
    ({"loss_reduction": "none"}, "loss_reduction"), ({"rank_in": 0}, "rank"), ({"rank_out": "all"}, "rank_out"),
    ({"method": "exact"}, "method"), ({"overrides": {"output": None}}, "matches no layer"),
    ({"method": "simple", "overrides": {"0": {"method": "online"}}}, "needs rows as a matrix"),
    ({"overrides": {"0": {"rank": 3}}}, "unknown option rank"), ({"overrides": {"0": {"method": "x"}}}, "method")])
def test_bad_options_are_refused(options, message):
    net = nn.Sequential(*tiny_mlp().model, nn.Conv2d(2, 2, 2))
    with pytest.raises(ConfigError, match=message):
        NaturalGradient(net, **options)
    NaturalGradient(net)  # nothing was left behind


def test_misuse_is_refused():
    net = tiny_mlp().model
    natural = NaturalGradient(net)
    with pytest.raises(MisuseError, match="detach"):
        NaturalGradient(net)
    with pytest.raises(MisuseError, match="batch axis"):
        convolution = nn.Conv1d(2, 2, 2)
        NaturalGradient(convolution)
        convolution(torch.randn(2, 5))
    with pytest.raises(MisuseError, match="at least one"):
        NaturalGradient(nn.Embedding(3, 3))
    with pytest.raises(ConfigError, match="the saved state is for"):
        natural.load_state_dict(NaturalGradient(nn.Linear(2, 2)).state_dict())
