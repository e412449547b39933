"""Errors that a user can cause, and so must be able to mend: what was expected, what came, where, what to do.

The command line prints these without a traceback; a library user catches :class:`HemstitchError`.
"""


class HemstitchError(Exception):
    """A mistake in the input, not in the program. The message says how to mend it."""


class ConfigError(HemstitchError):
    """A configuration key or value that cannot be used."""


class DataError(HemstitchError):
    """A corpus, lexicon, language model or audio file that cannot be used; names the file and line."""


class RunError(HemstitchError):
    """A run folder or checkpoint that is foreign, damaged or cannot be written."""


class NonFiniteError(HemstitchError):
    """A loss or gradient that is not finite, where the policy is to stop."""


class MisuseError(HemstitchError):
    """A part called in a way that would silently give wrong results; the message names the right way."""
