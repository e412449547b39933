"""The parameter server's protocol and step rule."""

import math

import pytest
import torch

from hemstitch.errors import ConfigError, MisuseError
from hemstitch.optim import SGD
from hemstitch.parallel import Bound, ParameterServer, StepRule


@pytest.fixture
def server():
    return ParameterServer(torch.zeros(3), StepRule(lr=0.5))


def ones():
    return torch.ones(3)


def test_an_accepted_push_moves_the_parameters_and_tells_its_age(server):
    incarnation = server.register(7)
    version, before = server.fetch()
    assert server.push(7, 0, incarnation, version, ones()).staleness == 0
    reply = server.push(7, 1, incarnation, version, ones())
    assert (reply.status, reply.version, reply.staleness) == ("accepted", 2, 1)
    assert server.parameters.tolist() == [-1.0] * 3
    assert before.tolist() == [0.0] * 3                     # a snapshot


def test_a_repeated_push_is_applied_once(server):
    incarnation = server.register(0)
    assert server.push(0, 4, incarnation, 0, ones()).status == "accepted"
    assert server.push(0, 4, incarnation, 0, ones()).status == "duplicate"
    assert server.push(0, 3, incarnation, 0, ones()).status == "duplicate"
    assert server.version == 1 and server.counts == {"accepted": 1, "duplicate": 2}


def test_a_former_life_is_refused_and_the_new_one_counts_afresh(server):
    old = server.register(0)
    server.push(0, 9, old, 0, ones())
    new = server.register(0)
    assert server.push(0, 10, old, 0, ones()).status == "stale_incarnation"
    assert server.push(0, 0, new, 0, ones()).status == "accepted"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("rule", [StepRule(0.5), StepRule(0.5, 1.0, (Bound(0, 1, 0.1),))])
def test_gradients_that_are_not_finite_are_refused_and_counted_once(bad, rule):
    server = ParameterServer(torch.zeros(3), rule)
    incarnation, gradient = server.register(0), ones()
    gradient[1] = bad
    assert server.push(0, 0, incarnation, 0, gradient).status == "nonfinite"
    assert server.push(0, 0, incarnation, 0, gradient).status == "duplicate"
    assert server.version == 0 and server.parameters.tolist() == [0.0] * 3
    assert server.push(0, 1, incarnation, 0, ones(), norm=bad).status == "nonfinite"


def test_misuse_is_refused(server):
    with pytest.raises(MisuseError, match="register"):
        server.push(0, 0, 1, 0, ones())
    incarnation = server.register(0)
    with pytest.raises(MisuseError, match="latest version 0"):
        server.push(0, 0, incarnation, 1, ones())
    with pytest.raises(MisuseError, match="shape"):
        server.push(0, 0, incarnation, 0, torch.ones(2))


def test_a_restored_server_knows_what_it_has_answered(server):
    incarnation = server.register(0)
    server.push(0, 5, incarnation, 0, ones())
    server.rule = StepRule(0.25, 1.5, (Bound(0, 2, 0.75),))
    state = server.state_dict()
    server.push(0, 6, incarnation, 1, ones())               # after the snapshot: lost
    restored = ParameterServer(torch.ones(3), StepRule(9.0))
    restored.load_state_dict(state)
    assert restored.push(0, 5, incarnation, 0, ones()).status == "duplicate"
    assert restored.push(0, 6, incarnation, 1, ones()).status == "accepted"
    assert torch.equal(restored.parameters, server.parameters)
    assert restored.rule == server.rule
    with pytest.raises(MisuseError, match="3 parameters"):
        ParameterServer(torch.ones(2), StepRule(1.0)).load_state_dict(state)


# -- the step rule -----------------------------------------------------------------------------------------------------

COMPONENTS = [dict(size=5, max_change=0.1), dict(size=4, max_change=0.0), dict(size=6, max_change=0.75)]


@pytest.mark.parametrize("max_change", [0.0, 0.5, 100.0])
def test_bounds_are_those_of_the_optimizer(max_change):
    """The same rule on slices as `SGD` has on layers."""
    torch.manual_seed(0)
    layers = [torch.nn.Parameter(torch.randn(c["size"], dtype=torch.float64)) for c in COMPONENTS]
    for layer in layers:
        layer.grad = 3 * torch.randn_like(layer)
    flat, gradient = torch.cat(layers).detach(), torch.cat([layer.grad for layer in layers])
    bounds = (Bound(0, 5, 0.1), Bound(9, 15, 0.75))
    server = ParameterServer(flat, StepRule(0.3, max_change, bounds))
    server.push(0, 0, server.register(0), 0, gradient)
    SGD([{"params": [layer], "max_change": c["max_change"]} for layer, c in zip(layers, COMPONENTS)], lr=0.3,
        global_max_change=max_change).step()
    torch.testing.assert_close(server.parameters, torch.cat(layers).detach(), rtol=1e-12, atol=1e-14)


def test_reading_never_changes_what_was_read_and_without_readers_nothing_is_copied(server):
    incarnation = server.register(0)
    _, snapshot = server.fetch()
    server.push(0, 0, incarnation, 0, ones())
    assert snapshot.tolist() == [0.0] * 3
    address = server.parameters.data_ptr()
    server.push(0, 1, incarnation, 0, ones())
    assert server.parameters.data_ptr() == address


@pytest.mark.parametrize("wrong", [dict(lr=-1.0), dict(lr=math.inf), dict(lr=1.0, max_change=-1.0),
                                   dict(lr=1.0, components=(Bound(3, 5, 1.0), Bound(0, 2, 1.0)))])
def test_impossible_rules_are_refused(wrong):
    with pytest.raises(ConfigError):
        StepRule(**wrong)
