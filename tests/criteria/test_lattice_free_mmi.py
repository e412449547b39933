"""LF-MMI against the reference implementation's numbers, finite differences, and broken input."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from hemstitch.criteria import Graph, LatticeFreeMMI, denominator, numerator, overlap_weights
from hemstitch.errors import MisuseError
from hemstitch.graphs import initial_probabilities


def graph_of(arcs, final, start=0):
    arcs = torch.tensor(arcs, dtype=torch.float64)
    return Graph.from_arcs(arcs[:, 0].long(), arcs[:, 1].long(), arcs[:, 2].long() - 1, arcs[:, 3], start=int(start),
                           final=torch.tensor(final).where(torch.tensor(final) < 1e30, torch.inf))


@pytest.fixture(scope="module")
def golden(shared_golden):
    data = np.load(shared_golden / "lfmmi_a.npz")
    num_sequences, num_frames = int(data["in_S"][0]), int(data["in_T"][0])

    def by_sequence(name):
        return torch.tensor(data[name]).reshape(num_frames, num_sequences, -1).transpose(0, 1)

    numerators = [graph_of(data[f"f64_num_normalized_{s}_arcs"], data[f"f64_num_normalized_{s}_final"],
                           data[f"f64_num_normalized_{s}_start"][0]) for s in range(num_sequences)]
    return SimpleNamespace(data=data, by_sequence=by_sequence, numerators=numerators,
                           graph=graph_of(data["in_den_arcs"], data["in_den_final"]),
                           outputs=by_sequence("in_nnet_output"), lengths=torch.full((num_sequences,), num_frames))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-8), (torch.float32, 1e-4)])
def test_the_reference_is_met(golden, dtype, tolerance):
    outputs = golden.outputs.to(dtype, copy=True).requires_grad_()
    xent_outputs = torch.zeros_like(outputs, requires_grad=True)
    objective = LatticeFreeMMI(golden.graph, leak=1e-5, xent_regularize=0.1)(
        outputs, golden.lengths, golden.numerators, xent_outputs=xent_outputs)
    objective.loss.backward()

    def same(found, name, factor=1.0):
        expected = torch.as_tensor(golden.data[name]).reshape(-1) if found.dim() == 0 else golden.by_sequence(name)
        found = found.double().reshape(expected.shape)
        torch.testing.assert_close(found, factor * expected, atol=tolerance, rtol=tolerance)

    same(objective.den, "f64_den_logprob")
    same(objective.num, "f64_num_logprob_weighted")
    same(-objective.loss, "f64_objf")
    same(outputs.grad, "f64_deriv", -1.0)
    same(xent_outputs.grad, "f64_xent_deriv", -0.1)
    assert objective.weight == float(golden.data["f64_tot_weight"]) and objective.skipped == 0


def test_the_parts_meet_the_reference_too(golden):
    np.testing.assert_allclose(initial_probabilities(golden.graph), golden.data["f64_init_probs"], atol=1e-12)
    outputs = golden.outputs.to(torch.float64, copy=True).requires_grad_()
    denominator(golden.graph, outputs, golden.lengths, leak=1e-5, clip=30.0).sum().backward()
    torch.testing.assert_close(outputs.grad, golden.by_sequence("f64_den_post"), atol=1e-8, rtol=0)
    outputs.grad = None
    numerator(golden.numerators, outputs, golden.lengths).sum().backward()
    torch.testing.assert_close(outputs.grad, golden.by_sequence("f64_num_post_weighted"), atol=1e-8, rtol=0)


@pytest.fixture
def batch():
    torch.manual_seed(3)
    graph = Graph.from_arcs([0, 0, 1, 1, 2, 2], [0, 1, 1, 2, 2, 0], [0, 1, 0, 2, 3, 1], [0.7, 0.6, 0.8, 0.7, 0.3, 1.0])
    chain = Graph.from_arcs([0, 0, 1, 1], [0, 1, 1, 2], [0, 1, 0, 2], [0.7, 0.6, 0.8, 0.7],
                            final=[torch.inf, torch.inf, 0.0])
    return SimpleNamespace(graph=graph, graphs=[chain, chain, chain], lengths=torch.tensor([6, 3, 5]),
                           outputs=torch.randn(3, 6, 4, dtype=torch.float64, requires_grad=True))


def test_gradients_are_those_of_finite_differences(batch):
    weights = torch.tensor([1.0, 0.5, 2.0])
    criterion = LatticeFreeMMI(batch.graph, leak=0.1, output_l2=0.01, range_penalty=0.2)
    far = (20 * batch.outputs.detach()).requires_grad_()  # some of them beyond +-30
    assert far.abs().max() > 31

    def loss(outputs):
        return criterion(outputs, batch.lengths, batch.graphs, weights).loss

    assert torch.autograd.gradcheck(loss, (batch.outputs,))
    assert torch.autograd.gradcheck(loss, (far,))
    assert torch.autograd.gradcheck(lambda o: denominator(batch.graph, o, batch.lengths, 0.1), (batch.outputs,))
    assert torch.autograd.gradcheck(lambda o: numerator(batch.graphs, o, batch.lengths), (batch.outputs,))


def test_the_cross_entropy_head_learns_the_numerator_occupancies(batch):
    outputs, xent = batch.outputs.detach(), batch.outputs.detach().roll(1, 0).log_softmax(-1).requires_grad_()
    weights = torch.tensor([1.0, 0.5, 2.0])
    plain = LatticeFreeMMI(batch.graph)(outputs, batch.lengths, batch.graphs, weights).loss
    both = LatticeFreeMMI(batch.graph, xent_regularize=0.3)(outputs, batch.lengths, batch.graphs, weights, xent).loss
    targets = outputs.clone().requires_grad_()
    (numerator(batch.graphs, targets, batch.lengths) * weights).sum().backward()
    expected = -0.3 * (targets.grad * xent).sum()
    torch.testing.assert_close(both - plain, expected)
    both.backward()
    torch.testing.assert_close(xent.grad, -0.3 * targets.grad)


def test_weights_scale_and_frames_of_no_weight_get_no_gradient(batch):
    criterion, weights = LatticeFreeMMI(batch.graph), torch.tensor([1.0, 0.0, 3.0])
    frame_weights = overlap_weights([0, 4], 6, 8)[[0, 1, 0]]
    plain = criterion.outer_gradient(batch.outputs, batch.lengths, batch.graphs)
    scaled = criterion.outer_gradient(batch.outputs, batch.lengths, batch.graphs, weights, frame_weights)
    expected = plain.derivative * weights[:, None, None] * frame_weights[:, :, None]
    torch.testing.assert_close(scaled.derivative, expected)
    assert scaled.weight == 6.0 + 3 * 5.0
    singles = [criterion.outer_gradient(batch.outputs[b:b + 1], batch.lengths[b:b + 1], [batch.graphs[b]]).loss
               for b in (0, 2)]
    assert float(scaled.loss) == pytest.approx(float(singles[0] + 3 * singles[1]))


def test_chunks_that_overlap_count_each_frame_once():
    weights = overlap_weights([0, 4, 8], 6, 12)
    assert weights.tolist() == [[1, 1, 1, 1, 0.5, 0.5], [0.5, 0.5, 1, 1, 0.5, 0.5], [0.5, 0.5, 1, 1, 0, 0]]


@pytest.mark.parametrize("harm", ["nan", "inf", "too short", "no graph"])
def test_a_broken_sequence_is_left_out_and_reported(batch, harm):
    criterion = LatticeFreeMMI(batch.graph, output_l2=0.1, xent_regularize=0.1)
    outputs, graphs, lengths = batch.outputs.detach().clone(), list(batch.graphs), batch.lengths.clone()
    expected = criterion.outer_gradient(outputs[[0, 2]], lengths[[0, 2]], [graphs[0], graphs[2]])
    if harm in ("nan", "inf"):
        outputs[1, 1, 2] = float(harm)
    elif harm == "too short":
        lengths[1] = 1
    else:
        graphs[1] = None
    outputs.requires_grad_()
    xent = outputs.detach().log_softmax(-1).requires_grad_()
    objective = criterion(outputs, lengths, graphs, xent_outputs=xent)
    objective.loss.backward()
    assert objective.skipped == 1 and list(objective.reasons) == [1]
    assert objective.loss.isfinite() and outputs.grad.isfinite().all() and xent.grad.isfinite().all()
    assert not outputs.grad[1].any() and not xent.grad[1].any()
    torch.testing.assert_close(outputs.grad[[0, 2]], expected.derivative)
    assert objective.weight == expected.weight == 11.0
    assert float(objective.num - objective.den) == pytest.approx(float(expected.num - expected.den))


def test_a_batch_in_which_all_fails_has_zero_loss(batch):
    objective = LatticeFreeMMI(batch.graph)(batch.outputs * torch.nan, batch.lengths, batch.graphs)
    objective.loss.backward()
    assert float(objective.loss.detach()) == 0.0 and objective.weight == 0.0 and objective.skipped == 3


def test_bfloat16_outputs_get_bfloat16_gradients(batch):
    outputs = batch.outputs.detach().bfloat16().requires_grad_()
    LatticeFreeMMI(batch.graph)(outputs, batch.lengths, batch.graphs).loss.backward()
    exact = LatticeFreeMMI(batch.graph).outer_gradient(outputs.detach().double(), batch.lengths, batch.graphs)
    assert outputs.grad.dtype == torch.bfloat16
    torch.testing.assert_close(outputs.grad.double(), exact.derivative, atol=5e-3, rtol=1e-2)


def test_settings_out_of_range_are_refused(batch):
    with pytest.raises(MisuseError, match="output_l2 -1"):
        LatticeFreeMMI(batch.graph, output_l2=-1)


def test_backward_can_be_repeated(batch):
    total = denominator(batch.graph, batch.outputs, batch.lengths).sum()
    total.backward(retain_graph=True)
    once = batch.outputs.grad.clone()
    batch.outputs.grad.mul_(2.0)
    total.backward()
    torch.testing.assert_close(batch.outputs.grad, 3 * once)
