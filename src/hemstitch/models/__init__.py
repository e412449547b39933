"""Networks: feed-forward, time-delay, recurrent, small vision nets."""

from hemstitch.models._base import FrameModel
from hemstitch.models._feed_forward import FeedForward

__all__ = ["FeedForward", "FrameModel"]
