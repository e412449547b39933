"""Many workers as real processes, launched and supervised by Ray (``pip install 'hemstitch[parallel]'``)."""

from hemstitch.parallel.ray._engine import connected
from hemstitch.parallel.ray._training import AsynchronousTraining, RealReport
from hemstitch.parallel.ray._workers import RayWorkers

__all__ = ["AsynchronousTraining", "RayWorkers", "RealReport", "connected"]
