"""Natural gradient against plain SGD on badly scaled inputs, each with the best of four learning rates.

The inputs of the network have standard deviations from 1 down to 1/100, as raw features often do. Natural gradient
divides each direction by its estimated Fisher information, so the small ones are learned as fast as the large ones.
"""

import torch
from _picture import axes, save

from hemstitch.optim import NaturalGradient

STEPS, BATCH = 300, 128


def problem():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4096, 40, generator=generator)
    teacher = torch.nn.Sequential(torch.nn.Linear(40, 40), torch.nn.Tanh(), torch.nn.Linear(40, 10))
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.4)
        labels = teacher(x).argmax(1)
    return x * torch.logspace(0, -2, 40), labels


def train(natural, lr):
    torch.manual_seed(1)
    x, y = problem()
    model = torch.nn.Sequential(torch.nn.Linear(40, 64), torch.nn.Tanh(), torch.nn.Linear(64, 10))
    if natural:
        NaturalGradient(model, loss_reduction="mean", update_period=1)
    optimizer, losses = torch.optim.SGD(model.parameters(), lr), []
    for rows in (torch.randint(len(x), (BATCH,)) for _ in range(STEPS)):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
        with torch.no_grad():
            losses.append(float(torch.nn.functional.cross_entropy(model(x), y)))
    return losses


if __name__ == "__main__":
    torch.set_num_threads(1)
    figure, plot = axes("Badly scaled inputs", "step", "training loss", yscale="log")
    for name, natural in (("plain SGD", False), ("natural gradient", True)):
        curves = {lr: train(natural, lr) for lr in (0.1, 0.3, 1.0, 3.0)}
        best = min(curves, key=lambda lr: curves[lr][-1] if curves[lr][-1] == curves[lr][-1] else float("inf"))
        plot.plot(curves[best], label=f"{name}, learning rate {best:g}")
        print(f"{name}: learning rate {best:g}, loss {curves[best][-1]:.3f}")
    plot.legend(frameon=False)
    save(figure, __file__)
