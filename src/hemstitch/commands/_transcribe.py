"""The command that transcribes recordings with a trained run."""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hemstitch.commands._speech import load_speech_run
from hemstitch.errors import DataError, HemstitchError, RunError
from hemstitch.sampling import FrameWindows
from hemstitch.speech import (
    Corpus,
    DecodeOptions,
    Interval,
    Segment,
    Utterance,
    decode,
    in_seconds,
    resample,
    write_ctm,
    write_textgrid,
)
from hemstitch.speech._long_audio import cut_frames, join_pieces, level
from hemstitch.speech._media import Unusable, own_rate, read_audio, require
from hemstitch.train._config import read_overrides
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
    """

    file: Path
    words: tuple[Interval, ...]
    seconds: float

    @property
    def text(self) -> str:
        """The words, separated by blanks."""
        return " ".join(word.label for word in self.words)

    def to_json(self) -> str:
        """One line with everything."""
        words = [[word.label, word.start, word.end] for word in self.words]
        return json.dumps({"file": str(self.file), "seconds": round(self.seconds, 3), "text": self.text,
                           "words": words}, ensure_ascii=False)


class Transcriber:
    """A trained run as a function from recordings to words.

    A recording is normalised as one utterance (or speaker), whatever its length, and searched in pieces.

    Args:
        path: the run.
        settings: ``--decode.NAME VALUE`` pairs; scales that are not among them are those that were chosen on dev.
        longest: seconds that are searched at once.
        convert: convert recordings of another sampling rate instead of refusing them.

    Raises:
        RunError: no speech run, no audio to compute its features from, or no scales.
    """

    def __init__(self, path: Path, settings: Sequence[str] = (), longest: float = LONGEST, convert: bool = False):
        overrides = {key: value for key, (value, _) in read_overrides(settings).items()}
        if foreign := [k for k in overrides if not k.startswith(("decode.", "train.device", "train.threads"))]:
            raise RunError(f"transcribe takes only --decode.* settings, got --{foreign[0]}: the rest is fixed by the "
                           "run.")
        scales = {f"decode.{name}" for name in Search.SETTINGS}
        overrides = {k: [v] if k in scales and not isinstance(v, list) else v for k, v in overrides.items()}
        self.run, folder = load_speech_run(path, overrides)
        self.longest, self.convert = longest, convert
        task = self.run.task
        self.rate = task.corpus.sampling_rate
        if self.rate is None:
            raise RunError(f"{path} was trained on stored features ({task.corpus.name}), and how they come from audio "
                           "is not known here: train on a corpus with audio, or use `hemstitch decode` on its parts.")
        if longest <= 2 * MARGIN:
            raise RunError(f"pieces must be longer than {2 * MARGIN:g} s, got {longest:g}")
        self.graph = task.decoding_graph()
        options = task.recipe.decode
        prior_scale, acoustic_scale, word_penalty = _scales(task, folder, overrides)
        self.search = DecodeOptions(beam=options.beam, max_active=options.max_active, acoustic_scale=acoustic_scale,
                                    word_penalty=word_penalty)
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
        spans = itertools.pairwise(edges)
        pieces = [self._words(features, max(0, first - margin), end + margin) for first, end in spans]
        words = in_seconds(join_pieces(pieces, edges[1:-1], margin), shift)
        return Transcript(Path(file), words, len(samples) / self.rate)

    def _words(self, features: np.ndarray, first: int, end: int) -> list[Segment]:
        """The words of a piece, in frames of the recording."""
        task, model = self.run.task, self.run.model
        frames = features[first:end]
        offsets = np.array([0, len(frames)])
        part = Part([_utterance(Path("piece"))], frames, offsets, [], torch.empty(0, dtype=torch.int64))
        part.windows = FrameWindows(frames, offsets, model.left_context, model.right_context).to(task.device)
        scores, _ = task.scores(model, part)
        rows = getattr(model, "subsampling", 1)
        found = decode(scores - self.offset, self.graph, self.search).words
        return [Segment(w.label, first + w.start * rows, min(first + w.end * rows, len(features))) for w in found]

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
               convert: bool) -> int:
    """Recognise recordings; one that cannot be read is named, and the others are done all the same."""
    if form == "textgrid" and out is None:
        raise RunError("--format textgrid writes a file for each recording: add --out FOLDER.")
    transcriber, done, failures = Transcriber(path, settings, longest, convert), [], []
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
        print(f"{len(done)} recordings transcribed: {out}")
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
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _ctm(transcript: Transcript) -> str:
    return "\n".join(f"{transcript.file.stem} 1 {w.start:.2f} {w.end - w.start:.2f} {w.label}"
                     for w in transcript.words)


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
