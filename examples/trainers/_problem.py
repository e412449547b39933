"""A small problem, and backstitch over natural gradient on it in a plain loop: what each trainer must equal."""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hemstitch.optim import SGD, Backstitch, NaturalGradient, component_groups


def loader(batch_size=32):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(256, 20, generator=generator)
    targets = (torch.tanh(inputs @ torch.randn(20, 30, generator=generator)) @ torch.randn(30, 5, generator=generator))
    own = torch.Generator().manual_seed(0)         # so that a trainer's loader leaves dropout's generator alone
    return DataLoader(TensorDataset(inputs, targets.argmax(1)), batch_size, generator=own)


def network(dropout=0.1):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(20, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(dropout), nn.Linear(64, 5))


def backstitch(model):
    natural = NaturalGradient(model, loss_reduction="mean")
    return Backstitch(SGD(component_groups(model), lr=0.2), scale=0.5, interval=2, natural_gradient=natural)


def plain_loop(epochs=3, bf16=False, dropout=0.1):
    """The model, and its mean loss at the end."""
    model = network(dropout)
    optimizer = backstitch(model)
    for _ in range(epochs):
        for inputs, targets in loader():
            def closure():
                optimizer.zero_grad()
                with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                    outputs = model(inputs)
                loss = nn.functional.cross_entropy(outputs.float(), targets)
                loss.backward()
                return loss

            optimizer.step(closure)
    return model, mean_loss(model)


@torch.no_grad()
def mean_loss(model):
    model.eval()
    inputs, targets = loader().dataset.tensors
    return float(nn.functional.cross_entropy(model(inputs), targets))
