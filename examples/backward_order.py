"""The order of the updates: the same batches and steps, applied newest last (as always) or newest first.

Forward iterates keep moving at a constant learning rate, because the newest noise is always applied last. Backward
iterates T_1 T_2 ... T_n(theta_0) settle: the newcomer's influence is contracted away by the maps applied after it.
"""

import torch
from _picture import axes, save

from hemstitch.order import BackwardSGD

STEPS, LR = 600, 0.1


def data():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(256, 1, generator=generator) * 6 - 3
    return x, torch.sin(x) + 0.3 * torch.randn(256, 1, generator=generator)


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(1)
    (x, y), loss = data(), torch.nn.MSELoss()
    model = torch.nn.Sequential(torch.nn.Linear(1, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
    order = BackwardSGD(model, loss, torch.optim.SGD(model.parameters(), lr=LR))
    forward, backward, looks = [], [], []
    twin = torch.nn.Sequential(torch.nn.Linear(1, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
    twin.load_state_dict(model.state_dict())
    plain = torch.optim.SGD(twin.parameters(), lr=LR)
    for step in range(1, STEPS + 1):
        rows = torch.randint(256, (4,))
        order.observe((x[rows], y[rows]))
        plain.zero_grad()
        loss(twin(x[rows]), y[rows]).backward()
        plain.step()
        if step % 5 == 0:
            with order.applied(), torch.no_grad():
                backward.append(float(loss(model(x), y)))
            with torch.no_grad():
                forward.append(float(loss(twin(x), y)))
            looks.append(step)
    figure, plot = axes("Batches of four, constant learning rate", "step", "training loss", yscale="log")
    for name, values in (("forward", forward), ("backward", backward)):
        late = torch.tensor(values[-40:])
        print(f"{name}: mean {late.mean():.4f}, standard deviation {late.std():.5f} over the last 200 steps")
        plot.plot(looks, values, label=name, linewidth=1)
    plot.legend(frameon=False)
    save(figure, __file__)
