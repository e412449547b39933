import pytest
import torch
from torch import nn

from hemstitch.errors import MisuseError
from hemstitch.models import BidirectionalLstm, ProjectedLstm, Truncation
from hemstitch.models._affine import PerElementScale, affine_gradients
from hemstitch.models._recurrence import Parameters, plain_recurrence
from hemstitch.optim import NaturalGradient

CASES = pytest.mark.parametrize("peepholes, nonrecurrent, clip", [
    (True, 3, 50.0), (False, 3, 50.0), (True, 0, 0.3), (False, 2, 0.3)])


def layer_of(peepholes=True, nonrecurrent=3, clip=50.0, truncation=None):
    torch.manual_seed(0)
    layer = ProjectedLstm(3, 5, 2, nonrecurrent, peepholes=peepholes, cell_clip=clip, truncation=truncation).double()
    if peepholes:
        nn.init.normal_(layer.peepholes.weight)
    return layer


def plain(layer, inputs, state):
    peepholes = None if layer.peepholes is None else layer.peepholes.weight
    parameters = Parameters(layer.gates.weight, layer.gates.bias, layer.projection.weight, peepholes)
    outputs, cell = plain_recurrence(inputs.transpose(0, 1), *state, parameters, layer.cell_clip)
    return outputs.transpose(0, 1), (outputs[-1, :, : layer.num_recurrent], cell)


def random_problem(time=6, batch=2):
    draw = lambda *shape: torch.randn(*shape, dtype=torch.float64, requires_grad=True)
    return draw(batch, time, 3), (draw(batch, 2), draw(batch, 5))


def everything(outputs, state):
    return [outputs, *state]


@CASES
def test_the_fast_recurrence_is_its_definition(peepholes, nonrecurrent, clip):
    layer, (inputs, state) = layer_of(peepholes, nonrecurrent, clip), random_problem()
    wanted = [inputs, *state, *layer.parameters()]
    fast, slow = everything(*layer(inputs, state)), everything(*plain(layer, inputs, state))
    torch.testing.assert_close(fast, slow)
    weights = [torch.randn_like(output) for output in fast]
    torch.testing.assert_close(torch.autograd.grad(fast, wanted, weights), torch.autograd.grad(slow, wanted, weights))
    if clip < 1:
        assert (fast[2].abs() == clip).any(), "the case must exercise the clip"


def test_gradient_by_finite_differences():
    layer, (inputs, state) = layer_of(), random_problem(3)
    assert torch.autograd.gradcheck(lambda x, r, c: everything(*layer(x, (r, c))), (inputs, *state))


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_it_is_torchs_projected_lstm_where_that_has_the_same_equations():
    ours = ProjectedLstm(3, 5, 2, peepholes=False, truncation=None)
    theirs = nn.LSTM(3, 5, proj_size=2, batch_first=True)
    with torch.no_grad():
        theirs.weight_ih_l0.copy_(ours.gates.weight[:, :3])
        theirs.weight_hh_l0.copy_(ours.gates.weight[:, 3:])
        theirs.bias_ih_l0.copy_(ours.gates.bias)
        theirs.bias_hh_l0.zero_()
        theirs.weight_hr_l0.copy_(ours.projection.weight)
    inputs = torch.randn(2, 7, 3)
    outputs, (recurrent, cell) = ours(inputs)
    expected, (their_recurrent, their_cell) = theirs(inputs)
    torch.testing.assert_close((outputs, recurrent, cell), (expected, their_recurrent[0], their_cell[0]))


def test_second_derivatives_are_exact():
    layer, (inputs, state) = layer_of(), random_problem(3, 1)
    assert torch.autograd.gradgradcheck(lambda x, r, c: everything(*layer(x, (r, c))), (inputs, *state))


def test_curvature_products_by_both_engines_agree():
    layer, (inputs, state) = layer_of(truncation=Truncation()), random_problem()
    parameters = {name: p.detach() for name, p in layer.named_parameters()}
    direction = {name: torch.randn_like(p) for name, p in parameters.items()}

    def loss(values):
        return torch.func.functional_call(layer, values, (inputs, state))[0].square().sum()

    _, forward_over_reverse = torch.func.jvp(torch.func.grad(loss), (parameters,), (direction,))
    gradients = torch.autograd.grad(layer(inputs, state)[0].square().sum(), layer.parameters(), create_graph=True)
    product = sum((g * v).sum() for g, v in zip(gradients, direction.values()))
    double_backward = torch.autograd.grad(product, layer.parameters())
    torch.testing.assert_close(tuple(forward_over_reverse.values()), double_backward)


def test_one_gradient_a_sequence_through_vmap():
    layer, (inputs, _) = layer_of(), random_problem()
    parameters = dict(layer.named_parameters())

    def loss(values, sequence):
        return torch.func.functional_call(layer, values, (sequence.unsqueeze(0),))[0].square().sum()

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, inputs)
    expected = torch.autograd.grad(layer(inputs)[0].square().sum(), parameters.values())
    torch.testing.assert_close(tuple(g.sum(0) for g in each.values()), expected)


@pytest.mark.parametrize("name", ["gates", "projection", "peepholes"])
def test_a_replaced_forward_is_called_once_a_backward_with_the_rows_of_all_steps(name):
    layer, (inputs, state) = layer_of(truncation=Truncation()), random_problem()
    wanted = list(layer.parameters())
    expected = torch.autograd.grad(layer(inputs, state)[0].sum(), wanted)
    calls, module = [], getattr(layer, name)
    original = module.forward
    module.forward = lambda rows: (calls.append(rows.shape), original(rows))[1]
    loss = layer(inputs, state)[0].sum()
    assert not calls
    torch.testing.assert_close(torch.autograd.grad(loss, wanted), expected)
    assert calls == [(2, 6, {"gates": 3 + 2, "projection": 5, "peepholes": 15}[name])]


