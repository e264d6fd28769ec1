"""
The threads of a volume: deadlines, bounds, and what a dead mount costs.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import LogEvent, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface.verify import verifyObject

from storageproxy.errors import VolumeUnavailable
from storageproxy.interfaces import IThreads
from storageproxy.testing import GIVE_UP, SynchronousThreads, ThreadedClock, result_of
from storageproxy.threads import PATIENCE, Abandoned, Progress, VolumeThreads


class Hanging:
    """
    A call that does not come back before it is told to, like one on a dead mount.
    """

    def __init__(self, result: Any = "back") -> None:
        self.result = result
        self.begun = threading.Event()
        self.go = threading.Event()

    def __call__(self, *args: Any) -> Any:
        self.begun.set()
        self.go.wait(GIVE_UP)
        if isinstance(self.result, Exception):
            raise self.result
        return self.result

    def wait_begun(self) -> None:
        if not self.begun.wait(GIVE_UP):
            raise AssertionError("the call has not begun")


class ThreadsTestCase(SynchronousTestCase):
    size = 2
    backlog = 4

    def setUp(self) -> None:
        self.clock = ThreadedClock()
        self.threads = VolumeThreads(
            self.clock, "test", size=self.size, backlog=self.backlog, deadline=15.0, long_calls=1
        )
        self.calls: list[Hanging] = []
        self.made: list[Deferred[Any]] = []
        self.addCleanup(self.let_go)

    def let_go(self) -> None:
        for call in self.calls:
            call.go.set()
        self.threads.stop()
        for made in self.made:
            # Not each test looks at the failure of each call.
            made.addErrback(lambda _: None)

    def hanging(self, result: Any = "back") -> Hanging:
        call = Hanging(result)
        self.calls.append(call)
        return call

    def begin(self, call: Hanging) -> Deferred[Any]:
        """Make a call, and return when a thread is in it and is known to hang."""
        made = self.threads.run(call)
        self.made.append(made)
        self.clock.advance(0)
        call.wait_begun()
        self.clock.pump([PATIENCE] * 2)
        return made

    def fill(self) -> list[Deferred[Any]]:
        """Let all threads hang."""
        return [self.begin(self.hanging()) for _ in range(self.size)]


class RunTests(ThreadsTestCase):
    def test_interface(self) -> None:
        """The threads can do what the daemon asks of them."""
        verifyObject(IThreads, self.threads)
        verifyObject(IThreads, SynchronousThreads())

    def test_result(self) -> None:
        """A call is made in another thread, and its result is told in the reactor."""
        call = self.threads.run(lambda a, b: (a, b, threading.get_ident()), 1, b=2)
        self.assertNoResult(call)
        self.clock.deliver()
        a, b, thread = self.successResultOf(call)
        self.assertEqual((a, b), (1, 2))
        self.assertNotEqual(thread, threading.get_ident())

    def test_error(self) -> None:
        """What a call raises is told as it is."""
        call = self.threads.run(os.stat, self.mktemp())
        self.clock.deliver()
        self.failureResultOf(call, FileNotFoundError)

    def test_base_exception(self) -> None:
        """A call that wants to end its thread ends nothing but itself."""

        def leave() -> None:
            raise SystemExit

        for _ in range(self.size + 1):
            call = self.threads.run(leave)
            self.clock.deliver()
            self.failureResultOf(call, SystemExit)
        self.assertEqual(self.ask(), "answer")

    def ask(self) -> str:
        call = self.threads.run(lambda: "answer")
        self.clock.deliver()
        return self.successResultOf(call)

    def test_no_timer_left(self) -> None:
        """A call that came back has no deadline any more."""
        self.ask()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_no_more_threads(self) -> None:
        """No more calls are made at one time than there are threads."""
        self.fill()
        waiting = self.hanging()
        call = self.threads.run(waiting)
        self.clock.pump([0] + [PATIENCE] * 2)
        self.assertFalse(waiting.begun.is_set())
        self.calls[0].go.set()
        waiting.wait_begun()
        waiting.go.set()
        self.clock.deliver(2)
        self.assertEqual(self.successResultOf(call), "back")

    def test_order(self) -> None:
        """Calls that wait are made in the order in which they came."""
        self.fill()
        seen: list[int] = []
        waiting = [self.threads.run(seen.append, number) for number in range(4)]
        self.calls[0].go.set()
        self.clock.deliver(5)
        self.assertEqual(seen, [0, 1, 2, 3])
        for call in waiting:
            self.successResultOf(call)

    # ---- deadlines

    def test_deadline(self) -> None:
        """A call that does not come back in time is answered with 503 and when to ask again."""
        call = self.begin(self.hanging())
        self.clock.advance(14.9)
        self.assertNoResult(call)
        self.clock.advance(0.2)
        error = self.failureResultOf(call, VolumeUnavailable).value
        self.assertEqual(error.status, 503)
        self.assertGreater(int(error.headers["Retry-After"]), 0)
        self.assertIn("test", error.message)

    def test_late_result(self) -> None:
        """What a call says after its deadline is nobody's."""
        for result in ("back", OSError(5, "too late")):
            hanging = self.hanging(result)
            call = self.begin(hanging)
            self.clock.advance(15)
            self.failureResultOf(call, VolumeUnavailable)
            hanging.go.set()
            self.clock.deliver()
        self.assertEqual(self.ask(), "answer")

    def test_deadline_while_waiting(self) -> None:
        """A call for which no thread is free in time is never made."""
        self.fill()
        waiting = self.hanging()
        call = self.threads.run(waiting)
        self.clock.advance(15)
        self.failureResultOf(call, VolumeUnavailable)
        for hanging in self.calls[: self.size]:
            hanging.go.set()
        self.clock.deliver(self.size)
        self.assertEqual(self.ask(), "answer")
        self.assertFalse(waiting.begun.is_set())

    def test_own_deadline(self) -> None:
        """A call may have a deadline of its own, or none."""
        for deadline in (60.0, None):
            hanging = self.hanging()
            call = self.threads.submit(hanging, deadline, None)
            hanging.wait_begun()
            self.clock.advance(59)
            self.assertNoResult(call)
            self.clock.advance(2)
            if deadline is None:
                self.assertNoResult(call)
            else:
                self.failureResultOf(call, VolumeUnavailable)

    def test_others_go_on(self) -> None:
        """A call that hangs costs one thread, and the others answer as before."""
        hung = self.begin(self.hanging())
        self.clock.advance(15)
        self.failureResultOf(hung, VolumeUnavailable)
        for _ in range(3):
            self.assertEqual(self.ask(), "answer")

    # ---- bounds

    def test_backlog(self) -> None:
        """Calls are refused at once when too many are waiting."""
        self.fill()
        waiting = [self.threads.run(lambda: "made") for _ in range(self.backlog)]
        refused = self.failureResultOf(self.threads.run(lambda: None), VolumeUnavailable).value
        self.assertEqual(refused.headers, {"Retry-After": "5"})
        for hanging in self.calls:
            hanging.go.set()
        self.clock.deliver(self.size + self.backlog)
        for call in waiting:
            self.assertEqual(self.successResultOf(call), "made")

    def test_backlog_after_cancel(self) -> None:
        """A call that was taken back leaves its place in the queue to another."""
        self.fill()
        waiting = [self.threads.run(lambda: None) for _ in range(self.backlog)]
        waiting[1].cancel()
        self.failureResultOf(waiting[1], CancelledError)
        self.assertNoResult(self.threads.run(lambda: None))

    def test_all_stuck(self) -> None:
        """While all threads hang, nobody waits for an answer that cannot come."""
        calls = self.fill()
        self.clock.advance(15)
        for call in calls:
            self.failureResultOf(call, VolumeUnavailable)
        self.failureResultOf(self.threads.run(lambda: None), VolumeUnavailable)
        self.failureResultOf(
            Deferred.fromCoroutine(self.threads.run_long(lambda _: None)), VolumeUnavailable
        )

    def test_recovery(self) -> None:
        """As soon as one thread comes back, calls are made again."""
        self.fill_and_forget()
        self.calls[0].go.set()
        self.clock.deliver()
        self.assertEqual(self.ask(), "answer")
        self.calls[1].go.set()
        self.clock.deliver()
        self.assertEqual(self.ask(), "answer")

    def fill_and_forget(self) -> None:
        for call in self.fill():
            call.addErrback(lambda _: None)
        self.clock.advance(15)

    def test_stuck_again(self) -> None:
        """A volume can die, recover and die again."""
        for _ in range(3):
            self.fill_and_forget()
            self.failureResultOf(self.threads.run(lambda: None), VolumeUnavailable)
            for hanging in self.calls:
                hanging.go.set()
            self.clock.deliver(self.size)
            self.assertEqual(self.ask(), "answer")

    def test_stuck_and_cancelled(self) -> None:
        """Threads hang also when those who have made the calls did not wait for the deadline."""
        for call in self.fill():
            call.cancel()
            self.failureResultOf(call, CancelledError)
        self.clock.advance(15)
        self.failureResultOf(self.threads.run(lambda: None), VolumeUnavailable)

    def test_cancelled_and_back(self) -> None:
        """Threads whose calls were cancelled and have come back are not taken for stuck."""
        for call in self.fill():
            call.cancel()
            self.failureResultOf(call, CancelledError)
        for hanging in self.calls:
            hanging.go.set()
        self.clock.deliver(self.size)
        self.clock.advance(60)
        for _ in range(3):
            self.assertEqual(self.ask(), "answer")

    # ---- taking calls back

    def test_cancel_before_start(self) -> None:
        """A call that was taken back before it had begun is never made."""
        self.fill()
        waiting = self.hanging()
        call = self.threads.run(waiting)
        call.cancel()
        self.failureResultOf(call, CancelledError)
        for hanging in self.calls[: self.size]:
            hanging.go.set()
        self.clock.deliver(self.size)
        self.assertEqual(self.ask(), "answer")
        self.assertFalse(waiting.begun.is_set())
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_cancel_after_start(self) -> None:
        """Whoever takes a call back that has begun is free at once; the call ends by itself."""
        hanging = self.hanging()
        call = self.begin(hanging)
        call.cancel()
        self.failureResultOf(call, CancelledError)
        hanging.go.set()
        self.clock.deliver()
        self.assertEqual(self.ask(), "answer")

    def test_cancel_after_result(self) -> None:
        """Taking back what was answered changes nothing."""
        call = self.threads.run(lambda: "answer")
        self.clock.deliver()
        call.cancel()
        self.assertEqual(self.successResultOf(call), "answer")

    def discarding(self, give_up: Callable[[Deferred[Any]], None], result: Any) -> list[Any]:
        hanging = self.hanging(result)
        discarded: list[Any] = []

        def discard(result: Any) -> None:
            discarded.append((result, threading.get_ident()))

        call = self.threads.submit(hanging, 15.0, discard)
        self.clock.advance(0)
        hanging.wait_begun()
        give_up(call)
        call.addErrback(lambda _: None)
        hanging.go.set()
        self.clock.deliver()
        return discarded

    def test_discard_cancelled(self) -> None:
        """A result that nobody waits for any more is freed, in a thread."""
        discarded = self.discarding(lambda call: call.cancel(), "open file")
        self.clock.deliver()
        [(result, thread)] = discarded
        self.assertEqual(result, "open file")
        self.assertNotEqual(thread, threading.get_ident())

    def test_discard_late(self) -> None:
        """A result that comes after the deadline is freed."""
        discarded = self.discarding(lambda _: self.clock.advance(15), "open file")
        self.clock.deliver()
        self.assertEqual([result for result, _ in discarded], ["open file"])

    def test_discard_error(self) -> None:
        """Nothing is to be freed when a call has failed."""
        discarded = self.discarding(lambda call: call.cancel(), OSError(5, "broken"))
        self.assertEqual(self.ask(), "answer")
        self.assertEqual(discarded, [])

    def test_discard_not(self) -> None:
        """A result that is waited for is not freed."""
        self.assertEqual(self.discarding(lambda _: None, "open file"), [])
        self.assertEqual(self.ask(), "answer")

    def test_clean_up(self) -> None:
        """Files are closed however much is waiting."""
        self.fill()
        for _ in range(self.backlog):
            self.threads.run(lambda: None)
        done = threading.Event()
        self.threads.clean_up(done.set)
        for hanging in self.calls:
            hanging.go.set()
        self.assertTrue(done.wait(GIVE_UP))

    def test_clean_up_fails(self) -> None:
        """A clean-up that fails harms nobody."""

        def fail() -> None:
            raise OSError(5, "broken")

        self.threads.clean_up(fail)
        self.clock.deliver()
        self.assertEqual(self.ask(), "answer")
        self.assertEqual(len(self.flushLoggedErrors(OSError)) <= 1, True)

    # ---- the end

    def test_stop_refuses(self) -> None:
        """When the daemon is stopping, no more calls are taken."""
        self.threads.stop()
        self.failureResultOf(self.threads.run(lambda: None), VolumeUnavailable)

    def test_stop_finishes(self) -> None:
        """What was asked before the daemon began to stop is done."""
        self.fill()
        waiting = [self.threads.run(lambda: "made") for _ in range(3)]
        self.threads.stop()
        for hanging in self.calls:
            hanging.go.set()
        self.clock.deliver(self.size + 3)
        for call in waiting:
            self.assertEqual(self.successResultOf(call), "made")

    def test_stop_ends_threads(self) -> None:
        """No thread is left when all have come back."""
        before = set(threading.enumerate())
        self.fill()
        begun = [one for one in threading.enumerate() if one not in before]
        self.assertEqual(len(begun), self.size)
        self.threads.stop()
        for hanging in self.calls:
            hanging.go.set()
        for thread in begun:
            thread.join(GIVE_UP)
            self.assertFalse(thread.is_alive())

    def test_clean_up_after_stop(self) -> None:
        """What is still open when the threads are stopped is closed nevertheless."""
        self.ask()
        self.threads.stop()
        done = threading.Event()
        self.threads.clean_up(done.set)
        self.assertTrue(done.wait(GIVE_UP))

    def test_daemons(self) -> None:
        """A thread that hangs does not keep the process from ending."""
        before = set(threading.enumerate())
        self.fill()
        for thread in threading.enumerate():
            if thread not in before:
                self.assertTrue(thread.daemon)


