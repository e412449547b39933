"""Natural gradient for a whole model: one Fisher estimate per side of every affine layer.

The Fisher matrix of a layer's weights is taken as the Kronecker product of that of its input rows and that of its
output derivatives, and layers as independent. Each factor is estimated online
(`hemstitch.curvature.OnlineNaturalGradient`), and inverted by two thin products. `hemstitch.optim._natural_layers`
has the layer, this module has the choice of layers and ranks, and what they share.

**Scale of the loss.** The estimates have an absolute floor epsilon, so they must see derivatives of SUMMED losses:
with those of a mean over 500 rows the eigenvalues are 250,000 times smaller and drown in the floor; nothing fails,
but the preconditioner is all but off. Hence ``loss_reduction``, and ``grad_scaler`` for mixed precision. Directions
are then the same for either reduction. The number of terms of a mean is taken as the number of rows of the layer that
ran last in the forward pass, normally the output layer.

**Cost.** 2 N (D_in rank_in + D_out rank_out) multiply-adds twice, against 3 N D_in D_out for the layer; half as much
again in one step of ``update_period``.

References: Povey et al., ICLR workshop 2015; Martens and Grosse, K-FAC, ICML 2015, for the factorisation.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hemstitch.curvature import FisherReport, OnlineNaturalGradient, simple_natural_gradient
from hemstitch.errors import MisuseError
from hemstitch.models import PerElementScale
from hemstitch.optim._natural_layers import NaturalConv, NaturalLayer, NaturalLinear, NaturalScale
from hemstitch.optim._update_rule import check

STATE_VERSION = 1
logger = logging.getLogger("hemstitch")


@dataclass(frozen=True)
class _Kind:
    """How a kind of layer is preconditioned unless the user says otherwise: largest ranks and updates per call."""

    rule: Callable[..., NaturalLayer]
    rank_in: int
    rank_out: int
    update_period: int | None = None


_KINDS: dict[type[nn.Module], _Kind] = {
    nn.Linear: _Kind(NaturalLinear, 20, 80),
    nn.Conv1d: _Kind(NaturalConv, 20, 80),
    nn.Conv2d: _Kind(NaturalConv, 80, 80),
    PerElementScale: _Kind(NaturalScale, 0, 8, update_period=10),
}
_OPTIONS = ("rank_in", "rank_out", "update_period", "alpha", "num_samples_history", "schedule", "method")


class _Simple:
    """`simple_natural_gradient` as a preconditioner: no memory."""

    frozen = False

    def __init__(self, alpha: float) -> None:
        self.alpha = alpha

    def precondition_rows(self, x: Tensor, *, gain: float = 1.0) -> tuple[Tensor, float]:
        return simple_natural_gradient(x, self.alpha), 1.0

    def precondition_affine(self, x: Tensor) -> tuple[Tensor, Tensor, float]:
        rows, scale = self.precondition_rows(torch.cat([x, x.new_ones(len(x), 1)], 1))
        return rows[:, :-1], rows[:, -1], scale

    def report(self) -> None:
        return None

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        check(not state, "this state was saved with method 'online'; this model uses 'simple'")


class NaturalGradient:
    """Make the layers of a model compute the natural gradient of their parameters in the backward pass.

        net = nn.Sequential(...)
        natural = NaturalGradient(net, loss_reduction="mean")
        optimizer = SGD(component_groups(net), lr=0.01)      # or any torch optimizer

    Handled: ``nn.Linear``, ``nn.Conv1d`` and ``nn.Conv2d`` without groups, and the layers made of these, such as
    `hemstitch.models.ProjectedLstm` (whose time steps are preconditioned together, once per backward). Parameters of
    other layers keep their plain gradient; they are logged once and listed in ``plain_parameters``. Outputs of the
    model and keys of its state_dict do not change. With torch.compile the handled layers run outside the compiled
    graph.

    Under DistributedDataParallel each process estimates from its own rows, and the natural gradients are averaged;
    pass the model before or after wrapping. ``.grad`` may hold inf or NaN if the derivatives did, so that a
    GradScaler sees them; the estimates refuse them.

    Args:
        model: the network.
        rank_in: rank on the side of the inputs; ``"auto"``: min(20, (in + 1) // 2), for ``nn.Conv2d`` min(80, ...).
        rank_out: rank on the side of the output derivatives; ``"auto"``: min(80, (out + 1) // 2).
        update_period: backward passes per update of the estimates.
        alpha: smoothing towards the plain gradient, > 0.
        num_samples_history: rows over which old minibatches fade.
        schedule: ``"2017"`` or ``"2025"``, see `hemstitch.curvature.OnlineNaturalGradient`.
        method: ``"online"``; ``"simple"``: from the other rows of the same minibatch, without memory.
        loss_reduction: ``"sum"`` or ``"mean"``, as the user's loss is.
        overrides: by regular expression over layer names (``re.search``), other values for the above, or ``None`` to
            leave the layer plain; the last match wins.
        grad_scaler: the ``torch.amp.GradScaler`` that scales the loss, if any.

    Raises:
        ConfigError: an option out of range; a regular expression that finds no layer.
        MisuseError: the model has natural gradient already, or no layer that could have it.
    """

    def __init__(
        self,
        model: nn.Module,
        rank_in: int | str = "auto",
        rank_out: int | str = "auto",
        update_period: int = 4,
        alpha: float = 4.0,
        num_samples_history: float = 2000.0,
        schedule: str = "2017",
        method: str = "online",
        loss_reduction: str = "sum",
        *,
        overrides: Mapping[str, Mapping[str, Any] | None] | None = None,
        grad_scaler: torch.amp.GradScaler | None = None,
    ) -> None:
        check(loss_reduction in ("sum", "mean"), f'loss_reduction must be "sum" or "mean", got {loss_reduction!r}')
        self.model, self.loss_reduction, self.grad_scaler = model, loss_reduction, grad_scaler
        self._num_terms, self._mask, self._frozen = 1, None, False
        common = {"rank_in": rank_in, "rank_out": rank_out, "update_period": update_period, "alpha": alpha,
                  "num_samples_history": num_samples_history, "schedule": schedule, "method": method}
        named = {name: layer for name, layer in model.named_modules() if _kind(layer) is not None}
        settings = _settings(named, common, overrides or {})
        self.layers = {name: self._natural_layer(named[name], common, own) for name, own in settings.items()}
        if not self.layers:
            raise MisuseError("natural gradient needs at least one nn.Linear, nn.Conv1d or nn.Conv2d; "
                              f"{type(model).__name__} has none")
        for rule in self.layers.values():
            if "forward" in vars(rule.layer):
                raise MisuseError("this model has natural gradient (or another forward put on its layers) already: "
                                  "call detach() on the old one first")
        for rule in self.layers.values():
            rule.layer.forward = rule
        handled = {id(p) for rule in self.layers.values() for p in rule.layer.parameters(recurse=False)}
        self.plain_parameters = [name for name, p in model.named_parameters() if id(p) not in handled]
        if self.plain_parameters:
            logger.info("plain gradient for %s", ", ".join(self.plain_parameters))

    def _natural_layer(self, layer: nn.Module, common: dict[str, Any], own: Mapping[str, Any]) -> NaturalLayer:
        """The layer's rule with its preconditioners."""
        kind, options = _kind(layer), dict(common)
        if kind.update_period is not None:
            options["update_period"] = kind.update_period
        options |= own
        check(options["method"] == "online" or kind.rule is not NaturalConv, 'method "simple" needs rows as a matrix: '
              'leave convolutions at "online" by overrides={"regular expression": {"method": "online"}}')
        sides = {}
        for side, dim in _dims(layer).items():
            rank = options[f"rank_{side}"]
            rank = min(getattr(kind, f"rank_{side}"), (dim + 1) // 2) if rank == "auto" else rank
            check(isinstance(rank, int), f'rank_{side} must be a number or "auto", got {rank!r}')
            sides[side] = _Simple(options["alpha"]) if options["method"] == "simple" else OnlineNaturalGradient(
                rank=rank, update_period=options["update_period"], alpha=options["alpha"],
                num_samples_history=options["num_samples_history"], schedule=options["schedule"])
        return kind.rule(layer, sides, self)

    def observe(self, layer: NaturalLayer, rows: torch.Size) -> Tensor | None:
        """Called by each layer in the forward pass: counts the rows, returns the mask for them."""
        if torch._C._current_graph_task_id() != -1:  # a recurrent layer, asking from its backward pass
            if self._mask is not None:
                raise MisuseError("a mask reaches no recurrent layer, which stacks its time steps: "
                                  "train it on chunks of equal length")
            return None
        if self._mask is None or len(rows) < self._mask.dim():
            self._num_terms = rows.numel()
            return None
        if rows != self._mask.shape:
            raise MisuseError(f"the mask has shape {tuple(self._mask.shape)}, but a layer's rows are {tuple(rows)}: "
                              "use chunks of equal length where layers change the number of frames")
        self._num_terms = max(1, int(self._mask.sum()))
        return self._mask

    def gain(self) -> float:
        """What output derivatives must be multiplied by to be those of a summed, unscaled loss."""
        scale = 1.0 if self.grad_scaler is None else self.grad_scaler.get_scale()
        return (self._num_terms if self.loss_reduction == "mean" else 1) / scale

    @contextmanager
    def masked(self, mask: Tensor) -> Iterator[None]:
        """Leave padded rows out of every sum in the backward passes of what runs forward within.

        Args:
            mask: (batch, time) true where there is data.
        """
        self._mask = mask.bool()
        try:
            yield
        finally:
            self._mask = None

    def freeze(self, on: bool = True) -> None:
        """Stop (or resume) learning the Fisher matrices; the gradients stay natural."""
        self._frozen = bool(on)
        for rule in self.layers.values():
            for side in rule.sides.values():
                side.frozen = self._frozen

    @property
    def frozen(self) -> bool:
        """Whether the estimates are frozen."""
        return self._frozen

    def detach(self) -> None:
        """Give the layers back their own backward pass."""
        for rule in self.layers.values():
            vars(rule.layer).pop("forward", None)

    def report(self) -> dict[str, dict[str, FisherReport]]:
        """By layer and side (``in``, ``out``): effective rank, condition, and what was refused or mended."""
        reports = {name: {side: p.report() for side, p in rule.sides.items()} for name, rule in self.layers.items()}
        return {name: {side: r for side, r in sides.items() if r is not None} for name, sides in reports.items()}

    def state_dict(self) -> dict[str, Any]:
        """All estimates, by layer and side."""
        return {"version": STATE_VERSION, "layers": {
            name: {side: p.state_dict() for side, p in rule.sides.items()} for name, rule in self.layers.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over saved estimates.

        Raises:
            ConfigError: other layers than here, or other ranks.
        """
        check(state.get("version", 0) <= STATE_VERSION, "this state was saved by a newer version: upgrade hemstitch")
        layers = state["layers"]
        check(layers.keys() == self.layers.keys(), f"the saved state is for the layers {sorted(layers)}, "
              f"this model has {sorted(self.layers)}")
        for name, rule in self.layers.items():
            for side, preconditioner in rule.sides.items():
                preconditioner.load_state_dict(layers[name][side])

    def __repr__(self) -> str:
        lines = [f"  {name}: {rule.kind}, {rule.sides}" for name, rule in self.layers.items()]
        return "\n".join([f"NaturalGradient(loss_reduction={self.loss_reduction!r})", *lines])


@contextmanager
def plain_gradients(model: nn.Module) -> Iterator[None]:
    """Plain gradients within, for curvature products, per-sample gradients and everything differentiated twice."""
    rules = [rule for layer in model.modules() if isinstance(rule := vars(layer).get("forward"), NaturalLayer)]
    before = [rule.plain for rule in rules]
    try:
        for rule in rules:
            rule.plain = True
        yield
    finally:
        for rule, plain in zip(rules, before, strict=True):
            rule.plain = plain


def _kind(layer: nn.Module) -> _Kind | None:
    """How to precondition a layer; ``None``: not at all."""
    for base, kind in _KINDS.items():
        if isinstance(layer, base) and type(layer).forward is base.forward:
            return kind if getattr(layer, "groups", 1) == 1 else None
    return None


def _dims(layer: nn.Module) -> dict[str, int]:
    """Width of the rows on each side, without the appended one."""
    if isinstance(layer, PerElementScale):
        return {"out": layer.weight.numel()}
    return {"in": layer.weight[0].numel(), "out": layer.weight.shape[0]}


def _settings(
    named: dict[str, nn.Module], common: dict[str, Any], overrides: Mapping[str, Mapping[str, Any] | None]
) -> dict[str, Mapping[str, Any]]:
    """The overrides of each layer that is to be handled."""
    chosen: dict[str, Mapping[str, Any] | None] = {name: {} for name in named}
    for regex, own in overrides.items():
        found = [name for name in named if re.search(regex, name)]
        check(bool(found), f"overrides: {regex!r} matches no layer; the layers are {', '.join(named)}")
        unknown = sorted(set(own or ()) - set(_OPTIONS))
        check(not unknown, f"overrides: unknown option {', '.join(unknown)}; the options are {', '.join(_OPTIONS)}")
        for name in found:
            chosen[name] = own
    for own in [common, *filter(None, chosen.values())]:
        method = own.get("method", "online")
        check(method in ("online", "simple"), f'method must be "online" or "simple", got {method!r}')
    return {name: own for name, own in chosen.items() if own is not None}
