"""What the speech tasks share: corpus, lexicon, features, recognition, word error rate.

The straight line: corpus -> features -> hidden Markov states -> a criterion (by frames in ``_frames.py``, by whole
utterances in ``_sequences.py``) -> beam search -> word error rate.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hemstitch.graphs import Graph
from hemstitch.sampling import EqualLengthEpochs, FrameWindows
from hemstitch.speech import (
    Alignment,
    Corpus,
    DecodeOptions,
    DecodingGraph,
    HmmState,
    LanguageModel,
    Lexicon,
    Topology,
    WordErrorRate,
    decode,
    decoding_graph,
    estimate_pronunciations,
    estimate_silence_probability,
    position_dependent,
    training_graph,
    with_garbage,
    word_error_rate,
)
from hemstitch.speech._unknown_words import UNKNOWN
from hemstitch.train._console import Console
from hemstitch.train._corpora import open_corpus
from hemstitch.train._language_models import language_model
from hemstitch.train._options import Decoding, Hmm, SpeechData
from hemstitch.train._pieces import Stretches
from hemstitch.train._recipe import Recipe
from hemstitch.train._run_folder import RunFolder
from hemstitch.train._speech_data import Part, in_threads, recognised_part, supervised_part, words_of
from hemstitch.train._speech_inputs import Inputs, with_copies
from hemstitch.train._strategies import Batch


class SpeechTask:
    """Data and recognition of a speech recipe; a subclass adds the supervision.

    Args:
        recipe: its sections data, features, hmm and decode are used.
        device: where batches go.
        console: messages.
    """

    uses_priors = True
    """Whether scores are log posteriors, from which log priors are taken off."""

    def __init__(self, recipe: Recipe, device: torch.device, console: Console) -> None:
        data: SpeechData = recipe.data
        self.recipe, self.device = recipe, device
        self.corpus = with_copies(self.select_parts(open_corpus(data, console)), recipe, console)
        lexicon = Lexicon.read(self.corpus.lexicon, self.corpus.silence)
        lexicon = with_garbage(lexicon) if data.unknown_words == "garbage" else lexicon
        self.lexicon = position_dependent(lexicon) if recipe.hmm.position_dependent else lexicon
        self.silence_probability: float = recipe.hmm.silence_probability
        self.estimated = False
        self.topology = self.first_topology()
        self.inputs = Inputs(recipe)
        features = self.inputs.fit(self.corpus)
        self.frame_shift = features.frame_shift
        notices = [str(entry) for entry in (*self.corpus.broken, *features.broken)]
        self.parts: dict[str, Part] = {"test": recognised_part(self.corpus.select(data.test), features)}
        for name, split in (("train", data.train), ("dev", data.dev)):
            self.parts[name], left_out = supervised_part(
                self.corpus.select(split), features, self.lexicon, self.topology, recipe.hmm, data
            )
            notices += left_out
        self.notices = [("skipped", notice) for notice in notices]
        self.num_inputs, self.num_outputs = features.dim, self.topology.num_pdfs

    def select_parts(self, corpus: Corpus) -> Corpus:
        """The train, dev and test parts that the recipe names; dev is cut from train by speaker if need be."""
        data: SpeechData = self.recipe.data
        if data.dev not in corpus.splits:
            corpus = corpus.split_by_speaker(data.dev_share, seed=data.dev_seed, split=data.train, into=data.dev)
        return corpus.select(data.train, data.dev, data.test)

    def first_topology(self) -> Topology:
        """The hidden Markov models to begin with."""
        return make_topology(self.recipe.hmm, self.lexicon)

    def training_graph(self, words: Sequence[str]) -> Graph:
        """All ways to say a transcript."""
        return training_graph(words, self.lexicon, self.topology, self.silence_probability)

    def transcripts(self, name: str) -> list[list[str]]:
        """The words of each utterance of a part, as they are trained on."""
        return [words_of(u, self.lexicon) for u in self.parts[name].utterances]

    def use_topology(self, topology: Topology) -> None:
        """Go on with other hidden Markov models: their pdfs are the outputs of the network."""
        self.topology, self.num_outputs = topology, topology.num_pdfs
        for part in (self.parts["train"], self.parts["dev"]):
            part.graphs = [self.training_graph(words_of(u, self.lexicon)) for u in part.utterances]

    def estimate_probabilities(self, alignments: Sequence[Alignment]) -> None:
        """Go on with probabilities of pronunciations and silence as counted in training alignments, if asked to."""
        if self.recipe.hmm.probabilities == "estimated":
            self.lexicon = estimate_pronunciations(self.lexicon, alignments)
            self.silence_probability = estimate_silence_probability(alignments, self.lexicon.silence)
            self.estimated = True
            self.use_topology(self.topology)

    def kept_probabilities(self) -> dict[str, Any]:
        """What was estimated, for the run folder."""
        if not self.estimated:
            return {}
        entries = {w: [p.probability for p in entry] for w, entry in self.lexicon.entries.items() if len(entry) > 1}
        return {"pronunciations": entries, "silence_probability": self.silence_probability}

    def restore_probabilities(self, kept: Mapping[str, Any]) -> bool:
        """Take over what :meth:`kept_probabilities` gave, whatever the recipe says; whether there was anything."""
        if "silence_probability" not in kept:
            return False
        entries = dict(self.lexicon.entries)
        for word, values in kept["pronunciations"].items():
            entries[word] = tuple(replace(p, probability=v) for p, v in zip(entries[word], values, strict=True))
        self.lexicon = replace(self.lexicon, entries=entries)
        self.silence_probability, self.estimated = kept["silence_probability"], True
        self.use_topology(self.topology)
        return True

    @property
    def units(self) -> str:
        """Digest of what the outputs of the network stand for; kept in checkpoints, compared before decoding."""
        return self.topology.digest

    def kept(self) -> dict[str, Any]:
        """What a run folder keeps of the preparations."""
        return {}

    def bind(self, model: nn.Module) -> None:
        """Lay the frames out with the context that the model wants."""
        for part in self.parts.values():
            windows = FrameWindows(part.frames, part.offsets, model.left_context, model.right_context)
            part.windows = windows.to(self.device)

    def stretches_of(self, name: str, model: nn.Module) -> Stretches:
        """The frames of a part, to be cut with the context that the model wants."""
        part = self.parts[name]
        frames, offsets = torch.from_numpy(part.frames).to(self.device), torch.from_numpy(part.offsets)
        return Stretches(frames, offsets, model.left_context, model.right_context)

    def after_epoch(self, epoch: int, model: nn.Module) -> list[tuple[str, str]]:
        """Nothing to renew, where there is no alignment or it stays."""
        return []

    def state_dict(self) -> dict[str, Any]:
        """Nothing changes."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""

    # -- recognition -------------------------------------------------------------------------------------------------

    def scores(self, model: nn.Module, part: Part) -> tuple[Tensor, np.ndarray]:
        """What the search takes, before priors: (row, pdf) scores of all utterances, (utterance + 1,) offsets."""
        return part_outputs(model, part)

    def log_priors(self) -> Tensor:
        """(pdf,) log priors of the pdfs; zero where the scores need none."""
        return torch.zeros(self.num_outputs)

    def finish(self, model: nn.Module, folder: RunFolder, console: Console) -> dict[str, Any]:
        """Word error rates of dev and test."""
        return self.decode(model, folder, ("dev", "test"), console)

    def decode(self, model: nn.Module, folder: RunFolder, parts: Sequence[str], console: Console) -> dict[str, Any]:
        """Recognise parts with the settings that are best on dev; writes decode/PART.jsonl."""
        options: Decoding = self.recipe.decode
        search = Search(self, options, {name: self.scores(model, self.parts[name]) for name in {*parts, "dev"}})
        best = search.choose(console)
        result: dict[str, Any] = {"wer": {}, "decode": dict(zip(Search.SETTINGS, best))}
        for name in parts:
            begin = time.perf_counter()
            words = search.words(name, *best)
            seconds = time.perf_counter() - begin
            audio = len(self.parts[name].frames) * self.frame_shift
            result["decode"][f"{name}_real_time_factor"] = round(seconds / audio, 5)
            folder.write_lines(f"decode/{name}.jsonl", self.rows(name, words))
            result["wer"][name] = as_json(self.score(name, words))
        return result

    def decoding_graph(self) -> DecodingGraph:
        """The graph of all sentences that the recipe's language model allows."""
        return self.graph_of(self.language_model(self.recipe.decode.language_model))

    def language_model(self, name: str, setting: str = "decode.language_model") -> LanguageModel:
        """A language model of the corpus, or of the training transcripts; ``setting`` is what names it."""
        originals = [u for u in self.parts["train"].utterances if "copy_of" not in u.info]
        words = [word for word in self.lexicon.words if word != UNKNOWN]
        return language_model(name, self.corpus, [words_of(u, self.lexicon) for u in originals], words, setting)

    def graph_of(self, language_model: LanguageModel) -> DecodingGraph:
        """The graph of all sentences that a language model allows."""
        return decoding_graph(self.lexicon, self.topology, language_model, self.silence_probability)

    def score(self, name: str, words: dict[str, str], replications: int = 10_000) -> WordErrorRate:
        """Errors against the transcripts; the confidence interval resamples speakers where there are several."""
        utterances = self.parts[name].utterances
        speakers = {u.id: u.speaker for u in utterances}
        return word_error_rate(
            {u.id: u.text for u in utterances},
            words,
            speakers if len(set(speakers.values())) > 1 else None,
            replications=replications,
        )

    def rows(self, name: str, words: dict[str, str]) -> list[dict[str, Any]]:
        """What decode/PART.jsonl holds."""
        part = self.parts[name]
        return [
            {
                "id": u.id,
                "speaker": u.speaker,
                "reference": u.text,
                "hypothesis": words[u.id],
                "seconds": round(float(length) * self.frame_shift, 3),
            }
            for u, length in zip(part.utterances, np.diff(part.offsets))
        ]

    def facts(self) -> dict[str, Any]:
        """What `--dry-run` shows of the data."""
        sizes = {
            f"{name} part": f"{len(p.utterances)} utterances, {len({u.speaker for u in p.utterances})} speakers, "
            f"{len(p.frames) * self.frame_shift / 60:.1f} minutes"
            for name, p in self.parts.items()
        }
        return {
            **sizes,
            "words": len(self.lexicon.words),
            "phones": len(self.topology.phones),
            "pdfs": self.num_outputs,
            "features per frame": self.num_inputs,
        }


