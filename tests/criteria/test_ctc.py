import itertools

import pytest
import torch

from hemstitch.criteria import Ctc


def probability(outputs, labels):
    """Sum over all paths, one by one."""
    posteriors = outputs.softmax(-1)
    total = torch.zeros((), dtype=outputs.dtype)
    for path in itertools.product(range(outputs.shape[1]), repeat=len(outputs)):
        if [k for k, _ in itertools.groupby(path) if k] == labels:
            total = total + posteriors[torch.arange(len(path)), list(path)].prod()
    return total


def test_the_loss_is_the_sum_over_all_paths():
    outputs = torch.randn(3, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    labels, lengths = [[1, 2], [2, 2], [1]], torch.tensor([5, 4, 2])
    found = Ctc()(outputs, lengths, [torch.tensor(sequence) for sequence in labels])
    loss = -sum(probability(outputs[i, :n], labels[i]).log() for i, n in enumerate(lengths.tolist()))
    assert found.weight == 11 and found.skipped == 0
    torch.testing.assert_close(found.loss, loss)
    gradients = [torch.autograd.grad(value, outputs, retain_graph=True)[0] for value in (found.loss, loss)]
    torch.testing.assert_close(*gradients)
    assert not gradients[0][2, 2:].any()  # behind the end


@pytest.mark.parametrize("labels", [[1, 2, 1], [1, 1]])
def test_what_does_not_fit_is_left_out(labels):
    outputs = torch.zeros(2, 4, 3, requires_grad=True)
    found = Ctc()(outputs, torch.tensor([2, 4]), [torch.tensor(labels), torch.tensor([1])])
    assert found.skipped == 1 and found.weight == 4
    found.loss.backward()
    assert not outputs.grad[0].any() and outputs.grad[1].any()
    alone = Ctc()(outputs[:1], torch.tensor([2]), [torch.tensor(labels)])
    assert alone.weight == 0 and float(alone.loss.detach()) == 0
