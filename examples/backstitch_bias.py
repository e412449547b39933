"""Why a step backwards: training on few samples pulls a parameter off its true value; backstitch pulls it back.

One parameter, loss theta^2 / 2 * c - theta * c * x per sample, where the curvature c of a sample and its target x go
together. Steps on single samples then settle beside the minimum of the mean loss; the mean over many runs shows it.
Paper 1's equation 17 says by how much -nu^2 (scale + scale^2) H g moves the answer.
"""

import torch
from _picture import axes, save

SAMPLES, RUNS, LR = 40, 4000, 0.02


def settle(scale):
    """Mean over runs of the parameter after sweeps over each run's own few samples."""
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(RUNS, SAMPLES, generator=generator)
    curvature = torch.exp(0.5 * target)                      # samples with large targets are sharper
    theta = torch.zeros(RUNS)
    path = []
    for step in range(12 * SAMPLES):
        c, x = curvature[:, step % SAMPLES], target[:, step % SAMPLES]
        ahead = theta + scale * LR * c * (theta - x)         # a step backwards ...
        theta = ahead - (1 + scale) * LR * c * (ahead - x)   # ... and a larger one forwards
        path.append(float(theta.mean()))
    return path


if __name__ == "__main__":
    figure, plot = axes("Mean parameter over 4,000 training sets of 40 samples", "step", "parameter")
    for scale in (0.0, 0.6, 1.0):
        path = settle(scale)
        plot.plot(path, label=f"scale {scale:g}" + (" (plain SGD)" if scale == 0 else ""))
        print(f"scale {scale:g}: {path[-1]:.4f}")
    true = 0.5                                               # E[c x] / E[c] for c = exp(x / 2), x standard normal
    plot.axhline(true, color="black", linestyle=":", label="true minimum")
    plot.legend(frameon=False)
    save(figure, __file__)
