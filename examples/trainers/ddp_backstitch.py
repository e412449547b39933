"""Backstitch over natural gradient in two processes with DistributedDataParallel. ``python ddp_backstitch.py``

Each process preconditions by its own Fisher estimates, then the gradients are averaged. All processes must step in
pairs at the same minibatches: give them the same ``phase``.
"""

import os
import tempfile

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from _problem import backstitch, loader, mean_loss, network
from torch.nn.parallel import DistributedDataParallel


def one_process(rank, size, folder, epochs, bf16):
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
    model = network()
    optimizer = backstitch(model)                   # before wrapping
    wrapped = DistributedDataParallel(model)
    for _ in range(epochs):
        for inputs, targets in loader(32 * size):
            x, y = inputs.chunk(size)[rank], targets.chunk(size)[rank]

            def closure():
                optimizer.zero_grad()
                with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                    outputs = wrapped(x)
                loss = torch.nn.functional.cross_entropy(outputs.float(), y)
                loss.backward()
                return loss

            optimizer.step(closure)
    state = {"loss": mean_loss(model), "parameters": torch.nn.utils.parameters_to_vector(model.parameters()).detach(),
             "natural_gradient": optimizer.natural_gradient.state_dict()}       # one for each process: save them all
    torch.save(state, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def train(size=2, epochs=3, bf16=False):
    """What each process ended with."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(one_process, (size, folder, epochs, bf16), nprocs=size)
        return [torch.load(f"{folder}/{rank}.pt") for rank in range(size)]


if __name__ == "__main__":
    for name, bf16 in (("float32", False), ("bf16", True)):
        first, second = train(bf16=bf16)
        apart = float((first["parameters"] - second["parameters"]).abs().max())
        print(f"{name}: loss {first['loss']:.4f}, largest difference of parameters between processes {apart:g}")
