"""Which data when: shuffled epochs that resume where they stopped, windows of frames, growing samples."""

from hemstitch.sampling._epochs import BatchSource, ShuffledEpochs, generator
from hemstitch.sampling._equal_lengths import EqualLengthEpochs
from hemstitch.sampling._frames import FrameWindows
from hemstitch.sampling._growing import GrowingSample, SampleGrowth, gradient_noise
from hemstitch.sampling._on_the_fly import OnTheFlyFrames, UtteranceSlots

__all__ = [
    "BatchSource",
    "EqualLengthEpochs",
    "FrameWindows",
    "GrowingSample",
    "OnTheFlyFrames",
    "SampleGrowth",
    "ShuffledEpochs",
    "UtteranceSlots",
    "generator",
    "gradient_noise",
]