class Search:
    """Beam search over parts whose scores are at hand.

    Args:
        task: lexicon, topology, language model and priors.
        options: the recipe's [decode] section.
        scores: part -> (scores, offsets).
    """

    SETTINGS = ("prior_scale", "acoustic_scale", "word_penalty")

    def __init__(self, task: SpeechTask, options: Decoding, scores: dict[str, tuple[Tensor, np.ndarray]]) -> None:
        self.task, self.options, self.scores = task, options, scores
        self.graph, self.priors = task.decoding_graph(), task.log_priors()

    def choose(self, console: Console) -> tuple[float, float, float]:
        """Of the recipe's candidates the settings with the lowest word error rate on dev."""
        options = self.options
        prior_scales = options.prior_scale if self.task.uses_priors else (0.0,)
        candidates = list(itertools.product(prior_scales, options.acoustic_scale, options.word_penalty))
        if len(candidates) == 1:
            return candidates[0]
        rates = {}
        with console.progress(len(candidates), "choosing scales on dev") as bar:
            for done, candidate in enumerate(candidates, start=1):
                rates[candidate] = self.task.score("dev", self.words("dev", *candidate), replications=1).rate
                bar.update(done, "choosing scales on dev")
        return min(candidates, key=rates.__getitem__)

    def words(self, name: str, prior_scale: float, acoustic_scale: float, word_penalty: float) -> dict[str, str]:
        """Utterance id -> words."""
        options = DecodeOptions(
            beam=self.options.beam,
            max_active=self.options.max_active,
            acoustic_scale=acoustic_scale,
            word_penalty=word_penalty,
        )
        scores, offsets = self.scores[name]
        loglikes, utterances = scores - prior_scale * self.priors, self.task.parts[name].utterances
        texts = in_threads(
            lambda i: decode(loglikes[offsets[i] : offsets[i + 1]], self.graph, options).text, range(len(utterances))
        )
        return {u.id: text for u, text in zip(utterances, texts)}


