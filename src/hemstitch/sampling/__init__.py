"""Which data when: shuffled epochs that resume where they stopped, windows of frames, growing samples."""

from hemstitch.sampling._epochs import BatchSource, ShuffledEpochs, generator
from hemstitch.sampling._frames import FrameWindows

__all__ = ["BatchSource", "FrameWindows", "ShuffledEpochs", "generator"]
