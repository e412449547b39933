"""Recordings on their way into a corpus folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Recording:
    """An utterance as an importer found it.

    Attributes:
        id, speaker, text, split, info: as in :class:`hemstitch.speech.Utterance`.
        audio: the file that it is in.
        where: ``file:line`` (or file) that says so.
        begin: where it begins in the file, in seconds.
        end: where it ends, in seconds; ``None``: with the file.
    """

    id: str
    speaker: str
    text: str
    split: str
    audio: Path
    where: str
    begin: float = 0.0
    end: float | None = None
    info: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_whole_file(self) -> bool:
        """Whether nothing needs to be cut."""
        return self.begin == 0 and self.end is None
