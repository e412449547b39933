"""The command that rescores a speech run's n-best lists with a language model trained by another run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hemstitch.commands._details import decode_settings, search_options
from hemstitch.commands._speech import load_speech_run
from hemstitch.commands._transcribe import _scales
from hemstitch.errors import RunError
from hemstitch.models import sentence_log_probabilities
from hemstitch.speech import BestLists, Candidate, word_error_rate
from hemstitch.speech import rescore as choose
from hemstitch.train import Console, load_trained
from hemstitch.train._speech_data import in_threads

AT_ONCE = 256
"""Sentences that the language model reads side by side."""


class Judge:
    """A trained run on text as a function from sentences to log-probabilities; remembers what it was asked.

    Args:
        path: the run.

    Raises:
        RunError: no run on text, or one on characters.
    """

    def __init__(self, path: Path) -> None:
        run, _ = load_trained(path, Console())
        vocabulary = getattr(run.task, "vocabulary", None)
        if vocabulary is None or vocabulary.unit != "word":
            raise RunError(f"{path} is not a language model of words: train one with `hemstitch train text-rnnlm`.")
        self.model, self.numbers = run.model.model, vocabulary.numbers
        self.known: dict[tuple[str, ...], float] = {}
        self.words: set[str] = set()

    def encode(self, words: Sequence[str]) -> list[int]:
        """Numbers of words: as written, else in small letters, else that of the unknown word."""
        return [self.numbers.get(word, self.numbers.get(word.lower(), 1)) for word in words]

    def read(self, sentences: set[tuple[str, ...]]) -> None:
        """Score sentences that are new."""
        new = sorted(sentences - self.known.keys(), key=len)
        for start in range(0, len(new), AT_ONCE):
            piece = new[start : start + AT_ONCE]
            found = sentence_log_probabilities(self.model, [self.encode(words) for words in piece], boundary=0)
            self.known |= dict(zip(piece, found.tolist()))
        self.words.update(word for words in new for word in words)

    @property
    def unknown(self) -> list[str]:
        """Words that it was asked about and does not know."""
        return sorted(word for word in self.words if self.encode([word]) == [1])


@dataclass(frozen=True)
class Lists:
    """The n-best lists of a part.

    Attributes:
        references: utterance -> what was said.
        candidates: utterance -> its list.
    """

    references: dict[str, str]
    candidates: dict[str, list[Candidate]]

    def words(self, judge: Judge, weight: float) -> dict[str, str]:
        """Utterance -> the words that are best with a weight."""
        return {name: " ".join(choose(found, [judge.known[c.words] for c in found], weight).words)
                for name, found in self.candidates.items()}

    def oracle(self) -> dict[str, str]:
        """Utterance -> the candidate with the fewest errors."""
        def errors(name: str, candidate: Candidate) -> int:
            return word_error_rate({name: self.references[name]}, {name: " ".join(candidate.words)},
                                   replications=1).total.errors

        return {name: " ".join(min(found, key=lambda c: errors(name, c)).words)
                for name, found in self.candidates.items()}


def best_lists(run: Any, name: str, best: BestLists, offset: Any) -> Lists:
    """Of all utterances of a part."""
    part = run.task.parts[name]
    scores, offsets = run.task.scores(run.model, part)
    loglikes = scores - offset
    found = in_threads(lambda i: best(loglikes[offsets[i] : offsets[i + 1]]), range(len(part.utterances)))
    return Lists({u.id: u.text for u in part.utterances}, {u.id: c for u, c in zip(part.utterances, found)})


def rescore(path: Path, model: Path, part: str, count: int, weights: Sequence[float], lattice_beam: float,
            settings: Sequence[str]) -> int:
    """Choose the weight that is best on dev, rescore a part with it; writes rescore/PART.jsonl."""
    overrides = decode_settings("rescore", settings)
    if not weights or not all(0 <= weight <= 1 for weight in weights):
        raise RunError("--weights must be numbers from 0 (the search's own best) to 1 (the new model alone), such as "
                       "0,0.25,0.5,0.75,1")
    run, folder = load_speech_run(path, overrides)
    judge, task = Judge(model), run.task
    prior_scale, acoustic_scale, word_penalty = _scales(task, folder, overrides)
    search = search_options(task.recipe, acoustic_scale, word_penalty)
    arpa = task.language_model(task.recipe.decode.language_model)
    best = BestLists(task.graph_of(arpa), arpa, count, search, lattice_beam)
    lists = {name: best_lists(run, name, best, prior_scale * task.log_priors()) for name in {"dev", part}}
    judge.read({c.words for one in lists.values() for found in one.candidates.values() for c in found})
    rates = {w: word_error_rate(lists["dev"].references, lists["dev"].words(judge, w), replications=1).rate
             for w in weights}
    weight = min(rates, key=rates.__getitem__)
    for w, rate in rates.items():
        print(f"dev, weight {w:g}: {rate:.2%}" + (" (chosen)" if w == weight and len(rates) > 1 else ""))
    _tell(part, lists[part], judge, weight)
    rows = [{"id": name, "reference": lists[part].references[name], "hypothesis": words}
            for name, words in lists[part].words(judge, weight).items()]
    folder.write_lines(f"rescore/{part}.jsonl", rows)
    print(f"words of each utterance: {folder.path / 'rescore' / (part + '.jsonl')}")
    return 0


def _tell(name: str, part: Lists, judge: Judge, weight: float) -> None:
    """Error rates before and after, and the lowest that the lists allow."""
    mean = sum(map(len, part.candidates.values())) / max(1, len(part.candidates))
    print(f"{name} {word_error_rate(part.references, part.words(judge, 0.0))}  (before)")
    print(f"{name} {word_error_rate(part.references, part.words(judge, weight))}  (rescored)")
    print(f"{name} {word_error_rate(part.references, part.oracle())}  (the best of each list, {mean:.1f} sentences)")
    if judge.unknown:
        print(f"{len(judge.unknown)} words are unknown to the language model: {' '.join(judge.unknown[:8])} ...")
