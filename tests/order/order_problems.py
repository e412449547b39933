"""Small problems and slow, readable twins for the tests of iteration order."""

import copy
import itertools

import torch
from torch import nn
from torch.nn import functional as F


def mlp(*sizes, activation=nn.Tanh, seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    layers = [layer for a, b in itertools.pairwise(sizes) for layer in (nn.Linear(a, b), activation())]
    return nn.Sequential(*layers[:-1]).to(dtype)


def regression_batches(num, batch_size=2, num_inputs=2, seed=1, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(num, batch_size, num_inputs, generator=generator, dtype=dtype) * 2 - 1
    return [(inputs, (inputs**2).sum(1, keepdim=True)) for inputs in x]


def class_batches(num, batch_size=4, shape=(5,), num_classes=3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(batch_size, *shape, generator=generator, dtype=torch.float64),
             torch.randint(num_classes, (batch_size,), generator=generator)) for _ in range(num)]


def twin(model, loss, batches, make_optimizer, *, seeds=None):
    """Apply one optimizer step a batch, in the order given, on a copy: the readable meaning of every engine."""
    model = copy.deepcopy(model)
    optimizer = make_optimizer(model.parameters())
    for index, (inputs, targets) in enumerate(batches):
        optimizer.zero_grad()
        with torch.random.fork_rng(devices=[]):
            if seeds is not None:
                torch.manual_seed(seeds[index])
            loss(model(inputs), targets).backward()
        optimizer.step()
    return {name: p.detach() for name, p in model.named_parameters()}


def backward_twin(model, loss, batches, k, lr):
    return twin(model, loss, batches[:k][::-1], lambda p: torch.optim.SGD(p, lr=lr))


def flat(parameters):
    return torch.cat([p.detach().reshape(-1) for p in parameters.values()])


def here(model):
    return flat(dict(model.named_parameters()))


def gap(a, b):
    return float((flat(a) - flat(b)).abs().max())


def dense_derivatives(model, batches, loss=F.mse_loss):
    """Gradients and Hessians of each batch's loss as dense arrays."""
    names = [name for name, _ in model.named_parameters()]
    shapes = [p.shape for p in model.parameters()]
    sizes = [p.numel() for p in model.parameters()]

    def value(theta, batch):
        parts = {n: t.reshape(s) for n, t, s in zip(names, theta.split(sizes), shapes)}
        return loss(torch.func.functional_call(model, parts, (batch[0],)), batch[1])

    theta = here(model)
    gradients = [torch.func.grad(value)(theta, batch) for batch in batches]
    hessians = [torch.func.hessian(value)(theta, batch) for batch in batches]
    return gradients, hessians


def permutation_average(model, loss, batches, lr):
    """The mean end point of SGD over all c! orders of the batches (equation 9)."""
    ends = [flat(twin(model, loss, order, lambda p: torch.optim.SGD(p, lr=lr)))
            for order in itertools.permutations(batches)]
    return torch.stack(ends).mean(0)


def slope(sizes, errors):
    """Exponent of error ~ size^slope, by least squares on logarithms."""
    x, y = torch.tensor(sizes).log(), torch.tensor(errors).log()
    return float(((x - x.mean()) * (y - y.mean())).sum() / ((x - x.mean()) ** 2).sum())
