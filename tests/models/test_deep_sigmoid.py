import pytest
import torch
from torch import nn

from hemstitch.errors import MisuseError
from hemstitch.models import DeepAutoencoder, DeepSigmoid, Lstm, Mlp, count_parameters, insert_layer


def test_the_autoencoder_is_the_published_one():
    model = DeepAutoencoder()
    maps = [m for m in model.modules() if isinstance(m, nn.Linear)]
    assert [m.in_features for m in maps] == [784, 1000, 500, 250, 30, 250, 500, 1000]
    assert maps[-1].out_features == 784
    assert count_parameters(model) == 2_837_314
    assert sum(isinstance(m, nn.Sigmoid) for m in model.modules()) == 6, "neither the code nor the logits are squashed"


def test_the_reconstruction_is_the_sigmoid_of_the_logits():
    model = DeepAutoencoder(12, (8, 3))
    images = torch.rand(5, 3, 4)
    assert model(images).shape == (5, 12)
    assert model.encoder(images.flatten(1)).shape == (5, 3)
    torch.testing.assert_close(model.reconstruct(images).logit(), model(images))


def test_sparse_initialisation_gives_each_unit_its_connections():
    torch.manual_seed(0)
    layer = DeepAutoencoder(200, (300, 5)).encoder[0]
    assert ((layer.weight != 0).sum(1) == 15).all()
    assert layer.weight[layer.weight != 0].std().item() == pytest.approx(1, abs=0.05)
    assert (layer.bias == 0).all()
    tiny = DeepAutoencoder(4, (3, 2)).encoder[0]
    assert (tiny.weight != 0).all(), "no more connections than inputs"


def test_growing_keeps_what_was_trained_and_restarts_the_output():
    model = DeepSigmoid(2, 5, (6,))
    nn.init.normal_(model.layers[-1].weight)
    kept = model.layers[0].weight
    new = insert_layer(model, 4)
    assert model.layers[0].weight is kept
    assert [type(layer) for layer in model.layers] == [nn.Linear, nn.Sigmoid, nn.Linear, nn.Sigmoid, nn.Linear]
    assert (new.in_features, new.out_features) == (6, 4)
    assert model.layers[2] is new
    assert torch.equal(model(torch.randn(3, 9, 2)), torch.zeros(3, 1, 5))


def test_a_grown_network_is_shaped_like_one_built_at_once():
    grown = DeepSigmoid(2, 5, (6,))
    for _ in range(2):
        insert_layer(grown)
    built = DeepSigmoid(2, 5, (6, 6, 6))
    built.load_state_dict(grown.state_dict())


def test_growing_follows_precision_and_nonlinearity():
    model = Mlp(4, 2, (3,), nonlinearity="tanh").double()
    insert_layer(model, nonlinearity="tanh")
    assert isinstance(model.layers[-2], nn.Tanh)
    assert model(torch.randn(5, 4, dtype=torch.float64)).dtype == torch.float64


def test_only_plain_stacks_grow():
    with pytest.raises(MisuseError, match="DeepSigmoid, FeedForward, Mlp.*got Lstm"):
        insert_layer(Lstm(2, 3, 1, 4, 2, 1))
