"""Networks: [model]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from hemstitch.train._options._checks import at_least, require, share


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
        require(all(width > 0 for width in self.hidden), f"hidden widths must be positive, got {self.hidden}")
        at_least(0, self, "left_context", "right_context")
        require(0 <= self.dropout < 1, f"dropout must be in [0, 1), got {self.dropout}")


@dataclass(frozen=True, kw_only=True)
class PNormModel:
    """Fully connected layers of p-norm units (p = 2) over spliced frames, each layer scaled to root mean square 1.

    Attributes:
        hidden: units of each hidden layer.
        group_size: inputs of a unit; a layer's affine map is so many times wider.
        left_context, right_context: frames spliced to the current one.
    """

    hidden: tuple[int, ...] = (300, 300, 300, 300)
    group_size: int = 10
    left_context: int = 4
    right_context: int = 4

    def __post_init__(self) -> None:
        require(len(self.hidden) > 0 and all(w > 0 for w in self.hidden), f"hidden must be positive, got {self.hidden}")
        at_least(0, self, "left_context", "right_context")
        require(self.group_size >= 1, f"group_size must be at least 1, got {self.group_size}")


@dataclass(frozen=True, kw_only=True)
class LstmModel:
    """Projected LSTM layers over spliced frames.

    Attributes:
        num_layers: layers.
        num_cells: cells per layer.
        num_recurrent, num_nonrecurrent: sizes of the two projections.
        offsets: spliced frames; the last one is how far it hears ahead before it answers.
        subsampling: input frames per output frame.
        warm_up: frames before a chunk that only prepare the recurrence.
    """

    num_layers: int = 2
    num_cells: int = 256
    num_recurrent: int = 96
    num_nonrecurrent: int = 96
    offsets: tuple[int, ...] = (3, 4, 5, 6, 7)
    subsampling: int = 1
    warm_up: int = 20

    def __post_init__(self) -> None:
        at_least(1, self, "num_layers", "num_cells", "num_recurrent", "subsampling")
        at_least(0, self, "num_nonrecurrent", "warm_up")
        require(len(self.offsets) > 0, "offsets needs at least one frame, got none")


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

    def __post_init__(self) -> None:
        at_least(1, self, "width", "subsampling")
        share(self, "dropout")
        require(len(self.offsets) > 0 and all(self.offsets), f"offsets needs frames in each layer, got {self.offsets}")


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

    def __post_init__(self) -> None:
        at_least(1, self, "num_layers", "num_cells", "num_recurrent", "subsampling")
        at_least(0, self, "num_nonrecurrent", "warm_up", "cool_down")


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

    def __post_init__(self) -> None:
        at_least(1, self, "width", "num_cells", "num_recurrent", "subsampling")
        at_least(0, self, "num_nonrecurrent", "warm_up")


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
        require(all(width > 0 for width in self.hidden), f"hidden widths must be positive, got {self.hidden}")
        require(0 <= self.dropout < 1, f"dropout must be in [0, 1), got {self.dropout}")


@dataclass(frozen=True, kw_only=True)
class ResnetModel:
    """Residual network for images of 32 pixels a side, with batch-norm (He et al. 2016).

    Attributes:
        depth: layers.
        width: factor on all channel numbers; 1 is the published size, 0.125 fits a laptop.
    """

    depth: Literal[18, 50] = 18
    width: float = 1.0

    def __post_init__(self) -> None:
        require(self.width > 0, f"width must be positive, got {self.width}")


@dataclass(frozen=True, kw_only=True)
class VggModel:
    """VGG-19 for images of 32 pixels a side, with batch-norm (Simonyan and Zisserman 2015).

    Attributes:
        width: factor on all channel numbers; 1 is the published size, 0.125 fits a laptop.
    """

    width: float = 1.0

    def __post_init__(self) -> None:
        require(self.width > 0, f"width must be positive, got {self.width}")
