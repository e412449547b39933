"""The command that transcribes recordings with a trained run."""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from hemstitch.commands._details import NOTHING, Details, decode_settings, search_options
from hemstitch.commands._speech import load_speech_run
from hemstitch.errors import DataError, HemstitchError, RunError
from hemstitch.report import write_whole
from hemstitch.sampling import FrameWindows
from hemstitch.speech import (
    Corpus,
    Interval,
    LatticeDecoder,
    Utterance,
    decode,
    in_seconds,
    resample,
    write_ctm,
    write_textgrid,
)
from hemstitch.speech._long_audio import cut_frames, join_pieces, level
from hemstitch.speech._media import Unusable, own_rate, read_audio, require
from hemstitch.train._run_folder import RESULT, RunFolder, read_json
from hemstitch.train._speech import Search
from hemstitch.train._speech_data import Part

LONGEST = 30.0
"""Seconds of audio that are searched at once."""
MARGIN = 1.0
"""Seconds of the neighbours that a piece is recognised with."""


@dataclass(frozen=True)
class Transcript:
    """What was recognised in a recording.

    Attributes:
        file: the recording.
        words: with their times.
        seconds: its length.
        alternatives: where asked for, of each piece: first and last second, and its best sentences with their costs.
    """

    file: Path
    words: tuple[Interval, ...]
    seconds: float
    alternatives: tuple[dict[str, Any], ...] = ()

    @property
    def text(self) -> str:
        """The words, separated by blanks."""
        return " ".join(word.label for word in self.words)

    def to_json(self) -> str:
        """One line with everything."""
        words = [[word.label, word.start, word.end] + ([] if word.confidence is None else [round(word.confidence, 4)])
                 for word in self.words]
        entry = {"file": str(self.file), "seconds": round(self.seconds, 3), "text": self.text, "words": words}
        return json.dumps(entry | ({"alternatives": self.alternatives} if self.alternatives else {}),
                          ensure_ascii=False)


class SureSegment(NamedTuple):
    """A word in frames, and how sure it is."""

    label: str
    start: int
    end: int
    confidence: float | None


class Transcriber:
    """A trained run as a function from recordings to words.

    A recording is normalised as one utterance (or speaker), whatever its length, and searched in pieces.

    Args:
        path: the run.
        settings: ``--decode.NAME VALUE`` pairs; scales that are not among them are those that were chosen on dev.
        longest: seconds that are searched at once.
        convert: convert recordings of another sampling rate instead of refusing them.
        details: what is wanted besides words. Lattices and other sentences are those of each piece with its margins.

    Raises:
        RunError: no speech run, no audio to compute its features from, or no scales.
    """

    def __init__(self, path: Path, settings: Sequence[str] = (), longest: float = LONGEST, convert: bool = False,
                 details: Details = NOTHING):
        overrides = decode_settings("transcribe", settings)
        scales = {f"decode.{name}" for name in Search.SETTINGS}
        overrides = {k: [v] if k in scales and not isinstance(v, list) else v for k, v in overrides.items()}
        self.run, folder = load_speech_run(path, overrides)
        self.longest, self.convert, self.details = longest, convert, details
        task = self.run.task
        self.rate = task.corpus.sampling_rate
        if self.rate is None:
            raise RunError(f"{path} was trained on stored features ({task.corpus.name}), and how they come from audio "
                           "is not known here: train on a corpus with audio, or use `hemstitch decode` on its parts.")
        if longest <= 2 * MARGIN:
            raise RunError(f"pieces must be longer than {2 * MARGIN:g} s, got {longest:g}")
        self.graph = task.decoding_graph()
        prior_scale, acoustic_scale, word_penalty = _scales(task, folder, overrides)
        self.search = search_options(task.recipe, acoustic_scale, word_penalty)
        self.lattices = LatticeDecoder(self.graph, self.search, details.lattice_beam) if details.wanted else None
        self.offset = prior_scale * task.log_priors()

    def __call__(self, file: Path) -> Transcript:
        """Recognise a recording.

        Raises:
            DataError: it cannot be read, or has another sampling rate than the training data.
        """
        samples, features = self._features(Path(file))
        shift = self.run.task.frame_shift
        edges = cut_frames(level(samples, self.rate, shift, len(features)), round(self.longest / shift))
        margin = round(MARGIN / shift)
        pieces, told = [], []
        for number, (first, end) in enumerate(itertools.pairwise(edges), start=1):
            name = Path(file).stem if len(edges) == 2 else f"{Path(file).stem}-{number}"
            words, entries = self._piece(features, max(0, first - margin), end + margin, name)
            pieces.append(words)
            told += [{"start": round(first * shift, 3), "end": round(end * shift, 3), **entries}] if entries else []
        joined = join_pieces(pieces, edges[1:-1], margin)
        timed = in_seconds(joined, shift)
        words = tuple(t._replace(confidence=w.confidence) for t, w in zip(timed, joined))
        return Transcript(Path(file), words, len(samples) / self.rate, tuple(told))

    def _piece(self, features: np.ndarray, first: int, end: int, name: str
               ) -> tuple[list[SureSegment], dict[str, Any]]:
        """The words of a piece, in frames of the recording, and other sentences if they are wanted."""
        task, model = self.run.task, self.run.model
        frames = features[first:end]
        offsets = np.array([0, len(frames)])
        part = Part([_utterance(Path("piece"))], frames, offsets, [], torch.empty(0, dtype=torch.int64))
        part.windows = FrameWindows(frames, offsets, model.left_context, model.right_context).to(task.device)
        scores, _ = task.scores(model, part)
        rows = getattr(model, "subsampling", 1)
        loglikes, shift, entries = scores - self.offset, task.frame_shift, {}
        if self.lattices is None:
            best = decode(loglikes, self.graph, self.search)
            sure: Sequence[float | None] = [None] * len(best.words)
        else:
            found = self.lattices(loglikes)
            best, sure, entries = found.best, found.confidences, self.details.entries(found)
            entries.pop("confidences", None)
            self.details.write_lattice(found, name, shift * rows, first * shift)
        words = [SureSegment(w.label, first + w.start * rows, min(first + w.end * rows, len(features)), c)
                 for w, c in zip(best.words, sure)]
        return words, entries

    def _features(self, file: Path) -> tuple[np.ndarray, np.ndarray]:
        """Samples at the rate of the training data, and features (frame, feature)."""
        task, rate = self.run.task, own_rate(file)
        try:
            samples = read_audio(file, rate)
        except Unusable as error:
            raise DataError(f"{file} cannot be transcribed: {error}") from None
        if rate != self.rate and not self.convert:
            raise DataError(f"{file} has a sampling rate of {rate} Hz, the run was trained at {self.rate} Hz: add "
                            "--resample to convert it on the way")
        if len(samples) / rate < task.recipe.features.frame_length_ms / 1000:
            raise DataError(f"{file} is too short: {len(samples) / rate:.3f} s")
        with tempfile.TemporaryDirectory(prefix="hemstitch-") as folder:
            if rate != self.rate:
                samples, file = resample(samples, rate, self.rate), Path(folder) / "converted.wav"
                require("soundfile").write(file, samples, self.rate, subtype="FLOAT")
            corpus = Corpus(folder=Path(), name=str(file), sampling_rate=self.rate, utterances=(_utterance(file),))
            frames = task.inputs.of(corpus).frames
        return samples, frames


