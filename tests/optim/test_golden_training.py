"""A whole trainer, 50 minibatches: natural gradient, max-change, weight decay, momentum, backstitch, in float64."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from hemstitch.optim import SGD, Backstitch, NaturalGradient, component_groups

RUNS = ["sgd", "ng", "ng_bs1.0_i4", "ng_l2_bs1.0_i4", "ng_maxchange", "ng_momentum0.5"]


@pytest.fixture(scope="module")
def golden(shared_golden):
    return np.load(shared_golden / "nnet3_train.npz")


def network(golden):
    layers = [nn.Linear(int(d_in), int(d_out)).double() for d_out, d_in in golden["layer_dims"]]
    nn.utils.vector_to_parameters(torch.from_numpy(golden["init_params"]).double(),
                                  [p for layer in layers for p in layer.parameters()])
    return nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])


def optimizer_for(run, net):
    natural = NaturalGradient(net, schedule="2025") if run["natural_gradient"] else None
    bounds = dict(zip("024", run["component_max_change"]))
    sgd = SGD(component_groups(net, overrides={f"^{name}$": {"max_change": bound} for name, bound in bounds.items()}),
              lr=run["learning_rate"], momentum=run["momentum"], l2=run["l2_regularize"],
              global_max_change=run["global_max_change"], num_sequences=64)
    if not run["backstitch_scale"]:
        return sgd, sgd
    return sgd, Backstitch(sgd, scale=run["backstitch_scale"], interval=run["backstitch_interval"], phase=0,
                           natural_gradient=natural)


@pytest.mark.parametrize("name", RUNS)
def test_run(golden, name):
    run = next(run for run in json.loads(str(golden["runs_json"])) if run["name"] == name)
    net = network(golden)
    sgd, optimizer = optimizer_for(run, net)
    first, second, snapshots, counts = [], [], {}, []
    for index, (x, y) in enumerate(zip(torch.from_numpy(golden["x"]).double(), torch.from_numpy(golden["y"]).long())):
        losses = []

        def closure():
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(x), y, reduction="sum")
            loss.backward()
            losses.append(-loss.item())
            return loss

        optimizer.step(closure)
        first.append(losses[0])
        second.append(losses[-1] if len(losses) == 2 else 0.0)
        snapshots[index + 1] = nn.utils.parameters_to_vector(net.parameters()).detach().numpy()
        counts.append(sgd.report().num_global)
    want = lambda what: golden[f"{name}/f64_{what}"]
    np.testing.assert_allclose(first, want("objf_sum"), rtol=1e-10)
    np.testing.assert_allclose(second, want("objf_sum_step2"), rtol=1e-10)
    for after, expected in zip(want("snap_after"), want("params")):
        np.testing.assert_allclose(snapshots[int(after)], expected, rtol=1e-8, atol=1e-10)
    np.testing.assert_array_equal(counts, want("num_global_max_change"))
    component = sgd.report().num_component
    np.testing.assert_array_equal([component.get(name, 0) for name in "024"], want("num_component_max_change")[-1])
