"""Stochastic gradient descent with a bound on how far a layer, and the whole network, may move in one step.

**Maximum change.** A step that natural gradient or a bad minibatch made too long is shortened, first each component (a
layer: weights and bias together), then all together. With Delta_c the proposed change of component c,

    f_c = min(1, max_change_c / |Delta_c|)        g = min(1, global_max_change / sqrt(sum_c f_c^2 |Delta_c|^2))
    theta_c += f_c g Delta_c

Unlike clipping the gradient, the bound is on the distance moved, so it holds for any learning rate; unlike a bound for
each weight it keeps the direction within a layer. Costs one norm of the gradient, which is also what tells that it is
finite: a step with NaN or inf in any component is refused as a whole and counted.

**Weight decay in the reference's sense.** Losses are summed over a minibatch of n sequences, and the penalty
l2 |theta|^2 belongs to each sequence: Delta_c += -2 lr l2 n theta_c. With a loss that is a mean, leave n at 1.

**Momentum** m keeps the size of a step as it is without (the sum of gradients is taken times 1 - m), so the learning
rate need not be changed with it:

    v_c := m v_c + gradient_c + 2 l2 n theta_c        Delta_c = -lr_c (1 - m) v_c

What is remembered is the direction before shortening. (The reference remembers lr v; the two differ only where the
learning rate changes, and this one obeys a scheduler at once.)

Defaults in use: 0.75 for a component, 1.5 for the output layer and the gates of LSTMs, 2.0 for the network.
Reference: Wang et al., "Backstitch", Interspeech 2017, section 4.4.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hemstitch.errors import MisuseError
from hemstitch.optim._update_rule import UpdateRule, check, norm

_NON_NEGATIVE = ("lr", "l2", "lr_factor", "max_change", "global_max_change", "num_sequences")


@dataclass(frozen=True)
class MaxChangeReport:
    """How often steps were shortened or refused since construction.

    Attributes:
        num_steps: steps proposed; a backstitch pair counts as two.
        num_refused: of these, not made because a gradient was not finite.
        num_global: of these, shortened by the global bound.
        num_component: shortened by the component's bound, by name of the group (or its index).
        last_change: length of the last proposed change, by component.
        last_shortened: the components that their bound shortened in it.
        last_global: whether the global bound did.
    """

    num_steps: int
    num_refused: int
    num_global: int
    num_component: dict[str, int]
    last_change: dict[str, float]
    last_shortened: tuple[str, ...] = ()
    last_global: bool = False


class SGD(UpdateRule):
    """Gradient descent with momentum, weight decay and bounds on the change of each component and of all.

        v_c := m v_c + gradient_c + 2 l2 num_sequences theta_c
        theta_c -= f_c g (1 - m) lr lr_factor v_c

    f_c and g shorten the step, see the module. A component is a parameter group: use `component_groups`. Against
    torch.optim.SGD: the step is bounded by default (``global_max_change``), momentum does not lengthen it (factor
    1 - m), weight decay has a factor 2 n.

    Args:
        params: parameters or groups; each group may have its own ``lr``, ``lr_factor``, ``l2``, ``max_change``,
            ``momentum``.
        lr: learning rate, >= 0.
        momentum: m, in [0, 1).
        l2: weight decay, >= 0.
        lr_factor: multiplies lr, >= 0; for a group that should learn slower whatever the schedule says.
        max_change: most that a component may move in a step, Euclidean; 0: no bound.
        global_max_change: most that all parameters together may move; 0: no bound.
        num_sequences: n, sequences over which the loss is summed; 1 for a mean.

    Raises:
        ConfigError: an option out of range.

    Cost: one norm and one addition over the parameters; with momentum a copy of the parameters (float32 for bfloat16).

    Reference: Wang et al. 2017, section 4.4 and 4.5.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 0.01,
        *,
        momentum: float = 0.0,
        l2: float = 0.0,
        lr_factor: float = 1.0,
        max_change: float = 0.0,
        global_max_change: float = 2.0,
        num_sequences: float = 1,
    ) -> None:
        self._num_steps = self._num_refused = self._num_global = 0
        self._num_component: dict[str, int] = {}
        self._last_change: dict[str, float] = {}
        self._last_shortened: tuple[str, ...] = ()
        self._last_global = False
        super().__init__(params, {
            "lr": lr, "momentum": momentum, "l2": l2, "lr_factor": lr_factor, "max_change": max_change,
            "global_max_change": global_max_change, "num_sequences": num_sequences})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a component."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        for option in _NON_NEGATIVE:
            group[option] = 0.0 if group[option] is None else group[option]
            check(0 <= group[option] < math.inf, f"{option} must be at least 0, got {group[option]} (group "
                  f"{self._name(len(self.param_groups) - 1)})")
        check(0 <= group["momentum"] < 1, f"momentum must be in [0, 1), got {group['momentum']}")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move along the gradient; returns what the closure returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.move()
        return loss

    @torch.no_grad()
    def move(self, scale: float = 1.0, *, decay: float = 1.0, commit: bool = True) -> bool:
        """Move by ``scale`` times the proposed change; bounds apply to the change before scaling.

        The elementary operation of two-pass methods; ``step`` is ``move()``.

        Args:
            scale: may be negative.
            decay: factor on the weight decay in this move.
            commit: whether momentum remembers this move (with the whole decay).

        Returns:
            Whether the parameters moved: False if a gradient is not finite; then nothing changed.
        """
        components = [_Component(self._name(index), group, self.state, decay)
                      for index, group in enumerate(self.param_groups)
                      if any(p.grad is not None for p in group["params"])]
        lengths = _to_floats([component.length for component in components])
        self._num_steps += 1
        self._last_change = dict(zip((component.name for component in components), lengths, strict=True))
        self._last_shortened, self._last_global = (), False
        if not all(map(math.isfinite, lengths)):
            self._num_refused += 1
            return False
        for component, factor in zip(components, self._shorten(components, lengths), strict=True):
            component.apply(scale * factor, commit)
        return True

    def _shorten(self, components: list[_Component], lengths: list[float]) -> list[float]:
        """f_c g for each component; counts where they bite."""
        factors = [_bound(component.max_change, length) for component, length in zip(components, lengths, strict=True)]
        self._last_shortened = tuple(c.name for c, factor in zip(components, factors, strict=True) if factor < 1)
        for name in self._last_shortened:
            self._num_component[name] = self._num_component.get(name, 0) + 1
        total = math.hypot(*(factor * length for factor, length in zip(factors, lengths, strict=True)))
        common = _bound(self.param_groups[0]["global_max_change"], total)
        self._last_global = common < 1
        self._num_global += self._last_global
        return [factor * common for factor in factors]

    def _name(self, index: int) -> str:
        return self.param_groups[index].get("name", str(index))

    def report(self) -> MaxChangeReport:
        """How often steps were shortened or refused so far."""
        return MaxChangeReport(self._num_steps, self._num_refused, self._num_global, dict(self._num_component),
                               dict(self._last_change), self._last_shortened, self._last_global)