def make_topology(hmm: Hmm, lexicon: Lexicon) -> Topology:
    """The hidden Markov models that the recipe asks for."""
    if hmm.topology == "chain":
        return Topology(phones=lexicon.phones, hmms=((HmmState(0, 1),),) * len(lexicon.phones))
    return Topology.left_to_right(lexicon.phones, hmm.states_per_phone, hmm.silence_states)


def part_outputs(model: nn.Module, part: Part, shifts: int = 1) -> tuple[Tensor, np.ndarray]:
    """(row, pdf) network outputs of all utterances, on the CPU, and (utterance + 1,) offsets of their rows.

    The model is left in training mode.

    Args:
        model: the network.
        part: the utterances.
        shifts: the outputs are the mean of those with so many first frames, the last frame repeated at the end.
    """
    assert part.windows is not None
    model.eval()
    with torch.no_grad():
        outputs = [first_head(model(shifted(part.windows.utterance(i), shifts))).mean(0).cpu()
                   for i in range(len(part.utterances))]  # fmt: skip
    model.train()
    return torch.cat(outputs), np.concatenate([[0], np.cumsum([len(o) for o in outputs])])


def mean_objective(
    model: nn.Module, criterion: Callable[..., Any], stream: EqualLengthEpochs, collate: Callable[[Tensor], Batch]
) -> dict[str, float]:
    """Mean objective per output frame in one epoch of a stream, to be minimised; and the share of items left out.

    The model is left in training mode.
    """
    loss, weight, skipped = 0.0, 0.0, 0
    model.eval()
    with torch.no_grad():
        for _ in range(stream.batches_per_epoch):
            batch = collate(stream.next())
            objective = criterion(first_head(model(batch.inputs)), batch.targets)
            loss, weight = loss + float(objective.loss), weight + objective.weight
            skipped += objective.skipped
    model.train()
    return {"loss": loss / weight if weight else math.nan, "skipped": skipped / stream.num_items}


def shifted(frames: Tensor, shifts: int) -> Tensor:
    """(time, feature) -> (shift, time, feature), each shift begins one frame later and repeats the last frame."""
    return torch.stack([torch.cat([frames[s:], frames[-1:].expand(s, -1)]) for s in range(shifts)])


def first_head(outputs: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    """The outputs that are searched, of a network that may have a second output layer."""
    return outputs[0] if isinstance(outputs, tuple) else outputs


def as_json(result: WordErrorRate) -> dict[str, Any]:
    """The word error rate as result.json holds it."""
    return {
        key: getattr(result, key)
        for key in ("words", "insertions", "deletions", "substitutions", "rate", "low", "high")
    }