def transcribe(path: Path, files: Sequence[Path], form: str, out: Path | None, settings: Sequence[str], longest: float,
               convert: bool, details: Details = NOTHING) -> int:
    """Recognise recordings; one that cannot be read is named, and the others are done all the same."""
    if form == "textgrid" and out is None:
        raise RunError("--format textgrid writes a file for each recording: add --out FOLDER.")
    if form in ("text", "textgrid") and (details.confidences or details.nbest):
        raise RunError(f"--format {form} has no place for confidences or other sentences: take json"
                       + (", or ctm for confidences." if not details.nbest else "."))
    if form == "ctm" and details.nbest:
        raise RunError("--format ctm has no place for other sentences: take json.")
    transcriber, done, failures = Transcriber(path, settings, longest, convert, details), [], []
    for file in files:
        try:
            transcript = transcriber(file)
        except HemstitchError as error:
            failures.append(str(error))
            continue
        done.append(transcript)
        if out is None:
            print({"text": f"{file}: {transcript.text}", "json": transcript.to_json()}.get(form) or _ctm(transcript))
    if out is not None:
        _write(done, form, out)
        print(f"{len(done)} recording{'s' * (len(done) != 1)} transcribed: {out}")
    if failures:
        raise DataError("\n".join(failures))
    return 0


def _write(done: Sequence[Transcript], form: str, out: Path) -> None:
    if form == "ctm":
        write_ctm(out, {t.file.stem: t.words for t in done})
    elif form == "textgrid":
        for transcript in done:
            write_textgrid(out / f"{transcript.file.stem}.TextGrid", {"words": transcript.words}, transcript.seconds)
    else:
        lines = [t.to_json() if form == "json" else f"{t.file.stem} {t.text}" for t in done]
        write_whole("".join(f"{line}\n" for line in lines), out)


def _ctm(transcript: Transcript) -> str:
    return "\n".join(f"{transcript.file.stem} 1 {w.start:.2f} {w.end - w.start:.2f} {w.label}"
                     + ("" if w.confidence is None else f" {w.confidence:.4f}") for w in transcript.words)


def _utterance(file: Path) -> Utterance:
    return Utterance(id=file.name, speaker=file.name, text="-", split="test", audio=str(file.absolute()))


def _scales(task: Any, folder: RunFolder, overrides: dict[str, Any]) -> tuple[float, float, float]:
    """Prior scale, acoustic scale and word penalty: from the command line, as chosen on dev, or the only candidate."""
    result = folder.path / RESULT
    chosen = read_json(result).get("decode", {}) if result.exists() else {}
    values = []
    for name in Search.SETTINGS:
        candidates = getattr(task.recipe.decode, name)
        if name == "prior_scale" and not task.uses_priors:
            candidates = (0.0,)
        elif f"decode.{name}" not in overrides and name in chosen:
            candidates = (chosen[name],)
        if len(candidates) != 1:
            raise RunError(f"{folder.path}: which of the candidates for decode.{name} is best has not been found out, "
                           f"as the run is not finished: `hemstitch resume` it, or add --decode.{name} VALUE.")
        values.append(float(candidates[0]))
    return values[0], values[1], values[2]
