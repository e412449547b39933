import pytest
import torch
from torch import nn

from hemstitch.models import Mlp, count_parameters, resnet18, resnet50, vgg19


@pytest.mark.parametrize("build, outputs, published", [
    (resnet18, 10, 11_173_962),
    (resnet50, 100, 23_705_252),
    (vgg19, 10, 20_040_522),
])
def test_the_number_of_parameters_is_the_published_one(build, outputs, published):
    with torch.device("meta"):
        model = build(outputs)
    assert count_parameters(model) == published


@pytest.mark.parametrize("build, convolutions", [(resnet18, 17 + 3), (resnet50, 49 + 4), (vgg19, 16)])
def test_depth_is_in_the_name(build, convolutions):
    """With the affine output; shortcuts (3 and 4) and the two affine layers left out of VGG are not in the name."""
    with torch.device("meta"):
        model = build(10)
    assert sum(isinstance(module, nn.Conv2d) for module in model.modules()) == convolutions


@pytest.mark.parametrize("build", [resnet18, resnet50, vgg19])
def test_narrow_ones_train_on_small_images(build):
    torch.manual_seed(0)
    model = build(7, width=1 / 16)
    logits = model(torch.randn(4, 3, 32, 32))
    assert logits.shape == (4, 7)
    nn.functional.cross_entropy(logits, torch.arange(4)).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())
    copy = build(7, width=1 / 16).eval()
    copy.load_state_dict(model.eval().state_dict())
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(copy(images), model(images))


@pytest.mark.parametrize("build", [resnet18, vgg19])
def test_stages_halve_the_image(build):
    model = build(10, width=1 / 16, num_channels=1).eval()
    shapes = []
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(lambda _, __, output: shapes.append(output.shape[-1]))
    model(torch.randn(1, 1, 32, 32))
    assert sorted(set(shapes), reverse=True) == ([32, 16, 8, 4] if build is resnet18 else [32, 16, 8, 4, 2])


def test_vmap_over_parameters_once_batch_norm_uses_the_batch():
    torch.manual_seed(0)
    model = torch.func.replace_all_batch_norm_modules_(resnet18(5, width=1 / 32)).double()
    names, inputs = dict(model.named_parameters()), torch.randn(3, 3, 16, 16, dtype=torch.float64)
    stacked = {name: torch.stack([p, 1.1 * p]).detach() for name, p in names.items()}

    def loss(values):
        return torch.func.functional_call(model, values, (inputs,)).square().mean()

    both = torch.func.vmap(torch.func.grad(loss))(stacked)
    second = torch.func.grad(loss)({name: p[1] for name, p in stacked.items()})
    torch.testing.assert_close({name: g[1] for name, g in both.items()}, second)


@pytest.mark.parametrize("nonlinearity, kind", [("relu", nn.ReLU), ("tanh", nn.Tanh), ("sigmoid", nn.Sigmoid)])
def test_a_perceptron_flattens_and_alternates(nonlinearity, kind):
    model = Mlp(28 * 28, 10, (20, 30), nonlinearity=nonlinearity)
    assert [type(layer) for layer in model.layers] == [nn.Flatten, nn.Linear, kind, nn.Linear, kind, nn.Linear]
    assert model(torch.randn(3, 1, 28, 28)).shape == (3, 10)
    assert count_parameters(model) == 785 * 20 + 21 * 30 + 31 * 10
