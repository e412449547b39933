"""Beginning with the network of another run: the same task, another criterion, or other targets."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn

from hemstitch.errors import ConfigError, MisuseError
from hemstitch.models import freeze
from hemstitch.train._options import Start
from hemstitch.train._recipe import Recipe
from hemstitch.train._run_folder import RunFolder

UNITS = ("states_per_phone", "silence_states", "topology", "position_dependent", "context")
"""Settings of [hmm] that say what the outputs of a network stand for."""


@dataclass(frozen=True)
class FormerRun:
    """The run that another one begins with.

    Attributes:
        folder: of that run.
        options: the [start] section of the new one.
    """

    folder: RunFolder
    options: Start

    @classmethod
    def of(cls, recipe: Recipe) -> FormerRun | None:
        """The run that the recipe names.

        Raises:
            RunError: there is none, or it has no checkpoint.
            ConfigError: its outputs stand for other units than the recipe's, and are to be kept.
        """
        options: Start = recipe.start
        if options.run is None:
            return None
        former = cls(RunFolder.open(options.run), options)
        former._check_units(recipe)
        return former

    @cached_property
    def state(self) -> dict[str, Any]:
        """Its best checkpoint."""
        return self.folder.load_best()

    @property
    def kept(self) -> dict[str, Any]:
        """What it has prepared, where the outputs stay: tied states."""
        return {} if self.options.new_output else self.folder.kept() or {}

    def give(self, model: nn.Module) -> None:
        """Put its parameters into a model; a fresh output layer stays as it is.

        Raises:
            ConfigError: the networks differ.
        """
        weights = renumbered(self.state["model"], list(model.state_dict()))
        if self.options.new_output:
            fresh = tuple(f"{name}." for name in output_layers(model))
            weights = {name: value for name, value in weights.items() if not name.startswith(fresh)}
        shapes = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        missing = [n for n in shapes if n not in weights and not (self.options.new_output and n.startswith(fresh))]
        other = [n for n, value in weights.items() if shapes.get(n) != tuple(value.shape)]
        if missing or other:
            name = (other or missing)[0]
            theirs = tuple(weights[name].shape) if name in weights else "none"
            hint = "" if self.options.new_output else " (other outputs? set start.new_output = true)"
            raise ConfigError(f"start.run = {str(self.folder.path)!r} has another network: {name!r} is {theirs} there, "
                              f"{shapes.get(name, 'none')} in this recipe{hint}")  # fmt: skip
        model.load_state_dict(weights, strict=False)

    def _check_units(self, recipe: Recipe) -> None:
        config = self.folder.config()
        if self.options.new_output or "hmm" not in recipe.sections:
            return
        for name in UNITS:
            theirs = config.get(f"hmm.{name}", {}).get("value")
            if theirs != (ours := getattr(recipe.hmm, name)):
                raise ConfigError(f"start.run = {str(self.folder.path)!r} has hmm.{name} = {theirs!r}, this recipe "
                                  f"{ours!r}: make them equal, or set start.new_output = true")  # fmt: skip


def renumbered(weights: Mapping[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The weights under other names, if these differ from theirs in numbers alone: with or without dropout layers."""
    said = [re.sub(r"\d+", "N", name) for name in names]
    if [re.sub(r"\d+", "N", name) for name in weights] != said:
        return dict(weights)
    return dict(zip(names, weights.values()))


def output_layers(model: nn.Module) -> list[str]:
    """Names of the layers that :func:`hemstitch.models.replace_output` replaces."""
    linear = [name for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    if not linear:
        raise ConfigError(f"start.new_output: {type(model).__name__} has no nn.Linear that could be its output layer")
    heads = [name for name in linear if name == "xent_output"]
    return [*heads, *[name for name in linear if name not in heads][-1:]]


def freeze_parameters(model: nn.Module, patterns: tuple[str, ...]) -> None:
    """Exclude parameters from training.

    Raises:
        ConfigError: a pattern is no regular expression or matches nothing, or nothing is left to train.
    """
    for pattern in patterns:
        try:
            freeze(model, pattern)
        except (MisuseError, re.error) as error:
            raise ConfigError(f"start.freeze: {error}") from None
    if not any(p.requires_grad for p in model.parameters()):
        raise ConfigError(f"start.freeze = {list(patterns)} leaves no parameter to train")
