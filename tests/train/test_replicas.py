"""Asynchronous recipes without processes: batches by number, the server's rule, what is refused; simulated runs."""

import pytest
import torch
from torch import nn

from hemstitch.errors import ConfigError
from hemstitch.optim import SGD, component_groups
from hemstitch.parallel import FlatGradient, ParameterServer
from hemstitch.sampling import BatchSource, EqualLengthEpochs, ShuffledEpochs
from hemstitch.train import Console, load_recipe
from hemstitch.train._build import build_run
from hemstitch.train._decoded_frames import FrameNumbers, SharedUtterances, epoch_order
from hemstitch.train._epoch_batches import EpochBatches
from hemstitch.train._outer_frames import OuterFrames
from hemstitch.train._replica_gradient import server_rule, weight_decay

STREAMS = {
    "shuffled": lambda: ShuffledEpochs(23, 5, seed=3),
    "equal lengths": lambda: EqualLengthEpochs(torch.arange(23) % 4, 3, seed=3),
}


@pytest.mark.parametrize("stream", STREAMS)
def test_batches_by_number_are_those_of_the_stream(stream):
    source = BatchSource(STREAMS[stream](), lambda items: items.tolist())
    by_number = EpochBatches(BatchSource(STREAMS[stream](), lambda items: items.tolist()))
    number = 0
    for epoch in range(3):
        position = 0
        while position < 23:
            assert by_number.number_at(epoch, position) == number
            assert by_number.items_before(number, epoch) == position
            batch = source.next()
            assert by_number(number) == batch
            position, number = source.indices.position, number + 1
        assert by_number.start_of(epoch + 1) == number
        assert by_number.items_before(number + 2, epoch) == 23
    assert by_number(0) == BatchSource(STREAMS[stream](), lambda items: items.tolist()).next()


def frames(num_utterances=7, batch_size=4):
    lengths = torch.arange(1, num_utterances + 1)
    return OuterFrames(lengths, batch_size, 0, "on-the-fly", load=None, collate=None)


@pytest.mark.parametrize("num_workers", [1, 3, 10])
def test_workers_share_the_utterances_of_every_epoch(num_workers):
    source = frames()
    streams = [SharedUtterances(source, num_workers)(worker) for worker in range(num_workers)]
    dealt = [next(stream) for _ in range(21) for stream in streams]
    for epoch in range(len(dealt) // 7):
        assert dealt[7 * epoch : 7 * epoch + 7] == epoch_order(source, epoch)
    assert next(SharedUtterances(source, num_workers, first=9)(0)) == epoch_order(source, 1)[2]


def test_an_epoch_of_frames_has_as_many_batches_as_if_none_cancelled():
    numbers = FrameNumbers(frames())                                # 28 frames in batches of 4
    assert [numbers.start_of(epoch) for epoch in range(3)] == [0, 7, 14]
    assert [numbers.number_at(1, position) for position in (0, 4, 5, 28)] == [7, 8, 9, 14]
    assert [numbers.items_before(number, 1) for number in (5, 7, 9, 14, 20)] == [0, 0, 8, 28, 28]


@pytest.mark.parametrize("frozen", [False, True])
def test_the_servers_steps_are_those_of_the_optimizer(frozen):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2), nn.Linear(2, 2)).double()
    model[0].requires_grad_(not frozen)
    groups = component_groups(model, max_change=0.05)
    groups[-1]["max_change"] = 0.2
    optimizer = SGD(groups, lr=0.5, l2=0.01, global_max_change=0.1)
    flat = FlatGradient(model, lambda net, batch: (net(batch).square().sum(), len(batch)))
    server = ParameterServer(flat.parameters, server_rule(optimizer, model))
    batch = torch.randn(5, 3, dtype=torch.float64)
    before = flat.parameters
    gradient, _, _ = flat(before, batch)
    server.push(0, 0, server.register(0), 0, gradient.add(before, alpha=weight_decay(optimizer)))
    optimizer.step()
    torch.testing.assert_close(server.parameters, flat.parameters, rtol=1e-12, atol=1e-14)


PLAIN = ["--parallel.kind", "async", "--update.kind", "sgd", "--update.momentum", "0"]


@pytest.mark.parametrize("settings, reason", [
    (["--parallel.kind", "async"], "plain steps"),
    (["--parallel.kind", "async", "--update.kind", "sgd"], "plain steps"),
    ([*PLAIN, "--backstitch.scale", "0.3"], "plain steps"),
    ([*PLAIN, "--average.kind", "ema"], "average.kind"),
    ([*PLAIN, "--parallel.snapshot_every", "0"], "snapshot_every"),
])
def test_what_a_server_cannot_do_is_refused_with_the_reason(tiny_recipe, settings, reason):
    with pytest.raises(ConfigError, match=reason):
        build_run(load_recipe(tiny_recipe, settings), Console(quiet=True))
