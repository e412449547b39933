"""Second-order terms of an order against dense Hessians, golden numbers and the average over permutations."""

import warnings

import pytest
import torch
from order_problems import (
    class_batches,
    dense_derivatives,
    flat,
    gap,
    here,
    mlp,
    permutation_average,
    regression_batches,
    slope,
    twin,
)
from torch import nn

from hemstitch.errors import MisuseError, NonFiniteError
from hemstitch.order import (
    Objective,
    OrderAverage,
    OrderWarning,
    backward_iterates,
    bracket_iterate,
    forward_iterates,
    lie_bracket_correction,
    order_average_gradient,
    single_order_gradient,
)

MSE = nn.MSELoss()


def test_golden_bracket(golden):
    data, model, batches, _ = golden
    correction = flat(lie_bracket_correction(model, MSE, batches[:6]))
    assert float((correction - torch.from_numpy(data["bracket_C6"])).abs().max()) < 1e-12


def test_golden_order_average(golden):
    data, model, batches, _ = golden
    term = flat(order_average_gradient(model, MSE, batches[:6]))
    assert float((term - torch.from_numpy(data["order_avg_sum6"])).abs().max()) < 1e-11


@pytest.fixture
def problem():
    return mlp(2, 4, 1), regression_batches(4)


def test_terms_are_their_dense_sums(problem):
    model, batches = problem
    g, h = dense_derivatives(model, batches)
    pairs = [(i, j) for i in range(4) for j in range(4)]
    expected = {
        order_average_gradient: sum(h[i] @ g[j] for i, j in pairs if i != j),
        single_order_gradient: sum(h[i] @ g[j] for i, j in pairs if j < i),
        lie_bracket_correction: sum(h[i] @ g[j] - h[j] @ g[i] for i, j in pairs if i < j),
    }
    for function, dense in expected.items():
        torch.testing.assert_close(flat(function(model, MSE, batches)), dense, rtol=1e-12, atol=1e-13)


def test_order_average_is_a_gradient(problem):
    model, batches = problem

    def agreement(theta):
        parts = dict(zip(dict(model.named_parameters()), theta))
        losses = [MSE(torch.func.functional_call(model, parts, (x,)), y) for x, y in batches]
        g = [torch.cat([t.reshape(-1) for t in torch.autograd.grad(v, theta, create_graph=True)]) for v in losses]
        return (sum(g).square().sum() - sum(v.square().sum() for v in g)) / 2

    theta = [p.detach().clone().requires_grad_() for p in model.parameters()]
    expected = torch.cat([t.reshape(-1) for t in torch.autograd.grad(agreement(theta), theta)])
    torch.testing.assert_close(flat(order_average_gradient(model, MSE, batches)), expected)


def test_bracket_is_the_recursion_of_corollary_c4(problem):
    model, batches = problem
    g, h = dense_derivatives(model, batches)
    total_g, total_h, correction = torch.zeros_like(g[0]), torch.zeros_like(h[0]), torch.zeros_like(g[0])
    for n in range(4):
        correction += total_h @ g[n] - h[n] @ total_g
        total_g, total_h = total_g + g[n], total_h + h[n]
    torch.testing.assert_close(flat(lie_bracket_correction(model, MSE, batches)), correction)


def test_batches_of_equal_data_have_no_bracket(problem):
    model, batches = problem
    assert float(flat(lie_bracket_correction(model, MSE, [batches[0]] * 3)).abs().max()) < 1e-15


def test_the_model_is_left_alone():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Dropout(0.5), nn.Linear(3, 1)).double()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for function in (order_average_gradient, single_order_gradient, lie_bracket_correction):
        function(model, MSE, regression_batches(3, batch_size=4))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_linear_losses_have_no_second_order():
    model = nn.Linear(2, 1).double()
    term = order_average_gradient(model, Objective(lambda m, x: m(x).sum()), torch.rand(3, 4, 2, dtype=torch.float64))
    assert not flat(term).any()


@pytest.mark.parametrize("function", [order_average_gradient, single_order_gradient, lie_bracket_correction])
def test_one_batch_has_no_order(function):
    with pytest.raises(MisuseError, match="at least two"):
        function(mlp(2, 3, 1), MSE, regression_batches(1))


def test_bracket_iterate_helps_for_two_batches(problem):
    model, batches = problem
    exact = backward_iterates(model, MSE, batches[:2], 0.02)[2]
    error = gap(bracket_iterate(model, MSE, batches[:2], 0.02), exact)
    assert error < 0.2 * gap(forward_iterates(model, MSE, batches[:2], 0.02)[2], exact)


