"""Small networks of every supported kind in float64, and dense matrices computed the slow way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

BATCH = 6


@dataclass
class Case:
    name: str
    model: nn.Module
    loss: Callable[[Tensor, Any], Tensor]
    inputs: Any
    targets: Any
    chain: bool = False                 # the R-operator can run it

    def __repr__(self) -> str:
        return self.name


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.out = nn.Linear(5, 4, bias=False), nn.Linear(5, 4)
        self.out.weight = self.embed.weight
        self.back = nn.Linear(4, 5)

    def forward(self, x):
        return self.out(self.back(torch.tanh(self.embed(x))))


class WithUnused(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.unused, self.last = nn.Linear(5, 4), nn.Linear(3, 3), nn.Linear(4, 4)

    def forward(self, x):
        return self.last(self.first(x).sigmoid())


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.last = nn.LSTM(5, 3, batch_first=True, bidirectional=True), nn.Linear(6, 4)

    def forward(self, x):
        return self.last(self.lstm(x)[0])


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.last = nn.Linear(5, 12), nn.Linear(4, 4)

    def forward(self, x):
        q, k, v = self.qkv(x).unsqueeze(1).chunk(3, dim=-1)
        return self.last(F.scaled_dot_product_attention(q, k, v).squeeze(1))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(5, 5), nn.Linear(5, 4)

    def forward(self, x):
        return self.last(x + torch.tanh(self.first(x)))


def frames(loss):
    """A loss over (batch, time, label) outputs."""
    return lambda outputs, targets: loss(outputs.flatten(0, 1), targets.flatten())


def make_cases() -> list[Case]:
    torch.manual_seed(1)
    torch.set_default_dtype(torch.float64)
    try:
        return _cases()
    finally:
        torch.set_default_dtype(torch.float32)


def _cases() -> list[Case]:
    x, y = torch.randn(BATCH, 5), torch.randint(4, (BATCH,))
    sequence, labels = torch.randn(2, 4, 5), torch.randint(4, (2, 4))
    image = torch.randn(3, 2, 5, 4)
    bits = torch.randint(2, (BATCH, 4)).double()
    mlp = lambda: nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 4), nn.Sigmoid(), nn.Linear(4, 4))
    conv = nn.Sequential(nn.Conv2d(2, 3, 2, padding=1), nn.ELU(), nn.AvgPool2d(2), nn.Softplus(),
                         nn.Conv2d(3, 4, 2, stride=2, bias=False), nn.Flatten(), nn.Linear(4, 4))
    time_conv = nn.Sequential(nn.Conv1d(2, 4, 2, dilation=2, groups=2), nn.GELU(), nn.Conv1d(4, 3, 1))
    encoder = nn.TransformerEncoderLayer(5, 1, 6, dropout=0.0, batch_first=True)
    dropout = nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.4), nn.Tanh(), nn.Linear(8, 4))
    frozen = mlp()
    frozen[2].weight.requires_grad_(False)
    frozen[4].bias.requires_grad_(False)
    norm = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 4))
    norm_eval = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 4)).eval()
    norm_eval[1].running_var.fill_(2.0)
    smooth = nn.CrossEntropyLoss(weight=torch.rand(4) + 0.5, label_smoothing=0.1, ignore_index=1)
    ce, mse = nn.CrossEntropyLoss(), nn.MSELoss()
    return [
        Case("mlp", mlp(), ce, x, y, chain=True),
        Case("relu", nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4)), smooth, x, y, chain=True),
        Case("regression", mlp(), nn.MSELoss(reduction="sum"), x, torch.randn(BATCH, 4), chain=True),
        Case("logistic", mlp(), nn.BCEWithLogitsLoss(pos_weight=torch.rand(4) + 0.5), x, bits, chain=True),
        Case("bernoulli", nn.Sequential(mlp(), nn.Sigmoid()), nn.BCELoss(), x, bits, chain=True),
        Case("own loss", mlp(), lambda z, t: (z - t).cosh().log().mean(), x, torch.randn(BATCH, 4), chain=True),
        Case("conv", conv, nn.CrossEntropyLoss(reduction="sum"), image, torch.tensor([0, 3, 1]), chain=True),
        Case("time conv", time_conv, ce, image[..., 0], torch.randint(3, (3, 3)), chain=True),
        Case("frames", mlp(), frames(ce), sequence, labels, chain=True),
        Case("frozen", frozen, ce, x, y, chain=True),
        Case("dropout", dropout, ce, x, y, chain=True),
        Case("tied", Tied(), ce, x, y),
        Case("unused", WithUnused(), ce, x, y),
        Case("residual", Residual(), mse, x, torch.randn(BATCH, 4)),
        Case("batch norm", norm, ce, x, y),
        Case("batch norm eval", norm_eval, ce, x, y),
        Case("lstm", Recurrent(), frames(ce), sequence, labels),
        Case("attention", Attention(), frames(ce), sequence, labels),
        Case("transformer", nn.Sequential(encoder, nn.Linear(5, 4)), frames(ce), sequence, labels),
        Case("keyword inputs", nn.Bilinear(5, 5, 4), ce, {"input1": x, "input2": x + 1}, y),
        Case("two inputs", nn.Bilinear(5, 5, 4), ce, (x, x - 1), y),
    ]


CASES = make_cases()
SEED = 7


def num_params(case: Case) -> int:
    return sum(param.numel() for param in case.model.parameters())


def forward(case: Case, flat: Tensor | None = None) -> Tensor:
    """The outputs at parameters ``flat``, from the random state SEED, buffers untouched."""
    named = dict(case.model.named_parameters())
    if flat is not None:
        parts = flat.split([param.numel() for param in named.values()])
        named = {name: part.view_as(param) if param.requires_grad else param.detach()
                 for (name, param), part in zip(named.items(), parts)}
    args = case.inputs if isinstance(case.inputs, tuple) else () if isinstance(case.inputs, dict) else (case.inputs,)
    kwargs = case.inputs if isinstance(case.inputs, dict) else {}
    buffers = {name: buffer.clone() for name, buffer in case.model.named_buffers()}
    with torch.random.fork_rng(), sdpa_kernel(SDPBackend.MATH):
        torch.manual_seed(SEED)
        return functional_call(case.model, {**named, **buffers}, args, kwargs)


def flat_params(case: Case) -> Tensor:
    return torch.cat([param.detach().flatten() for param in case.model.parameters()])


def dense_jacobian(case: Case) -> Tensor:
    """(output, param), one backward pass per output."""
    return torch.autograd.functional.jacobian(lambda flat: forward(case, flat).flatten(), flat_params(case))


def dense_output_hessian(case: Case) -> Tensor:
    outputs = forward(case).detach()
    return torch.autograd.functional.hessian(
        lambda z: case.loss(z.view_as(outputs), case.targets), outputs.flatten())


def dense_gauss_newton(case: Case) -> Tensor:
    jacobian = dense_jacobian(case)
    return jacobian.T @ dense_output_hessian(case) @ jacobian


def dense_hessian(case: Case) -> Tensor:
    return torch.autograd.functional.hessian(
        lambda flat: case.loss(forward(case, flat), case.targets), flat_params(case))
