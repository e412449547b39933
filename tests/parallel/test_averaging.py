"""Parameter averaging: equal to what it should equal, and what it leaves out."""

import copy
import math

import pytest
import torch
from torch import nn

from hemstitch.comm import LocalReducer, MemberLost, run_workers
from hemstitch.errors import ConfigError, MisuseError, NonFiniteError
from hemstitch.parallel import (
    Contribution,
    LastModels,
    ParameterAveraging,
    combine_models,
    num_workers_at,
    shares,
    staggered_phase,
)
from hemstitch.testing import tiny_convnet, tiny_mlp


def train(problem, optimizer, batches, averaging=None):
    """Plain training on the given batches of a problem."""
    for index in batches:
        loss = problem.closure(optimizer, index)()
        optimizer.step()
        if averaging is not None:
            averaging.update(len(problem.batches[index][0]), loss)


def parameters(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


# -- equivalences ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reducer", [None, LocalReducer()])
@pytest.mark.parametrize("make", [tiny_mlp, tiny_convnet])
def test_one_worker_is_serial_training_to_the_bit(make, reducer):
    serial, alone = make(), make()
    order = [0, 1, 2, 3, 0, 1, 2]
    train(serial, torch.optim.SGD(serial.model.parameters(), lr=0.3, momentum=0.9), order)
    with ParameterAveraging(alone.model, reducer, every=20, best_first=True, margin=1.0) as averaging:
        train(alone, torch.optim.SGD(alone.model.parameters(), lr=0.3, momentum=0.9), order, averaging)
    assert averaging.num_averages > 2
    for name, value in serial.model.state_dict().items():
        assert torch.equal(value, alone.model.state_dict()[name]), name


def test_four_workers_averaging_every_step_are_one_large_batch():
    """Plain SGD, mean loss, n times the learning rate (for stateful optimizers this is not so)."""
    lr, num_steps, world = 0.1, 5, 4
    large = tiny_mlp(num_batches=world * num_steps, dtype=torch.float64)
    optimizer = torch.optim.SGD(large.model.parameters(), lr=world * lr)
    for step in range(num_steps):
        optimizer.zero_grad()
        (sum(large.evaluate(world * step + rank) for rank in range(world)) / world).backward()
        optimizer.step()

    def worker(reducer):
        own = tiny_mlp(num_batches=world * num_steps, dtype=torch.float64)
        optimizer = torch.optim.SGD(own.model.parameters(), lr=world * lr)
        with ParameterAveraging(own.model, reducer, every=16) as averaging:
            train(own, optimizer, [world * step + reducer.rank for step in range(num_steps)], averaging)
        return parameters(own.model)

    for result in run_workers(worker, world):
        torch.testing.assert_close(result, parameters(large.model), rtol=0, atol=1e-14)


def test_the_average_is_weighted_by_samples_and_includes_buffers():
    samples = [30, 10]

    def worker(reducer):
        model = tiny_convnet().model
        averaging = ParameterAveraging(model, reducer, every=1000)
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.data.fill_(4.0 * reducer.rank)
        averaging.update(samples[reducer.rank])
        report = averaging.average()
        return report, {name: float(value.view(-1)[0]) for name, value in model.state_dict().items()}

    for report, values in run_workers(worker, 2):
        assert report.shares == (0.75, 0.25)
        assert report.samples == (30, 10)
        counter = values.pop("1.num_batches_tracked")
        assert counter == 0                                 # of the worker with the larger share
        assert set(values.values()) == {1.0}


def test_workers_begin_with_the_same_parameters():
    def worker(reducer):
        problem = tiny_mlp(seed=reducer.rank)
        with ParameterAveraging(problem.model, reducer):
            return parameters(problem.model)

    for result in run_workers(worker, 3):
        assert torch.equal(result, parameters(tiny_mlp(seed=0).model))


def test_the_loop_need_not_know_of_it():
    """Counting the optimizer's steps gives the same as counting in the loop."""

    def worker(reducer, followed):
        problem = tiny_mlp()
        optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.2)
        averaging = ParameterAveraging(problem.model, reducer, every=32)
        with averaging.follow(optimizer, samples=16) if followed else averaging:
            train(problem, optimizer, [reducer.rank, 2, reducer.rank, 3, 1], None if followed else averaging)
        averages = averaging.num_averages
        problem.closure(optimizer, 0)()
        optimizer.step()                                    # outside: not counted
        return averages, averaging.num_averages, parameters(problem.model)

    counted, followed = (run_workers(lambda reducer, f=f: worker(reducer, f), 2) for f in (False, True))
    assert followed[0][:2] == counted[0][:2] == (3, 3)
    assert torch.equal(followed[0][2], counted[0][2])


def test_workers_with_less_data_wait_at_the_end():
    def worker(reducer):
        problem = tiny_mlp()
        with ParameterAveraging(problem.model, reducer, every=16) as averaging:
            train(problem, torch.optim.SGD(problem.model.parameters(), lr=0.1), [0] * (2 + 3 * reducer.rank), averaging)
        return averaging.last.samples, parameters(problem.model)

    (samples, first), (_, second) = run_workers(worker, 2)
    assert samples == (0, 0)
    assert torch.equal(first, second)


