"""Curvature operators against dense matrices, golden numbers, and each other."""

import numpy as np
import pytest
import torch
from curvature_cases import (
    CASES,
    SEED,
    Attention,
    Recurrent,
    Residual,
    dense_gauss_newton,
    dense_hessian,
    dense_jacobian,
    flat_params,
    forward,
    num_params,
)
from torch import nn
from torch.nn import functional as F

from hemstitch.curvature import FlatParameters, TargetLoss, fisher, gauss_newton, gauss_newton_of_outputs, hessian
from hemstitch.errors import MisuseError

TOLERANCE = 1e-10
BY_NAME = {case.name: case for case in CASES}
ENGINES = ["double_backward", "r_operator", "dual_forward"]


def build(make, case, **options):
    torch.manual_seed(SEED)
    return make(case.model, case.loss, case.inputs, case.targets, **options)


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_gauss_newton_is_the_dense_matrix_in_every_engine(case):
    expected = dense_gauss_newton(case)
    for engine in ENGINES:
        if engine != "r_operator" or case.chain:
            assert_close(build(gauss_newton, case, engine=engine).dense(), expected)


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_hessian_is_the_dense_matrix(case):
    expected = dense_hessian(case)
    assert_close(build(hessian, case).dense(), expected)
    assert_close(build(hessian, case, engine="dual_forward").dense(), expected)


@pytest.mark.parametrize("case", [case for case in CASES if not case.chain], ids=repr)
def test_r_operator_refuses_every_case_that_is_no_chain(case):
    with pytest.raises(MisuseError, match="engine 'r_operator'"):
        build(gauss_newton, case, engine="r_operator")


def test_dual_numbers_refuse_operations_without_forward_mode():
    model = Recurrent().float()
    with pytest.raises(MisuseError, match="'dual_forward' cannot differentiate"):
        operator = gauss_newton(model, nn.MSELoss(), torch.ones(1, 3, 5), torch.ones(1, 3, 4), engine="dual_forward")
        operator @ torch.ones(operator.shape[0])


@pytest.mark.parametrize("name", ["mlp", "conv", "lstm", "dropout", "batch norm"])
@pytest.mark.parametrize("make", [gauss_newton, hessian])
def test_matrix_products_and_repeated_products_are_the_vector_products_to_the_bit(name, make):
    case = BY_NAME[name]
    v = torch.randn(num_params(case), 3, dtype=torch.float64)
    operator = build(make, case)
    columns = torch.stack([operator @ column for column in v.T], dim=1)
    assert torch.equal(operator @ v, columns)
    assert torch.equal(operator @ v, build(make, case) @ v)
    assert (operator @ v[:, :0]).shape == (num_params(case), 0)


def test_golden_products(shared_golden):
    file = np.load(shared_golden / "mlp_ce_products.npz")
    golden = {key: torch.from_numpy(np.asarray(file[key])) for key in file}
    model = nn.Sequential(nn.Linear(20, 32), nn.Tanh(), nn.Linear(32, 24), nn.Sigmoid(), nn.Linear(24, 7)).double()
    model.load_state_dict({name: golden[f"param_{name}"] for name in model.state_dict()})
    args = (model, nn.CrossEntropyLoss(), golden["X"], golden["Y"])
    assert_close(args[1](model(golden["X"]), golden["Y"]).detach(), golden["loss"])
    for engine in ENGINES:
        assert_close(gauss_newton(*args, engine=engine) @ golden["V"], golden["ggn_V"])
        assert_close(fisher(*args, engine=engine) @ golden["V"], golden["ggn_V"])
    for engine in ["double_backward", "dual_forward"]:
        assert_close(hessian(*args, engine=engine) @ golden["V"], golden["hess_V"])
    assert_close(gauss_newton(*args, engine="r_operator").dense().diag(), golden["ggn_diag"])


@pytest.mark.parametrize("name", ["mlp", "relu", "regression", "logistic"])
def test_fisher_of_canonical_losses_is_the_gauss_newton_matrix(name):
    case = BY_NAME[name]
    assert_close(build(fisher, case).dense(), dense_gauss_newton(case))


def expected_outer_product(case, draw_probability):
    """sum over examples and over all label vectors y of P(y) g(y) g(y)', g from the summed loss of the example."""
    jacobian = dense_jacobian(case).view(len(case.inputs), -1, num_params(case))
    outputs = forward(case).detach()
    total = torch.zeros(num_params(case), num_params(case), dtype=torch.float64)
    for z, rows in zip(outputs, jacobian):
        for y, probability in draw_probability(z):
            leaf = z.clone().requires_grad_(True)
            loss = type(case.loss)(reduction="sum")(leaf[None], y[None])
            (slope,) = torch.autograd.grad(loss, leaf)
            g = rows.T @ slope
            total += probability * torch.outer(g, g)
    return total


