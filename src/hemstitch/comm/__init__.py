"""The reducer: the one way in which an algorithm speaks to other workers."""

from hemstitch.comm._reducer import LocalReducer, MemberLost, Reducer
from hemstitch.comm._shards import shards_of, sum_shards, tree_sum
from hemstitch.comm._threads import ThreadReducer, run_workers

__all__ = [
    "LocalReducer",
    "MemberLost",
    "Reducer",
    "ThreadReducer",
    "run_workers",
    "shards_of",
    "sum_shards",
    "tree_sum",
]
