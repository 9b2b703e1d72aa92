"""One coordinator a study: take its lease, renew it, and notice its loss."""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator

from autotune.database import leases
from autotune.database.store import Store
from autotune.errors import DatabaseError, StudyTakenOverError, WorkError

log = logging.getLogger(__name__)


@contextlib.contextmanager
def coordinating(
    store: Store,
    study_uid: str,
    *,
    lost: Callable[[], None],
    tell: Callable[[str], None],
    pause: Callable[[float], object],
) -> Iterator[Store]:
    """Coordinate the study in this context; yield the store to write through.

    ``lost`` is called if another process takes the study over, ``tell`` with a line for the user. ``pause`` waits for a
    number of seconds by a clock that cannot jump. Raises StudyHeldError if another process coordinates the study, and
    StudyTakenOverError in place of any WorkError after the lease was lost.
    """
    lease = store.leases.take(study_uid, leases.Owner.this_process(), _watched(store, study_uid, tell, pause))
    keeper = _Keeper(store, lease, lost)
    try:
        yield store.under(lease)
    except WorkError:
        if keeper.error is not None:
            raise keeper.error from None
        raise
    finally:
        keeper.close()
        try:
            store.leases.release(lease)
        except DatabaseError as error:
            log.warning(
                "the lease could not be released; the next coordinator has to see first that this process is gone: %s",
                error,
            )


def _watched(
    store: Store, study_uid: str, tell: Callable[[str], None], pause: Callable[[float], object]
) -> leases.Held | None:
    """Watch an owner that seems dead and may be alive: its clock and this one may differ.

    Returns the lease as it was before; ``None`` if nothing has to be watched.
    """
    held = store.leases.holder(study_uid)
    if held is None or held.owner.is_gone or not held.silent:
        return None
    owner = held.owner
    tell(f"process {owner.pid} on {owner.host} coordinates this study and is silent; watching {leases.WATCH_S:g} s")
    pause(leases.WATCH_S)
    return held


class _Keeper:
    """Renews a lease in a thread of its own, also during a long build."""

    def __init__(self, store: Store, lease: leases.Lease, lost: Callable[[], None]) -> None:
        self.error: StudyTakenOverError | None = None
        self._store, self._lease, self._lost = store, lease, lost
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._keep, daemon=True, name="autotune-lease")
        self._thread.start()

    def close(self) -> None:
        """Stop renewing."""
        self._ended.set()
        self._thread.join()

    def _keep(self) -> None:
        while not self._ended.wait(leases.RENEW_S):
            try:
                self._store.leases.renew(self._lease)
            except StudyTakenOverError as error:
                self.error = error
                self._lost()
                return
            except DatabaseError as error:
                log.warning("the lease was not renewed; this is tried again: %s", error)
