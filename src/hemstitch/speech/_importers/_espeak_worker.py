"""Speaks through libespeak-ng; run as a program of its own, because a fault in the library kills the process.

``python _espeak_worker.py LIBRARY DATA`` reads one JSON job a line (text, voice, rate, pitch, seed) and answers each,
after one line with version and sampling rate, with one JSON line (``samples`` and ``starts``, the first sample of each
word; or ``failed``) and the samples (16 bits, little-endian).

The library keeps state from one utterance to the next, so the same text would sound different at another place in the
list. So it is initialised once, and each job runs in a fork of that state with its random numbers seeded: the same bits
wherever the job stands. Only the standard library is imported: the start takes milliseconds.
"""

import ctypes
import json
import os
import signal
import sys
from typing import Any, BinaryIO

SYNCHRONOUS, RATE, PITCH, CHARACTERS, UTF8 = 2, 1, 3, 1, 1
"""Constants of speak_lib.h; output mode 2 starts no thread, which a fork would lose."""
END_OF_LIST, WORD = 0, 1
"""Kinds of event."""
SECONDS_PER_JOB = 20


class Event(ctypes.Structure):
    """``espeak_EVENT`` of speak_lib.h."""

    _fields_ = (
        ("kind", ctypes.c_int), ("unique", ctypes.c_uint), ("text_position", ctypes.c_int), ("length", ctypes.c_int),
        ("milliseconds", ctypes.c_int), ("sample", ctypes.c_int), ("user", ctypes.c_void_p), ("id", ctypes.c_char * 8),
    )


Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(Event))


def load(library: str, data: str) -> tuple[ctypes.CDLL, dict[str, Any]]:
    """The initialised library, and what it says of itself."""
    lib = ctypes.CDLL(library)
    lib.espeak_Info.restype = ctypes.c_char_p
    sampling_rate = lib.espeak_Initialize(SYNCHRONOUS, 0, os.fsencode(data), 0x8000)
    if sampling_rate <= 0:
        raise SystemExit("espeak-ng did not start")
    lib.espeak_ListVoices(None)  # so that the forks need not look for them again
    return lib, {"version": lib.espeak_Info(None).decode(), "sampling_rate": sampling_rate}


def speak(lib: ctypes.CDLL, job: dict[str, Any]) -> tuple[bytes, list[int]]:
    """The samples of one job, and the first sample of each word."""
    samples, starts = bytearray(), []

    def collect(wave: Any, count: int, events: Any) -> int:
        if wave and count > 0:
            samples.extend(ctypes.string_at(wave, 2 * count))
        index = 0
        while events[index].kind != END_OF_LIST:
            if events[index].kind == WORD:
                starts.append(events[index].sample)
            index += 1
        return 0

    keep_alive = Callback(collect)
    lib.espeak_SetSynthCallback(keep_alive)
    lib.espeak_ng_SetRandSeed(ctypes.c_long(job["seed"]))
    if lib.espeak_SetVoiceByName(job["voice"].encode()):
        raise ValueError(f"no voice {job['voice']}")
    lib.espeak_SetParameter(RATE, job["rate"], 0)
    lib.espeak_SetParameter(PITCH, job["pitch"], 0)
    text = job["text"].encode()
    if lib.espeak_Synth(text, ctypes.c_size_t(len(text) + 1), 0, CHARACTERS, 0, UTF8, None, None):
        raise ValueError("espeak_Synth refused the text")
    return bytes(samples), starts


def answer(lib: ctypes.CDLL, job: dict[str, Any]) -> bytes:
    """The bytes that answer a job."""
    try:
        samples, starts = speak(lib, job)
        if not samples:
            raise ValueError("no samples")
    except ValueError as error:
        return json.dumps({"failed": str(error)}).encode() + b"\n"
    return json.dumps({"samples": len(samples) // 2, "starts": starts}).encode() + b"\n" + samples


def in_fork(lib: ctypes.CDLL, job: dict[str, Any]) -> bytes:
    """Answer a job in a child process; a crash or hang there becomes ``failed``."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(SECONDS_PER_JOB)
        os.close(reading)
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(answer(lib, job))
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        content = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return content if status == 0 else json.dumps({"failed": f"ended with status {status}"}).encode() + b"\n"


def main(library: str, data: str, jobs: BinaryIO, out: BinaryIO) -> None:
    """Answer all jobs in order."""
    lines = jobs.read().splitlines()
    signal.alarm(SECONDS_PER_JOB)
    lib, about = load(library, data)
    signal.alarm(0)
    out.write(json.dumps(about).encode() + b"\n")
    for line in lines:
        out.write(in_fork(lib, json.loads(line)))
        out.flush()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.stdin.buffer, sys.stdout.buffer)
