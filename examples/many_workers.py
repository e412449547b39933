"""1, 4, 16 and 64 workers on a simulated cluster: averaged once in a while, or asynchronous through a parameter server.

One process computes every gradient; a clock with a delay model says when it would have arrived, so the curves are
reproducible to the bit. More workers see more data per second, and each sample is worth less.
"""

import torch
from _picture import axes, save

from hemstitch.parallel import AsynchronousSimulation, AveragingSimulation, Cluster, Delay, FlatGradient, StepRule

SECONDS, BATCH, EVERY = 20, 32, 10      # EVERY: batches of each worker between averages
CLUSTER = Cluster(compute=Delay(0.1, "gamma", 0.3))


def problem():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8192, 20, generator=generator)
    return x, torch.tanh(x @ torch.randn(20, 30, generator=generator) / 4) @ torch.randn(30, 5, generator=generator)


def model():
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Linear(20, 64), torch.nn.Tanh(), torch.nn.Linear(64, 5))


def workers_batches(x, y):
    def batches(worker):
        generator = torch.Generator().manual_seed(worker)
        while True:
            rows = torch.randint(len(x), (BATCH,), generator=generator)
            yield x[rows], y[rows]

    return batches


def run(kind, num_workers, data):
    """Training loss at simulated seconds."""
    x, y = data
    gradient = FlatGradient(model(), lambda net, batch: (torch.nn.functional.mse_loss(net(batch[0]), batch[1]), BATCH))
    start, path = gradient.parameters, []

    def look(seconds, parameters):
        with torch.no_grad():
            path.append((seconds, float(torch.nn.functional.mse_loss(gradient.load(parameters)(x), y))))

    look(0.0, start)
    if kind == "averaging":
        rule = StepRule(lr=min(0.05 * num_workers, 0.4))
        simulation = AveragingSimulation(start, gradient, workers_batches(x, y), num_replicas=num_workers, rule=rule,
                                         every=BATCH * EVERY, cluster=CLUSTER)
        while simulation.seconds < SECONDS:
            simulation.run(1)
            look(simulation.seconds, simulation.parameters)
        return path
    rule = StepRule(lr=0.05 / num_workers**0.5, max_change=1.0)
    simulation = AsynchronousSimulation(start, gradient, workers_batches(x, y), num_replicas=num_workers, rule=rule,
                                        cluster=CLUSTER)
    updates = 0
    while simulation.clock.now < SECONDS:
        updates += 5 * num_workers
        simulation.run(updates=updates)
        look(simulation.clock.now, simulation.parameters)
    return path


if __name__ == "__main__":
    torch.set_num_threads(1)
    data = problem()
    figure, plot = axes("Workers on a simulated cluster", "simulated seconds", "training loss", yscale="log")
    for kind, line in (("averaging", "-"), ("asynchronous", ":")):
        for color, num_workers in enumerate((1, 4, 16, 64)):
            path = run(kind, num_workers, data)
            plot.plot(*zip(*path), line, color=f"C{color}", label=f"{kind}, {num_workers}")
            print(f"{kind}, {num_workers} workers: loss {path[-1][1]:.4f} after {path[-1][0]:.0f} simulated seconds")
    plot.legend(frameon=False, ncols=2, fontsize=8)
    save(figure, __file__)
