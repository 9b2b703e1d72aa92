"""The turns of a load and of a build on their device: parts that wait until nothing is timed there, or nothing runs."""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from contextvars import ContextVar

Turn = Callable[[], AbstractContextManager[None]]
"""Makes a context in which the process has its turn on the device: alone, or beside others that time nothing."""

_turn: ContextVar[Turn | None] = ContextVar("autotune-turn", default=None)
_shared: ContextVar[Turn | None] = ContextVar("autotune-shared-turn", default=None)


def alone() -> AbstractContextManager[None]:
    """Return a context for the part of a load that times kernels: a study lets it be alone on the device.

    A deployment waits for nothing.
    """
    turn = _turn.get()
    return contextlib.nullcontext() if turn is None else turn()


def computing() -> AbstractContextManager[None]:
    """Return a context for a part of a build or a load that computes on the device: in a study nothing is timed then.

    For a backend that :class:`autotune.backend.BuildsInTurn` or :class:`autotune.backend.LoadsInTurn`. Such parts of
    others may run beside it. The context waits until the device is free; contexts within it wait for nothing, except
    :func:`alone`, which lets others go first. At its end it waits until the work that torch has begun on the device is
    done; a part that computes by another library waits for that itself.

    It does nothing in a build or a load that has the device as a whole, or alone by now, and outside a study. It does
    nothing in a thread that is started meanwhile either: such a thread needs a turn of :func:`shared_turn`.
    """
    turn = _shared.get()
    return contextlib.nullcontext() if turn is None else turn()


def shared_turn() -> Turn | None:
    """Return what makes the contexts of :func:`computing` in any thread, or ``None`` if they would do nothing.

    While threads overlap in such contexts, the process has one turn, which ends with the last of them.
    """
    return _shared.get()


def takes_turn_by(turn: Turn) -> AbstractContextManager[None]:
    """Return a context in which loads of this thread are alone by ``turn``."""
    return _set(_turn, turn)


def computes_by(turn: Turn) -> AbstractContextManager[None]:
    """Return a context in which builds and loads of this thread compute on the device by ``turn``."""
    return _set(_shared, turn)


@contextlib.contextmanager
def _set(variable: ContextVar[Turn | None], turn: Turn) -> Iterator[None]:
    token = variable.set(turn)
    try:
        yield
    finally:
        variable.reset(token)
