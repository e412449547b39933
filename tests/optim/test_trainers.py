"""The optimizers under the loops that trainers write: distributed, with closures, accumulating, preparing ahead.

The trainers are emulated in a few lines of torch each: what they do to a model and an optimizer, not what they are
called.
"""

import contextlib
import os

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from hemstitch.curvature import OnlineNaturalGradient
from hemstitch.errors import MisuseError
from hemstitch.optim import SGD, Backstitch, NaturalGradient, component_groups
from hemstitch.testing import tiny_convnet, tiny_mlp


def setup(problem=None, interval=2, **options):
    problem = problem or tiny_mlp(dtype=torch.float64)
    natural = NaturalGradient(problem.model, update_period=2, loss_reduction="mean", **options)
    return problem, Backstitch(SGD(component_groups(problem.model), lr=0.1), 0.5, interval, natural_gradient=natural)


def flat(problem):
    return torch.cat([p.detach().reshape(-1) for p in problem.model.parameters()])


def reference(steps=6, **options):
    problem, optimizer = setup(**options)
    for index in range(steps):
        optimizer.step(problem.closure(optimizer, index))
    return flat(problem)


def test_closure_with_training_step_first_and_a_wrapped_optimizer():
    """A trainer that wraps the optimizer, puts zero_grad between forward and backward, and steps a scheduler."""
    problem, optimizer = setup()
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)

    class Wrapped:
        def __init__(self, inner):
            self.__dict__ = {k: v for k, v in inner.__dict__.items() if k not in ("step",)}
            self.inner = inner

        def step(self, closure):
            return self.inner.step(closure=closure)

    wrapped = Wrapped(optimizer)
    for index in range(6):
        def closure():
            loss = problem.evaluate(index)
            optimizer.zero_grad()
            loss.backward()
            return loss
        wrapped.step(closure)
        scheduler.step()
    assert torch.equal(flat(problem), reference())


def test_trainer_without_closures_that_fetches_ahead_clips_and_schedules():
    """zero_grad, backward, clip, step(), scheduler; one batch ahead; only `begin` is added."""
    problem, optimizer = setup()
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    loader = optimizer.batches(range(6), announce=False)
    following = next(loader)
    while following is not None:
        index, following = following, next(loader, None)
        optimizer.begin()
        problem.evaluate(index).backward()
        nn.utils.clip_grad_norm_(problem.model.parameters(), 1e9)
        optimizer.step()
        scheduler.step()
        problem.model.zero_grad()
    assert torch.equal(flat(problem), reference())


def test_accumulation_over_micro_batches_in_phases():
    """Each phase sums the gradients of two micro-batches; the estimates see every micro-batch."""
    problem, optimizer = setup()
    for step in range(4):
        for _ in optimizer.phases():
            optimizer.zero_grad()
            for index in (2 * step, 2 * step + 1):
                (0.5 * problem.evaluate(index)).backward()
            optimizer.step()
    closed, other = setup()
    for step in range(4):
        def closure():
            other.zero_grad()
            losses = [0.5 * closed.evaluate(index) for index in (2 * step, 2 * step + 1)]
            for loss in losses:
                loss.backward()
            return sum(losses)
        other.step(closure)
    assert torch.equal(flat(problem), flat(closed)) and optimizer.report().num_pairs == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision_with_scaler_and_batch_norm(dtype):
    problem = tiny_convnet(dropout=0.2)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    problem, optimizer = setup(problem, grad_scaler=scaler)
    problem.model.eval()
    before = problem.total()
    problem.model.train()
    for index in range(20):
        for _ in optimizer.phases():
            optimizer.zero_grad()
            with torch.autocast("cpu", dtype=dtype):
                outputs = problem.model(problem.batches[index % 4][0])
            scaler.scale(problem.loss(outputs.float(), problem.batches[index % 4][1])).backward()
            scaler.step(optimizer)
            scaler.update()
    problem.model.eval()
    assert problem.total() < before and problem.model[1].num_batches_tracked == 20
    assert optimizer.natural_gradient.state_dict()["layers"]["0"]["in"]["factor"].dtype == torch.float32


