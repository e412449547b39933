"""A table of a model's layers: what comes out of each, and how many parameters it has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hemstitch.models._surgery import count_parameters


@dataclass(frozen=True, kw_only=True)
class LayerRow:
    """One line of the table."""

    name: str
    """Path inside the model."""
    kind: str
    """Class of the layer."""
    output_shape: tuple[int, ...]
    """Of its (first) output tensor."""
    num_parameters: int
    """Shared ones are counted where they appear first."""


@dataclass(frozen=True, kw_only=True)
class Description:
    """Layers in the order they run, and the total; ``str`` gives the table."""

    rows: tuple[LayerRow, ...]
    num_parameters: int
    """All parameters of the model, also of layers that did not run."""

    def __str__(self) -> str:
        header = ("layer", "kind", "output", "parameters")
        body = [(r.name, r.kind, " x ".join(map(str, r.output_shape)), f"{r.num_parameters:,}") for r in self.rows]
        lines = [header, *body, ("total", "", "", f"{self.num_parameters:,}")]
        name, kind, shape, count = (max(map(len, column)) for column in zip(*lines))
        return "\n".join(f"{a:<{name}}  {b:<{kind}}  {c:<{shape}}  {d:>{count}}" for a, b, c, d in lines)


def describe(model: nn.Module, input_shape: Sequence[int], *, dtype: torch.dtype | None = None) -> Description:
    """Run ``model`` once on zeros, in evaluation mode, and list its layers.

    A layer is a module that runs and contains none that does: an LSTM is one line, whatever maps it holds.

    Args:
        model: any model with one input; left as it was.
        input_shape: of the input, the batch included.
        dtype: of the input; the parameters' own by default (integers for a language model).
    """
    like = next(model.parameters(), torch.empty(0))
    inputs = torch.zeros(tuple(input_shape), dtype=dtype or like.dtype, device=like.device)
    names, shapes = {module: name for name, module in model.named_modules()}, {}

    def record(module: nn.Module, _: object, output: object) -> None:
        while isinstance(output, (tuple, list)) and output:
            output = output[0]
        if isinstance(output, Tensor):
            shapes[module] = tuple(output.shape)

    handles = [module.register_forward_hook(record) for module in names]
    modes = {module: module.training for module in names}
    try:
        model.eval()
        with torch.no_grad():
            model(inputs)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode
    return Description(rows=_rows(names, shapes), num_parameters=count_parameters(model))


def _rows(names: dict[nn.Module, str], shapes: dict[nn.Module, tuple[int, ...]]) -> tuple[LayerRow, ...]:
    rows, seen = [], set()
    for module, shape in shapes.items():
        if any(child in shapes for child in module.modules() if child is not module):
            continue
        fresh = [p for p in module.parameters() if p not in seen]
        seen.update(fresh)
        rows.append(LayerRow(
            name=names[module] or type(module).__name__, kind=type(module).__name__, output_shape=shape,
            num_parameters=sum(p.numel() for p in fresh)))
    return tuple(rows)
