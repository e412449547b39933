"""The reducer: the one way in which an algorithm speaks to other workers."""

from hemstitch.comm._membership import Expelled, connect_store, declare_lost, host_store
from hemstitch.comm._process_group import ProcessGroupReducer
from hemstitch.comm._reducer import LocalReducer, MemberLost, Reducer
from hemstitch.comm._shards import shards_of, sum_shards, tree_sum
from hemstitch.comm._threads import ThreadReducer, run_workers

__all__ = [
    "Expelled",
    "LocalReducer",
    "MemberLost",
    "ProcessGroupReducer",
    "Reducer",
    "ThreadReducer",
    "connect_store",
    "declare_lost",
    "host_store",
    "run_workers",
    "shards_of",
    "sum_shards",
    "tree_sum",
]
