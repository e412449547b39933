"""Voices of espeak-ng, spoken by a subprocess."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Self

import numpy as np

WORKER = Path(__file__).with_name("_espeak_worker.py")

ACCENTS = ("en-us", "en", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029")

VARIANTS = (
    "Alex", "Alicia", "Andrea", "Andy", "Annie", "Denis", "Diogo", "Gene", "Gene2", "Henrique", "Hugo", "Jacky",
    "Lee", "Marco", "Mario", "Michael", "Mike", "Nguyen", "Reed", "RicishayMax", "RicishayMax2", "RicishayMax3",
    "Tweaky", "adam", "anika", "announcer", "antonio", "aunty", "belinda", "benjamin", "boris", "caleb", "david",
    "ed", "edward", "edward2", "f1", "f2", "f3", "f4", "f5", "grandma", "grandpa", "gustave", "ian", "iven",
    "iven2", "iven3", "iven4", "john", "kaukovalta", "klatt", "klatt2", "klatt3", "klatt4", "klatt6", "linda",
    "m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8", "marcelo", "max", "michel", "miguel", "mike2", "norbert",
    "pablo", "paul", "pedro", "quincy", "rob", "robert", "sandro", "shelby", "steph", "steph2", "steph3",
    "travis", "victor", "zac",
)
"""Voices that resemble people: without the robots, whisperers and croakers."""


class EspeakUnavailable(Exception):
    """The library is not installed, or failed; the message says which."""


@dataclass(frozen=True, kw_only=True)
class EspeakJob:
    """What to say: the text, the voice ("en-us+f3"), words a minute, pitch (0 to 99), seed."""

    text: str
    voice: str
    rate: int
    pitch: int
    seed: int


@dataclass(frozen=True)
class Spoken:
    """Samples in [-1, 1], their rate, and the first sample of each word."""

    samples: np.ndarray
    sampling_rate: int
    starts: tuple[int, ...]


class Espeak:
    """A running espeak-ng process that speaks a list of jobs; a context manager.

    Iterating gives one :class:`Spoken` per job, in order.

    Attributes:
        version: of espeak-ng.

    Raises:
        EspeakUnavailable: at the start or while iterating: the library is missing, or fails at a job.
    """

    def __init__(self, jobs: Sequence[EspeakJob]) -> None:
        self._jobs = jobs
        command = _command()
        with tempfile.TemporaryFile() as lines:
            lines.write(b"".join(json.dumps(dataclasses.asdict(job)).encode() + b"\n" for job in jobs))
            lines.seek(0)
            self._process = subprocess.Popen(command, stdin=lines, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        try:
            about = self._line()
        except EspeakUnavailable:
            self.__exit__()
            raise
        self.version: str = about["version"]
        self._sampling_rate: int = about["sampling_rate"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._stream.close()

    def __iter__(self) -> Iterator[Spoken]:
        for job in self._jobs:
            head = self._line()
            if "failed" in head:
                raise EspeakUnavailable(f"it failed at {job.text!r} in voice {job.voice}: {head['failed']}")
            content = self._stream.read(2 * head["samples"])
            if len(content) < 2 * head["samples"]:
                raise EspeakUnavailable("its process ended early")
            samples = np.frombuffer(content, "<i2").astype(np.float32) / 32768
            yield Spoken(samples, self._sampling_rate, tuple(head["starts"]))

    @property
    def _stream(self) -> IO[bytes]:
        assert self._process.stdout is not None
        return self._process.stdout

    def _line(self) -> dict[str, Any]:
        line = self._stream.readline()
        if not line.endswith(b"\n"):
            raise EspeakUnavailable("its process ended early")
        return json.loads(line)


def _command() -> list[str]:
    if not hasattr(os, "fork"):
        raise EspeakUnavailable(f"{sys.platform} cannot fork processes")
    try:
        import espeakng_loader

        return [sys.executable, "-I", "-S", str(WORKER), espeakng_loader.get_library_path(),
                espeakng_loader.get_data_path()]
    except ImportError:
        raise EspeakUnavailable("espeakng-loader is not installed (pip install 'hemstitch[demo]')") from None
    except (OSError, RuntimeError) as error:
        raise EspeakUnavailable(f"espeakng-loader: {error}") from None
