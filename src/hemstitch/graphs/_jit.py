"""How CPU kernels are compiled: by Numba, on first use, without holding the interpreter's lock.

A module with kernels is imported inside the function that runs them, so that ``import hemstitch.graphs`` needs no
Numba. Compiled code is kept beside the source, or in the user's cache folder where the install is read-only. That no
place can be written only costs each process its compilation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hemstitch.errors import HemstitchError

try:
    import numba
except ImportError as error:
    raise HemstitchError(f"this graph kernel needs numba: pip install 'hemstitch[speech]' ({error})") from error

_MOST_NESTED_KERNELS = 16


def kernel(function: Callable) -> Callable:
    """Compile a function on its first call; keep its machine code on disk where a folder can be written."""
    try:
        return numba.njit(function, nogil=True, cache=True)
    except RuntimeError:  # Numba found no folder to write to
        return numba.njit(function, nogil=True)


def run(compiled: Callable, *args: Any) -> Any:
    """Call a kernel, ignoring a disk that fills up or turns read-only while its code is stored.

    Numba stores a kernel after it is compiled and registered, so the next call finds it (one try per nested kernel).
    Kernels read and write no files: an OSError can come from nowhere else.
    """
    for _ in range(_MOST_NESTED_KERNELS):
        try:
            return compiled(*args)
        except OSError:
            continue
    return compiled(*args)
