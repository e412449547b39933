"""Many workers: parameter averaging, parameter server, virtual replicas, simulated clock."""

from hemstitch.parallel._averaging import AveragingReport, ParameterAveraging
from hemstitch.parallel._combination import Combination, LastModels, combine_models
from hemstitch.parallel._launcher import LocalWorkers, WorkerFailed
from hemstitch.parallel._schedules import learning_rate_at, num_workers_at, staggered_phase
from hemstitch.parallel._shares import Contribution, shares

__all__ = [
    "AveragingReport",
    "Combination",
    "Contribution",
    "LastModels",
    "LocalWorkers",
    "ParameterAveraging",
    "WorkerFailed",
    "combine_models",
    "learning_rate_at",
    "num_workers_at",
    "shares",
    "staggered_phase",
]