# -- who counts --------------------------------------------------------------------------------------------------------


def test_shares_by_samples():
    assert shares([Contribution(3), Contribution(1)]) == [0.75, 0.25]
    assert shares([Contribution(0), Contribution(0)]) == [1.0, 0.0]
    assert shares([Contribution(0), Contribution(7)]) == [0.0, 1.0]


def test_workers_far_behind_the_best_are_left_out():
    workers = [Contribution(10, 2.0), Contribution(10, 3.5), Contribution(30, 2.9)]
    assert shares(workers, margin=1.0) == [0.25, 0.0, 0.75]
    assert shares(workers) == [0.2, 0.2, 0.6]


def test_the_best_worker_alone():
    workers = [Contribution(10, 2.0), Contribution(10, 1.5), Contribution(10, math.inf)]
    assert shares(workers, take_best=True) == [0.0, 1.0, 0.0]


@pytest.mark.parametrize("broken", [Contribution(10, math.nan), Contribution(10, math.inf),
                                    Contribution(10, 1.0, finite=False), Contribution(10, None, finite=False)])
def test_workers_that_are_not_finite_never_count(broken):
    assert shares([broken, Contribution(10, 5.0)]) == [0.0, 1.0]
    assert shares([broken, Contribution(0)]) == [0.0, 1.0]
    with pytest.raises(NonFiniteError, match="none of the 1 workers"):
        shares([broken])


def test_losses_must_be_told_where_they_decide():
    with pytest.raises(MisuseError, match="update"):
        shares([Contribution(1, 0.5), Contribution(1)], margin=1.0)


@pytest.mark.parametrize("contribution", [Contribution(5), Contribution(5, 0.25, False, 3, True, 7, 1)])
def test_contributions_survive_the_table(contribution):
    assert Contribution.decode(contribution.encode()) == contribution
    assert Contribution.decode(Contribution(1, math.nan).encode()).loss == math.inf


def test_a_diverged_worker_is_replaced_by_the_average_of_the_others():
    def worker(reducer):
        model = nn.Linear(2, 2)
        averaging = ParameterAveraging(model, reducer, every=10, margin=1.0)
        nn.init.constant_(model.weight, math.nan if reducer.rank == 1 else float(reducer.rank))
        nn.init.zeros_(model.bias)
        report = averaging.update(10, loss=torch.tensor(0.5 if reducer.rank < 3 else 2.0))
        return report.left_out, model.weight[0, 0].item()

    assert run_workers(worker, 4) == [((1, 3), 1.0)] * 4


def test_the_first_average_takes_the_best_worker_and_later_ones_do_not():
    def worker(reducer):
        model = nn.Linear(1, 1)
        averaging = ParameterAveraging(model, reducer, every=10, best_first=True)
        averaging.average()                                 # before training: the first worker's parameters
        rounds = []
        for _ in range(2):
            nn.init.constant_(model.weight, float(reducer.rank))
            rounds.append(averaging.update(10, loss=[3.0, 1.0, 2.0][reducer.rank]).shares)
        return rounds, model.weight.item()

    for rounds, weight in run_workers(worker, 3):
        assert rounds == [(0.0, 1.0, 0.0), (1 / 3, 1 / 3, 1 / 3)]
        assert weight == pytest.approx(1.0)


# -- state -------------------------------------------------------------------------------------------------------------


class Memory:
    """State of the kind a preconditioner has."""

    def __init__(self, value):
        self.value = torch.full((2,), float(value))

    def state_dict(self):
        return {"layers": [{"w": self.value.clone(), "count": 5}]}

    def load_state_dict(self, state):
        self.value = state["layers"][0]["w"]


def run_with_state(policy):
    def worker(reducer):
        problem = tiny_mlp()
        optimizer, memory = torch.optim.Adam(problem.model.parameters(), lr=0.01), Memory(0.0)
        averaging = ParameterAveraging(problem.model, reducer, every=16, state=policy, stateful=[optimizer, memory])
        problem.closure(optimizer, reducer.rank)()
        optimizer.step()
        memory.value += reducer.rank
        optimizer.param_groups[0]["lr"] = 0.005
        before = copy.deepcopy([state["exp_avg"] for state in optimizer.state.values()])
        report = averaging.update(16)
        assert optimizer.param_groups[0]["lr"] == 0.005
        return report.state_averaged, memory.value.tolist(), before, [s["exp_avg"] for s in optimizer.state.values()]

    return run_workers(worker, 2)


def test_state_stays_with_its_worker_by_default():
    for rank, (averaged, memory, before, after) in enumerate(run_with_state("local")):
        assert not averaged and memory == [rank, rank]
        assert all(map(torch.equal, before, after))


def test_state_is_averaged_on_request():
    results = run_with_state("averaged")
    for averaged, memory, _, after in results:
        assert averaged and memory == [0.5, 0.5]
        for tensor, first, second in zip(after, results[0][2], results[1][2]):
            torch.testing.assert_close(tensor, (first + second) / 2)


