import pytest
import torch

from hemstitch.errors import MisuseError
from hemstitch.models import FeedForward


def test_an_utterance_and_its_single_frames_give_the_same_logits():
    torch.manual_seed(0)
    model = FeedForward(3, 5, (7,), left_context=4, right_context=2)
    torch.nn.init.normal_(model.layers[-1].weight)
    utterance = torch.randn(1, 10 + 6, 3)
    whole = model(utterance)[0]
    single = torch.cat([model(utterance[:, t : t + 7]) for t in range(10)])[:, 0]
    torch.testing.assert_close(whole, single)


def test_an_output_frame_sees_its_window_and_nothing_else():
    torch.manual_seed(0)
    model = FeedForward(2, 3, (8,), left_context=2, right_context=1, nonlinearity="tanh")
    torch.nn.init.normal_(model.layers[-1].weight)
    inputs = torch.randn(1, 9, 2, requires_grad=True)
    model(inputs)[0, 3].sum().backward()
    seen = inputs.grad.abs().sum(-1)[0] > 0
    assert seen.tolist() == [3 <= t < 3 + 4 for t in range(9)]


def test_training_starts_at_the_uniform_distribution():
    assert torch.equal(FeedForward(2, 3, (8,))(torch.randn(4, 26, 2)), torch.zeros(4, 1, 3))


def test_an_unknown_nonlinearity_names_the_known_ones():
    with pytest.raises(MisuseError, match=r"'swish'.*relu, sigmoid, tanh"):
        FeedForward(2, 3, (8,), nonlinearity="swish")
