"""
The threads in which a volume's file-system calls are made.

A call on a dead mount hangs in the kernel and cannot be ended. It costs its volume one thread and
its caller a :exc:`~storageproxy.errors.VolumeUnavailable` when the deadline passes; the reactor and
all other volumes never notice.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
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


class Abandoned(Exception):
    """The caller of a long operation has given up; raised inside of it."""


class Progress:
    """
    How a long operation tells that it is alive and how far it is, and learns that it need not go
    on.

    :ivar steps: a number that grows.
    :ivar entries: files, directories and the like that it has come to.
    :ivar size: bytes that it has dealt with.
    """

    __slots__ = ("_abandoned", "entries", "size", "steps")

    def __init__(self) -> None:
        self.steps = self.entries = self.size = 0
        self._abandoned = False

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
    function: Callable[[], Any]
    deferred: Deferred[Any]
    discard: Callable[[Any], object] | None
    timer: IDelayedCall | None = None
    started: bool = False
    overdue: bool = False


@implementer(IThreads)
@define(eq=False)
class VolumeThreads:
    """
    A bounded pool of threads with a bounded queue in front.

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
    #: One for each call that was put into the queue, and False for a thread that is to end. It
    #: needs no lock, and costs a third of a Condition to wake a thread with.
    _tickets: SimpleQueue[bool] = field(factory=SimpleQueue)
    _threads: int = 0
    #: Calls in the queue and in threads.
    _calls: int = 0
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
        call = _Call(function, deferred, discard)
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
            if progress.steps == steps:
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
            self._tickets.put(False)
        self._threads = 0

    def _enqueue(self, call: _Call) -> None:
        self._calls += 1
        self._queue.append(call)
        self._tickets.put(True)
        if self._threads < min(self._calls, self.size):
            self._threads += 1
            # Daemon threads: one that hangs in a dead mount must not keep the process from ending.
            threading.Thread(target=self._work, name=f"volume-{self.name}", daemon=True).start()

    def _work(self) -> None:
        while self._tickets.get():
            try:
                call = self._queue.popleft()
            except IndexError:
                # It was taken back.
                continue
            call.started = True
            result: object
            try:
                result = call.function()
            except BaseException:
                result = Failure()
            self.reactor.callFromThread(self._done, call, result)
            del call, result

    def _done(self, call: _Call, result: Any) -> None:
        self._calls -= 1
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
        try:
            self._queue.remove(call)
        except ValueError:
            # A thread has just taken it, if it is not marked yet.
            call.started = True
        else:
            self._calls -= 1
        return call.started

    def _mark_stuck(self, call: _Call) -> None:
        call.overdue = True
        self._stuck += 1

    def _abandon(self, call: _Call) -> None:
        # The timer of one that has begun goes on: whether it hangs is to be known all the same.
        if not self._take_back(call) and call.timer is not None and call.timer.active():
            call.timer.cancel()
