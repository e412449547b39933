"""Forward passes that can be differentiated twice and leave no trace.

What a curvature product needs of a forward pass and a training step does not: kernels that have a second derivative
(attention under the math kernel, recurrent layers without cuDNN), buffers that stay as they are (batch-norm statistics
would count every pass as a batch), and a random state that stays as it is (each pass draws the same dropout mask).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from hemstitch.errors import MisuseError

_UNSUPPORTED = ("not implemented", "not supported", "does not support", "forward AD", "double backward", "ZeroTensor")


@contextmanager
def twice_differentiable(*, recurrent: bool = True) -> Iterator[None]:
    """Forward passes within can be differentiated twice: attention runs under the math kernel.

    Args:
        recurrent: run without cuDNN, whose recurrent layers have no second derivative either; needless (and slow for
            convolutions) where there are none.
    """
    with ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if recurrent and torch.backends.cudnn.is_available():
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        yield


@contextmanager
def same_randomness(device: torch.device) -> Iterator[None]:
    """Leave the random state of the CPU and of ``device`` as it is found."""
    cuda = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        yield


@contextmanager
def explained(engine: str) -> Iterator[None]:
    """Turn autograd's "not implemented" into an error that says what to do."""
    try:
        yield
    except (RuntimeError, NotImplementedError) as error:
        if not any(word in str(error) for word in _UNSUPPORTED):
            raise
        raise MisuseError(f"engine {engine!r} cannot differentiate this model: {error}. Replace the operation or "
                          "choose another engine") from error


def check_twice_differentiable(engine: str, derivatives: Iterable[Tensor]) -> None:
    """Refuse first derivatives that lost their own derivative on the way.

    Autograd prunes a ``once_differentiable`` function from the second pass instead of raising when no path leads
    through it to the leaf asked for: the product would silently lack the layers below.
    """
    stack = [derivative.grad_fn for derivative in derivatives]
    seen = set(stack)
    while stack:
        node = stack.pop()
        if node is None:
            continue
        if node.name() == "torch::autograd::Error":
            raise MisuseError(f"engine {engine!r} cannot differentiate this model: one of its functions is marked "
                              "once_differentiable. Switch it to plain gradients for the product")
        new = {follower for follower, _ in node.next_functions} - seen
        seen |= new
        stack.extend(new)


def run_frozen(
    model: nn.Module, inputs: Any, replaced: Mapping[str, Tensor] | None = None, *, record: bool = True
) -> Tensor:
    """``model(inputs)`` on copies of the buffers and of the random state.

    Args:
        model: returns one tensor.
        inputs: a tensor, a tuple of positional arguments or a mapping of keyword arguments.
        replaced: parameters by name to use instead of the model's own.
        record: build the graph for backward passes.
    """
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    args = inputs if isinstance(inputs, tuple) else () if isinstance(inputs, Mapping) else (inputs,)
    kwargs = dict(inputs) if isinstance(inputs, Mapping) else {}
    device = next(model.parameters()).device
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    with twice_differentiable(recurrent=recurrent), same_randomness(device), torch.set_grad_enabled(record):
        outputs = functional_call(model, {**buffers, **(replaced or {})}, args, kwargs)
    if not isinstance(outputs, Tensor):
        raise MisuseError(f"the model must return one tensor, {type(model).__name__} returned "
                          f"{type(outputs).__name__}: wrap it in a module that picks the outputs of the loss")
    return outputs
