"""The analytic curvature of each loss against autograd, with every option that scales it."""

import itertools

import pytest
import torch
from torch import nn

from hemstitch.curvature import TargetLoss, loss_hessian, occupancy_product
from hemstitch.errors import MisuseError

LABELS = 4
torch.manual_seed(0)
LOGITS = {shape: torch.randn(shape, dtype=torch.float64) for shape in [(5, LABELS), (2, LABELS, 3), (LABELS,)]}


def assert_is_hessian(loss, outputs, targets):
    size = outputs.numel()
    expected = torch.autograd.functional.hessian(lambda z: loss(z.view_as(outputs), targets), outputs.flatten())
    product = loss_hessian(loss, outputs, targets)
    actual = torch.stack([product(unit.view_as(outputs)).flatten() for unit in torch.eye(size, dtype=outputs.dtype)])
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)        # torch adds 1e-12 in BCELoss


@pytest.mark.parametrize("shape", LOGITS, ids=str)
@pytest.mark.parametrize(("reduction", "smoothing", "weighted", "soft"), list(itertools.product(
    ["mean", "sum"], [0.0, 0.2], [False, True], [False, True])))
def test_cross_entropy(shape, reduction, smoothing, weighted, soft):
    outputs = LOGITS[shape]
    rows = [size for axis, size in enumerate(shape) if axis != min(1, len(shape) - 1)]
    targets = torch.randn(shape, dtype=torch.float64).softmax(min(1, len(shape) - 1)) if soft else \
        torch.randint(LABELS, rows)
    weight = torch.rand(LABELS, dtype=torch.float64) + 0.5 if weighted else None
    assert_is_hessian(nn.CrossEntropyLoss(weight, reduction=reduction, label_smoothing=smoothing), outputs, targets)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_cross_entropy_ignores_padding(reduction, smoothing):
    targets = torch.tensor([0, -100, 3, -100, 1])
    assert_is_hessian(nn.CrossEntropyLoss(reduction=reduction, label_smoothing=smoothing), LOGITS[5, LABELS], targets)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_squared_error_and_logistic_losses(reduction):
    outputs, weight = LOGITS[5, LABELS], torch.rand(LABELS, dtype=torch.float64) + 0.5
    targets = torch.rand_like(outputs)
    assert_is_hessian(nn.MSELoss(reduction=reduction), outputs, targets)
    assert_is_hessian(nn.BCEWithLogitsLoss(weight, reduction=reduction, pos_weight=2 * weight), outputs, targets)
    assert_is_hessian(nn.BCELoss(weight, reduction=reduction), outputs.sigmoid(), targets)


def test_subclasses_are_differentiated_and_not_mistaken_for_their_parents():
    class Cubed(nn.MSELoss):
        def forward(self, outputs, targets):
            return (outputs - targets).pow(3).sum()

    assert_is_hessian(Cubed(), LOGITS[5, LABELS], torch.zeros(5, LABELS, dtype=torch.float64))


def test_occupancy_curvature_is_positive_semidefinite_with_the_softmax_as_special_case():
    logits = LOGITS[5, LABELS][:1]
    gamma = logits.softmax(-1)
    matrix = torch.stack([occupancy_product(gamma, unit[None], scale=3.0)[0] for unit in torch.eye(LABELS).double()])
    expected = torch.autograd.functional.hessian(lambda z: nn.CrossEntropyLoss()(z[None], torch.tensor([1])), logits[0])
    torch.testing.assert_close(matrix, 9 * expected)
    assert torch.linalg.eigvalsh(matrix).min() > -1e-15


def test_target_loss_scales_value_and_curvature():
    outputs, targets, v = LOGITS[5, LABELS], torch.tensor([0, 1, 2, 3, 0]), torch.randn(5, LABELS).double()
    mean, total = nn.CrossEntropyLoss(), nn.CrossEntropyLoss(reduction="sum")
    scaled = TargetLoss(mean, targets, factor=5)
    torch.testing.assert_close(scaled(outputs), total(outputs, targets))
    torch.testing.assert_close(scaled.curvature(outputs)(v), loss_hessian(total, outputs, targets)(v))
    hooked = TargetLoss(mean, targets, factor=5, loss_hvp=lambda z, w: 2 * w)
    torch.testing.assert_close(hooked.curvature(outputs)(v), 10 * v)


def test_linear_losses_are_refused():
    for loss in (nn.NLLLoss(), nn.L1Loss()):
        with pytest.raises(MisuseError, match="linear in the outputs"):
            loss_hessian(loss, LOGITS[5, LABELS], None)
