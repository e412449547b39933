import pytest
import torch
from awakened import awake
from torch import nn

from hemstitch.errors import MisuseError
from hemstitch.models import PNorm, PNormNetwork, Splice, Tdnn, TimeDelayLayer
from hemstitch.models._splice import subsample

OFFSETS = ((-1, 0, 2), (-1, 0, 1), (-3, 0, 3))


def seen_frames(model, num_frames, output_frame):
    inputs = torch.randn(1, num_frames, model.num_inputs, requires_grad=True)
    model(inputs)[0, output_frame].sum().backward()
    return inputs.grad[0].abs().sum(-1).nonzero().flatten().tolist()


def test_splicing_joins_the_frames_at_the_offsets():
    frames = torch.arange(10.0).view(1, 10, 1)
    assert Splice((-1, 2))(frames)[0].tolist() == [[t - 1, t + 2] for t in range(1, 8)]
    assert Splice((-1, 2), stride=3)(frames)[0].tolist() == [[t - 1, t + 2] for t in (1, 4, 7)]
    assert Splice((1, 3))(frames)[0].tolist() == [[t + 1, t + 3] for t in range(7)]


def test_a_time_delay_layer_is_a_dilated_convolution():
    layer = TimeDelayLayer(3, 4, (-2, 0, 2), stride=3, norm="none")
    inputs = torch.randn(2, 17, 3)
    kernel = layer.affine.weight.view(4, 3, 3).transpose(1, 2)
    expected = nn.functional.conv1d(inputs.transpose(1, 2), kernel, layer.affine.bias, stride=3, dilation=2).relu()
    torch.testing.assert_close(layer(inputs), expected.transpose(1, 2))


def test_the_stride_goes_to_the_highest_layer_that_needs_every_frame():
    assert subsample(OFFSETS, 3) == [((-1, 0, 2), 1), ((-1, 0, 1), 3), ((-1, 0, 1), 1)]
    assert subsample(((-3, 0), (0, 6)), 3) == [((-3, 0), 3), ((0, 2), 1)]
    assert subsample(OFFSETS, 1) == [(layer, 1) for layer in OFFSETS]


@pytest.mark.parametrize("subsampling", [1, 3])
def test_an_output_frame_sees_its_window_and_nothing_else(subsampling):
    model = awake(Tdnn(2, 3, 16, OFFSETS, subsampling=subsampling, nonlinearity="tanh"))
    assert (model.left_context, model.right_context, model.subsampling) == (5, 6, subsampling)
    reach = {a + b + c for a in OFFSETS[0] for b in OFFSETS[1] for c in OFFSETS[2]}
    centre = 5 + 2 * subsampling
    assert seen_frames(model, 11 + 9, 2) == sorted(centre + offset for offset in reach)


@pytest.mark.parametrize("time", [1, 3, 4, 9])
def test_subsampled_outputs_are_every_third_of_the_full_ones(time):
    full, third = (awake(Tdnn(2, 3, 6, OFFSETS, subsampling=s)) for s in (1, 3))
    third.load_state_dict(full.state_dict())
    inputs = torch.randn(2, 11 + time, 2)
    torch.testing.assert_close(third(inputs), full(inputs)[:, ::3])


def test_an_utterance_and_its_single_frames_give_the_same_logits():
    model = awake(PNormNetwork(3, 5, (4, 4), group_size=3, left_context=4, right_context=2))
    utterance = torch.randn(1, 10 + 6, 3)
    single = torch.cat([model(utterance[:, t : t + 7]) for t in range(10)])[:, 0]
    torch.testing.assert_close(model(utterance)[0], single)


def test_chunks_of_any_length_streamed_are_the_whole():
    model = awake(Tdnn(2, 3, 6, OFFSETS, subsampling=3))
    inputs = torch.randn(2, 50, 2)
    state, outputs = None, []
    for chunk in inputs.split([4, 1, 20, 2, 23], dim=1):
        logits, state = model.stream(chunk, state)
        outputs.append(logits)
    assert outputs[0].shape == (2, 0, 3)
    torch.testing.assert_close(torch.cat(outputs, 1), model(inputs))


def test_p_norm_of_groups_and_its_derivative_at_zero():
    assert PNorm(2)(torch.tensor([3.0, 4.0, 0.0, -5.0])).tolist() == [5.0, 5.0]
    inputs = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    for p in (1.5, 2.0, 3.0):
        assert torch.autograd.gradcheck(PNorm(3, p), inputs)
    zeros = torch.zeros(4, requires_grad=True)
    PNorm(2)(zeros).sum().backward()
    assert torch.equal(zeros.grad, torch.zeros(4))


def test_normalisations_fix_the_scale_of_batch_or_frame():
    inputs = 7 * torch.randn(4, 50, 6) + 3
    batch = TimeDelayLayer(6, 5, nonlinearity="tanh", norm="batch")(inputs).flatten(0, 1)
    torch.testing.assert_close(batch.mean(0), torch.zeros(5), atol=1e-4, rtol=0)
    torch.testing.assert_close(batch.var(0, unbiased=False), torch.ones(5), atol=0.05, rtol=0)
    frames = TimeDelayLayer(6, 5, nonlinearity="pnorm", norm="rms", group_size=2)(inputs)
    torch.testing.assert_close(frames.square().mean(-1), torch.ones(4, 50), atol=1e-4, rtol=0)


def test_the_second_head_comes_only_when_asked_for():
    model = awake(Tdnn(2, 3, 6, OFFSETS, xent_head=True))
    outputs, xent = model(torch.randn(2, 15, 2))
    assert outputs.shape == xent.shape == (2, 4, 3)
    assert not torch.equal(outputs, xent)
    assert Tdnn(2, 3, 6, OFFSETS).xent_output is None


def test_a_restored_model_gives_the_same_outputs():
    inputs = torch.randn(2, 20, 2)
    model = Tdnn(2, 3, 6, OFFSETS)
    model(inputs)                                               # moves the running statistics
    copy = Tdnn(2, 3, 6, OFFSETS)
    copy.load_state_dict(awake(model).state_dict())
    assert torch.equal(copy.eval()(inputs), model(inputs))


def test_curvature_products_and_vmap_go_through():
    model = awake(Tdnn(2, 3, 4, ((-1, 0, 1),), norm="rms", nonlinearity="tanh")).double()
    parameters = dict(model.named_parameters())
    inputs = torch.randn(5, 1, 4, 2, dtype=torch.float64)

    def loss(values, example):
        return torch.func.functional_call(model, values, (example,)).square().sum()

    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, inputs)
    total = torch.func.grad(loss)(parameters, inputs.flatten(0, 1))
    torch.testing.assert_close({name: g.sum(0) for name, g in each.items()}, total)
    assert torch.autograd.gradgradcheck(lambda w: loss({**parameters, "output.weight": w}, inputs[0]),
                                        parameters["output.weight"])


@pytest.mark.parametrize("build, message", [
    (lambda: Splice((1, 0)), "ascending"),
    (lambda: TimeDelayLayer(2, 2, norm="layer"), "'layer'.*batch, none, rms"),
    (lambda: Tdnn(2, 3, 4, ()), "at least one layer"),
    (lambda: PNorm(0), "group_size"),
    (lambda: Tdnn(2, 3, 4, OFFSETS)(torch.zeros(1, 11, 2)), "at least left . 1 . right = 12 frames, got 11"),
])
def test_misuse_is_refused_with_the_remedy(build, message):
    with pytest.raises(MisuseError, match=message):
        build()
