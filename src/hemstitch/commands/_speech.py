"""What speech runs can be asked for besides words: alignments, log-likelihoods, the network for other programs."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import torch

from hemstitch.errors import ConfigError, DataError, HemstitchError, RunError
from hemstitch.speech import Alignment, in_seconds, write_ctm, write_textgrid
from hemstitch.speech import align as align_utterance
from hemstitch.speech._files import new_file
from hemstitch.train import Console, load_trained
from hemstitch.train._run_folder import RunFolder
from hemstitch.train._speech_data import Part, in_threads, words_of

TOLERANCE = 1e-3
"""Largest difference between the outputs of the network and of its ONNX form, of the outputs' root mean square."""


def load_speech_run(path: Path, overrides: dict[str, Any] | None = None) -> tuple[Any, RunFolder]:
    """A trained run on speech, with its best network.

    Raises:
        RunError: it is none.
    """
    run, folder = load_trained(path, Console(), overrides)
    if not hasattr(run.task, "decoding_graph"):
        raise RunError(f"{path} is not a speech run: there is nothing to align or recognise.")
    return run, folder


def align(path: Path, part: str, form: str, out: Path | None) -> int:
    """Write when which word and phone of a part was said: words.ctm and phones.ctm, or one TextGrid an utterance."""
    run, folder = load_speech_run(path)
    out = out or folder.path / "align" / part
    found, left_out = align_part(run, part)
    shift = row_shift(run)
    if form == "ctm":
        for tier in ("words", "phones"):
            write_ctm(out / f"{tier}.ctm", {name: in_seconds(getattr(a, tier), shift) for name, a in found.items()})
    else:
        for name, a in found.items():
            tiers = {tier: in_seconds(getattr(a, tier), shift) for tier in ("words", "phones")}
            write_textgrid(out / f"{quote(name, safe='')}.TextGrid", tiers, round(len(a.pdfs) * shift, 6))
    for name, reason in left_out.items():
        run.console.say(f"left out {name}: {reason}")
    print(f"{len(found)} utterances aligned, {len(left_out)} left out: {out}")
    return 0


def align_part(run: Any, name: str) -> tuple[dict[str, Alignment], dict[str, str]]:
    """The alignment of each utterance of a part, and why others have none.

    Raises:
        DataError: none can be aligned.
    """
    task = run.task
    part: Part = task.parts[name]
    scores, offsets = task.scores(run.model, part)
    loglikes = scores - task.log_priors()

    def one(index: int) -> Alignment | str:
        words = words_of(part.utterances[index], task.lexicon)
        try:
            graph = part.graphs[index] if part.graphs else task.training_graph(words)
            rows = loglikes[offsets[index] : offsets[index + 1]]
            return align_utterance(rows, words, task.lexicon, task.topology, graph=graph)
        except DataError as error:
            return str(error)

    results = dict(zip((u.id for u in part.utterances), in_threads(one, range(len(part.utterances)))))
    found = {key: value for key, value in results.items() if isinstance(value, Alignment)}
    left_out = {key: value for key, value in results.items() if isinstance(value, str)}
    if not found:
        raise DataError(f"no utterance of part {name} can be aligned: {next(iter(left_out.values()), 'it is empty')}")
    return found, left_out


def row_shift(run: Any) -> float:
    """Seconds from one row of scores to the next."""
    return run.task.frame_shift * getattr(run.model, "subsampling", 1)


def export_loglikelihoods(path: Path, part: str, out: Path | None) -> Path:
    """Write what the search of a part sees, as arrays in an .npz file that is read without running code.

    ``loglikelihoods`` (row, pdf) float32: log p(s|x) - log p(s), or the network's scores where there are no priors;
    ``offsets`` (utterance + 1,): utterance i has rows ``offsets[i]:offsets[i + 1]``; ``ids``; ``log_priors``;
    ``row_shift``: seconds from one row to the next.
    """
    run, folder = load_speech_run(path)
    scores, offsets = run.task.scores(run.model, run.task.parts[part])
    priors = run.task.log_priors()
    out = out or folder.path / f"{part}.loglikelihoods.npz"
    with new_file(out) as partial, open(partial, "wb") as file:
        np.savez(file, loglikelihoods=(scores - priors).numpy(), offsets=offsets, log_priors=priors.numpy(),
                 ids=np.array([u.id for u in run.task.parts[part].utterances]), row_shift=np.float64(row_shift(run)))
    return out


def export_onnx(path: Path, out: Path | None, frames: int = 0) -> Path:
    """Write the network of a run as ONNX, and compare the two.

    Input ``features`` (batch, left_context + time + right_context, feature) is padded by repeating the first and last
    frame; output ``scores`` (batch, rows, pdf), before log-softmax. The metadata hold contexts and subsampling.

    Args:
        path: the run.
        out: the file.
        frames: fixed number of frames without context; 0: any number.

    Raises:
        HemstitchError: onnx or onnxscript is not installed.
        RunError: the network cannot be exported, or its ONNX form gives other numbers.
    """
    run, folder = load_speech_run(path)
    out = out or folder.path / "network.onnx"
    if frames < 0:
        raise ConfigError(f"--frames must be 1 or more, or 0 for any number, got {frames}")
    try:
        import onnx.reference
        import onnxscript  # noqa: F401  (torch.onnx needs it)
    except ImportError as error:
        raise HemstitchError(f"{error.name} is needed here: pip install 'hemstitch[onnx]'") from None
    model = run.model.cpu().eval()
    with new_file(out) as partial:
        try:
            _write_onnx(model, partial, frames)
            session = onnx.reference.ReferenceEvaluator(str(partial))
            difference = max(_difference(model, session, n) for n in ((frames,) if frames else (4, 7, 20)))
        except Exception as error:  # exporter and evaluator raise whatever they like
            difference, reason = float("inf"), f" ({type(error).__name__})"
        else:
            reason = ""
        if not difference <= TOLERANCE:
            remedy = "" if frames else ": give the number of frames, --frames N"
            raise RunError(f"{type(model).__name__} has no ONNX form that gives the same numbers{reason}{remedy}.")
    return out


def _write_onnx(model: torch.nn.Module, out: Path, frames: int) -> None:
    example = torch.zeros(2, model.context + (frames or 8), model.num_inputs)
    free = {0: torch.export.Dim("batch")} | ({} if frames else {1: torch.export.Dim.AUTO})
    about = {key: str(getattr(model, key)) for key in ("left_context", "right_context", "subsampling")}
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the exporter's own workings
            program = torch.onnx.export(model, (example,), dynamo=True, verbose=False, input_names=["features"],
                                        output_names=["scores"], dynamic_shapes=(free,))
            program.model.metadata_props.update(about)
            program.save(str(out))
    finally:
        logger.setLevel(before)


def _difference(model: torch.nn.Module, session: Any, frames: int) -> float:
    """Between the outputs for random features, relative to their root mean square."""
    features = torch.randn(3, model.context + frames, model.num_inputs, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model(features).numpy()
    found = session.run(None, {"features": features.numpy()})[0]
    if found.shape != expected.shape:
        return float("inf")
    return float(np.abs(found - expected).max() / np.sqrt(np.square(expected).mean()))
