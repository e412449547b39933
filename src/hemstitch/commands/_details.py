"""What recognition can tell besides the best words: confidences, other sentences, lattices."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from hemstitch.commands._speech import row_shift
from hemstitch.errors import ConfigError, RunError
from hemstitch.speech import DecodeOptions, LatticeDecoder, Recognised, write_slf
from hemstitch.train._config import read_overrides
from hemstitch.train._run_folder import RunFolder
from hemstitch.train._speech_data import in_threads


@dataclass(frozen=True, kw_only=True)
class Details:
    """What is asked for.

    Attributes:
        confidences: how sure each word is.
        nbest: so many of the best word sequences; 0: none.
        lattices: folder for a lattice file of each utterance.
        lattice_beam: largest cost above the best path, in nats after scaling.
    """

    confidences: bool = False
    nbest: int = 0
    lattices: Path | None = None
    lattice_beam: float = 8.0

    def __post_init__(self) -> None:
        if self.nbest < 0:
            raise ConfigError(f"--nbest must be 1 or more, or 0 for none, got {self.nbest}")
        if not self.lattice_beam > 0:
            raise ConfigError(f"--lattice-beam must be positive, got {self.lattice_beam:g}")

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> Details:
        """From the command line."""
        return cls(confidences=arguments.confidences, nbest=arguments.nbest, lattices=arguments.lattices,
                   lattice_beam=arguments.lattice_beam)  # fmt: skip

    @property
    def wanted(self) -> bool:
        """Whether anything is."""
        return self.confidences or self.nbest > 0 or self.lattices is not None

    def entries(self, found: Recognised) -> dict[str, Any]:
        """What is written of an utterance beside its words; JSON-ready."""
        entries: dict[str, Any] = {}
        if self.confidences:
            entries["confidences"] = [round(c, 4) for c in found.confidences]
        if self.nbest:
            entries["alternatives"] = [{"text": a.text, "cost": round(a.cost, 4)}
                                       for a in found.alternatives(self.nbest)]  # fmt: skip
        return entries

    def write_lattice(self, found: Recognised, name: str, shift: float, start: float = 0.0) -> None:
        """Write NAME.slf, if lattices are wanted."""
        if self.lattices is not None:
            lattice = found.word_lattice(self.lattice_beam)
            write_slf(self.lattices / f"{quote(name, safe='')}.slf", lattice, found.names, name, shift, start)


NOTHING = Details()


def decode_settings(command: str, settings: Sequence[str]) -> dict[str, Any]:
    """``--decode.NAME VALUE`` pairs of a command that uses a trained run.

    Raises:
        RunError: other settings, which are fixed by the run.
    """
    found = {key: value for key, (value, _) in read_overrides(settings).items()}
    if foreign := [key for key in found if not key.startswith(("decode.", "train.device", "train.threads"))]:
        raise RunError(f"{command} takes only --decode.* settings, got --{foreign[0]}: the rest is fixed by the run.")
    return found


def search_options(recipe: Any, acoustic_scale: float, word_penalty: float) -> DecodeOptions:
    """How to search, as the recipe says, with one choice of its candidates."""
    options = recipe.decode
    return DecodeOptions(beam=options.beam, max_active=options.max_active, acoustic_scale=acoustic_scale,
                         word_penalty=word_penalty)  # fmt: skip


def add_details(run: Any, folder: RunFolder, part: str, chosen: dict[str, float], details: Details) -> None:
    """Search a part once more, for lattices, and put what they tell into decode/PART.jsonl.

    Args:
        run: a trained run.
        folder: where it has recognised the part.
        part: its name.
        chosen: the scales.
        details: what is wanted.
    """
    task = run.task
    options = search_options(run.recipe, chosen["acoustic_scale"], chosen["word_penalty"])
    decoder = LatticeDecoder(task.decoding_graph(), options, details.lattice_beam)
    scores, offsets = task.scores(run.model, task.parts[part])
    loglikes = scores - chosen["prior_scale"] * task.log_priors()
    path = folder.path / "decode" / f"{part}.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]

    def one(index: int) -> dict[str, Any]:
        found = decoder(loglikes[offsets[index] : offsets[index + 1]])
        details.write_lattice(found, rows[index]["id"], row_shift(run))
        return rows[index] | details.entries(found)

    folder.write_lines(f"decode/{part}.jsonl", in_threads(one, range(len(rows))))
