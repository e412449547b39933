"""Which parts of a source are imported, and what splits they become."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from hemstitch.errors import ConfigError
from hemstitch.speech._manifest import unknown_key

SPLITS = {"train": "train", "training": "train", "dev": "dev", "valid": "dev", "validation": "dev",
          "test": "test", "eval": "test"}
"""First word of a folder's name -> split."""


def split_named(folder: str) -> str | None:
    """The split that a folder's name stands for: train-clean-5 is "train", eval_2 is "test"."""
    return SPLITS.get(re.split(r"[-_.]", folder.lower())[0])


def choose_parts(setting: str, found: Sequence[str], where: object) -> Mapping[str, str]:
    """Part of the source -> split.

    Args:
        setting: "" for all, or names parted by commas, each maybe with its split: "train-clean-5,dev-clean-2=test".
        found: the parts that are there.
        where: the source, for messages.

    Raises:
        ConfigError: a part is not there.
    """
    if not setting:
        return {name: split_named(name) or name for name in found}
    chosen = {}
    for item in setting.split(","):
        name, _, split = item.strip().partition("=")
        if name not in found:
            hint = unknown_key(name, found).replace("unknown key", "unknown part", 1)
            raise ConfigError(f"parts = {setting!r}: {hint} in {where}")
        chosen[name] = split or split_named(name) or name
    return chosen