def test_exact_fisher_is_the_expected_outer_product_of_gradients():
    case = BY_NAME["mlp"]
    draw = lambda z: [(torch.tensor(label), p) for label, p in enumerate(z.softmax(0))]
    assert_close(build(fisher, case).dense(), expected_outer_product(case, draw) / len(case.inputs))


def test_exact_fisher_of_probabilities_differs_from_gauss_newton():
    case = BY_NAME["bernoulli"]
    vectors = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 4)
    draw = lambda p: [(y, (p * y + (1 - p) * (1 - y)).prod()) for y in vectors]
    matrix = build(fisher, case).dense()
    assert_close(matrix, expected_outer_product(case, draw) / case.targets.numel())
    assert (matrix - build(gauss_newton, case).dense()).abs().max() > 1e-4


def test_fisher_of_log_probabilities_is_that_of_the_logits():
    case = BY_NAME["mlp"]
    model = nn.Sequential(case.model, nn.LogSoftmax(1))
    args = (model, nn.NLLLoss(), case.inputs, case.targets)
    assert_close(fisher(*args).dense(), build(fisher, case).dense())
    with pytest.raises(MisuseError, match="linear in the outputs"):
        gauss_newton(*args)
    log_softmaxed_outputs_may_stay = gauss_newton(model, nn.CrossEntropyLoss(), case.inputs, case.targets)
    assert_close(log_softmaxed_outputs_may_stay.dense(), build(fisher, case).dense())


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_empirical_fisher_is_the_outer_product_of_the_observed_gradients(reduction):
    case = BY_NAME["mlp"]
    loss = nn.CrossEntropyLoss(reduction=reduction)
    total = 0
    for x, y in zip(case.inputs, case.targets):
        grads = torch.autograd.grad(F.cross_entropy(case.model(x[None]), y[None]), list(case.model.parameters()))
        g = torch.cat([grad.flatten() for grad in grads])
        total = total + torch.outer(g, g) / (len(case.inputs) if reduction == "mean" else 1)
    assert_close(fisher(case.model, loss, case.inputs, case.targets, kind="empirical").dense(), total)


def test_products_of_outputs_already_computed():
    case = BY_NAME["mlp"]
    params = list(case.model.parameters())
    summed = TargetLoss(case.loss, case.targets, factor=len(case.inputs))
    for loss in (summed, lambda z: summed(z)):                          # analytic; by double backward
        operator = gauss_newton_of_outputs(case.model(case.inputs), loss, params)
        assert_close(operator.dense(), len(case.inputs) * dense_gauss_newton(case))


def test_a_hook_replaces_the_curvature_at_the_outputs():
    case = BY_NAME["mlp"]
    jacobian = dense_jacobian(case)
    operator = build(gauss_newton, case, loss_hvp=lambda outputs, v: 3 * v)
    assert_close(operator.dense(), 3 * jacobian.T @ jacobian)


def test_a_choice_of_parameters_takes_their_block():
    case = BY_NAME["mlp"]
    chosen = [case.model[4].weight, case.model[0].bias]
    sizes = [param.numel() for param in case.model.parameters()]
    places = dict(zip(map(id, case.model.parameters()), torch.arange(sum(sizes)).split(sizes)))
    index = torch.cat([places[id(param)] for param in chosen])
    for engine in ENGINES:
        operator = build(gauss_newton, case, params=chosen, engine=engine)
        assert_close(operator.dense(), dense_gauss_newton(case)[index][:, index])


@pytest.mark.parametrize("engine", ["double_backward", "dual_forward"])
def test_building_and_using_an_operator_leaves_no_trace(engine):
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 4)).double()
    if engine == "dual_forward":
        model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    case = BY_NAME["mlp"]
    operator = gauss_newton(model, case.loss, case.inputs, case.targets, engine=engine)
    operator @ torch.ones(operator.shape[0], dtype=torch.float64)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert all(param.grad is None for param in model.parameters())


def test_float32_and_bfloat16_parameters_agree_with_float64():
    case = BY_NAME["mlp"]
    expected = dense_gauss_newton(case).float()
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 0.05)):
        model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 4), nn.Sigmoid(), nn.Linear(4, 4)).to(dtype)
        FlatParameters(model.parameters()).write_(flat_params(case))
        operator = gauss_newton(model, case.loss, case.inputs.to(dtype), case.targets)
        assert operator.dtype == torch.float32
        assert (operator.dense() - expected).norm() <= tolerance * expected.norm()


def test_functional_losses_are_their_modules():
    case = BY_NAME["mlp"]
    operator = gauss_newton(case.model, F.cross_entropy, case.inputs, case.targets)
    assert_close(operator.dense(), dense_gauss_newton(case))


