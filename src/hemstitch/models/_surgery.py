"""Working on a built model: freeze parts, replace the output layer, count."""

from __future__ import annotations

import re

from torch import nn

from hemstitch.errors import MisuseError
from hemstitch.models._frame_stack import output_layer


def freeze(model: nn.Module, pattern: str, *, frozen: bool = True) -> list[str]:
    """Exclude from training every parameter whose name contains a match of ``pattern``.

    Only parameters are frozen: batch-norm layers go on updating their running statistics while the model is in
    training mode.

    Args:
        model: changed in place.
        pattern: regular expression, e.g. ``^layers\\.[01]\\.`` for the two lowest layers.
        frozen: False to train them again.

    Returns:
        The names found.

    Raises:
        MisuseError: nothing matches.
    """
    found = {name: p for name, p in model.named_parameters() if re.search(pattern, name)}
    if not found:
        names = ", ".join(name for name, _ in model.named_parameters())
        raise MisuseError(f"no parameter matches {pattern!r}; the parameters are: {names}")
    for parameter in found.values():
        parameter.requires_grad_(not frozen)
    return list(found)


def replace_output(model: nn.Module, num_outputs: int) -> nn.Linear:
    """Give a trained model a fresh output layer (zero, so it starts at the uniform distribution), for another task.

    The output layer is the model's last ``nn.Linear``; the second head of cross-entropy regularisation is replaced
    likewise.

    Args:
        model: changed in place; make the optimizer anew afterwards.
        num_outputs: of the new layer.

    Returns:
        The new layer.

    Raises:
        MisuseError: the model has no such layer, or its weights are shared with another one.
    """
    linear = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear)}
    heads = [name for name in linear if name == "xent_output"]
    main = next((name for name in reversed(linear) if name not in heads), None)
    if main is None:
        raise MisuseError(f"{type(model).__name__} has no nn.Linear that could be its output layer")
    for name in (*heads, main):
        old = linear[name]
        _refuse_shared(model, old, name)
        new = output_layer(old.in_features, num_outputs).to(old.weight)
        model.set_submodule(name, new)
    if hasattr(model, "num_outputs"):
        model.num_outputs = num_outputs
    return new


def _refuse_shared(model: nn.Module, layer: nn.Linear, name: str) -> None:
    owners = [n for n, p in model.named_parameters(remove_duplicate=False) if p is layer.weight]
    if len(owners) > 1:
        raise MisuseError(f"the weights of {name!r} are tied ({' = '.join(owners)}): build the model with the new size")


def count_parameters(model: nn.Module, *, trainable_only: bool = False) -> int:
    """Number of parameters; shared ones count once."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable_only)
