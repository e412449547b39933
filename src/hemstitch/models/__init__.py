"""Networks: feed-forward, time-delay, recurrent, small vision nets."""

from hemstitch.models._affine import PerElementScale
from hemstitch.models._base import FrameModel
from hemstitch.models._batch_norm import reestimate_batch_norm
from hemstitch.models._describe import Description, LayerRow, describe
from hemstitch.models._feed_forward import FeedForward
from hemstitch.models._frame_stack import FrameStack
from hemstitch.models._language_model import (
    LockedDropout,
    RecurrentLanguageModel,
    perplexity,
    sentence_log_probabilities,
)
from hemstitch.models._layer_wise import DeepSigmoid, insert_layer
from hemstitch.models._lstm import BidirectionalLstm, ProjectedLstm
from hemstitch.models._mlp import DeepAutoencoder, Mlp
from hemstitch.models._recurrence import Truncation
from hemstitch.models._recurrent import Blstm, Lstm, TdnnLstm
from hemstitch.models._resnet import ResNet, resnet18, resnet50
from hemstitch.models._splice import Splice
from hemstitch.models._surgery import count_parameters, freeze, replace_output
from hemstitch.models._tdnn import PNormNetwork, Tdnn
from hemstitch.models._time_delay import PNorm, TimeDelayLayer
from hemstitch.models._vgg import Vgg, vgg19

__all__ = [
    "BidirectionalLstm",
    "Blstm",
    "DeepAutoencoder",
    "DeepSigmoid",
    "Description",
    "FeedForward",
    "FrameModel",
    "FrameStack",
    "LayerRow",
    "LockedDropout",
    "Lstm",
    "Mlp",
    "PNorm",
    "PNormNetwork",
    "PerElementScale",
    "ProjectedLstm",
    "RecurrentLanguageModel",
    "ResNet",
    "Splice",
    "Tdnn",
    "TdnnLstm",
    "TimeDelayLayer",
    "Truncation",
    "Vgg",
    "count_parameters",
    "describe",
    "freeze",
    "insert_layer",
    "perplexity",
    "reestimate_batch_norm",
    "replace_output",
    "resnet18",
    "resnet50",
    "sentence_log_probabilities",
    "vgg19",
]
