"""Every table and figure of the five papers, in the order of the papers."""

from __future__ import annotations

from functools import cache
from importlib import import_module

from hemstitch.reproduce._entry import Entry

MODULES: tuple[str, ...] = (
    "_paper2_serial",
    "_comparison",
    "_paper2_asynchronous",
    "_paper3",
    "_paper3_autoencoder",
    "_paper3_sequence",
    "_paper1_backstitch",
    "_paper1_cross_entropy",
    "_paper1_lfmmi",
    "_paper1_bias",
    "_paper1_variants",
    "_paper4_natural_gradient",
    "_paper4_peers",
    "_paper4_averaging",
    "_paper5_orders",
    "_paper5_average",
    "_paper5_beyond",
    "_drawings",
)
"""Modules of this package with a list ``ENTRIES``; imported when the catalogue is first asked for."""


@cache
def catalogue() -> tuple[Entry, ...]:
    """All entries."""
    found = [entry for name in MODULES for entry in import_module(f"hemstitch.reproduce.{name}").ENTRIES]
    return tuple(sorted(found, key=lambda entry: entry.paper))
