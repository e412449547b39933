"""The engine's few calls in one process: a call runs at once; its effect, or its reply, can be lost."""

import pickle
from types import SimpleNamespace


class Future:
    """The result of a call, or its error."""

    def __init__(self, value):
        self.value = value


class Lost(Exception):
    """Stands for the error of an engine whose process died."""


class FakeEngine:
    """``get``, ``wait`` and the exceptions."""

    exceptions = SimpleNamespace(RayActorError=Lost, OwnerDiedError=Lost, ObjectLostError=Lost,
                                 GetTimeoutError=TimeoutError)

    def get(self, future, timeout=None):
        if isinstance(future.value, Exception):
            raise future.value
        return future.value

    def wait(self, futures, num_returns=1, timeout=None):
        return futures[:num_returns], futures[num_returns:]


class Handle:
    """A handle of an object as if it were a process of its own.

    Args:
        target: the object; may be exchanged, as when a process is restarted.
        fails: method name -> function that says, at each call, ``"before"``, ``"after"`` or ``None``: whether the
            process dies before the call has its effect, or between the effect and the reply.
    """

    def __init__(self, target, fails=None):
        self.target, self.fails = target, fails or {}

    def __getattr__(self, method):
        return SimpleNamespace(remote=lambda *args: self._call(method, args))

    def _call(self, method, args):
        when = self.fails.get(method, lambda: None)()
        if when == "before":
            return Future(Lost())
        try:
            value = pickle.loads(pickle.dumps(getattr(self.target, method)(*args)))     # what arrives is a copy
        except Exception as error:
            value = error
        return Future(Lost() if when == "after" else value)
