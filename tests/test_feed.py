"""
Tests for :mod:`storageproxy.transfer.feed`.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count
from threading import Event

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase

from storageproxy.testing import GIVE_UP, ThreadedClock
from storageproxy.threads import VolumeThreads
from storageproxy.transfer import feed
from storageproxy.transfer.bodies import Chunks
from storageproxy.transfer.feed import AHEAD, Feed
from tests.harness import HeldThreads, TurningClock


class Made:
    """A generator of numbered blocks, and what has become of it."""

    def __init__(self, stop: int | None = None, error: Exception | None = None) -> None:
        self.made = 0
        self.closed = False
        self.stop = stop
        self.error = error

    def chunks(self) -> Chunks:
        try:
            for number in count():
                if number == self.stop:
                    break
                self.made += 1
                yield b"%d" % number
            if self.error is not None:
                raise self.error
        finally:
            self.closed = True


class FeedCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.patch(feed, "PATIENCE", 0.0001)
        self.clock: Clock = TurningClock()
        self.threads = HeldThreads(self.clock, held=True)
        self.arrivals = 0
        self.failures: list[Failure] = []

    def feed(self, made: Made) -> Feed:
        return Feed(self.clock, self.threads, made.chunks(), 1, self._arrived, self.failures.append)

    def _arrived(self) -> None:
        self.arrivals += 1

    def taken(self, feeding: Feed) -> Iterator[bytes]:
        while pieces := feeding.take():
            yield b"".join(pieces)


class FeedTests(FeedCase):
    def test_nothing_yet(self) -> None:
        """Before a thread has made anything there is nothing, and it is asked once."""
        feeding = self.feed(Made())
        self.assertIsNone(feeding.take())
        self.assertIsNone(feeding.take())
        self.assertEqual(len(self.threads.calls), 1)
        self.threads.step()
        self.assertEqual(self.arrivals, 1)
        self.assertEqual(feeding.take(), [b"0"])

    def test_ahead(self) -> None:
        """A thread makes a few blocks ahead, and is given back when nobody takes them."""
        made = Made()
        feeding = self.feed(made)
        feeding.take()
        self.threads.step()
        self.assertEqual((made.made, self.threads.calls), (AHEAD, []))

    def test_goes_on(self) -> None:
        """When most of them are taken, it is called again; all come, in their order."""
        made = Made(20)
        feeding = self.feed(made)
        found: list[bytes] = []
        while len(found) < 20:
            if (pieces := feeding.take()) is None:
                self.threads.step()
            else:
                found += pieces
                self.assertLessEqual(len(self.threads.calls), 1)
                self.assertLessEqual(made.made, len(found) + AHEAD)
        self.assertEqual(found, [b"%d" % number for number in range(20)])
        self.threads.release()
        self.assertEqual(feeding.take(), [])
        self.assertTrue(made.closed)

    def test_laps(self) -> None:
        """A thread that makes much gives way to others."""
        self.patch(feed, "LAP", 2)
        made = Made()
        feeding = self.feed(made)
        feeding.take()
        self.threads.step()
        self.assertEqual(made.made, 2)
        self.assertEqual(list(self.taken(feeding)), [b"0", b"1"])
        self.assertEqual(len(self.threads.calls), 1)

    def test_fails(self) -> None:
        """What the generator raises is told."""
        made = Made(1, OSError("broken"))
        feeding = self.feed(made)
        feeding.take()
        self.threads.step()
        self.assertEqual([failure.type for failure in self.failures], [OSError])
        self.assertTrue(made.closed)

    def test_closed(self) -> None:
        """When nobody takes any more, no more is made, and the generator is closed."""
        for steps in range(4):
            made = Made()
            feeding = self.feed(made)
            feeding.take()
            for _ in range(steps):
                if self.threads.calls:
                    self.threads.step()
                feeding.take()
            feeding.close()
            before = made.made
            self.threads.step_all()
            self.clock.advance(0)
            self.assertEqual(made.made, before)
            self.assertTrue(made.closed or not before)
            self.assertEqual(self.threads.calls, [])

    def test_hangs(self) -> None:
        """A generator that hangs is told after the deadline, and closed when it comes back."""
        made = Made()
        feeding = self.feed(made)
        feeding.take()
        self.threads.step()
        while feeding.take():
            continue
        self.clock.advance(self.threads.slow_deadline)
        self.assertEqual(len(self.failures), 1)
        feeding.close()
        self.threads.release()
        self.assertTrue(made.closed)


class ThreadedTests(TestCase):
    """With real threads."""

    def all_of(self, number: int, patience: float, block: int) -> list[bytes]:
        reactor = ThreadedClock()
        threads = VolumeThreads(reactor, "local")
        self.patch(feed, "PATIENCE", patience)
        found: list[bytes] = []
        failures: list[Failure] = []

        def take() -> None:
            while pieces := feeding.take():
                found.extend(pieces)
            if pieces is not None:
                done.callback(None)

        done: Deferred[None] = Deferred()
        feeding = Feed(reactor, threads, Made(number).chunks(), block, take, failures.append)
        take()
        while not done.called:
            reactor.deliver()
        threads.stop()
        self.assertEqual(failures, [])
        return found

    @settings(deadline=None, max_examples=50)
    @given(st.integers(0, 200), st.sampled_from((0.0, 0.00001, 0.001)), st.integers(1, 4))
    def test_no_wake_up_is_lost(self, number: int, patience: float, block: int) -> None:
        """However the two meet, everything arrives, in its order."""
        expected = b"".join(b"%d" % n for n in range(number))
        self.assertEqual(b"".join(self.all_of(number, patience, block)), expected)

    def test_closed_under_way(self) -> None:
        """A generator that a thread is in is closed when that leaves it."""
        reactor = ThreadedClock()
        threads = VolumeThreads(reactor, "local")
        self.addCleanup(threads.stop)
        entered, leave, closed = Event(), Event(), Event()

        def chunks() -> Chunks:
            try:
                entered.set()
                leave.wait(GIVE_UP)
                yield b"one"
                yield b"two"
            finally:
                closed.set()

        feeding = Feed(reactor, threads, chunks(), 1, lambda: None, lambda _: None)
        feeding.take()
        reactor.advance(0)
        self.assertTrue(entered.wait(GIVE_UP))
        feeding.close()
        leave.set()
        while not closed.is_set():
            reactor.deliver()
        self.assertTrue(closed.is_set())
