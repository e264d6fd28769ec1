# -*- test-case-name: tests.test_xfs_commits -*-
"""
Changes of the registry, many of which share one rewriting of its files.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from attrs import define, field
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from backends.xfs.registry import Entries, Registry
from storageproxy.interfaces import IThreads

T = TypeVar("T")


@define(eq=False)
class Commits:
    """
    Takes what is asked for while the files are being written together for the next time.

    :param threads: where that is done; not those of a volume, which may hang.
    """

    registry: Registry
    threads: IThreads
    _waiting: list[tuple[Callable[[Entries], Any], Deferred[Any]]] = field(factory=list)
    _busy: bool = False

    def apply(self, edit: Callable[[Entries], T]) -> Deferred[T]:
        """
        Change the registry.

        :param edit: see :meth:`backends.xfs.registry.Registry.change`.
        :return: a Deferred with what it returns or raises, when that is on stable storage.
            Cancelling it takes back nothing.
        """
        answer: Deferred[T] = Deferred(lambda _: None)
        self._waiting.append((edit, answer))
        if not self._busy:
            self._busy = True
            self._go()
        return answer

    def _go(self) -> None:
        together, self._waiting = self._waiting, []
        edits = [edit for edit, _ in together]
        made = self.threads.run(self.registry.change, edits)

        def tell(results: list[Any] | Failure) -> None:
            # First: who is told may ask for something more.
            if self._waiting:
                self._go()
            else:
                self._busy = False
            told = results if isinstance(results, list) else [results] * len(edits)
            for (_, answer), result in zip(together, told, strict=True):
                if not answer.called:
                    answer.callback(result)

        made.addBoth(tell)