class LongTests(ThreadsTestCase):
    """With one turn for long operations, and two threads."""

    def long(self, function: Callable[[Progress], Any]) -> Deferred[Any]:
        made = Deferred.fromCoroutine(self.threads.run_long(function))
        self.made.append(made)
        return made

    def begin_long(self, result: Any = "back") -> tuple[Hanging, Deferred[Any]]:
        hanging = self.hanging(result)
        call = self.long(hanging)
        hanging.wait_begun()
        return hanging, call

    def assertTurn(self) -> None:
        """One long operation can be made, and ends."""
        call = self.long(lambda progress: "next")
        self.clock.deliver(2)
        self.assertEqual(self.successResultOf(call), "next")

    def test_result(self) -> None:
        """A long operation tells its result, and leaves no timer."""
        self.assertTurn()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_error(self) -> None:
        """What a long operation raises is told as it is."""
        hanging, call = self.begin_long(OSError(5, "broken"))
        hanging.go.set()
        self.clock.deliver(2)
        self.failureResultOf(call, OSError)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertTurn()

    def said(self, what: str) -> list[str]:
        """What the log is told of an operation."""
        found: list[str] = []

        def see(event: LogEvent) -> None:
            text = formatEvent(event)
            if what in text:
                found.append(text)

        globalLogPublisher.addObserver(see)
        self.addCleanup(globalLogPublisher.removeObserver, see)
        return found

    def test_reports(self) -> None:
        """The log is told how far a long operation is, now and then and when it ends."""
        said = self.said("cloning")
        seen: list[Progress] = []
        hanging = self.hanging()

        def work(progress: Progress) -> Any:
            seen.append(progress)
            return hanging()

        call = Deferred.fromCoroutine(self.threads.run_long(work, "cloning {odd}"))
        hanging.wait_begun()
        for passed, number in ((9, 0), (1, 1), (5, 1), (10, 1), (14, 1), (1, 2), (15, 2), (15, 3)):
            seen[0].step(10, 1000)
            self.clock.advance(passed)
            self.assertEqual(len(said), number)
        self.assertEqual(
            said[-1], "Volume test: cloning {odd} goes on: 80 entries, 8000 bytes in 70 s."
        )
        hanging.go.set()
        self.clock.deliver(2)
        self.successResultOf(call)
        self.assertEqual(len(said), 4)
        self.assertIn("is done: 80 entries", said[-1])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_report_of_failure(self) -> None:
        """The log is told that an operation has failed, or was broken off."""
        said = self.said("counting")
        for end in ("has failed", "was broken off"):
            hanging = self.hanging(OSError(5, "broken"))
            call = Deferred.fromCoroutine(self.threads.run_long(hanging, "counting"))
            hanging.wait_begun()
            self.clock.advance(10)
            if end == "has failed":
                hanging.go.set()
                self.clock.deliver(2)
                self.failureResultOf(call, OSError)
            else:
                call.cancel()
                self.failureResultOf(call, CancelledError)
                hanging.go.set()
                self.clock.deliver(2)
            self.assertIn(end, said[-1])

    def test_no_report(self) -> None:
        """An operation that is soon over leaves the log alone."""
        said = self.said("")
        hanging, call = self.begin_long()
        self.clock.advance(9)
        hanging.go.set()
        self.clock.deliver(2)
        self.successResultOf(call)
        self.assertEqual(said, [])

    def test_progress(self) -> None:
        """An operation may take for ever while it makes progress."""
        steps: list[Progress] = []
        hanging = self.hanging()

        def work(progress: Progress) -> Any:
            steps.append(progress)
            return hanging()

        call = self.long(work)
        hanging.wait_begun()
        for _ in range(100):
            steps[0].step()
            self.clock.advance(14)
        self.assertNoResult(call)
        hanging.go.set()
        self.clock.deliver(2)
        self.assertEqual(self.successResultOf(call), "back")

    def test_stall(self) -> None:
        """An operation without progress is given up in bounded time, with 503."""
        _, call = self.begin_long()
        for _ in range(3):
            self.clock.advance(15)
        error = self.failureResultOf(call, VolumeUnavailable).value
        self.assertIn("Retry-After", error.headers)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_silence(self) -> None:
        """A wait of any length is no stall, but keeps its turn; the next calls may stall again."""
        waiting, stalling = self.hanging(), self.hanging()

        def work(progress: Progress) -> None:
            with progress.silence():
                waiting()
            stalling()

        said = self.said("a long operation")
        call = self.long(work)
        waiting.wait_begun()
        for _ in range(100):
            self.clock.advance(14)
        self.assertNoResult(call)
        self.assertIn("goes on", said[-1])
        following = self.long(lambda progress: "next")
        for _ in range(5):
            self.clock.advance(15)
        self.failureResultOf(following, VolumeUnavailable)
        waiting.go.set()
        stalling.wait_begun()
        self.clock.advance(15)
        self.assertNoResult(call)
        self.clock.advance(15)
        self.failureResultOf(call, VolumeUnavailable)

    def test_failed_silence(self) -> None:
        """What goes wrong in a wait is raised, and ends it."""
        progress = Progress()
        with self.assertRaises(OSError), progress.silence():
            self.assertTrue(progress.silent)
            raise OSError(5, "broken")
        self.assertFalse(progress.silent)

    def test_stalled_ends(self) -> None:
        """An operation that was given up learns of it when it comes back."""
        seen: list[BaseException | None] = []
        hanging = self.hanging()

        def work(progress: Progress) -> None:
            hanging()
            try:
                progress.step()
            except Abandoned as error:
                seen.append(error)
                raise

        call = self.long(work)
        hanging.wait_begun()
        for _ in range(3):
            self.clock.advance(15)
        self.failureResultOf(call, VolumeUnavailable)
        hanging.go.set()
        self.clock.deliver(2)
        self.assertIsInstance(seen[0], Abandoned)
        self.assertEqual(self.flushLoggedErrors(), [])

    def test_turn_is_the_threads(self) -> None:
        """The turn of an operation that hangs is given to another when its thread comes back."""
        hanging, call = self.begin_long()
        for _ in range(3):
            self.clock.advance(15)
        self.failureResultOf(call, VolumeUnavailable)
        following = self.hanging()
        next_call = self.long(following)
        self.assertFalse(following.begun.is_set())
        hanging.go.set()
        self.clock.deliver(2)
        following.wait_begun()
        following.go.set()
        self.clock.deliver(2)
        self.assertEqual(self.successResultOf(next_call), "back")

    def test_turns(self) -> None:
        """No more long operations are made at one time than allowed; others are not held up."""
        hanging, _ = self.begin_long()
        following = self.hanging()
        self.long(following)
        call = self.threads.run(lambda: "short")
        self.clock.deliver()
        self.assertEqual(self.successResultOf(call), "short")
        self.assertFalse(following.begun.is_set())

    def test_no_turn(self) -> None:
        """Who waits for a turn in vain is told so in bounded time."""
        self.begin_long()
        call = self.long(lambda _: "next")
        for _ in range(5):
            self.clock.advance(15)
        self.failureResultOf(call, VolumeUnavailable)

    def test_cancel_waiting_for_turn(self) -> None:
        """Who gives up waiting for a turn does not take it."""
        hanging, first = self.begin_long()
        second = self.long(lambda _: "second")
        second.cancel()
        self.failureResultOf(second, CancelledError)
        hanging.go.set()
        self.clock.deliver(2)
        self.assertEqual(self.successResultOf(first), "back")
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertTurn()

    def test_cancel_before_start(self) -> None:
        """An operation that was taken back while it waited for a thread gives its turn back."""
        self.fill()
        call = self.long(lambda _: "never")
        call.cancel()
        self.failureResultOf(call, CancelledError)
        for hanging in self.calls:
            hanging.go.set()
        self.clock.deliver(self.size)
        self.assertTurn()

    def test_stall_before_start(self) -> None:
        """An operation for which no thread is ever free gives its turn back."""
        hung = self.fill()
        call = self.long(lambda _: "never")
        for _ in range(3):
            self.clock.advance(15)
        self.failureResultOf(call, VolumeUnavailable)
        for one in hung:
            self.failureResultOf(one, VolumeUnavailable)
        for hanging in self.calls:
            hanging.go.set()
        self.clock.deliver(self.size)
        self.assertTurn()

    def test_cancel_after_start(self) -> None:
        """An operation that was taken back ends at its next step, and so does its turn."""
        seen: list[Progress] = []
        hanging = self.hanging()

        def work(progress: Progress) -> None:
            seen.append(progress)
            hanging()
            progress.step()

        call = self.long(work)
        hanging.wait_begun()
        call.cancel()
        self.failureResultOf(call, CancelledError)
        self.assertRaises(Abandoned, seen[0].step)
        hanging.go.set()
        self.clock.deliver(2)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertTurn()

    def test_refused(self) -> None:
        """An operation that is refused because too much is waiting gives its turn back."""
        self.fill()
        for _ in range(self.backlog):
            self.threads.run(lambda: None)
        for _ in range(2):
            self.failureResultOf(self.long(lambda _: None), VolumeUnavailable)
        for hanging in self.calls:
            hanging.go.set()
        self.clock.deliver(self.size + self.backlog)
        self.assertTurn()

    def test_refused_when_stuck(self) -> None:
        """Operations that are refused while all threads hang are possible when they are back."""
        for call in self.fill():
            call.addErrback(lambda _: None)
        self.clock.advance(15)
        for _ in range(2):
            self.failureResultOf(self.long(lambda _: None), VolumeUnavailable)
        for hanging in self.calls:
            hanging.go.set()
        self.clock.deliver(self.size)
        self.assertTurn()

    def test_stopped(self) -> None:
        """When the daemon is stopping, no more operations are begun."""
        self.threads.stop()
        self.failureResultOf(self.long(lambda _: None), VolumeUnavailable)


