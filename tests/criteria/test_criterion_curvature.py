"""Curvature at the outputs: exact where the criterion is a softmax, positive semi-definite elsewhere."""

import pytest
import torch

from hemstitch.criteria import IGNORED, CrossEntropy, CurvedCriterion, Graph, LatticeFreeMMI


def dense(curvature, shape):
    """The matrix of a product, column by column."""
    n = shape.numel()
    return torch.stack([curvature.product(e.view(shape)).flatten() for e in torch.eye(n, dtype=torch.float64)], 1)


def test_cross_entropy_has_the_hessian_of_its_summed_loss():
    torch.manual_seed(0)
    outputs, targets = torch.randn(2, 3, 4, dtype=torch.float64), torch.tensor([[0, 3, IGNORED], [1, IGNORED, 2]])
    criterion = CrossEntropy()
    assert isinstance(criterion, CurvedCriterion)
    found = criterion.curvature(outputs, targets)
    expected = torch.autograd.functional.hessian(lambda z: criterion(z, targets).loss, outputs).reshape(24, 24)
    torch.testing.assert_close(dense(found, outputs.shape), expected)
    assert found.weight == criterion(outputs, targets).weight == 4


def one_state(num_pdfs):
    """All sequences of pdfs, equally likely: the denominator is then a product of softmaxes."""
    zeros = torch.zeros(num_pdfs, dtype=torch.int64)
    return Graph.from_arcs(zeros, zeros, torch.arange(num_pdfs), torch.zeros(num_pdfs))


def chain(*pdfs):
    states = torch.arange(len(pdfs))
    final = torch.full((len(pdfs) + 1,), torch.inf)
    final[-1] = 0.0
    return Graph.from_arcs(states, states + 1, torch.tensor(pdfs), torch.zeros(len(pdfs)), final=final)


def test_lattice_free_mmi_has_the_exact_hessian_where_frames_are_independent():
    torch.manual_seed(0)
    outputs, lengths = torch.randn(3, 3, 4, dtype=torch.float64), torch.tensor([3, 2, 3])
    graphs, weights = [chain(0, 1, 3), chain(2, 2), None], torch.tensor([1.0, 0.5, 1.0])
    frame_weights = torch.tensor([[1.0, 0.5, 1.0]]).expand(3, 3)
    criterion = LatticeFreeMMI(one_state(4), leak=0.0, output_l2=0.1)
    found = criterion.curvature(outputs, lengths, graphs, weights, frame_weights)

    def loss(z):
        used = torch.tensor([[1.0, 0.5, 1.0], [0.5, 0.25, 0.0], [0.0, 0.0, 0.0]])
        return (used * (z.logsumexp(-1) + 0.05 * z.square().sum(-1))).sum()

    expected = torch.autograd.functional.hessian(loss, outputs).reshape(36, 36)
    torch.testing.assert_close(dense(found, outputs.shape), expected)
    assert found.weight == criterion(outputs, lengths, graphs, weights, frame_weights=frame_weights).weight == 4


@pytest.mark.parametrize("leak", [1e-5, 0.1])
def test_its_surrogate_is_positive_semi_definite_on_any_graph(leak):
    torch.manual_seed(1)
    graph = Graph.from_arcs([0, 0, 1, 1, 2, 2], [0, 1, 1, 2, 2, 0], [0, 1, 0, 2, 3, 1], [0.7, 0.6, 0.8, 0.7, 0.3, 1.0])
    outputs = 3 * torch.randn(1, 5, 4, dtype=torch.float64)
    matrix = dense(LatticeFreeMMI(graph, leak=leak).curvature(outputs, torch.tensor([5]), [chain(0, 0, 1, 0, 2)]),
                   outputs.shape)
    torch.testing.assert_close(matrix, matrix.T)
    assert torch.linalg.eigvalsh(matrix).min() > -1e-10 and matrix.diagonal().max() > 0.01