class _Component:
    """One group's proposed change: ``rate`` times ``changes``, not applied until it is known to be finite."""

    def __init__(self, name: str, group: dict[str, Any], state: dict[Tensor, dict[str, Tensor]], decay: float) -> None:
        self.name, self.state, self.decay = name, state, decay
        self.max_change, self.momentum = group["max_change"], group["momentum"]
        self.penalty = 2 * group["l2"] * group["num_sequences"]
        self.parameters = [p for p in group["params"] if p.grad is not None]
        self.changes = [p.grad for p in self.parameters]
        if any(change.is_sparse for change in self.changes):
            raise MisuseError("SGD: a gradient is sparse; use nn.Embedding(..., sparse=False)")
        if self.penalty * decay:
            self.changes = torch._foreach_add(self.changes, self.parameters, alpha=self.penalty * decay)
        if self.momentum:
            self.changes = [self._accumulated(p, c) for p, c in zip(self.parameters, self.changes, strict=True)]
        self.rate = -float(group["lr"]) * group["lr_factor"] * (1 - self.momentum)
        self.length = norm(self.changes) * abs(self.rate)

    def _accumulated(self, parameter: Tensor, gradient: Tensor) -> Tensor:
        """m v + gradient, at least in float32."""
        gradient = gradient.float() if gradient.dtype.itemsize < 4 else gradient
        velocity = self.state[parameter].get("velocity")
        return gradient.clone() if velocity is None else torch.add(gradient, velocity, alpha=self.momentum)

    def apply(self, factor: float, commit: bool) -> None:
        """Move the parameters by ``factor`` times the change."""
        if self.momentum and commit:
            left_out = self.penalty * (1 - self.decay)
            for p, change in zip(self.parameters, self.changes, strict=True):
                self.state[p]["velocity"] = change.add(p, alpha=left_out) if left_out else change
        torch._foreach_add_(self.parameters, self.changes, alpha=factor * self.rate)


def _bound(largest: float, length: float) -> float:
    return largest / length if 0 < largest < length else 1.0


def _to_floats(values: list[Tensor]) -> list[float]:
    """With one synchronisation."""
    return torch.stack([value.to(values[0].device) for value in values]).tolist() if values else []