class SynchronousThreadsTests(SynchronousTestCase):
    def test_calls(self) -> None:
        """Calls are made at once, whichever way they are asked for."""
        threads = SynchronousThreads()
        here = threading.get_ident()
        self.assertEqual(self.successResultOf(threads.run(threading.get_ident)), here)
        self.assertEqual(
            self.successResultOf(threads.submit(threading.get_ident, None, None)), here
        )
        self.assertEqual(result_of(threads.run_long(lambda _: threading.get_ident())), here)
        self.failureResultOf(threads.run(os.stat, self.mktemp()), FileNotFoundError)

    def test_stop(self) -> None:
        """No calls are taken any more when they are stopped."""
        threads = SynchronousThreads()
        threads.stop()
        self.failureResultOf(threads.run(lambda: None), VolumeUnavailable)
        self.assertRaises(VolumeUnavailable, result_of, threads.run_long(lambda _: None))


class ReactorTests(TestCase):
    """With the real reactor, and many calls."""

    async def test_many(self) -> None:
        """Of many calls, each gets its own result, whatever the others do."""
        threads = VolumeThreads(reactor, "test", size=4, backlog=1000)
        self.addCleanup(threads.stop)
        calls = [threads.run(lambda number: number * 2, number) for number in range(500)]
        for number in range(0, 500, 7):
            calls[number].cancel()
        for number, call in enumerate(calls):
            if number % 7:
                self.assertEqual(await call, number * 2)
            else:
                with self.assertRaises(CancelledError):
                    await call

    async def test_many_long(self) -> None:
        """Of many long operations, each gets its turn and its own result."""
        threads = VolumeThreads(reactor, "test", size=4, long_calls=2)
        self.addCleanup(threads.stop)

        def work(number: int) -> Callable[[Progress], int]:
            def function(progress: Progress) -> int:
                progress.step()
                return number

            return function

        calls = [Deferred.fromCoroutine(threads.run_long(work(number))) for number in range(100)]
        for number, call in enumerate(calls):
            self.assertEqual(await call, number)