def test_state_is_reset_on_request():
    for averaged, memory, _, after in run_with_state("reset"):
        assert not averaged and memory == [0.0, 0.0] and after == []


def test_state_that_not_all_workers_have_yet_stays_local():
    def worker(reducer):
        memory = [Memory(reducer.rank)] * (1 + reducer.rank)
        averaging = ParameterAveraging(nn.Linear(1, 1), reducer, every=1, state="averaged", stateful=memory)
        return averaging.update(1).state_averaged, memory[0].value.tolist()

    assert run_workers(worker, 2) == [(False, [0, 0]), (False, [1, 1])]


# -- losses of workers -------------------------------------------------------------------------------------------------


class LosingReducer(LocalReducer):
    """The second of two workers is lost in the n-th sum, and the group forms anew if it can."""

    def __init__(self, lost_at, regroups=True):
        self.calls, self.lost_at, self.regroups, self.world = 0, lost_at, regroups, 2

    def sum_(self, flat, weight=0.0):
        self.calls += 1
        if self.calls == self.lost_at:
            if self.regroups:
                self.world, self.generation = 1, 1
            raise MemberLost((1,), 0)
        return super().sum_(flat, weight)


@pytest.mark.parametrize("lost_at", [1, 2])
def test_the_average_is_repeated_with_the_survivors(lost_at):
    model = nn.Linear(2, 2)
    before = parameters(model)
    averaging = ParameterAveraging(model, LosingReducer(lost_at), every=5)
    report = averaging.update(5)
    assert report.shares == (1.0,) and report.generation == 1
    assert torch.equal(parameters(model), before)


def test_a_group_that_cannot_form_anew_raises():
    with pytest.raises(MemberLost):
        ParameterAveraging(nn.Linear(1, 1), LosingReducer(1, regroups=False)).average()


# -- the rest ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [dict(every=0), dict(margin=0.0), dict(state="shared")])
def test_wrong_options_are_refused(options):
    with pytest.raises(ConfigError):
        ParameterAveraging(nn.Linear(1, 1), **options)


def test_two_pass_optimizers_are_not_counted_by_steps():
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1)
    optimizer.passes_per_step = 2
    with pytest.raises(MisuseError, match="update"):
        ParameterAveraging(nn.Linear(1, 1)).follow(optimizer, samples=1)


def test_phases_are_spread():
    phases = [staggered_phase(rank, 8, interval=4) for rank in range(8)]
    assert sorted(phases) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert staggered_phase(0, 1, interval=4) == 0
    with pytest.raises(ConfigError):
        staggered_phase(2, 2, interval=4)


def test_number_of_workers_follows_the_reference():
    assert [num_workers_at(i / 10, 3, 16) for i in range(11)] == [int(0.5 + 3 + 13 * i / 10) for i in range(11)]
    with pytest.raises(ConfigError):
        num_workers_at(1.5, 3, 16)


# -- the final model ---------------------------------------------------------------------------------------------------


def test_the_best_running_average_is_kept():
    """Models 6, 2, 1 (newest first) have running averages 6, 4, 3; held-out data likes 4."""
    model, last = nn.Linear(1, 1, bias=False), LastModels(3)
    for weight in (99.0, 1.0, 2.0, 6.0):
        nn.init.constant_(model.weight, weight)
        last.add(model)
    result = combine_models(model, last.newest_first, evaluate=lambda m: abs(m.weight.item() - 4.2))
    assert result.num_models == 2
    assert result.losses == pytest.approx((1.8, 0.2, 1.2))
    assert model.weight.item() == 4.0


def test_one_model_is_kept_to_the_bit_and_counters_are_the_newest():
    model, last = tiny_convnet().model, LastModels()
    last.add(model)
    expected = copy.deepcopy(model.state_dict())
    assert combine_models(model, last.newest_first, evaluate=lambda m: 1.0).num_models == 1
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_batch_norm_statistics_are_computed_anew_for_every_candidate_and_the_result():
    problem, last = tiny_convnet(), LastModels()
    for value in (0.5, 1.0):
        nn.init.constant_(problem.model[0].weight, value)
        last.add(problem.model)

    def refresh(model):
        torch.optim.swa_utils.update_bn([inputs for inputs, _ in problem.batches], model)

    def evaluate(model):
        twin = copy.deepcopy(model)
        refresh(twin)
        assert torch.equal(twin[1].running_mean, model[1].running_mean)
        return problem.total()                              # leaves the statistics: in evaluation mode

    result = combine_models(problem.model, last.newest_first, evaluate, refresh)
    assert len(result.losses) == 2
    twin = copy.deepcopy(problem.model)
    refresh(twin)
    assert torch.equal(twin[1].running_var, problem.model[1].running_var)


def test_averages_without_a_finite_loss_are_refused():
    model, last = nn.Linear(1, 1), LastModels()
    with pytest.raises(MisuseError, match="no models"):
        combine_models(model, [], evaluate=lambda m: 0.0)
    last.add(model)
    with pytest.raises(NonFiniteError):
        combine_models(model, last.newest_first, evaluate=lambda m: math.nan)
