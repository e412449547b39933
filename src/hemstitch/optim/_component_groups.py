"""Parameter groups of one layer each: the components that `SGD` bounds one by one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import nn

from hemstitch.optim._update_rule import check


def component_groups(
    model: nn.Module,
    *,
    max_change: float = 0.75,
    overrides: Mapping[str, Mapping[str, Any]] | None = None,
    **options: Any,
) -> list[dict[str, Any]]:
    """One parameter group for each layer that has parameters of its own, named as in ``model.named_modules()``.

    Args:
        model: the network.
        max_change: most that a layer may move in a step (see `SGD`); other optimizers ignore it.
        overrides: options for the layers whose name a regular expression finds (``re.search``); of several the last
            wins. ``{r"^4$": dict(max_change=1.5)}``.
        **options: for every group, such as ``lr``, ``lr_factor``, ``l2``; left to the optimizer if absent.

    Returns:
        Groups with ``name``, ``params``, ``param_names`` and the options. Shared parameters belong to the first layer.

    Raises:
        ConfigError: a regular expression that finds no layer.

    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    >>> [(g["name"], g["max_change"]) for g in component_groups(net, overrides={r"^2$": dict(max_change=1.5)})]
    [('0', 0.75), ('2', 1.5)]
    """
    overrides = overrides or {}
    seen: set[int] = set()
    groups = []
    for name, layer in model.named_modules():
        named = [(key, p) for key, p in layer.named_parameters(name, recurse=False) if id(p) not in seen]
        seen.update(id(p) for _, p in named)
        if named:
            own = {key: value for regex, extra in overrides.items() if re.search(regex, name)
                   for key, value in extra.items()}
            groups.append({"name": name, "params": [p for _, p in named], "param_names": [key for key, _ in named],
                           "max_change": max_change, **options, **own})
    for regex in overrides:
        check(any(re.search(regex, group["name"]) for group in groups), f"overrides: {regex!r} matches no layer; "
              f"the layers are {', '.join(group['name'] for group in groups)}")
    return groups
