"""The options of a recipe's sections: one frozen dataclass per section or per kind of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def _require_fold(fold: int, folds: int) -> None:
    _require(folds >= 2, f"folds must be at least 2, got {folds}")
    _require(0 <= fold <= folds, f"fold must be 0 (the parts as they are) to {folds}, got {fold}")


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
    tolerance: float = 0.0

    def __post_init__(self) -> None:
        _require(0 < self.dev_share < 1, f"dev_share must lie between 0 and 1, got {self.dev_share}")
        _require_fold(self.fold, self.folds)
        _require(0 <= self.tolerance < 1, f"tolerance must be in [0, 1), got {self.tolerance}")


@dataclass(frozen=True, kw_only=True)
class ImageData:
    """Labelled grey images in idx files (MNIST, Fashion-MNIST).

    Attributes:
        source: folder with train-/t10k-images-idx3-ubyte.gz and -labels-idx1-ubyte.gz.
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
        _require(0 < self.dev_share < 1, f"dev_share must lie between 0 and 1, got {self.dev_share}")
        _require_fold(self.fold, self.folds)


@dataclass(frozen=True, kw_only=True)
class Hmm:
    """Hidden Markov models of the phones, and how their alignment is found.

    Attributes:
        states_per_phone: emitting states of a phone, 1 to 3.
        silence_states: emitting states of silence.
        topology: a chain of states with a pdf each, or one state whose first frame has a pdf of its own (for
            lattice-free MMI; states_per_phone and silence_states are then without effect).
        silence_probability: probability of silence between two words and at the ends.
        position_dependent: phones at the beginning, inside, at the end of a word and alone have states of their own.
        flat_start: rounds of Viterbi realignment with one Gaussian per state before the network sees the alignment.
        realign: epochs after which the training data are aligned anew with the network.
        restart: epoch after which the network is drawn anew and only the alignment kept, since a network that began
            with a flat start never quite recovers; 0: never.
    """

    states_per_phone: int = 3
    silence_states: int = 3
    topology: Literal["left-to-right", "chain"] = "left-to-right"
    silence_probability: float = 0.5
    position_dependent: bool = False
    flat_start: int = 12
    realign: tuple[int, ...] = (1, 2, 3, 5, 8)
    restart: int = 0

    def __post_init__(self) -> None:
        _require(self.restart == 0 or self.restart in self.realign,
                 f"restart = {self.restart} must be one of the epochs of realign = {self.realign}, or 0")  # fmt: skip
        _require(1 <= self.states_per_phone <= 3, f"states_per_phone must be 1, 2 or 3, got {self.states_per_phone}")
        _require(1 <= self.silence_states <= 5, f"silence_states must be 1 to 5, got {self.silence_states}")
        _require(
            0 < self.silence_probability < 1,
            f"silence_probability must lie between 0 and 1, got {self.silence_probability}",
        )


@dataclass(frozen=True, kw_only=True)
class FeedForwardModel:
    """Fully connected layers over spliced frames.

    Attributes:
        hidden: width of each hidden layer.
        left_context, right_context: frames spliced to the current one.
        nonlinearity: pointwise function of the hidden layers.
        dropout: probability of dropping a hidden unit.
    """

    hidden: tuple[int, ...] = (1024, 1024, 1024, 1024)
    left_context: int = 20
    right_context: int = 5
    nonlinearity: Literal["relu", "tanh", "sigmoid"] = "relu"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        _require(all(width > 0 for width in self.hidden), f"hidden widths must be positive, got {self.hidden}")
        _require(0 <= self.dropout < 1, f"dropout must be in [0, 1), got {self.dropout}")


@dataclass(frozen=True, kw_only=True)
class TdnnModel:
    """Time-delay layers: each sees a few frames of the layer below.

    Attributes:
        width: units per layer.
        offsets: frames that each layer splices, one list per layer.
        subsampling: input frames per output frame; 3 is usual for lattice-free MMI.
        norm: normalisation after each layer.
        dropout: probability of dropping a unit.
    """

    width: int = 256
    offsets: tuple[tuple[int, ...], ...] = ((-2, -1, 0, 1, 2), (-1, 0, 1), (-1, 0, 1), (-3, 0, 3), (-3, 0, 3))
    subsampling: int = 1
    norm: Literal["batch", "rms", "none"] = "batch"
    dropout: float = 0.0


