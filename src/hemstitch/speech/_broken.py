"""Utterances that cannot be used: told apart, counted, and accepted only as far as the user says.

Whatever is wrong with a single utterance (its manifest line, its audio, its length) raises :class:`Unusable` where it
is found; the reader of the whole corpus turns it into a :class:`BrokenUtterance` with file and line, goes on, and
decides at the end by :func:`enforce_tolerance`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hemstitch.errors import DataError

SHOWN = 5
"""Broken utterances listed in the error; the rest are counted."""


class Unusable(Exception):
    """One utterance cannot be used; the message is the reason and the remedy.

    Attributes:
        id: of the utterance, where it is known to whoever raises.
    """

    def __init__(self, reason: str, id: str = "") -> None:
        super().__init__(reason)
        self.id = id


@dataclass(frozen=True)
class BrokenUtterance:
    """An utterance that was left out.

    Attributes:
        id: its id, "" where its manifest line has none.
        where: ``file:line`` of its manifest line.
        reason: what is wrong, and the remedy.
    """

    id: str
    where: str
    reason: str

    def __str__(self) -> str:
        return f"{self.where}: " + (f"utterance {self.id!r}: " if self.id else "") + self.reason


def enforce_tolerance(broken: Sequence[BrokenUtterance], total: int, tolerance: float) -> None:
    """Accept ``broken`` as left out, or stop.

    Args:
        broken: what cannot be used.
        total: number of utterances, the broken ones included.
        tolerance: largest share of broken utterances accepted, in [0, 1].

    Raises:
        DataError: more are broken than accepted; lists the first few and the tolerance that would accept them.
    """
    if len(broken) <= tolerance * total:
        return
    share = len(broken) / total
    lines = [f"{len(broken)} of {total} utterances cannot be used ({share:.1%}, accepted are {tolerance:.1%}):"]
    lines += [f"  {entry}" for entry in broken[:SHOWN]]
    if len(broken) > SHOWN:
        lines.append(f"  ... and {len(broken) - SHOWN} more")
    if share < 1:
        enough = min(1.0, -(-share * 1000 // 1) / 1000)
        lines.append(f"Mend them, or set tolerance = {enough:g} to leave them out.")
    raise DataError("\n".join(lines))
