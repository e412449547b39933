"""Audio files and stored features, read or refused with a reason.

Audio is mono (a second channel is refused rather than dropped in silence) and has the sampling rate of the corpus.
Stored features are the rows of a 2-D array in a ``.npy`` file, or of the array ``feats`` in a ``.npz`` file.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np

from hemstitch.errors import HemstitchError
from hemstitch.speech._broken import Unusable


def require(module: str) -> Any:
    """Import a module of the speech extra.

    Raises:
        HemstitchError: it is not installed; says how to.
    """
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise HemstitchError(f"{module} is needed here: pip install 'hemstitch[speech]' ({error})") from error


def check_audio(path: Path, sampling_rate: int) -> None:
    """Look at the header of an audio file.

    Raises:
        Unusable: it is missing, not audio, cut short, empty, not mono or has another sampling rate.
    """
    with _open(path, sampling_rate):
        pass


def own_rate(path: Path) -> int:
    """The sampling rate of an audio file in Hz; 0 if it cannot be opened (:func:`check_audio` says why)."""
    try:
        return int(_soundfile().info(str(path)).samplerate)
    except RuntimeError:
        return 0


def read_audio(path: Path, sampling_rate: int) -> np.ndarray:
    """Samples of an audio file, float32 in [-1, 1], shape (samples,).

    Raises:
        Unusable: as :func:`check_audio`, or the content is damaged.
    """
    with _open(path, sampling_rate) as file:
        promised = file.frames
        try:
            samples = file.read(dtype="float32")
        except RuntimeError as error:
            raise Unusable(f"{path} is damaged: {_reason(error)}: replace it") from None
    if len(samples) != promised:
        raise Unusable(f"{path} is damaged: {len(samples)} of {promised} samples can be read: replace it")
    return samples


def _open(path: Path, sampling_rate: int) -> Any:
    if not path.is_file():
        raise Unusable(f"audio file {path} is missing: put it there or correct 'audio'")
    if (missing := _missing_bytes(path)) > 0:
        raise Unusable(f"{path} is cut short: {missing} of the bytes that its header promises are missing: replace it")
    try:
        file = _soundfile().SoundFile(path)
    except RuntimeError as error:
        raise Unusable(f"{path} is not readable as audio: {_reason(error)}: replace it") from None
    problem = ""
    if file.samplerate != sampling_rate:
        problem = (f"{path} has a sampling rate of {file.samplerate} Hz, expected {sampling_rate} Hz (sampling_rate in "
                   f"corpus.json): convert it, for example with `sox {path.name} -r {sampling_rate} converted.wav` or "
                   "hemstitch.speech.resample")
    elif file.channels != 1:
        problem = (f"{path} has {file.channels} channels, expected 1: choose one, for example with "
                   f"`sox {path.name} mono.wav remix 1`")
    elif file.frames == 0:
        problem = f"{path} holds no samples: replace it or remove the line"
    if problem:
        file.close()
        raise Unusable(problem)
    return file


def _missing_bytes(path: Path) -> int:
    """Bytes that a WAV file lacks; libsndfile reads a file that was cut short as a shorter one."""
    with path.open("rb") as file:
        head = file.read(8)
    promised = int.from_bytes(head[4:8], "little")
    if head[:4] != b"RIFF" or promised >= 0xFFFFFF00:  # unknown length, as written into a pipe
        return 0
    return promised + 8 - path.stat().st_size


@functools.cache
def _soundfile() -> Any:
    return require("soundfile")


def _reason(error: RuntimeError) -> str:
    return (getattr(error, "error_string", None) or str(error)).rstrip(". ")


class StoredFeatures:
    """The feature files of a corpus folder, each opened once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._arrays: dict[str, np.ndarray | Unusable] = {}

    def rows(self, file: str, first: int, end: int) -> np.ndarray:
        """Rows first..end-1, float32 (frame, dim).

        Raises:
            Unusable: the file is missing or not an array of rows, or has fewer rows.
        """
        return self.check(file, first, end)[first:end].astype(np.float32)

    def check(self, file: str, first: int, end: int) -> np.ndarray:
        """The array in ``file``, after a look at whether it has these rows."""
        if file not in self._arrays:
            self._arrays[file] = self._open(file)
        array = self._arrays[file]
        if isinstance(array, Unusable):
            raise Unusable(str(array))
        if end > len(array):
            raise Unusable(f"features [{file!r}, {first}, {end}] go beyond the {len(array)} rows of "
                           f"{self._folder / file}: correct the range or write the file anew")
        return array

    def _open(self, file: str) -> np.ndarray | Unusable:
        path = self._folder / file
        try:
            content = np.load(path, mmap_mode="r", allow_pickle=False)
            if isinstance(content, np.lib.npyio.NpzFile):
                with content:
                    content = content["feats"]
        except FileNotFoundError:
            return Unusable(f"feature file {path} is missing: put it there or correct 'features'")
        except KeyError:
            return Unusable(f"{path} holds no array named 'feats': save it as np.savez(path, feats=...)")
        except Exception as error:  # numpy raises ValueError, EOFError, BadZipFile, zlib.error, ...
            return Unusable(f"{path} is not a readable .npy or .npz file: {error}: replace it")
        if content.ndim != 2 or content.dtype.kind != "f":
            return Unusable(f"{path} holds {content.dtype} {content.shape}, expected floats of shape (frame, dim)")
        return content