@dataclass(frozen=True, kw_only=True)
class BlstmModel:
    """Bidirectional projected LSTM layers.

    Attributes:
        num_layers: layers.
        num_cells: cells per direction and layer.
        num_recurrent, num_nonrecurrent: sizes of the two projections.
        subsampling: input frames per output frame.
        warm_up, cool_down: frames before and after a chunk that only prepare the recurrence.
    """

    num_layers: int = 2
    num_cells: int = 128
    num_recurrent: int = 64
    num_nonrecurrent: int = 64
    subsampling: int = 1
    warm_up: int = 20
    cool_down: int = 20


@dataclass(frozen=True, kw_only=True)
class TdnnLstmModel:
    """Time-delay layers with projected LSTMs between them.

    Attributes:
        width: units per time-delay layer.
        num_cells: cells per LSTM.
        num_recurrent, num_nonrecurrent: sizes of the two projections.
        subsampling: input frames per output frame.
        warm_up: frames before a chunk that only prepare the recurrence.
        norm: normalisation after each time-delay layer.
    """

    width: int = 192
    num_cells: int = 128
    num_recurrent: int = 64
    num_nonrecurrent: int = 64
    subsampling: int = 1
    warm_up: int = 20
    norm: Literal["batch", "rms", "none"] = "batch"


@dataclass(frozen=True, kw_only=True)
class MlpModel:
    """Fully connected layers over the pixels of an image.

    Attributes:
        hidden: width of each hidden layer.
        nonlinearity: pointwise function of the hidden layers.
        dropout: probability of dropping a hidden unit.
    """

    hidden: tuple[int, ...] = (300, 300)
    nonlinearity: Literal["relu", "tanh", "sigmoid"] = "relu"
    dropout: float = 0.0

    def __post_init__(self) -> None:
        _require(all(width > 0 for width in self.hidden), f"hidden widths must be positive, got {self.hidden}")
        _require(0 <= self.dropout < 1, f"dropout must be in [0, 1), got {self.dropout}")


@dataclass(frozen=True, kw_only=True)
class CrossEntropy:
    """Frame (or example) cross-entropy."""


@dataclass(frozen=True, kw_only=True)
class LatticeFreeMmi:
    """Maximum mutual information over whole utterances, the competitors being all phone sequences (paper 1).

    Attributes:
        leak: weight of a jump to the initial distribution of the denominator.
        output_l2: penalty on the square of the network's outputs.
        lm_order: order of the phone language model of the denominator.
        num_extra_states: histories longer than two phones that it keeps.
        length_step: utterances are prolonged by copies of their last frame to a multiple of this many frames, so that
            batches hold utterances of one length.
    """

    leak: float = 0.1
    output_l2: float = 5e-5
    lm_order: int = 4
    num_extra_states: int = 500
    length_step: int = 30


@dataclass(frozen=True, kw_only=True)
class PlainGradient:
    """The gradient as it is."""


@dataclass(frozen=True, kw_only=True)
class NaturalGradientOptions:
    """Natural gradient: each layer's gradient multiplied by a factored estimate of the inverse Fisher matrix (paper 4).

    Attributes:
        rank_in, rank_out: ranks of the factors on the input and output side of a layer; 0: by the reference's rule.
        update_period: backward passes per update of the factors.
        alpha: smoothing towards the plain gradient.
        num_samples_history: rows over which old minibatches fade.
        method: low-rank factors kept up to date, or those of the other rows of the same minibatch.
    """

    rank_in: int = 0
    rank_out: int = 0
    update_period: int = 4
    alpha: float = 4.0
    num_samples_history: float = 2000.0
    method: Literal["online", "simple"] = "online"


@dataclass(frozen=True, kw_only=True)
class Backstitch:
    """A small step backwards before each larger one forwards, on the same batch (paper 1).

    Attributes:
        scale: size of the backward step; 0: no backstitch. 0.3 with interval 1 and 1.0 with interval 4 are in use.
        interval: batches per pair of steps.
        warmup_steps: steps over which the scale grows from 0.
    """

    scale: float = 0.0
    interval: int = 4
    warmup_steps: int = 0


@dataclass(frozen=True, kw_only=True)
class MaxChangeSgd:
    """Gradient descent whose step is bounded in each layer and in all (section 4.4 of paper 1).

    Attributes:
        lr: learning rate, on the mean loss of a batch.
        momentum: share of the previous step kept; the step is scaled by one minus it.
        l2: twice its product with the parameters is added to the gradient.
        max_change: most that a layer may move in a step.
        output_max_change: most that the output layer may move in a step.
        global_max_change: most that all parameters together may move in a step.
    """

    lr: float = 0.1
    momentum: float = 0.0
    l2: float = 0.0
    max_change: float = 0.75
    output_max_change: float = 1.5
    global_max_change: float = 2.0


