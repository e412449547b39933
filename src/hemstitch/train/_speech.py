"""The speech task: alignments made and renewed with the network itself, recognition, word error rate.

The straight line: corpus -> features -> context-independent HMM states -> equal alignment (flat start) -> frame
cross-entropy -> Viterbi realignment after some epochs -> priors -> beam search -> word error rate.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hemstitch.sampling import BatchSource, FrameWindows, ShuffledEpochs
from hemstitch.speech import (
    DecodeOptions,
    DecodingGraph,
    LanguageModel,
    Lexicon,
    Topology,
    WordErrorRate,
    decode,
    decoding_graph,
    position_dependent,
    scaled_loglikelihoods,
    word_error_rate,
)
from hemstitch.train._console import Console
from hemstitch.train._corpora import open_corpus
from hemstitch.train._options import Decoding
from hemstitch.train._recipe import Recipe
from hemstitch.train._run_folder import RunFolder
from hemstitch.train._speech_data import Part, in_threads, load_features, realign, recognised_part, supervised_part
from hemstitch.train._strategies import Batch

LOOK_FRAMES = 4096


class SpeechTask:
    """Learn to tell HMM states apart, and be judged by the words.

    Args:
        recipe: its sections data, features, hmm and decode are used.
        device: where batches go.
        console: messages.
    """

    def __init__(self, recipe: Recipe, device: torch.device, console: Console) -> None:
        data = recipe.data
        self.recipe, self.device = recipe, device
        corpus = open_corpus(data, console)
        if data.dev not in corpus.splits:
            corpus = corpus.split_by_speaker(data.dev_share, seed=data.dev_seed, split=data.train, into=data.dev)
        self.corpus = corpus.select(data.train, data.dev, data.test)
        self.lexicon = Lexicon.read(self.corpus.lexicon, self.corpus.silence)
        hmm = recipe.hmm
        if hmm.position_dependent:
            self.lexicon = position_dependent(self.lexicon)
        self.topology = Topology.left_to_right(self.lexicon.phones, hmm.states_per_phone, hmm.silence_states)
        features = load_features(self.corpus, recipe.features, data.tolerance)
        self.frame_shift = features.frame_shift
        broken = [*self.corpus.broken, *features.broken]
        self.parts: dict[str, Part] = {"test": recognised_part(self.corpus.select(data.test), features)}
        for name, split in (("train", data.train), ("dev", data.dev)):
            self.parts[name], unusable = supervised_part(
                self.corpus.select(split), features, self.lexicon, self.topology, hmm, data.tolerance
            )
            broken += unusable
        self.notices = [("skipped", str(entry)) for entry in broken]
        self.num_inputs, self.num_outputs = features.dim, self.topology.num_pdfs

    def bind(self, model: nn.Module) -> None:
        """Lay the frames out with the context that the model wants."""
        for part in self.parts.values():
            windows = FrameWindows(part.frames, part.offsets, model.left_context, model.right_context)
            part.windows = windows.to(self.device)

    def source(self, batch_size: int, seed: int) -> BatchSource[Batch]:
        """Frame-shuffled minibatches of the training part."""
        part = self.parts["train"]
        assert part.windows is not None
        windows = part.windows

        def collate(frames: Tensor) -> Batch:
            targets = part.targets[frames].to(self.device)
            return Batch(windows.select(frames.to(self.device)), targets.unsqueeze(1), len(frames))

        return BatchSource(ShuffledEpochs(len(part.frames), batch_size, seed), collate)

    # -- supervision -------------------------------------------------------------------------------------------------

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Frame cross-entropy and frame error on the dev part, against its current alignment."""
        part = self.parts["dev"]
        scores = log_posteriors(model, part)
        loss = nn.functional.nll_loss(scores, part.targets)
        error = (scores.argmax(1) != part.targets).double().mean()
        return {"loss": float(loss), "error": float(error)}

    def after_epoch(self, epoch: int, model: nn.Module) -> list[tuple[str, str]]:
        """Realign train and dev with the network, if the recipe says so after this epoch."""
        if epoch not in self.recipe.hmm.realign:
            return []
        priors = self.log_priors()
        changed = {
            name: realign(part, scaled_loglikelihoods(log_posteriors(model, part), priors), self.lexicon, self.topology)
            for name, part in self.parts.items()
            if part.graphs
        }
        return [("realign", f"realigned after epoch {epoch}: {changed['train']:.1%} of the training frames moved")]

    def log_priors(self) -> Tensor:
        """(pdf,) log share of each pdf in the training alignment, one frame added to each."""
        counts = torch.bincount(self.parts["train"].targets, minlength=self.num_outputs).double() + 1
        return (counts / counts.sum()).log().float()

    # -- recognition -------------------------------------------------------------------------------------------------

    def finish(self, model: nn.Module, folder: RunFolder, console: Console) -> dict[str, Any]:
        """Word error rates of dev and test."""
        return self.decode(model, folder, ("dev", "test"), console)

    def decode(self, model: nn.Module, folder: RunFolder, parts: Sequence[str], console: Console) -> dict[str, Any]:
        """Recognise parts with the settings that are best on dev; writes decode/PART.jsonl."""
        options: Decoding = self.recipe.decode
        language_model = LanguageModel.read(self.corpus.language_model(options.language_model))
        graph = decoding_graph(self.lexicon, self.topology, language_model, self.recipe.hmm.silence_probability)
        priors, scores = self.log_priors(), {name: log_posteriors(model, self.parts[name]) for name in {*parts, "dev"}}

        def words_of(name: str, prior_scale: float, acoustic_scale: float, word_penalty: float) -> dict[str, str]:
            search = DecodeOptions(
                beam=options.beam,
                max_active=options.max_active,
                acoustic_scale=acoustic_scale,
                word_penalty=word_penalty,
            )
            return self.recognise(name, scaled_loglikelihoods(scores[name], priors, prior_scale), graph, search)

        candidates = list(itertools.product(options.prior_scale, options.acoustic_scale, options.word_penalty))
        best = candidates[0]
        if len(candidates) > 1:
            with console.progress(len(candidates), "choosing scales on dev") as bar:
                rates = {}
                for done, candidate in enumerate(candidates):
                    rates[candidate] = self.score("dev", words_of("dev", *candidate), replications=1).rate
                    bar.update(done + 1, "choosing scales on dev")
            best = min(candidates, key=rates.__getitem__)
        chosen = dict(zip(("prior_scale", "acoustic_scale", "word_penalty"), best))
        result: dict[str, Any] = {"wer": {}, "decode": chosen}
        for name in parts:
            begin = time.perf_counter()
            words = words_of(name, *best)
            seconds = time.perf_counter() - begin
            audio = len(self.parts[name].frames) * self.frame_shift
            result["decode"][f"{name}_real_time_factor"] = round(seconds / audio, 5)
            folder.write_lines(f"decode/{name}.jsonl", self.rows(name, words))
            result["wer"][name] = as_json(self.score(name, words))
        return result

    def recognise(self, name: str, loglikes: Tensor, graph: DecodingGraph, options: DecodeOptions) -> dict[str, str]:
        """Utterance id -> words."""
        part = self.parts[name]
        texts = in_threads(lambda i: decode(loglikes[part.cut(i)], graph, options).text, range(len(part.utterances)))
        return {u.id: text for u, text in zip(part.utterances, texts)}

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
        lengths = np.diff(part.offsets) * self.frame_shift
        return [
            {
                "id": u.id,
                "speaker": u.speaker,
                "reference": u.text,
                "hypothesis": words[u.id],
                "seconds": round(float(seconds), 3),
            }
            for u, seconds in zip(part.utterances, lengths)
        ]

    # -- state -------------------------------------------------------------------------------------------------------

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

    def state_dict(self) -> dict[str, Any]:
        """The alignments."""
        kind = torch.int16 if self.num_outputs < 2**15 else torch.int32
        return {name: self.parts[name].targets.to(kind) for name in ("train", "dev")}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the alignments."""
        for name, targets in state.items():
            if targets.shape != self.parts[name].targets.shape:
                raise ValueError(
                    f"the {name} part has {len(self.parts[name].targets)} frames, the checkpoint's alignment "
                    f"{len(targets)}: the corpus has changed"
                )
            self.parts[name].targets = targets.long()


def log_posteriors(model: nn.Module, part: Part) -> Tensor:
    """(frame, pdf) log posteriors of all frames of a part, on the CPU; the model is left in training mode."""
    assert part.windows is not None
    device = next(model.parameters()).device
    model.eval()
    with torch.no_grad():
        chunks = torch.arange(len(part.frames), device=device).split(LOOK_FRAMES)
        scores = torch.cat([model(part.windows.select(chunk))[:, 0].log_softmax(-1).cpu() for chunk in chunks])
    model.train()
    return scores


def as_json(result: WordErrorRate) -> dict[str, Any]:
    """The word error rate as result.json holds it."""
    return {
        key: getattr(result, key)
        for key in ("words", "insertions", "deletions", "substitutions", "rate", "low", "high")
    }
