"""The options of a recipe's sections: one frozen dataclass per section or per kind of it."""

from hemstitch.train._options._average import MovingAverage, NoAverage, WeightAverage
from hemstitch.train._options._criteria import CrossEntropy, Ctc, LatticeFreeMmi
from hemstitch.train._options._data import ImageData, SpeechData
from hemstitch.train._options._hessian_free import HessianFree
from hemstitch.train._options._inputs import SpeakerVector
from hemstitch.train._options._lattices import BayesRisk, BoostedMmi, LatticeTraining, Mmi, Mpe, Smbr
from hemstitch.train._options._models import (
    BlstmModel,
    FeedForwardModel,
    LstmModel,
    MlpModel,
    PNormModel,
    ResnetModel,
    TdnnLstmModel,
    TdnnModel,
    VggModel,
)
from hemstitch.train._options._order import BackwardOrder, ForwardOrder, OrderAverageOptions
from hemstitch.train._options._parallel import (
    Asynchronous,
    Averaging,
    AveragingRule,
    DataParallel,
    Decoders,
    LocalParallel,
    Replicas,
    SimulatedAsynchronous,
    SimulatedCluster,
    VirtualAveraging,
    WorkerProcesses,
)
from hemstitch.train._options._schedules import ConstantRate, CosineRate, ExponentialRate, PlateauRate
from hemstitch.train._options._speech import Decoding, Hmm
from hemstitch.train._options._start import Start
from hemstitch.train._options._text import LstmLanguageModel, TextData
from hemstitch.train._options._training import Training
from hemstitch.train._options._updates import (
    Adam,
    AdamW,
    Backstitch,
    MaxChangeSgd,
    MomentumSgd,
    NaturalGradientOptions,
    PlainGradient,
)

__all__ = [
    "Adam",
    "AdamW",
    "Asynchronous",
    "Averaging",
    "AveragingRule",
    "Backstitch",
    "BackwardOrder",
    "BayesRisk",
    "BlstmModel",
    "BoostedMmi",
    "ConstantRate",
    "CosineRate",
    "CrossEntropy",
    "Ctc",
    "DataParallel",
    "Decoders",
    "Decoding",
    "ExponentialRate",
    "FeedForwardModel",
    "ForwardOrder",
    "HessianFree",
    "Hmm",
    "ImageData",
    "LatticeFreeMmi",
    "LatticeTraining",
    "LocalParallel",
    "LstmLanguageModel",
    "LstmModel",
    "MaxChangeSgd",
    "MlpModel",
    "Mmi",
    "MomentumSgd",
    "MovingAverage",
    "Mpe",
    "NaturalGradientOptions",
    "NoAverage",
    "OrderAverageOptions",
    "PNormModel",
    "PlainGradient",
    "PlateauRate",
    "Replicas",
    "ResnetModel",
    "SimulatedAsynchronous",
    "SimulatedCluster",
    "Smbr",
    "SpeakerVector",
    "SpeechData",
    "Start",
    "TdnnLstmModel",
    "TdnnModel",
    "TextData",
    "Training",
    "VggModel",
    "VirtualAveraging",
    "WeightAverage",
    "WorkerProcesses",
]
