"""Many workers: parameter averaging, parameter server, virtual replicas, simulated clock."""

from hemstitch.parallel._launcher import LocalWorkers, WorkerFailed

__all__ = ["LocalWorkers", "WorkerFailed"]
