"""What the network of a speech recipe sees: copies of the training data, features, the speaker's vector, masks.

Copies at other speeds are utterances of the training part like all others, made once, in a corpus folder beside the
recipe's. Masks are drawn anew for every batch, as a function of the seed and of the batch, so that a resumed run, or a
step that looks twice at its batch, sees the same.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os

import torch
from torch import Tensor

from hemstitch.speech import (
    AugmentOptions,
    Corpus,
    FeatureOptions,
    FeatureSet,
    SpeakerEmbedding,
    Statistics,
    append_embedding,
    augmented_corpus,
    compute_features,
    mask_windows,
)
from hemstitch.train._console import Console
from hemstitch.train._options import SpeakerVector
from hemstitch.train._recipe import Recipe


def with_copies(corpus: Corpus, recipe: Recipe, console: Console) -> Corpus:
    """The corpus with copies of its training part, if the recipe asks for them; made once and kept beside it.

    The copies are the same for every seed of the recipe.

    Raises:
        ConfigError: the features do not allow what is asked for.
        DataError: the folder beside the corpus cannot be written.
    """
    options: AugmentOptions = recipe.augment
    options.check(recipe.features)
    if not options.speed:
        return corpus
    content = json.dumps([options.speed, options.volume, options.noise, recipe.data.train,
                          [u.to_json() for u in corpus]])  # fmt: skip
    name = f"{corpus.folder.name}+{hashlib.sha256(content.encode()).hexdigest()[:12]}"
    folder = corpus.folder.with_name(name)
    if not folder.exists():
        console.say(f"making copies of the training part in {folder}")
        with console.progress(100, "making copies") as bar:

            def progress(done: int, total: int) -> None:
                bar.update(100 * done // max(total, 1), "making copies")

            augmented_corpus(corpus, folder, options, split=recipe.data.train, progress=progress)
    return Corpus.load(folder)


class Inputs:
    """Features with the speaker's vector behind them, fitted to one corpus and made for any other.

    Args:
        recipe: its sections features, embedding, augment and data.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.features: FeatureOptions = recipe.features
        self.vector: SpeakerVector = recipe.embedding
        self.masks: AugmentOptions = recipe.augment
        self.tolerance, self.train, self.seed = recipe.data.tolerance, recipe.data.train, recipe.seed
        self.statistics: Statistics | None = None
        self.embedding: SpeakerEmbedding | None = None
        self.num_masked = 0

    @property
    def cepstra(self) -> FeatureOptions:
        """What the speaker's vector is computed from: cepstra (or stored features) as they come."""
        own = {"deltas": 0, "normalisation": "none", "normalise_variance": False}
        if self.features.kind == "given":
            return dataclasses.replace(self.features, **own)
        return dataclasses.replace(self.features, kind="mfcc", num_cepstra=min(13, self.features.num_mel_bins), **own)

    def fit(self, corpus: Corpus) -> FeatureSet:
        """Inputs of the whole corpus; statistics and embedding come from its training part."""
        found = self.compute(corpus, self.features)
        self.statistics, self.num_masked = found.statistics, found.dim
        if not self.vector.dim:
            return found
        cepstra = self.compute(corpus, self.cepstra)
        train = [u.id for u in corpus.select(self.train) if u.id in cepstra.position]
        self.embedding = SpeakerEmbedding.fit(
            cepstra, train, dim=self.vector.dim, prior_frames=self.vector.prior_frames
        )
        return self.with_vector(found, cepstra, corpus)

    def of(self, corpus: Corpus) -> FeatureSet:
        """Inputs of other utterances."""
        found = compute_features(corpus, self.features, statistics=self.statistics)
        if self.embedding is None:
            return found
        return self.with_vector(found, compute_features(corpus, self.cepstra), corpus)

    def with_vector(self, found: FeatureSet, cepstra: FeatureSet, corpus: Corpus) -> FeatureSet:
        """Features with the vector of each utterance's speaker behind every frame."""
        assert self.embedding is not None
        speakers = {u.id: f"{u.split}/{u.speaker}" for u in corpus}
        return append_embedding(found, cepstra, self.embedding, speakers, self.vector.mode)

    def compute(self, corpus: Corpus, options: FeatureOptions) -> FeatureSet:
        """Features of every utterance, kept in the corpus folder if that can be written."""
        cache = corpus.folder / ".features" if os.access(corpus.folder, os.W_OK) else None
        return compute_features(corpus, options, tolerance=self.tolerance, cache=cache)

    def masked(self, inputs: Tensor, items: Tensor) -> Tensor:
        """Training inputs with stretches of time and bands of filters hidden, never the speaker's vector.

        Args:
            inputs: (batch, time, input).
            items: (batch,) numbers of the frames, chunks or utterances.
        """
        if not self.masks.masks:
            return inputs
        seen, rest = inputs[..., : self.num_masked], inputs[..., self.num_masked :]
        hidden = mask_windows(seen, items, self.masks, self.seed, deltas=self.features.deltas)
        return torch.cat([hidden, rest], dim=-1)
