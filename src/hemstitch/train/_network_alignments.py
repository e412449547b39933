"""Alignments by the network of another run, for sequence training."""

from __future__ import annotations

from pathlib import Path

from hemstitch.errors import ConfigError
from hemstitch.sampling import FrameWindows
from hemstitch.speech import Topology
from hemstitch.train._console import Console
from hemstitch.train._flat_start import Alignments
from hemstitch.train._frames import FrameTask
from hemstitch.train._run import load_trained
from hemstitch.train._speech import SpeechTask
from hemstitch.train._speech_data import best_alignments


def network_alignments(task: SpeechTask, path: Path, console: Console) -> tuple[Alignments, Topology]:
    """Alignments of a task's train and dev parts by the best network of a cross-entropy run.

    Args:
        task: goes on with the topology of the run.
        path: the run folder. It may have been trained on other utterances.
        console: messages.

    Returns:
        The alignments, and the topology they are in.

    Raises:
        ConfigError: not a cross-entropy run with the same features and phones.
    """
    run, _ = load_trained(path, console)
    teacher = run.task
    if not isinstance(teacher, FrameTask) or getattr(run.model, "subsampling", 1) != 1:
        raise ConfigError(f"criterion.alignments = {path}: expected a run with criterion.kind = 'cross-entropy' and "
                          "one output per frame")  # fmt: skip
    if run.recipe.features != task.recipe.features or teacher.num_inputs != task.num_inputs:
        raise ConfigError(f"criterion.alignments = {path}: that run has other [features]")
    if teacher.lexicon.phones != task.lexicon.phones:
        raise ConfigError(f"criterion.alignments = {path}: that run has other phones: set hmm.position_dependent as "
                          "there, and use the same lexicon")  # fmt: skip
    task.use_topology(teacher.topology)
    priors, found = teacher.log_priors(), {}
    for name in ("train", "dev"):
        part = task.parts[name]
        windows = FrameWindows(part.frames, part.offsets, run.model.left_context, run.model.right_context)
        part.windows = windows.to(teacher.device)
        loglikes = teacher.scores(run.model, part)[0] - priors
        found[name] = best_alignments(part, loglikes.__getitem__, task.lexicon, task.topology)
    return found, teacher.topology