def test_natural_gradient_takes_all_steps_together():
    """Oracle: one affine layer with natural gradient, given the rows and derivatives of all steps at once."""
    layer, (inputs, state) = layer_of(), random_problem(30, 4)
    alone, seen = nn.Linear(5, 20).double(), []
    NaturalGradient(layer)
    natural = layer.gates.forward

    def watch(rows):
        outputs = natural(rows)
        outputs.register_hook(lambda derivatives: seen.append((rows, derivatives)))
        return outputs

    layer.gates.forward = watch
    layer(inputs, state)[0].square().sum().backward()
    (rows, derivatives), = seen
    NaturalGradient(alone)
    alone(rows).backward(derivatives)
    torch.testing.assert_close(layer.gates.weight.grad, alone.weight.grad)
    torch.testing.assert_close(layer.gates.bias.grad, alone.bias.grad)
    assert not torch.allclose(alone.weight.grad, derivatives.flatten(0, 1).T @ rows.flatten(0, 1))


def test_stacked_rows_give_what_autograd_gives():
    for layer, width in ((nn.Linear(3, 4), 4), (nn.Linear(3, 4, bias=False), 4), (PerElementScale(3), 3)):
        rows, derivatives = torch.randn(7, 2, 3), torch.randn(7, 2, width)
        expected = torch.autograd.grad(layer(rows), layer.parameters(), derivatives)
        torch.testing.assert_close(affine_gradients(layer, rows, derivatives), expected)


def test_frozen_parts_stay_out():
    layer, (inputs, state) = layer_of(), random_problem()
    layer.projection.weight.requires_grad_(False)
    layer.projection.forward = lambda rows: pytest.fail("a frozen map has no gradient to precondition")
    layer(inputs.detach(), state)[0].sum().backward()
    assert layer.projection.weight.grad is None
    assert layer.gates.weight.grad is not None


def clipped(gradient, clip):
    return gradient * (clip / gradient.norm(dim=1, keepdim=True)).clamp(max=1)


@pytest.mark.parametrize("truncation", [
    Truncation(clip=0.02, threshold=1e9), Truncation(clip=1e9, threshold=0.02, interval=2)])
def test_truncation_limits_what_goes_back_through_time(truncation):
    """Oracle: the recurrence step by step in autograd, with hooks on the joined state (r, c)."""
    layer, (inputs, state) = layer_of(truncation=truncation), random_problem()

    def limit(time):
        def hook(gradient):
            limited = clipped(gradient, truncation.clip)
            large = gradient.norm(dim=1, keepdim=True) > truncation.threshold
            return limited.masked_fill(large, 0.0) if time % truncation.interval == 0 else limited
        return hook

    joined, outputs = torch.cat(state, 1), []
    for time in range(6):
        if joined.requires_grad:
            joined = joined * 1.0
            joined.register_hook(limit(time))
        frame, (recurrent, cell) = plain(layer, inputs[:, time : time + 1], (joined[:, :2], joined[:, 2:]))
        joined = torch.cat([recurrent, cell], 1)
        outputs.append(frame)
    wanted = [inputs, *state, *layer.parameters()]
    expected = torch.autograd.grad(torch.cat(outputs, 1).sum(), wanted)
    torch.testing.assert_close(torch.autograd.grad(layer(inputs, state)[0].sum(), wanted), expected)
    layer.truncation = None
    exact = torch.autograd.grad(layer(inputs, state)[0].sum(), wanted)
    assert not torch.allclose(exact[-1], expected[-1]), "the case must exercise the limit"


def test_chunks_that_pass_their_state_on_are_the_whole():
    layer, (inputs, _) = layer_of(), random_problem(9)
    whole, last = layer(inputs)
    state, outputs = None, []
    for chunk in inputs.split([4, 0, 1, 4], dim=1):
        part, state = layer(chunk, state)
        outputs.append(part)
    torch.testing.assert_close((torch.cat(outputs, 1), state), (whole, last))
    wanted = list(layer.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(torch.cat(outputs, 1).sum(), wanted), torch.autograd.grad(whole.sum(), wanted))


def test_both_directions_see_their_own_side():
    layer = BidirectionalLstm(3, 5, 2, 1)
    inputs = torch.randn(1, 8, 3)
    changed = inputs.clone()
    changed[:, 4] += 1
    differs = (layer(inputs) != layer(changed))[0]
    assert differs[:, :3].any(1).tolist() == [False] * 4 + [True] * 4
    assert differs[:, 3:].any(1).tolist() == [True] * 5 + [False] * 3


def test_backward_twice_through_one_graph():
    layer, (inputs, state) = layer_of(truncation=Truncation()), random_problem()
    loss = layer(inputs, state)[0].sum()
    first = torch.autograd.grad(loss, layer.parameters(), retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(loss, layer.parameters()), first, atol=0, rtol=0)


def test_it_computes_in_its_own_precision_under_autocast():
    layer = ProjectedLstm(3, 5, 2)
    inputs = torch.randn(2, 4, 3)
    expected, _ = layer(inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs, _ = layer(inputs)
    outputs.sum().backward()
    assert torch.equal(outputs, expected)


def test_impossible_sizes_are_refused():
    with pytest.raises(MisuseError, match="recurrent outputs >= 1"):
        ProjectedLstm(3, 5, 0)
