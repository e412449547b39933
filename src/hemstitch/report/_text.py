"""Numbers and foreign text as people read them: percent, durations, counts, and strings without control characters."""

import json
import math
from typing import TypeGuard

_SPACE = "\u00a0"  # between number and unit, so that a line never breaks there
NOTHING = "–"


def clean(text: object) -> str:
    """The text with control characters and lone surrogates replaced, so that any page or picture can carry it."""
    return "".join(_printable(character) for character in str(text))


def _printable(character: str) -> str:
    if character in "\n\t":
        return character
    code = ord(character)
    return "\ufffd" if code < 32 or 127 <= code < 160 or 0xD800 <= code < 0xE000 else character


def shorten(text: str, length: int) -> str:
    """The text, or its beginning and an ellipsis where it is longer than `length` characters."""
    return text if len(text) <= length else text[: length - 1] + "…"


def known(value: float | None) -> TypeGuard[float]:
    """Whether there is a finite number to show."""
    return value is not None and math.isfinite(value)


def number(value: float | None) -> str:
    """Four significant digits; integers in full, in groups of three digits."""
    if not known(value):
        return NOTHING
    return f"{int(value):,}" if float(value).is_integer() and abs(value) < 1e15 else f"{value:.4g}"


def percent(rate: float | None) -> str:
    """A rate of 0.123 as 12.3 %; two decimals below one percent."""
    if not known(rate):
        return NOTHING
    return f"{100 * rate:.{2 if 0 < abs(rate) < 0.01 else 1}f}{_SPACE}%"


def interval(low: float, high: float) -> str:
    """Two rates as 10.1 to 14.8 %."""
    return f"{percent(low).removesuffix(f'{_SPACE}%')} to {percent(high)}"


def duration(seconds: float | None) -> str:
    """Seconds as the two largest units that matter: 12.3 s, 3 min 20 s, 2 h 5 min."""
    if not known(seconds):
        return NOTHING
    if seconds < 59.95:
        return f"{seconds:.1f}{_SPACE}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}{_SPACE}min {rest}{_SPACE}s"
    return f"{minutes // 60:,}{_SPACE}h {minutes % 60}{_SPACE}min"


def plural(count: int, noun: str) -> str:
    """1 word, 2 words."""
    return f"{count:,}{_SPACE}{noun}{'' if count == 1 else 's'}"


def literal(value: object) -> str:
    """A configuration value as one would type it: bare strings, JSON for everything else."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