def test_bracket_iterate_warns_where_it_harms(golden):
    _, model, batches, lr = golden
    exact = backward_iterates(model, MSE, batches[:20], lr)[20]
    with pytest.warns(OrderWarning, match="20 batches"):
        corrected = bracket_iterate(model, MSE, batches[:20], lr)
    assert gap(corrected, exact) > gap(forward_iterates(model, MSE, batches[:20], lr)[20], exact)


# --- the transform ---


def large_batch(batches):
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


def sgd_with_order_average(model, batches, lr, **options):
    """Where one SGD step with the transformed gradient leads."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    before = here(model)
    optimizer.step(OrderAverage(model, MSE, optimizer, **options).closure(large_batch(batches)))
    end = here(model)
    torch.nn.utils.vector_to_parameters(before, model.parameters())
    return end


def test_transform_is_its_formula(problem):
    model, batches = problem
    lr, strength = 0.1, 0.7
    g, _ = dense_derivatives(model, batches)
    term = flat(order_average_gradient(model, MSE, batches))
    expected = here(model) - lr * sum(g) / 4 + strength * lr**2 * term
    end = sgd_with_order_average(model, batches, lr, strength=strength)
    torch.testing.assert_close(end, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("order", ["average", "single"])
def test_transform_is_the_orders_it_stands_for_up_to_third_order(problem, order):
    model, batches = problem
    sizes, errors = [0.4, 0.2, 0.1, 0.05], []
    for lr in sizes:
        small = lr / 4
        if order == "average":
            exact, strength = permutation_average(model, MSE, batches, small), 1 / 32
        else:
            exact, strength = flat(twin(model, MSE, batches, lambda p: torch.optim.SGD(p, lr=small))), 1 / 16
        end = sgd_with_order_average(model, batches, lr, strength=strength, order=order)
        errors.append(float((end - exact).norm()))
    assert 2.8 < slope(sizes, errors) < 3.3


def test_each_parameter_has_its_own_learning_rate(problem):
    model, batches = problem
    groups = [{"params": model[0].parameters(), "lr": 0.1}, {"params": model[2].parameters(), "lr": 0.02}]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    rates = torch.cat([torch.full((p.numel(),), 0.1 if i < 2 else 0.02, dtype=torch.float64)
                       for i, p in enumerate(model.parameters())])
    g, h = dense_derivatives(model, batches)
    expected = sum(g) / 4 - sum(h[i] @ (rates * g[j]) for i in range(4) for j in range(4) if i != j)
    OrderAverage(model, MSE, optimizer).backward(large_batch(batches))
    torch.testing.assert_close(torch.cat([p.grad.reshape(-1) for p in model.parameters()]), expected)


def test_strength_zero_is_the_large_batch_gradient_and_accumulates(problem):
    model, batches = problem
    x, y = large_batch(batches)
    MSE(model(x), y).backward()
    plain = [p.grad.clone() for p in model.parameters()]
    average = OrderAverage(model, MSE, torch.optim.Adam(model.parameters(), lr=0.1), num_parts=2, strength=0.0)
    loss = average.backward((x, y))
    torch.testing.assert_close(loss, MSE(model(x), y).detach())
    for p, g in zip(model.parameters(), plain):
        torch.testing.assert_close(p.grad, 2 * g)


def test_batches_are_cut_wherever_their_tensors_are():
    model, loss = mlp(5, 4, 3), nn.CrossEntropyLoss()
    ((x, y),) = class_batches(1, batch_size=6)
    named = Objective(lambda m, batch: loss(m(batch["x"]), batch["more"][0]))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    OrderAverage(model, named, optimizer, num_parts=3).backward({"x": x, "more": [y]})
    gradient = [p.grad.clone() for p in model.parameters()]
    optimizer.zero_grad()
    OrderAverage(model, loss, optimizer, num_parts=3).backward((x, y))
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradient))


def test_misuse_of_the_transform_is_refused(problem):
    model, batches = problem
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(MisuseError, match="3 equal parts"):
        OrderAverage(model, MSE, optimizer, num_parts=3).backward(large_batch(batches))
    with pytest.raises(MisuseError, match="num_parts"):
        OrderAverage(model, MSE, optimizer, num_parts=1)
    with pytest.raises(MisuseError, match="order"):
        OrderAverage(model, MSE, optimizer, order="reverse")
    with pytest.raises(NonFiniteError, match="strength"):
        OrderAverage(model, MSE, optimizer, strength=float("inf")).backward(large_batch(batches))
    assert all(p.grad is None for p in model.parameters())


def test_no_warning_where_the_bracket_holds(problem):
    model, batches = problem
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bracket_iterate(model, MSE, batches[:2], 0.01)
