"""
Fakes for the tests of this package and of backends that others write.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from queue import Empty, SimpleQueue
from typing import Any, ParamSpec, TypeVar
from uuid import UUID

from twisted.internet.defer import Deferred, execute
from twisted.internet.task import Clock
from zope.interface import implementer

from storageproxy.errors import VolumeUnavailable
from storageproxy.interfaces import (
    IThreads,
)
from storageproxy.threads import Progress
from storageproxy.vfolder import QuotaScopeID, VFolderID

P = ParamSpec("P")
T = TypeVar("T")

#: Seconds after which a test has failed that waits for a thread; it never passes because of them.
GIVE_UP = 30.0


@implementer(IThreads)
class SynchronousThreads:
    """
    No threads: calls are made at once, by the caller.

    What they return or raise is in the Deferred already.
    """

    deadline = 15.0
    slow_deadline = 60.0

    def __init__(self) -> None:
        self.stopped = False

    def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        """See :meth:`storageproxy.interfaces.IThreads.run`."""
        return self.submit(lambda: function(*args, **kwargs), self.deadline, None)

    def submit(
        self,
        function: Callable[[], T],
        deadline: float | None,
        discard: Callable[[T], object] | None,
    ) -> Deferred[T]:
        """See :meth:`storageproxy.interfaces.IThreads.submit`."""
        return execute(self._call, function)

    async def run_long(
        self, function: Callable[[Progress], T], what: str = "a long operation"
    ) -> T:
        """See :meth:`storageproxy.interfaces.IThreads.run_long`."""
        return self._call(lambda: function(Progress()))

    def clean_up(self, function: Callable[[], object]) -> None:
        """See :meth:`storageproxy.interfaces.IThreads.clean_up`."""
        function()

    def stop(self) -> None:
        """See :meth:`storageproxy.interfaces.IThreads.stop`."""
        self.stopped = True

    def _call(self, function: Callable[[], T]) -> T:
        if self.stopped:
            raise VolumeUnavailable("the threads are stopped")
        return function()


class ThreadedClock(Clock):
    """
    A clock that also takes calls from threads, and makes them when the test says so.
    """

    def __init__(self) -> None:
        super().__init__()
        self._calls: SimpleQueue[Callable[[], Any]] = SimpleQueue()

    def callFromThread(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        """See :meth:`twisted.internet.interfaces.IReactorFromThreads.callFromThread`."""
        self._calls.put(lambda: function(*args, **kwargs))

    def deliver(self, number: int = 1) -> None:
        """
        Wait for calls from threads, and make them, each in a turn of its own.

        :param number: how many.
        :raises AssertionError: when there are fewer.
        """
        for _ in range(number):
            self.advance(0)
            try:
                call = self._calls.get(timeout=GIVE_UP)
            except Empty:
                raise AssertionError("no thread has called the reactor") from None
            call()

    @property
    def waiting(self) -> int:
        """How many calls from threads have not been made."""
        return self._calls.qsize()


def bare_id(digits: int) -> VFolderID:
    """
    A vfolder id in the dialect of bare UUIDs.

    :param digits: different numbers make different ids that share their prefix directories.
    """
    return VFolderID(None, UUID(int=(0xABCD << 112) | digits))


def scoped_id(digits: int, owner: int = 1) -> VFolderID:
    """
    A vfolder id in the dialect of quota scopes.

    :param digits: as for :func:`bare_id`.
    :param owner: the user whose scope it is.
    """
    return VFolderID(QuotaScopeID("user", UUID(int=owner)), bare_id(digits).folder)


def result_of(work: Coroutine[Any, Any, T] | Deferred[T]) -> T:
    """
    The result of work that needs no reactor, for tests with :class:`SynchronousThreads`.

    :raises AssertionError: when it has none yet.
    """
    found: list[Any] = []
    failures: list[Any] = []
    deferred = work if isinstance(work, Deferred) else Deferred.fromCoroutine(work)
    deferred.addCallbacks(found.append, failures.append)
    if failures:
        failures[0].raiseException()
    if not found:
        raise AssertionError("there is no result yet")
    result: T = found[0]
    return result