@dataclass(frozen=True, kw_only=True)
class MomentumSgd:
    """Stochastic gradient descent, optionally with momentum.

    Attributes:
        lr: learning rate, on the mean loss of a batch.
        momentum: share of the previous step kept.
        nesterov: look ahead along the momentum.
        weight_decay: L2 penalty added to the gradient.
    """

    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Adam:
    """Adam (Kingma and Ba 2015).

    Attributes:
        lr: learning rate.
        beta1, beta2: forgetting of the first and second moment.
        weight_decay: L2 penalty added to the gradient.
    """

    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.0


@dataclass(frozen=True, kw_only=True)
class AdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019).

    Attributes:
        lr: learning rate.
        beta1, beta2: forgetting of the first and second moment.
        weight_decay: decay of the weights per step, times the learning rate.
    """

    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.01


@dataclass(frozen=True, kw_only=True)
class ConstantRate:
    """The learning rate stays where it is.

    Attributes:
        warmup: epochs of linear rise from zero.
    """

    warmup: float = 0.0


@dataclass(frozen=True, kw_only=True)
class ExponentialRate:
    """The learning rate falls by the same factor in each step (the usual choice in Kaldi).

    Attributes:
        warmup: epochs of linear rise from zero.
        final: what is left of the learning rate at the end.
    """

    warmup: float = 0.0
    final: float = 0.1

    def __post_init__(self) -> None:
        _require(0 < self.final <= 1, f"final must be in (0, 1], got {self.final}")


@dataclass(frozen=True, kw_only=True)
class CosineRate:
    """The learning rate falls along half a cosine.

    Attributes:
        warmup: epochs of linear rise from zero.
        final: what is left of the learning rate at the end.
    """

    warmup: float = 0.0
    final: float = 0.0


@dataclass(frozen=True, kw_only=True)
class PlateauRate:
    """The learning rate is multiplied by a factor when the dev loss no longer falls (paper 2: 0.1 when flat).

    Attributes:
        warmup: epochs of linear rise from zero.
        factor: multiplies the learning rate on a plateau.
        patience: looks without improvement that are waited for.
        threshold: relative improvement of the dev loss that counts as one.
    """

    warmup: float = 0.0
    factor: float = 0.1
    patience: int = 1
    threshold: float = 1e-3

    def __post_init__(self) -> None:
        _require(0 < self.factor < 1, f"factor must lie between 0 and 1, got {self.factor}")


@dataclass(frozen=True, kw_only=True)
class ForwardOrder:
    """Batches are applied in the order in which they come: ordinary training."""


@dataclass(frozen=True, kw_only=True)
class LocalParallel:
    """One worker, this process."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """The loop: how long, how often to look, what to do when something breaks.

    Attributes:
        epochs: passes over the training data.
        batch_size: frames (or images) per step.
        evaluate_every: epochs between two looks at the dev part.
        log_every: steps that one logged training value averages over.
        checkpoint_every: steps between checkpoints; 0: at each look.
        keep: newest checkpoints kept; the one with the best dev loss is kept besides.
        clip: largest gradient norm; 0: no clipping.
        non_finite: what to do about a loss or gradient that is not finite: stop, leave the step out, or go back to the
            last checkpoint with half the learning rate.
        max_non_finite: steps left out or rolled back before the run stops all the same.
        device: where to compute; auto takes a GPU if there is one.
        precision: of the forward pass; parameters stay float32.
        threads: processor threads; 0: what torch chooses.
    """

    epochs: int = 10
    batch_size: int = 256
    evaluate_every: int = 1
    log_every: int = 50
    checkpoint_every: int = 0
    keep: int = 2
    clip: float = 0.0
    non_finite: Literal["raise", "skip", "roll-back"] = "raise"
    max_non_finite: int = 20
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["float32", "bf16"] = "float32"
    threads: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "evaluate_every", "log_every", "keep"):
            _require(getattr(self, name) >= 1, f"{name} must be at least 1, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """Beam search over words with the trained network.

    Attributes:
        beam: width of the search beam, in units of the scaled log-likelihood.
        max_active: states kept per frame.
        acoustic_scale: candidate weights of the acoustic scores against the language model; the best on dev is used.
        prior_scale: weight of the log prior that is taken off the log posteriors, candidates; the best on dev is used.
        word_penalty: cost of each word in nats, candidates; the best on dev is used.
        language_model: name of an ARPA file in the corpus folder.
    """

    beam: float = 12.0
    max_active: int = 4000
    acoustic_scale: tuple[float, ...] = (0.1, 0.2, 0.4)
    prior_scale: tuple[float, ...] = (0.4, 0.7, 1.0)
    word_penalty: tuple[float, ...] = (0.0, 2.0)
    language_model: str = "lm.arpa"
