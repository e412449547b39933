"""Many workers: parameter averaging, parameter server, virtual replicas, simulated clock."""

from hemstitch.parallel._asynchronous import AsynchronousReport, AsynchronousSimulation, Evaluation
from hemstitch.parallel._averaging import AveragingReport, ParameterAveraging, sum_tensors_
from hemstitch.parallel._bounded_step import Bound, StepRule
from hemstitch.parallel._clock import Event, Interrupted, Process, SimulatedClock
from hemstitch.parallel._cluster import Cluster, Delay, Failures, Network, Stragglers, WorkerTimes
from hemstitch.parallel._combination import Combination, LastModels, combine_models
from hemstitch.parallel._decoders import Decoding, FetchPolicy, OuterBatch
from hemstitch.parallel._flat_gradient import FlatGradient
from hemstitch.parallel._launcher import LocalWorkers, WorkerFailed
from hemstitch.parallel._parameter_server import ParameterServer, PushReply
from hemstitch.parallel._plan import Plan, PlannedDecoding, Prices, plan_asynchronous, plan_averaging
from hemstitch.parallel._schedules import learning_rate_at, num_workers_at, staggered_phase
from hemstitch.parallel._shares import Contribution, shares
from hemstitch.parallel._staleness import StalenessHistogram
from hemstitch.parallel._virtual_averaging import AveragingSimulation, Round

__all__ = [
    "AsynchronousReport",
    "AsynchronousSimulation",
    "AveragingReport",
    "AveragingSimulation",
    "Bound",
    "Cluster",
    "Combination",
    "Contribution",
    "Decoding",
    "Delay",
    "Evaluation",
    "Event",
    "Failures",
    "FetchPolicy",
    "FlatGradient",
    "Interrupted",
    "LastModels",
    "LocalWorkers",
    "Network",
    "OuterBatch",
    "ParameterAveraging",
    "ParameterServer",
    "Plan",
    "PlannedDecoding",
    "Prices",
    "Process",
    "PushReply",
    "Round",
    "SimulatedClock",
    "StalenessHistogram",
    "StepRule",
    "Stragglers",
    "WorkerFailed",
    "WorkerTimes",
    "combine_models",
    "learning_rate_at",
    "num_workers_at",
    "plan_asynchronous",
    "plan_averaging",
    "shares",
    "staggered_phase",
    "sum_tensors_",
]
