"""Where the examples come from: [data]."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hemstitch.train._options._checks import at_least, require, require_fold


@dataclass(frozen=True, kw_only=True)
class SpeechData:
    """Utterances with transcripts, from a corpus folder (made by an importer if it is not there yet).

    Attributes:
        corpus: the corpus folder (utterances.jsonl, lexicon.txt, lm.arpa).
        importer: makes the corpus folder when it is missing; see `hemstitch data`.
        source: what the importer reads.
        importer_options: settings of the importer, each "name=value".
        train, test: names of the parts of the corpus.
        dev: name of the dev part; if the corpus has none, it is cut from the training part by speaker.
        dev_share: share of the training speakers that is then held out.
        dev_seed: chooses the held-out speakers; apart from the run's seed, so that seeds compare.
        fold: 0: the parts as they are; k: all parts pooled and cut anew by speaker, the k-th fold is the test part.
        folds: how many folds there are then.
        fold_seed: deals the speakers out to the folds.
        unknown_words: training and dev utterances with words outside the lexicon: an error, left out, or such words are
            trained as "<unk>", said as a garbage phone SPN of their own.
        tolerance: share of broken utterances accepted and left out; beyond it the run stops with a list of them.
    """

    corpus: Path
    importer: str | None = None
    source: Path | None = None
    importer_options: tuple[str, ...] = ()
    train: str = "train"
    test: str = "test"
    dev: str = "dev"
    dev_share: float = 0.1
    dev_seed: int = 0
    fold: int = 0
    folds: int = 5
    fold_seed: int = 0
    unknown_words: Literal["error", "skip", "garbage"] = "error"
    tolerance: float = 0.0

    def __post_init__(self) -> None:
        at_least(0, self, "dev_seed", "fold_seed")
        require(0 < self.dev_share < 1, f"dev_share must lie between 0 and 1, got {self.dev_share}")
        require_fold(self.fold, self.folds)
        require(0 <= self.tolerance < 1, f"tolerance must be in [0, 1), got {self.tolerance}")


@dataclass(frozen=True, kw_only=True)
class ImageData:
    """Labelled images: idx files (MNIST, Fashion-MNIST) or numpy arrays (CIFAR-10, CIFAR-100).

    Attributes:
        source: folder with train-/t10k-images-idx3-ubyte.gz and -labels-idx1-ubyte.gz, or with train./test.images.npy
            (.xz: compressed differences) and .labels.npy.
        dev_share: share of the training images that is held out as dev part.
        dev_seed: chooses the held-out images.
        fold: 0: the parts as they are; k: all images pooled and cut anew, the k-th fold is the test part.
        folds: how many folds there are then.
        fold_seed: deals the images out to the folds.
    """

    source: Path
    dev_share: float = 0.1
    dev_seed: int = 0
    fold: int = 0
    folds: int = 5
    fold_seed: int = 0

    def __post_init__(self) -> None:
        at_least(0, self, "dev_seed", "fold_seed")
        require(0 < self.dev_share < 1, f"dev_share must lie between 0 and 1, got {self.dev_share}")
        require_fold(self.fold, self.folds)
