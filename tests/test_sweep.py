"""
How calls are shared among the threads of a volume, and that none is lost.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from operator import itemgetter
from random import Random
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from storageproxy.testing import GIVE_UP
from storageproxy.threads import PATIENCE, TURN, VolumeThreads
from tests.test_threads import Hanging, ThreadsTestCase


class SweepTests(ThreadsTestCase):
    """Which thread makes a call, and when its result is told."""

    size = 3

    def setUp(self) -> None:
        super().setUp()
        self.before = set(threading.enumerate())

    @property
    def begun(self) -> int:
        """How many threads there are."""
        return len(set(threading.enumerate()) - self.before)

    def sweep(self, *calls: Callable[[], Any]) -> list[Deferred[Any]]:
        """Make calls in one turn of the reactor, and return when the one that hangs has begun."""
        made = [self.threads.run(call) for call in calls]
        self.made += made
        self.clock.advance(0)
        for call in calls:
            if isinstance(call, Hanging):
                call.wait_begun()
        return made

    def alone(self, call: Callable[[], Any]) -> Deferred[Any]:
        made = self.threads.submit(call, self.threads.slow_deadline, None)
        self.made.append(made)
        return made

    def timers(self) -> int:
        return len(self.clock.getDelayedCalls())

    def test_one_turn(self) -> None:
        """Calls of one turn of the reactor are made by one thread, and told together."""
        calls = [self.threads.run(threading.get_ident) for _ in range(4)]
        self.assertEqual(self.begun, 0)
        self.clock.deliver()
        self.assertEqual(len({self.successResultOf(call) for call in calls}), 1)
        self.assertEqual((self.begun, self.clock.waiting, self.timers()), (1, 0, 0))

    def test_told_in_turns(self) -> None:
        """Results that take long to deal with do not keep the reactor from everything else."""
        events: list[str] = []

        def take_long(_: object) -> None:
            if not events:
                self.clock.callLater(0, events.append, "another")
            events.append("result")
            self.clock.rightNow += TURN

        for _ in range(4):
            self.threads.run(threading.get_ident).addCallback(take_long)
        self.clock.deliver()
        self.clock.advance(0)
        self.assertEqual(events, ["result"] * 2 + ["another"] + ["result"] * 2)

    def test_told_at_the_end(self) -> None:
        """When the daemon stops, all of them are told at once."""

        def take_long(_: object) -> None:
            self.clock.rightNow += TURN

        calls = [self.threads.run(threading.get_ident).addCallback(take_long) for _ in range(4)]
        self.clock.deliver()
        self.threads.stop()
        self.assertTrue(all(call.called for call in calls))

    def test_later_turn(self) -> None:
        """Calls that come while others are made are left to the same thread."""
        hanging = self.hanging()
        [first] = self.sweep(hanging)
        second = self.threads.run(threading.get_ident)
        self.clock.pump([0, PATIENCE])
        hanging.go.set()
        self.clock.deliver()
        self.assertEqual(self.successResultOf(first), "back")
        self.successResultOf(second)
        self.assertEqual((self.begun, self.clock.waiting, self.timers()), (1, 0, 0))

    def test_rest(self) -> None:
        """A call that comes when the thread has just found nothing more is not forgotten."""
        for _ in range(100):
            [first] = self.sweep(lambda: "first")
            second = self.threads.run(lambda: "second")
            while not second.called:
                self.clock.deliver()
            self.assertEqual(self.successResultOf(first), "first")
            self.assertEqual(self.successResultOf(second), "second")

    def test_hangs(self) -> None:
        """When a call seems to wait for the disk, another thread makes the next ones."""
        hanging = self.hanging()
        [first] = self.sweep(hanging)
        second = self.threads.run(lambda: "second")
        self.clock.pump([0, PATIENCE])
        self.assertEqual(self.begun, 1)
        self.clock.pump([PATIENCE])
        self.assertEqual(self.begun, 2)
        self.clock.deliver()
        self.assertEqual(self.successResultOf(second), "second")
        self.assertNoResult(first)

    def test_hung_before(self) -> None:
        """A thread that hangs makes later calls wait no longer, nor the reactor look at it."""
        self.begin(self.hanging())
        self.assertEqual(self.timers(), 1)
        [call] = self.sweep(lambda: "answer")
        self.clock.deliver()
        self.assertEqual(self.successResultOf(call), "answer")
        self.assertEqual(self.timers(), 1)

    def test_all_hang(self) -> None:
        """Call by call, all threads are used, and no more."""
        calls = [self.hanging() for _ in range(self.size + 1)]
        for call in calls:
            self.made.append(self.threads.run(call))
        self.clock.pump([0])
        for call in calls[:-1]:
            call.wait_begun()
            self.clock.pump([PATIENCE] * 2)
        self.assertEqual(self.begun, self.size)
        self.assertEqual(self.timers(), len(calls))
        self.assertFalse(calls[-1].begun.is_set())
        calls[0].go.set()
        calls[-1].wait_begun()

    def test_told_before_hanging(self) -> None:
        """A result is told although the same thread hangs in a later call, and nothing waits."""
        gate, hanging = self.hanging(), self.hanging()
        self.sweep(gate)
        early, late = self.threads.run(lambda: "early"), self.threads.run(hanging)
        self.made.append(late)
        gate.go.set()
        hanging.wait_begun()
        self.assertNoResult(early)
        self.clock.advance(PATIENCE)
        self.assertEqual(self.successResultOf(early), "early")
        self.assertNoResult(late)

    def test_told_after_hanging(self) -> None:
        """What a thread brings that hung before is told though it hangs again."""
        self.begin(self.hanging())
        self.begin(self.hanging())
        first, last = self.hanging(), self.hanging()
        call = self.begin(first)
        middle = self.threads.run(lambda: "middle")
        self.made.append(self.threads.run(last))
        first.go.set()
        last.wait_begun()
        self.clock.deliver(2)
        self.assertEqual(self.successResultOf(call), "back")
        self.assertEqual(self.successResultOf(middle), "middle")

    # ---- calls that get a thread each

    def test_alone(self) -> None:
        """A call that moves much waits neither for others nor for the end of the turn."""
        hanging = self.hanging()
        self.sweep(hanging)
        waiting = self.threads.run(lambda: "waiting")
        bulk = self.hanging()
        call = self.alone(bulk)
        bulk.wait_begun()
        self.assertNoResult(waiting)
        self.assertEqual(self.begun, 2)
        bulk.go.set()
        while not call.called:
            self.clock.deliver()
        self.assertEqual(self.successResultOf(call), "back")

    def test_beside_alone(self) -> None:
        """Ordinary calls do not wait for one that takes long."""
        bulk = self.hanging()
        self.alone(bulk)
        bulk.wait_begun()
        [call] = self.sweep(lambda: "answer")
        self.clock.deliver()
        self.assertEqual(self.successResultOf(call), "answer")
        self.assertEqual(self.timers(), 1)

    def test_alone_without_thread(self) -> None:
        """A call for which there is no thread is made among the others, and told at once."""
        self.begin(self.hanging())
        self.begin(self.hanging())
        first, last = self.hanging(), self.hanging()
        self.sweep(first)
        bulk = self.alone(lambda: "bulk")
        self.assertNoResult(bulk)
        self.made.append(self.threads.run(last))
        first.go.set()
        last.wait_begun()
        self.clock.deliver()
        self.assertEqual(self.successResultOf(bulk), "bulk")

    def test_alone_taken_back(self) -> None:
        """A call that is taken back before its thread has come to it is never made."""
        go = threading.Event()
        self.addCleanup(go.set)
        thread = threading.Thread

        def slow(target: Callable[..., Any], args: Any, **kwargs: Any) -> threading.Thread:
            return thread(target=lambda: (go.wait(GIVE_UP), target(*args)), **kwargs)

        self.patch(threading, "Thread", slow)
        made: list[str] = []
        call = self.alone(lambda: made.append("made"))
        call.cancel()
        self.failureResultOf(call, CancelledError)
        self.assertEqual(self.timers(), 0)
        go.set()
        self.clock.deliver()
        [answer] = self.sweep(lambda: "answer")
        self.clock.deliver()
        self.assertEqual((self.successResultOf(answer), made), ("answer", []))

    # ---- the end

    def test_stop_collected(self) -> None:
        """Calls that were collected when the daemon stopped are made, and no timer is left."""
        calls = [self.threads.run(lambda: "made") for _ in range(3)]
        self.threads.stop()
        while not calls[-1].called:
            self.clock.deliver()
        self.assertEqual([self.successResultOf(call) for call in calls], ["made"] * 3)
        self.assertEqual(self.timers(), 0)

    def test_stop_untold(self) -> None:
        """What was not told before the daemon stopped is told, though nobody looks any more."""
        hanging = self.hanging()
        early, late = self.sweep(lambda: "early", hanging)
        waiting = self.threads.run(lambda: "waiting")
        self.threads.stop()
        self.assertEqual(self.successResultOf(early), "early")
        self.clock.deliver()
        self.assertEqual(self.successResultOf(waiting), "waiting")
        self.assertEqual(self.timers(), 1)
        hanging.go.set()
        self.clock.deliver()
        self.assertEqual(self.successResultOf(late), "back")
        self.assertEqual(self.timers(), 0)

    def test_clean_up_after_stop(self) -> None:
        """After the stop, files are closed beside a thread that hangs, and all threads end."""
        hanging = self.hanging()
        self.sweep(hanging)
        self.threads.stop()
        for _ in range(3):
            done = threading.Event()
            self.threads.clean_up(done.set)
            self.assertTrue(done.wait(GIVE_UP))
            self.clock.deliver()
        hanging.go.set()
        for one in set(threading.enumerate()) - self.before:
            one.join(GIVE_UP)
        self.assertEqual(self.begun, 0)
        self.assertEqual(self.timers(), 1)
        self.clock.deliver()
        self.assertEqual(self.timers(), 0)


class StressTests(TestCase):
    """With the real reactor, and thousands of calls."""

    async def test_all_kinds(self) -> None:
        """Of calls of all kinds, some of which hang, each is made and told exactly once."""
        for size in (1, 3, 16):
            await self.stress(Random(size), size)

    async def stress(self, random: Random, size: int) -> None:
        threads = VolumeThreads(reactor, "test", size=size, backlog=10_000, deadline=GIVE_UP)
        self.addCleanup(threads.stop)
        made: list[int] = []
        told: list[tuple[int, Any]] = []
        discarded: list[int] = []
        cleaned: list[int] = []
        expected: dict[int, Any] = {}
        calls: list[Deferred[Any]] = []

        def function(number: int, hangs: threading.Event | None, fails: bool) -> int:
            made.append(number)
            if hangs is not None:
                hangs.wait(GIVE_UP)
            if fails:
                raise FileNotFoundError
            return number

        def tell(result: Any, number: int) -> None:
            told.append((number, result.type if isinstance(result, Failure) else result))

        for number in range(2000):
            kind = random.random()
            if kind < 0.1:
                threads.clean_up(partial(cleaned.append, number))
                continue
            hangs = threading.Event() if random.random() < 0.02 else None
            fails = random.random() < 0.1
            expected[number] = FileNotFoundError if fails else number
            call = threads.submit(
                partial(function, number, hangs, fails),
                threads.slow_deadline if kind < 0.3 else threads.deadline,
                discarded.append,
            )
            call.addBoth(tell, number)
            calls.append(call)
            if hangs is not None:
                later = random.random() * 0.03
                if random.random() < 0.5:
                    reactor.callLater(later, call.cancel)  # type: ignore[attr-defined]
                reactor.callLater(later, hangs.set)  # type: ignore[attr-defined]
            if random.random() < 0.1:
                calls[-random.randrange(1, 1 + min(40, len(calls)))].cancel()
            if random.random() < 0.05:
                await deferLater(reactor, random.choice((0, 0.001)))  # type: ignore[arg-type]
        await gatherResults(calls)
        # What was taken back in the middle, and files that are closed, nobody waits for.
        while threads._awake or threads._queue or threads._timer:
            await deferLater(reactor, 0.001)  # type: ignore[arg-type]
        self.assertEqual([number for number, _ in sorted(told, key=itemgetter(0))], list(expected))
        self.assertEqual(len(made), len(set(made)))
        self.assertEqual(len(cleaned), 2000 - len(expected))
        cancelled = {number for number, result in told if result is CancelledError}
        self.assertEqual(
            {number: result for number, result in told if number not in cancelled},
            {number: result for number, result in expected.items() if number not in cancelled},
        )
        self.assertEqual(set(expected) - set(made) - cancelled, set())
        self.assertEqual(
            sorted(discarded),
            sorted(n for n in made if n in cancelled and expected[n] is not FileNotFoundError),
        )
        self.assertNotEqual(cancelled, set())
        self.assertEqual(threads._stuck, 0)