def test_stale_operator_is_refused():
    model = nn.Linear(3, 2)
    operator = gauss_newton(model, nn.MSELoss(), torch.ones(1, 3), torch.ones(1, 2))
    with torch.no_grad():
        model.weight.add_(1.0)
    with pytest.raises(MisuseError, match="build a new one"):
        operator @ torch.ones(8)


@pytest.mark.parametrize(("call", "message"), [
    (lambda m, x, y: gauss_newton(m, nn.CrossEntropyLoss(), x, y, engine="magic"), "unknown engine 'magic'"),
    (lambda m, x, y: hessian(m, nn.CrossEntropyLoss(), x, y, engine="r_operator"), "has no Hessian"),
    (lambda m, x, y: gauss_newton(m, nn.CrossEntropyLoss(reduction="none"), x, y), "reduction"),
    (lambda m, x, y: gauss_newton(m, nn.HuberLoss(reduction="none"), x, x), "scalar"),
    (lambda m, x, y: hessian(m, nn.CrossEntropyLoss(reduction="none"), x, y), "scalar"),
    (lambda m, x, y: fisher(m, nn.HuberLoss(), x, x), "no distribution is known"),
    (lambda m, x, y: fisher(m, nn.CrossEntropyLoss(), x, y, kind="odd"), "unknown kind"),
    (lambda m, x, y: fisher(m, lambda z, t: z.square().sum(), x, y, kind="empirical"), "reduction"),
    (lambda m, x, y: gauss_newton(m, nn.CrossEntropyLoss(), x, y) @ torch.ones(3), "expected a vector"),
    (lambda m, x, y: gauss_newton(nn.LSTM(5, 5), nn.MSELoss(), x, x), "must return one tensor"),
    (lambda m, x, y: gauss_newton(m.requires_grad_(False), nn.CrossEntropyLoss(), x, y), "requires a gradient"),
])
def test_misuse_is_refused_with_a_reason(call, message):
    with pytest.raises(MisuseError, match=message):
        call(nn.Linear(5, 5), torch.ones(2, 5), torch.tensor([0, 4]))


@pytest.mark.parametrize(("model", "inputs", "reason"), [
    (Residual(), torch.ones(2, 5), "is not its output"),
    (nn.Sequential(nn.Linear(5, 4), nn.ReLU(inplace=True), nn.Linear(4, 4)), torch.ones(2, 5), "in place"),
    (nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.Linear(4, 4)), torch.ones(2, 5), "LayerNorm is not among"),
    (Recurrent(), torch.ones(2, 3, 5), "LSTM"),
    (Attention(), torch.ones(2, 4, 5), "is not its output"),
    (nn.Softmax(1), torch.ones(2, 5), "requires a gradient"),
])
def test_r_operator_refuses_what_is_no_chain(model, inputs, reason):
    with pytest.raises(MisuseError, match=reason):
        gauss_newton(model, nn.MSELoss(), inputs, torch.zeros(1), engine="r_operator")


def test_r_operator_sees_through_reshapes_but_not_through_other_code():
    class Spliced(nn.Module):
        def __init__(self, between):
            super().__init__()
            self.first, self.last, self.between = nn.Linear(4, 4), nn.Linear(4, 2), between

        def forward(self, x):
            return self.last(self.between(self.first(x.flatten(1)))).unsqueeze(1)

    x = torch.ones(4, 2, 2)
    reshaped = Spliced(lambda h: h.view(2, 2, 4).flatten(0, 1))
    expected = gauss_newton(reshaped, nn.MSELoss(), x, torch.zeros(4, 1, 2)).dense()
    actual = gauss_newton(reshaped, nn.MSELoss(), x, torch.zeros(4, 1, 2), engine="r_operator").dense()
    torch.testing.assert_close(actual, expected)
    for between in (torch.relu, torch.t, lambda h: h.mul_(2.0), lambda h: h.detach()):
        with pytest.raises(MisuseError, match="is not its output"):
            gauss_newton(Spliced(between), nn.MSELoss(), x, torch.zeros(4, 1, 2), engine="r_operator")


def test_once_differentiable_layers_are_named():
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, grad):
            return 2 * grad

    class Doubled(nn.Module):
        def forward(self, x):
            return Once.apply(x)

    model = nn.Sequential(nn.Linear(3, 3), Doubled(), nn.Linear(3, 2))
    for make in (gauss_newton, hessian):                    # autograd itself would leave the first layer out in silence
        with pytest.raises(MisuseError, match="once_differentiable"):
            make(model, nn.MSELoss(), torch.ones(1, 3), torch.ones(1, 2))
