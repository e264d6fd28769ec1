"""
One writer for each upload session, and the newest request is the one that counts.

A client that lost its connection comes back at once, while the daemon may not have noticed yet. So
a newer request asks the one that holds the session to stop, waits until it has settled, and goes on
from there (as tusd does, and the IETF draft of resumable uploads asks for).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from attrs import define, field
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime

from storageproxy.errors import UploadLocked

#: Seconds that a newer request waits for an older one to settle.
PATIENCE = 10.0


@define(eq=False)
class Lease:
    """
    The right to work on a session.
    """

    _stop: Callable[[], Any] = field(default=lambda: None)
    _wanted: bool = False
    _waiting: list[Deferred[None]] = field(factory=list)

    def on_stop(self, stop: Callable[[], Any]) -> None:
        """
        Say what makes the holder stop.

        :param stop: called when somebody else wants the session; at once if somebody does already.
        """
        self._stop = stop
        if self._wanted:
            stop()

    def ask(self) -> None:
        """Ask the holder to stop."""
        self._wanted = True
        self._stop()


@define(eq=False)
class SessionLocks:
    """
    The sessions that requests of this process work on.

    :param clock: for the bounded wait.
    """

    clock: IReactorTime | Any
    _held: dict[object, Lease] = field(factory=dict)

    async def acquire(self, key: object, patience: float = PATIENCE) -> Lease:
        """
        Wait for a session, and ask its holder to stop.

        :param patience: seconds to wait.
        :raises UploadLocked: when the holder did not let go in time.
        """
        end = self.clock.seconds() + patience
        while (holder := self._held.get(key)) is not None:
            released: Deferred[None] = Deferred()
            holder._waiting.append(released)
            holder.ask()
            timer = self.clock.callLater(max(0.0, end - self.clock.seconds()), released.cancel)
            try:
                await released
            except CancelledError:
                if timer.active():
                    raise
                raise UploadLocked() from None
            finally:
                if timer.active():
                    timer.cancel()
                if released in holder._waiting:
                    holder._waiting.remove(released)
        lease = self._held[key] = Lease()
        return lease

    def release(self, key: object) -> None:
        """Let the next one have it."""
        lease = self._held.pop(key)
        waiting, lease._waiting = lease._waiting, []
        for released in waiting:
            released.callback(None)

    def stop_all(self) -> None:
        """Ask all holders to stop."""
        for lease in list(self._held.values()):
            lease.ask()
