"""The turn of a load on its device: the part of a load that times kernels waits until nothing else runs there."""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from contextvars import ContextVar

Turn = Callable[[], AbstractContextManager[None]]
"""Makes a context in which the process is alone on the device."""

_turn: ContextVar[Turn | None] = ContextVar("autotune-turn", default=None)


def alone() -> AbstractContextManager[None]:
    """Return a context for the part of a load that times kernels: a study lets it be alone on the device.

    A deployment waits for nothing.
    """
    turn = _turn.get()
    return contextlib.nullcontext() if turn is None else turn()


@contextlib.contextmanager
def takes_turn_by(turn: Turn) -> Iterator[None]:
    """Let loads within this context be alone by ``turn``."""
    token = _turn.set(turn)
    try:
        yield
    finally:
        _turn.reset(token)
