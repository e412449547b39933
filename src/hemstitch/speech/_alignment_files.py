"""Alignments as files that other programs read and write.

==========  =========================================================================================
CTM         ``utterance channel begin duration label [confidence]``, seconds, one word or phone a line
Kaldi       ``utterance 17 17 18 ...``, a number for each frame; or ``utterance phone length ; ...``
TextGrid    Praat's "long" text form: tiers of labelled intervals without gaps, seconds
==========  =========================================================================================

In CTM, what lies between two words is silence; phones list it by its name.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hemstitch.errors import DataError
from hemstitch.graphs import NoPathError
from hemstitch.speech._align import Alignment, Segment, state_pdfs
from hemstitch.speech._files import new_file
from hemstitch.speech._topology import Topology, phone_numbers


class Interval(NamedTuple):
    """A phone or word from ``start`` to ``end``, in seconds; ``confidence`` is its probability, where one is known."""

    label: str
    start: float
    end: float
    confidence: float | None = None


def in_seconds(segments: Iterable[Segment], frame_shift: float) -> tuple[Interval, ...]:
    """Segments in seconds: frame t lasts from t to t + 1 times ``frame_shift``."""
    return tuple(Interval(s.label, round(s.start * frame_shift, 6), round(s.end * frame_shift, 6)) for s in segments)


def in_frames(timed: Iterable[Interval], frame_shift: float) -> tuple[Segment, ...]:
    """Intervals in frames, borders rounded to the nearest one; those that are left without a frame are dropped."""
    rounded = (Segment(i.label, round(i.start / frame_shift), round(i.end / frame_shift)) for i in timed)
    return tuple(segment for segment in rounded if segment.end > segment.start)


def read_ctm(path: Path | str) -> dict[str, tuple[Interval, ...]]:
    """The words (or phones) of each utterance, in order of time.

    Channels are not told apart; lines that begin with ``;;`` are comments.

    Raises:
        DataError: a line is not as above; names file and line.
    """
    found: dict[str, list[Interval]] = {}
    for where, fields in _lines(path):
        if fields[0].startswith(";;"):
            continue
        try:
            name, _, begin, duration, label, *rest = fields
            start, length, (confidence,) = float(begin), float(duration), [float(c) for c in rest] or [None]
        except ValueError:
            raise DataError(f"{where}: expected UTTERANCE CHANNEL BEGIN DURATION WORD [CONFIDENCE], got "
                            f"'{' '.join(fields)}'") from None
        if not (0 <= start < math.inf and 0 <= length < math.inf):
            raise DataError(f"{where}: expected 0 <= begin and 0 <= duration in seconds, got {begin} and {duration}")
        found.setdefault(name, []).append(Interval(label, start, round(start + length, 6), confidence))
    return {name: tuple(sorted(entries, key=lambda i: i.start)) for name, entries in found.items()}


def write_ctm(path: Path | str, utterances: Mapping[str, Sequence[Interval]], channel: str = "1") -> None:
    """Write words (or phones), times to the microsecond where they have that much.

    Raises:
        DataError: a name or label has white space in it or is empty, or the file cannot be written.
    """
    with new_file(Path(path)) as partial, open(partial, "w", encoding="utf-8") as file:
        for name, entries in utterances.items():
            for entry in entries:
                _require_bare(name, entry.label)
                confidence = "" if entry.confidence is None else f" {entry.confidence:.4f}"
                start, end = _number(entry.start), _number(entry.end - entry.start)
                file.write(f"{name} {channel} {start} {end} {entry.label}{confidence}\n")


def read_kaldi_alignment(path: Path | str) -> dict[str, np.ndarray]:
    """A number for each frame of each utterance, int64: ``copy-int-vector``, ``ali-to-pdf``, ``ali-to-phones``.

    (For ``ali-to-phones --write-lengths`` see :func:`read_kaldi_phones`.)

    Raises:
        DataError: a line is not as above, an utterance appears twice; names file and line. A binary file is refused.
    """
    return {name: np.array([number for number, _ in runs], dtype=np.int64)
            for name, _, runs in _runs(path, paired=False)}


def read_kaldi_phones(path: Path | str, symbols: Path | str) -> dict[str, tuple[Segment, ...]]:
    """The phones of each utterance from ``phone length ; phone length ...``.

    Args:
        path: written by ``ali-to-phones --write-lengths``.
        symbols: ``phones.txt``: a phone and its number a line.

    Raises:
        DataError: a line is not as above, or a number has no phone; names file and line.
    """
    names = _symbols(symbols)
    found = {}
    for name, where, runs in _runs(path, paired=True):
        if unknown := [phone for phone, _ in runs if phone not in names]:
            raise DataError(f"{where}: phone {unknown[0]} is not in {symbols}: give the phones.txt it was made with")
        ends = list(itertools.accumulate(length for _, length in runs))
        found[name] = tuple(Segment(names[phone], end - length, end) for (phone, length), end in zip(runs, ends))
    return found


def write_kaldi_alignment(path: Path | str, alignments: Mapping[str, np.ndarray]) -> None:
    """Write a number for each frame of each utterance.

    Raises:
        DataError: the file cannot be written.
    """
    with new_file(Path(path)) as partial, open(partial, "w", encoding="utf-8") as file:
        for name, numbers in alignments.items():
            _require_bare(name)
            file.write(" ".join([name, *map(str, np.asarray(numbers).tolist())]) + "\n")


def write_textgrid(path: Path | str, tiers: Mapping[str, Sequence[Interval]], duration: float) -> None:
    """Write a TextGrid; what lies between intervals becomes empty ones.

    Args:
        path: the file.
        tiers: name of a tier -> its intervals, in order and without overlap.
        duration: of the recording in seconds.

    Raises:
        DataError: intervals overlap or end after the recording, or the file cannot be written.
    """
    lines = ['File type = "ooTextFile"', 'Object class = "TextGrid"', "", "xmin = 0", f"xmax = {_number(duration)}",
             "tiers? <exists>", f"size = {len(tiers)}", "item []:"]
    for number, (name, entries) in enumerate(tiers.items(), start=1):
        filled = list(_filled(entries, duration, name))
        lines += [f"    item [{number}]:", '        class = "IntervalTier"', f"        name = {_quoted(name)}",
                  "        xmin = 0", f"        xmax = {_number(duration)}",
                  f"        intervals: size = {len(filled)}"]
        for index, entry in enumerate(filled, start=1):
            lines += [f"        intervals [{index}]:", f"            xmin = {_number(entry.start)}",
                      f"            xmax = {_number(entry.end)}", f"            text = {_quoted(entry.label)}"]
    with new_file(Path(path)) as partial:
        partial.write_text("\n".join(lines) + "\n", encoding="utf-8")


def alignment_from_phones(
    phones: Sequence[Segment], num_frames: int, topology: Topology, words: Sequence[Segment] = ()
) -> Alignment:
    """An alignment by pdfs from one by phones: gaps become silence, and a phone's frames are shared out evenly.

    It is where training can begin instead of the equal alignment; one realignment finds the states inside phones.

    Args:
        phones: in order, without overlap.
        num_frames: of the utterance; the last phone may end later by rounding and is cut.
        topology: the HMMs.
        words: likewise, where they are known.

    Raises:
        NoPathError: a phone has fewer frames than states.
        DataError: phones overlap, or have no HMM.
    """
    silence = topology.phones[topology.silence - 1]
    spans = [Segment(s.label or silence, s.start, s.end) for s in _gapless(phones, num_frames)]
    numbers = phone_numbers(topology, (span.label for span in spans))
    edges = [0]
    for span, number in zip(spans, numbers):
        states = len(topology.hmms[number - 1])
        if span.end - span.start < states:
            raise NoPathError(f"phone {span.label} has {span.end - span.start} frames from {span.start} on, its HMM "
                              f"{states} states: leave the utterance out, or take fewer states per phone")
        edges += np.round(np.linspace(span.start, span.end, states + 1)[1:]).astype(int).tolist()
    cut = tuple(word._replace(end=min(word.end, num_frames)) for word in words if word.start < num_frames)
    return Alignment(pdfs=state_pdfs(numbers, np.array(edges), topology), phones=tuple(spans), words=cut)


def _gapless(spans: Sequence[Segment], num_frames: int) -> Iterator[Segment]:
    """The spans with those between them, which have no label."""
    position = 0
    for span in spans:
        if span.start < position:
            raise DataError(f"{span.label} begins in frame {span.start}, before the phone before it ends ({position}): "
                            "an alignment has one phone at a time")
        if span.start >= num_frames:
            break
        if span.start > position:
            yield Segment("", position, span.start)
        position = min(span.end, num_frames)
        yield span._replace(end=position)
    if position < num_frames:
        yield Segment("", position, num_frames)


def _filled(entries: Sequence[Interval], duration: float, tier: str) -> Iterator[Interval]:
    """The intervals with empty ones between."""
    position = 0.0
    for entry in entries:
        if not position - 1e-9 <= entry.start <= entry.end <= duration + 1e-9:
            raise DataError(f"tier {tier!r}: {entry.label!r} from {entry.start:g} to {entry.end:g} s begins before the "
                            f"one before it ends ({position:g} s), or ends after the recording ({duration:g} s)")
        if entry.start > position + 1e-9:
            yield Interval("", position, entry.start)
        yield entry
        position = entry.end
    if duration > position + 1e-9:
        yield Interval("", position, duration)


def _runs(path: Path | str, *, paired: bool) -> Iterator[tuple[str, str, list[tuple[int, int]]]]:
    """Utterance, ``file:line`` and (number, count) of each run; once each."""
    seen: set[str] = set()
    for where, (name, *fields) in _lines(path):
        if name in seen:
            raise DataError(f"{where}: utterance {name} appears twice")
        seen.add(name)
        try:
            if paired:
                runs = [(int(n), int(length)) for n, length in (p.split() for p in " ".join(fields).split(";"))]
            else:
                runs = [(int(number), 1) for number in fields]
        except ValueError:
            raise DataError(f"{where}: expected an utterance and " + ("PHONE LENGTH ; PHONE LENGTH ..." if paired else
                            "a number for each frame") + f", got '{' '.join([name, *fields])[:60]}'") from None
        if not runs or min(length for _, length in runs) < 1:
            raise DataError(f"{where}: utterance {name} has no frames, or a phone of length 0")
        yield name, where, runs


def _lines(path: Path | str) -> Iterator[tuple[str, list[str]]]:
    """``file:line`` and fields of each line that is not empty."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise DataError(f"{path}: not a text file: write it as text, in Kaldi with ark,t:FILE")
    for number, line in enumerate(text.splitlines(), start=1):
        if fields := line.split():
            yield f"{path}:{number}", fields


def _symbols(path: Path | str) -> dict[int, str]:
    names = {}
    for where, fields in _lines(path):
        if len(fields) != 2 or not fields[1].isdecimal():
            raise DataError(f"{where}: expected a phone and its number, got '{' '.join(fields)}'")
        names[int(fields[1])] = fields[0]
    return names


def _number(seconds: float) -> str:
    """At least two digits after the point, at most six."""
    digits = f"{seconds:.6f}"
    return digits[:-4] + digits[-4:].rstrip("0")


def _quoted(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'


def _require_bare(*names: str) -> None:
    for name in names:
        if len(name.split()) != 1 or name != name.strip():
            raise DataError(f"{name!r} cannot stand in a file whose fields are parted by white space")
