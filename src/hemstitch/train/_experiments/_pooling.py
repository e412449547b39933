"""Errors of many runs on the folds of one corpus, put together by speaker."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from hemstitch.errors import RunError
from hemstitch.report import align_words, count_errors
from hemstitch.train._experiments._paired_bootstrap import PairedErrors

ANSWERS = ("decode/test.jsonl", "predictions/test.jsonl")
"""Where a run keeps what it recognised in its test part: words of utterances, or classes of images."""

Counts = dict[str, tuple[str, int, int]]
"""Utterance -> speaker, reference words, errors."""


def read_answers(run: Path) -> list[dict[str, str]]:
    """What a run answered to each utterance (or image) of its test part: id, speaker, reference, hypothesis.

    Args:
        run: a run folder, or the file itself.

    Raises:
        RunError: there are no answers, or they cannot be read.
    """
    path = next((p for p in (run, *(run / name for name in ANSWERS)) if p.is_file()), None)
    if path is None:
        raise RunError(f"{run}: no {' or '.join(ANSWERS)} there to count errors in. Decode the run first.")
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [{key: str(row[key]) for key in ("id", "speaker", "reference", "hypothesis")} for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} is damaged ({error!r}): delete the run folder and run again.") from None


def read_counts(run: Path) -> Counts:
    """Errors of each utterance (or image) of the test part of a run."""
    counts = {}
    for row in read_answers(run):
        errors = count_errors(align_words(row["reference"].split(), row["hypothesis"].split()))
        counts[row["id"]] = (row["speaker"], errors.words, errors.total)
    return counts


def pool(
    counts: Callable[[int, int, int], Counts], methods: int, seeds: int, folds: int, replications: int
) -> PairedErrors:
    """Errors of all folds together, by speaker.

    Args:
        counts: (method, seed, fold from 1) -> errors of each utterance.
        methods, seeds, folds: how many.
        replications: bootstrap samples.

    Raises:
        RunError: an utterance was not tested exactly once by every method and seed.
    """
    fold_of: dict[str, int] = {}
    sums: dict[str, np.ndarray] = {}
    words: dict[str, int] = {}
    for fold in range(1, folds + 1):
        expected = counts(0, 0, fold)
        for m, s in itertools.product(range(methods), range(seeds)):
            found = counts(m, s, fold)
            if {u: c[:2] for u, c in found.items()} != {u: c[:2] for u, c in expected.items()}:
                odd = sorted(found.keys() ^ expected.keys())[:3]
                raise RunError(f"fold {fold} was not the same for all runs: {len(found)} and {len(expected)} "
                               f"utterances, differing in {odd}. Delete the runs of the older data.")  # fmt: skip
            for speaker, length, errors in found.values():
                if fold_of.setdefault(speaker, fold) != fold:
                    raise RunError(f"speaker {speaker} is in folds {fold_of[speaker]} and {fold}: no fair comparison")
                sums.setdefault(speaker, np.zeros((methods, seeds)))[m, s] += errors
                words[speaker] = words.get(speaker, 0) + (length if (m, s) == (0, 0) else 0)
    speakers = sorted(speaker for speaker in words if words[speaker])
    return PairedErrors(
        np.stack([sums[s] for s in speakers], axis=-1), np.array([words[s] for s in speakers]),
        [fold_of[s] for s in speakers], replications=replications,
    )  # fmt: skip
