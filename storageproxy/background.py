"""
Work that has to come to its end, whoever has asked for it and whether or not he still waits.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

T = TypeVar("T")


@define(eq=False)
class Background:
    """
    Coroutines that nobody cancels.
    """

    _log: Logger = field(factory=lambda: Logger("storageproxy.background"))
    _running: set[Deferred[None]] = field(factory=set)
    _waiting: list[Deferred[None]] = field(factory=list)

    def run(self, what: str, work: Coroutine[Any, Any, T]) -> Deferred[T]:
        """
        Begin some work.

        :param what: names it in the log, should it fail when nobody waits any more.
        :return: a Deferred with its result. Cancelling it lets go of the result only.
        """
        answer: Deferred[T] = Deferred(lambda _: None)
        self._begin(what, work, answer)
        return answer

    def start(self, what: str, work: Coroutine[Any, Any, Any]) -> None:
        """Begin some work whose result nobody waits for."""
        self._begin(what, work, None)

    async def wait(self) -> None:
        """Return when all of it has ended. Cancelling ends the waiting only."""
        while self._running:
            ended: Deferred[None] = Deferred()
            self._waiting.append(ended)
            await ended

    def _begin(self, what: str, work: Coroutine[Any, Any, T], answer: Deferred[T] | None) -> None:
        running: Deferred[Any] = Deferred.fromCoroutine(work)

        def done(result: T | Failure) -> None:
            self._running.discard(running)
            if not self._running:
                waiting, self._waiting = self._waiting, []
                for ended in waiting:
                    if not ended.called:
                        ended.callback(None)
            if answer is not None and not answer.called:
                answer.callback(result)
            elif isinstance(result, Failure):
                self._log.info(
                    "{what} has ended when nobody waited any more: {error}",
                    what=what,
                    error=result.getErrorMessage(),
                )

        self._running.add(running)
        running.addBoth(done)