# -- several processes -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def process_group(rank, size, file):
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=size)
    try:
        yield
    finally:
        dist.destroy_process_group()


def one_of_two(rank, file, queue):
    torch.set_num_threads(1)
    with process_group(rank, 2, file):
        problem, optimizer = setup()
        model = DistributedDataParallel(problem.model)
        gradients = []
        for step in range(4):
            inputs, targets = problem.batches[(2 * step + rank) % 4]

            def closure():
                optimizer.zero_grad()
                loss = problem.loss(model(inputs), targets)
                loss.backward()
                gradients.append(problem.model[0].weight.grad.clone())
                return loss

            optimizer.step(closure)
        queue.put((rank, flat(problem).numpy(), gradients[0].numpy()))
        queue.close()
        queue.join_thread()


def test_two_processes_average_natural_gradients_and_stay_equal(tmp_path):
    """Distributed data parallel: the gradient is the mean of what each process's own estimates make of its rows."""
    context = mp.get_context("spawn")
    queue = context.Queue()
    processes = [context.Process(target=one_of_two, args=(rank, str(tmp_path / "store"), queue)) for rank in range(2)]
    for process in processes:
        process.start()
    results = dict((rank, rest) for rank, *rest in (queue.get(timeout=100) for _ in processes))
    for process in processes:
        process.join(timeout=30)
    assert (results[0][0] == results[1][0]).all(), "the processes have different parameters"
    alone = []
    for rank in range(2):
        problem, _ = setup()
        problem.evaluate(rank).backward()
        alone.append(problem.model[0].weight.grad)
    torch.testing.assert_close(torch.from_numpy(results[0][1]), (alone[0] + alone[1]) / 2)


def test_distributed_model_with_natural_gradient_put_on_it_afterwards(tmp_path):
    """Names then begin with ``module.``; everything else is the same."""
    with process_group(0, 1, tmp_path / "store"):
        problem = tiny_mlp()
        model = DistributedDataParallel(problem.model)
        natural = NaturalGradient(model)
        problem.loss(model(problem.batches[0][0]), problem.batches[0][1]).backward()
        assert list(natural.layers) == ["module.0", "module.2", "module.4"]
        assert isinstance(natural.layers["module.0"].sides["in"], OnlineNaturalGradient)
        assert natural.report()["module.4"]["out"].num_updates > 0


# -- trainers that make one pass and step themselves -----------------------------------------------------------


def test_up_to_step_leaves_the_last_step_to_the_trainer():
    problem, optimizer = setup()
    losses = []
    for index in range(6):
        losses.append(optimizer.up_to_step(lambda: backward(problem.evaluate(index))))
        optimizer.step()
        optimizer.zero_grad()
    assert torch.equal(flat(problem), reference()) and optimizer.report().num_pairs == 3
    assert losses[0] == setup()[0].evaluate(0)


def test_up_to_step_refuses_accumulation_and_takes_a_failed_pass_back():
    problem, optimizer = setup()
    before = flat(problem)
    optimizer.up_to_step(lambda: backward(problem.evaluate(0)))
    with pytest.raises(MisuseError, match="phases"):
        optimizer.up_to_step(lambda: backward(problem.evaluate(1)))
    optimizer.abandon()
    assert torch.equal(flat(problem), before)
    passes = iter([0, None])
    with pytest.raises(TypeError):
        optimizer.up_to_step(lambda: backward(problem.evaluate(0 if next(passes) == 0 else "x")))
    assert torch.equal(flat(problem), before) and optimizer.state_dict()["backstitch"] == {"num_batches": 0}


def backward(loss):
    loss.backward()
    return loss.detach()
