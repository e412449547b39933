import pytest
import torch
from awakened import awake

from hemstitch.errors import MisuseError
from hemstitch.models import Blstm, Lstm, TdnnLstm

SIZES = dict(num_cells=5, num_recurrent=2, num_nonrecurrent=1)
LAYERS = ((-1, 0, 1), "lstm", (-1, 0, 1), "lstm", (-3, 0, 3))


def lstm(**options):
    return awake(Lstm(2, 3, 2, **SIZES, **options))


def blstm(**options):
    return awake(Blstm(2, 3, 2, **SIZES, **options))


def tdnn_lstm(**options):
    return awake(TdnnLstm(2, 3, LAYERS, width=6, **SIZES, **options))


@pytest.mark.parametrize("build, left, right", [(lstm, 2 + 6, 2), (blstm, 2 + 6, 2 + 4), (tdnn_lstm, 5 + 6, 5)])
@pytest.mark.parametrize("subsampling", [1, 3])
def test_contexts_and_number_of_output_frames(build, left, right, subsampling):
    options = dict(cool_down=4) if build is blstm else {}
    model = build(warm_up=6, subsampling=subsampling, **options)
    assert (model.left_context, model.right_context, model.subsampling) == (left, right, subsampling)
    for time in (1, 3, 4):
        assert model(torch.randn(2, left + time + right, 2)).shape == (2, -(-time // subsampling), 3)


def test_warm_up_is_rounded_to_whole_output_frames():
    assert lstm(warm_up=4, subsampling=3).left_context == 2 + 6


@pytest.mark.parametrize("build, last", [(lstm, 8 + 1 + 2), (tdnn_lstm, 11 + 1 + 5)])
def test_an_output_sees_from_the_warm_up_to_its_right_context(build, last):
    model = build(warm_up=6).double()
    inputs = torch.randn(1, model.context + 4, 2, dtype=torch.float64, requires_grad=True)
    model(inputs)[0, 1].sum().backward()
    seen = inputs.grad[0].abs().sum(-1) > 0
    assert seen.tolist() == [t <= last for t in range(model.context + 4)]


def test_a_shifted_splice_delays_the_labels():
    assert (lstm(offsets=(3, 4, 5), warm_up=0).left_context, lstm(offsets=(3, 4, 5), warm_up=0).right_context) == (0, 5)


@pytest.mark.parametrize("build", [lstm, tdnn_lstm])
@pytest.mark.parametrize("subsampling", [1, 3])
def test_streamed_chunks_are_the_whole(build, subsampling):
    model = build(warm_up=6, subsampling=subsampling)
    inputs = torch.randn(2, 60, 2)
    state, outputs = None, []
    for chunk in inputs.split([3, 22, 1, 30, 4], dim=1):
        logits, state = model.stream(chunk, state)
        outputs.append(logits)
    torch.testing.assert_close(torch.cat(outputs, 1), model(inputs))


def test_a_longer_warm_up_approaches_the_whole_utterance():
    """Chunks with n frames of warm-up give nearly the outputs of the run from the start, the nearer the larger n is."""
    long, inputs = lstm(warm_up=60), torch.randn(1, 80, 2)

    def error(warm_up):
        short = lstm(warm_up=warm_up)
        short.load_state_dict(long.state_dict())
        return (short(inputs[:, 60 - warm_up :]) - long(inputs)).abs().max().item()

    errors = [error(warm_up) for warm_up in (0, 10, 40)]
    assert errors[2] < 1e-3 < errors[1] < errors[0]


def test_every_parameter_is_trained():
    for model in (lstm(), blstm(), tdnn_lstm(xent_head=True)):
        outputs = model.train()(torch.randn(2, model.context + 4, 2))
        loss = sum(head.square().sum() for head in outputs) if isinstance(outputs, tuple) else outputs.square().sum()
        loss.backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_a_restored_model_gives_the_same_outputs():
    model, inputs = tdnn_lstm(subsampling=3), torch.randn(1, 70, 2)
    copy = TdnnLstm(2, 3, LAYERS, width=6, **SIZES, subsampling=3).eval()
    copy.load_state_dict(model.state_dict())
    assert torch.equal(copy(inputs), model(inputs))


def test_what_cannot_work_is_refused():
    with pytest.raises(MisuseError, match="BidirectionalLstm needs the whole utterance"):
        blstm().stream(torch.randn(1, 10, 2))
    with pytest.raises(MisuseError, match="begins with a time-delay layer"):
        TdnnLstm(2, 3, ("lstm",))
