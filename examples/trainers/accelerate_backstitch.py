"""Backstitch over natural gradient with accelerate. ``accelerate launch accelerate_backstitch.py``, or plain python."""

import torch
from _problem import backstitch, loader, mean_loss, network
from accelerate import Accelerator


def train(epochs=3, mixed_precision="no", dropout=0.1):
    accelerator = Accelerator(cpu=True, mixed_precision=mixed_precision)
    model = network(dropout)
    stitched = backstitch(model)                    # before prepare(): the layers, not a wrapper around them
    model, optimizer, batches = accelerator.prepare(model, stitched, loader())
    for _ in range(epochs):
        for inputs, targets in batches:
            def closure():
                optimizer.zero_grad()
                loss = torch.nn.functional.cross_entropy(model(inputs).float(), targets)
                accelerator.backward(loss)
                return loss

            optimizer.step(closure)
    model = accelerator.unwrap_model(model)
    return model, mean_loss(model)


def train_by_phases(epochs=3, micro_batches=2, dropout=0.1):
    """With gradients accumulated over micro-batches and clipped."""
    accelerator = Accelerator(cpu=True)
    model = network(dropout)
    stitched = backstitch(model)
    model, optimizer, batches = accelerator.prepare(model, stitched, loader())
    for _ in range(epochs):
        for inputs, targets in batches:
            for _ in stitched.phases():
                optimizer.zero_grad()
                for x, y in zip(inputs.chunk(micro_batches), targets.chunk(micro_batches)):
                    loss = torch.nn.functional.cross_entropy(model(x).float(), y)
                    accelerator.backward(loss / micro_batches)
                accelerator.clip_grad_norm_(model.parameters(), 5.0)
                optimizer.step()
    model = accelerator.unwrap_model(model)
    return model, mean_loss(model)


if __name__ == "__main__":
    print(f"at once {train()[1]:.4f}  micro-batches, clipped {train_by_phases()[1]:.4f}")
