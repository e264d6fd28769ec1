"""
The threads in which a volume's file-system calls are made.

A call on a dead mount hangs in the kernel and cannot be ended. It costs its volume one thread and
its caller a :exc:`~storageproxy.errors.VolumeUnavailable` when the deadline passes; the reactor and
all other volumes never notice.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

from attrs import define, field
from twisted.internet.defer import CancelledError, Deferred, DeferredSemaphore, fail
from twisted.internet.interfaces import IDelayedCall
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from storageproxy.errors import VolumeUnavailable
from storageproxy.interfaces import IThreads

P = ParamSpec("P")
T = TypeVar("T")

#: Seconds after which a long operation is told about in the log, and then again and again.
FIRST_REPORT, NEXT_REPORT = 10.0, 30.0

#: Seconds between two looks at a sweep. One that is found at the same call twice is taken to wait
#: for the disk, and another thread makes the next calls. Few calls take this long in memory, and
#: threads that make calls in memory side by side only wait for each other: for the lock of the
#: interpreter, after each system call. That costs more than the calls themselves.
PATIENCE = 0.005

#: Seconds for which results are told before the reactor looks at anything else.
TURN = 0.01


class Abandoned(Exception):
    """The caller of a long operation has given up; raised inside of it."""


class Progress:
    """
    How a long operation tells that it is alive and how far it is, and learns that it need not go
    on.

    :ivar steps: a number that grows.
    :ivar entries: files, directories and the like that it has come to.
    :ivar size: bytes that it has dealt with.
    :ivar silent: whether it waits for a call that may take any time.
    """

    __slots__ = ("_abandoned", "entries", "silent", "size", "steps")

    def __init__(self) -> None:
        self.steps = self.entries = self.size = 0
        self.silent = self._abandoned = False

    def step(self, entries: int = 1, size: int = 0) -> None:
        """
        To be called often, at least once for each file and each few MiB. It costs next to nothing.

        :param entries: how many it has come to since the last step; 0 within one of them.
        :param size: bytes that it has dealt with since then.
        :raises Abandoned: when nobody waits for the result any more.
        """
        self.steps += 1
        self.entries += entries
        self.size += size
        if self._abandoned:
            raise Abandoned

    @contextmanager
    def silence(self) -> Iterator[None]:
        """
        For a call that cannot be cut into steps, and takes as long as others make it take, such as
        syncfs(2). It is not taken for one that hangs, but keeps its turn all the same.
        """
        self.silent = True
        try:
            yield
        finally:
            # First: one who finds it not silent any more finds this step, too.
            self.steps += 1
            self.silent = False

    def abandon(self) -> None:
        """Make the next :meth:`step` end the operation."""
        self._abandoned = True


@define(eq=False)
class _Report:
    """
    Tells the log about an operation that takes long, now and then and at its end.

    :param reactor: keeps the time.
    :param name: the volume's name.
    :param what: the operation.
    """

    reactor: Any
    log: Logger
    name: str
    what: str
    progress: Progress
    _begun: float = field(init=False)
    _timer: IDelayedCall = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._begun = self.reactor.seconds()
        self._timer = self.reactor.callLater(FIRST_REPORT, self._tell)

    def end(self, outcome: str) -> None:
        """
        Tell how it ended, when there is something to add to a short silence.

        :param outcome: what has become of it.
        """
        if self._timer.active():
            self._timer.cancel()
        if self.reactor.seconds() - self._begun >= FIRST_REPORT:
            self._say(outcome)

    def _tell(self) -> None:
        self._timer = self.reactor.callLater(NEXT_REPORT, self._tell)
        self._say("goes on")

    def _say(self, outcome: str) -> None:
        self.log.info(
            "Volume {name}: {what} {outcome}: {entries} entries, {size} bytes in {seconds:.0f} s.",
            name=self.name,
            what=self.what,
            outcome=outcome,
            entries=self.progress.entries,
            size=self.progress.size,
            seconds=self.reactor.seconds() - self._begun,
        )


@define(eq=False)
class _Call:
    """
    :param alone: whether it is worth a thread of its own, as it moves much or takes long.
    """

    function: Callable[[], Any]
    deferred: Deferred[Any]
    discard: Callable[[Any], object] | None
    alone: bool = False
    timer: IDelayedCall | None = None
    started: bool = False
    overdue: bool = False


@define(eq=False)
class _Run:
    """
    What a thread does from when it is woken until it rests.

    :param first: where it takes its first call from.
    :ivar begun: how many calls it has begun; written by the thread alone.
    :ivar seen: how many they were when the reactor last looked.
    """

    first: deque[_Call]
    begun: int = 0
    seen: int = -1


def _next(queue: deque[_Call]) -> _Call | None:
    try:
        call = queue.popleft()
    except IndexError:
        return None
    call.started = True
    return call


def _outcome(call: _Call) -> object:
    try:
        return call.function()
    except BaseException:
        return Failure()


@implementer(IThreads)
@define(eq=False)
class VolumeThreads:
    """
    A bounded pool of threads with a bounded queue in front.

    Ordinary calls are collected during a turn of the reactor and made by one thread, the sweep,
    one after the other; their results are told together. A sweep that hangs is left to itself, and
    another one begins: from then on what it brings is told at once, as is all that other threads
    bring. So the reactor need not look at anything but the sweep. A call that moves much or takes
    long gets a thread of its own at once, as long as there is one.

    :param reactor: where results are delivered and deadlines are kept.
    :param name: the volume's name, for messages.
    :param size: threads at most.
    :param backlog: calls at most that wait for a thread.
    :param deadline: seconds that a call may take, waiting included.
    :param long_calls: long operations at most that run at one time.
    """

    reactor: Any
    name: str
    size: int = 16
    backlog: int = 1024
    deadline: float = 15.0
    long_calls: int = 4
    _log: Logger = field(factory=lambda: Logger("storageproxy.threads"))
    #: What waits for a thread; a call that is taken back is missing here.
    _queue: deque[_Call] = field(factory=deque)
    #: The same, of calls for each of which a thread has been woken.
    _alone: deque[_Call] = field(factory=deque)
    #: Wakes a thread, or ends it. It needs no lock, and costs a third of a Condition.
    _tickets: SimpleQueue[_Run | None] = field(factory=SimpleQueue)
    _threads: int = 0
    #: Those that go from call to call until there is none left.
    _awake: int = 0
    #: What they have brought.
    _results: deque[tuple[_Call, Any]] = field(factory=deque)
    _sweep: _Run | None = None
    #: The next look: at the end of this turn, or at the sweep. There is always one while it runs.
    _timer: IDelayedCall | None = None
    _stuck: int = 0
    _stopped: bool = False
    _long: DeferredSemaphore = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._long = DeferredSemaphore(self.long_calls)

    @property
    def slow_deadline(self) -> float:
        """See :attr:`storageproxy.interfaces.IThreads.slow_deadline`."""
        return self.deadline * 4

    def run(
        self,
        function: Callable[P, T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Deferred[T]:
        """See :meth:`storageproxy.interfaces.IThreads.run`."""
        return self.submit(lambda: function(*args, **kwargs), self.deadline, None)

    def submit(
        self,
        function: Callable[[], T],
        deadline: float | None,
        discard: Callable[[T], object] | None,
    ) -> Deferred[T]:
        """See :meth:`storageproxy.interfaces.IThreads.submit`."""
        try:
            return self._submit(function, deadline, discard).deferred
        except VolumeUnavailable:
            return fail()

    def _submit(
        self,
        function: Callable[[], T],
        deadline: float | None,
        discard: Callable[[T], object] | None,
    ) -> _Call:
        if self._stopped:
            raise VolumeUnavailable(f"volume {self.name}: the daemon is stopping")
        if self._stuck >= self.size:
            raise VolumeUnavailable(f"volume {self.name}: all its threads are stuck")
        if len(self._queue) >= self.backlog:
            raise VolumeUnavailable(f"volume {self.name}: too many calls are waiting")
        deferred: Deferred[T] = Deferred(lambda _: self._abandon(call))
        call = _Call(function, deferred, discard, alone=deadline != self.deadline)
        if deadline is not None:
            call.timer = self.reactor.callLater(deadline, self._late, call, deadline)
        self._enqueue(call)
        return call

    async def run_long(
        self, function: Callable[[Progress], T], what: str = "a long operation"
    ) -> T:
        """See :meth:`storageproxy.interfaces.IThreads.run_long`."""
        await self._turn()
        progress = Progress()
        try:
            call = self._submit(lambda: self._long_call(function, progress), None, None)
        except VolumeUnavailable:
            self._long.release()
            raise
        report = _Report(self.reactor, self._log, self.name, what, progress)
        outcome = "has failed"
        stalled = False
        timer: IDelayedCall = self.reactor.callLater(self.deadline, lambda: watch(-1))

        def watch(steps: int) -> None:
            nonlocal timer, stalled
            if not progress.silent and progress.steps == steps:
                stalled = True
                if call.started:
                    self._mark_stuck(call)
                call.deferred.cancel()
            else:
                timer = self.reactor.callLater(self.deadline, watch, progress.steps)

        try:
            result: T = await call.deferred
            outcome = "is done"
        except CancelledError:
            outcome = "makes no progress" if stalled else "was broken off"
            if stalled:
                raise VolumeUnavailable(
                    f"volume {self.name}: a long operation makes no progress"
                ) from None
            raise
        finally:
            progress.abandon()
            report.end(outcome)
            if timer.active():
                timer.cancel()
            if not call.started:
                self._long.release()
        return result

    async def _turn(self) -> None:
        turn = self._long.acquire()
        timer = self.reactor.callLater(self.slow_deadline, turn.cancel)
        try:
            await turn
        except CancelledError:
            if timer.active():
                raise
            raise VolumeUnavailable(f"volume {self.name}: too many long operations") from None
        finally:
            if timer.active():
                timer.cancel()

    def _long_call(self, function: Callable[[Progress], T], progress: Progress) -> T:
        # The turn is given back when the thread is, not when the caller stops waiting.
        try:
            progress.step(0)
            return function(progress)
        finally:
            self.reactor.callFromThread(self._long.release)

    def clean_up(self, function: Callable[[], object]) -> None:
        """See :meth:`storageproxy.interfaces.IThreads.clean_up`."""
        call = _Call(function, Deferred(), None)
        call.deferred.addErrback(self._not_cleaned)
        self._enqueue(call)

    def _not_cleaned(self, failure: Failure) -> None:
        self._log.warn(
            "Volume {name}: cleaning up failed: {error}",
            name=self.name,
            error=failure.getErrorMessage(),
        )

    def stop(self) -> None:
        """See :meth:`storageproxy.interfaces.IThreads.stop`."""
        self._stopped = True
        for _ in range(self._threads):
            self._tickets.put(None)
        self._threads = 0
        self._end_looking()
        if self._queue:
            self._collect()
        # There may be no next turn.
        self._deliver(float("inf"))

    # ---- in the reactor

    def _enqueue(self, call: _Call) -> None:
        if call.alone and self._awake < self.size:
            self._alone.append(call)
            self._wake(_Run(self._alone))
        else:
            self._queue.append(call)
            self._collect()

    def _collect(self) -> None:
        """Have a sweep begin when this turn of the reactor has asked for all it wants."""
        if self._sweep is not None or self._timer is not None or self._awake >= self.size:
            # It is seen to by the sweep, by the next look, or by a thread before it rests.
            return
        if self._stopped:
            # Nobody looks any more, so it is no sweep.
            self._wake(_Run(self._queue))
        else:
            self._timer = self.reactor.callLater(0, self._look)

    def _look(self) -> None:
        self._timer = None
        sweep = self._sweep
        if sweep is not None:
            begun = sweep.begun
            if begun == sweep.seen:
                self._sweep = None
            sweep.seen = begun
        begins = None
        if self._sweep is None and self._queue and self._awake < self.size:
            self._sweep = begins = _Run(self._queue)
        if self._sweep is not None:
            self._timer = self.reactor.callLater(PATIENCE, self._look)
        if begins is not None:
            # It is to know that it is the sweep, and is looked at even if no thread can be begun.
            self._wake(begins)
        # Only now: what a sweep that was just left to itself has brought without telling is here.
        self._deliver()

    def _end_looking(self) -> None:
        self._sweep = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wake(self, run: _Run) -> None:
        if self._threads > self._awake:
            self._tickets.put(run)
        else:
            # Daemon threads: one that hangs in a dead mount must not keep the process from ending.
            threading.Thread(
                target=self._work, args=(run,), name=f"volume-{self.name}", daemon=True
            ).start()
            if self._stopped:
                self._tickets.put(None)
            else:
                self._threads += 1
        self._awake += 1

    def _rests(self, run: _Run) -> None:
        self._awake -= 1
        if run is self._sweep:
            self._end_looking()
        self._deliver()
        if self._queue:
            # It came when the thread had just looked for the last time.
            self._collect()

    def _deliver(self, until: float | None = None) -> None:
        if until is None:
            until = self.reactor.seconds() + TURN
        while self._results:
            if self.reactor.seconds() > until:
                self.reactor.callLater(0, self._deliver)
                return
            self._done(*self._results.popleft())

    def _done(self, call: _Call, result: Any) -> None:
        if call.overdue:
            self._stuck -= 1
            self._log.info("Volume {name}: a call that was given up has come back.", name=self.name)
        if call.timer is not None and call.timer.active():
            call.timer.cancel()
        if not call.deferred.called:
            call.deferred.callback(result)
        elif call.discard is not None and not isinstance(result, Failure):
            discard = call.discard
            self.clean_up(lambda: discard(result))

    def _late(self, call: _Call, deadline: float) -> None:
        hanging = self._take_back(call)
        if hanging:
            self._mark_stuck(call)
        self._log.warn(
            "Volume {name}: a call has {what} for {deadline} s. Its mount may be dead:"
            " look at it and at the server behind it.",
            name=self.name,
            what="not come back" if hanging else "waited in vain for a thread",
            deadline=deadline,
        )
        if not call.deferred.called:
            call.deferred.errback(
                VolumeUnavailable(f"volume {self.name}: no answer for {deadline:g} seconds")
            )

    def _take_back(self, call: _Call) -> bool:
        """Have a call not made; whether it has begun already."""
        for queue in (self._alone, self._queue):
            try:
                queue.remove(call)
            except ValueError:
                continue
            return False
        # A thread has just taken it, if it is not marked yet.
        call.started = True
        return True

    def _mark_stuck(self, call: _Call) -> None:
        call.overdue = True
        self._stuck += 1

    def _abandon(self, call: _Call) -> None:
        # The timer of one that has begun goes on: whether it hangs is to be known all the same.
        if not self._take_back(call) and call.timer is not None and call.timer.active():
            call.timer.cancel()

    # ---- in threads

    def _work(self, run: _Run | None) -> None:
        while run is not None:
            self._make_calls(run)
            self.reactor.callFromThread(self._rests, run)
            run = self._tickets.get()

    def _make_calls(self, run: _Run) -> None:
        call = _next(run.first)
        while call is not None:
            run.begun += 1
            self._results.append((call, _outcome(call)))
            following = _next(self._queue)
            # The reactor tells what the sweep brings. It is asked for after the result was added,
            # as the reactor takes the results after it has left a sweep to itself: one of the two
            # sees the other. The last result is told when the thread rests.
            if following is not None and (call.alone or self._sweep is not run):
                self.reactor.callFromThread(self._deliver)
            call = following
