"""
One writer for each upload session, and the newest request counts.
"""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from storageproxy.errors import UploadLocked
from storageproxy.transfer.locks import PATIENCE, Lease, SessionLocks


class LocksTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.locks = SessionLocks(self.clock)

    def acquire(self, key: object = "key", **kwargs: Any) -> Deferred[Lease]:
        return Deferred.fromCoroutine(self.locks.acquire(key, **kwargs))

    def held(self, key: object = "key") -> tuple[Lease, list[str]]:
        """Hold a session, and note when its holder is asked to stop."""
        lease = self.successResultOf(self.acquire(key))
        asked: list[str] = []
        lease.on_stop(lambda: asked.append("stop"))
        return lease, asked

    def test_free(self) -> None:
        """A session that nobody works on is had at once."""
        _, asked = self.held()
        self.assertEqual(asked, [])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_others(self) -> None:
        """Sessions do not stand in each other's way."""
        _, asked = self.held("one")
        self.held("two")
        self.assertEqual(asked, [])

    def test_again(self) -> None:
        """A session that was let go can be had again, and nobody is asked."""
        _, asked = self.held()
        self.locks.release("key")
        self.held()
        self.assertEqual(asked, [])

    def test_asked(self) -> None:
        """The holder is asked to stop, and the next one waits until he has let go."""
        _, asked = self.held()
        waiting = self.acquire()
        self.assertEqual(asked, ["stop"])
        self.assertNoResult(waiting)
        self.locks.release("key")
        self.successResultOf(waiting)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_asked_early(self) -> None:
        """A holder who is asked before he can stop is told as soon as he can."""
        lease = self.successResultOf(self.acquire())
        self.acquire().addErrback(lambda _: None)
        asked: list[str] = []
        lease.on_stop(lambda: asked.append("stop"))
        self.assertEqual(asked, ["stop"])

    def test_released_when_asked(self) -> None:
        """A holder who lets go while he is asked gives the session to who asks."""
        lease = self.successResultOf(self.acquire())
        lease.on_stop(lambda: self.locks.release("key"))
        waiting = self.acquire()
        self.clock.advance(0)
        self.successResultOf(waiting)

    def test_patience(self) -> None:
        """Who waits in vain is told that the session is in use, after a bounded time."""
        self.held()
        waiting = self.acquire()
        self.clock.advance(PATIENCE - 0.1)
        self.assertNoResult(waiting)
        self.clock.advance(0.2)
        self.assertEqual(self.failureResultOf(waiting, UploadLocked).value.status, 423)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_own_patience(self) -> None:
        """The time to wait can be chosen."""
        self.held()
        waiting = self.acquire(patience=1)
        self.clock.advance(1.1)
        self.failureResultOf(waiting, UploadLocked)

    def test_holder_goes_on(self) -> None:
        """A session is still held when the one who waited for it has given up."""
        self.held()
        self.clock.advance(0)
        waiting = self.acquire()
        self.clock.advance(PATIENCE)
        self.failureResultOf(waiting, UploadLocked)
        self.locks.release("key")
        self.held()

    def test_several(self) -> None:
        """Of several who wait each gets the session in turn, and is asked for it by the next."""
        self.held()
        waiting = [self.acquire() for _ in range(3)]
        for number, one in enumerate(waiting):
            self.locks.release("key")
            lease = self.successResultOf(one)
            asked: list[str] = []
            lease.on_stop(lambda asked=asked: asked.append("stop"))
            self.assertEqual(asked, ["stop"] if number < 2 else [])
            for later in waiting[number + 1 :]:
                self.assertNoResult(later)
        self.locks.release("key")
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_one_holder(self) -> None:
        """However many wait, one holds the session at a time."""
        self.held()
        holders: list[Lease] = []
        for _ in range(10):
            self.acquire().addCallback(holders.append)
        for number in range(10):
            self.assertEqual(len(holders), number)
            self.locks.release("key")
        self.assertEqual(len(holders), 10)

    def test_whole_patience(self) -> None:
        """Who waits for several holders waits no longer than for one."""
        self.held()
        first, second = self.acquire(), self.acquire()
        self.clock.advance(PATIENCE - 1)
        self.locks.release("key")
        self.successResultOf(first)
        self.assertNoResult(second)
        self.clock.advance(1.5)
        self.failureResultOf(second, UploadLocked)

    def test_cancelled(self) -> None:
        """Who gives up waiting does not get the session, and does not hold others up."""
        self.held()
        first, second = self.acquire(), self.acquire()
        first.cancel()
        self.failureResultOf(first, CancelledError)
        self.locks.release("key")
        self.successResultOf(second)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_last_cancelled(self) -> None:
        """A session for which nobody waits any more is free when it is let go."""
        self.held()
        waiting = self.acquire()
        waiting.cancel()
        self.failureResultOf(waiting, CancelledError)
        self.locks.release("key")
        self.held()

    def test_cancelled_by_the_next(self) -> None:
        """Who gets the session may make another one give up, and nothing goes wrong."""
        self.held()
        first, second = self.acquire(), self.acquire()
        first.addCallback(lambda _: second.cancel())
        self.locks.release("key")
        self.failureResultOf(second, CancelledError)
        self.locks.release("key")
        self.held()

    def test_stop_all(self) -> None:
        """When the daemon is stopping, all holders are asked to stop."""
        _, one = self.held("one")
        _, two = self.held("two")
        self.locks.stop_all()
        self.assertEqual((one, two), (["stop"], ["stop"]))

    def test_stop_all_early(self) -> None:
        """A holder who cannot stop yet when the daemon is stopping stops as soon as he can."""
        lease = self.successResultOf(self.acquire())
        self.locks.stop_all()
        asked: list[str] = []
        lease.on_stop(lambda: asked.append("stop"))
        self.assertEqual(asked, ["stop"])
