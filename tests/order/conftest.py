"""The golden run of backward SGD: numbers, model at its start, batches in order, learning rate."""

import numpy as np
import pytest
import torch
from order_problems import mlp
from torch import nn


@pytest.fixture(scope="module")
def golden(shared_golden):
    data = np.load(shared_golden / "backward_sgd_small.npz")
    model = mlp(*data["sizes"].tolist(), activation=nn.ReLU)
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.copy_(torch.from_numpy(data[f"init_{i}"]))
    x, y = torch.from_numpy(data["x"]), torch.from_numpy(data["y"])
    return data, model, [(x[i : i + 1], y[i : i + 1]) for i in data["order"]], float(data["lr"])
