"""
Changes of the registry that share one rewriting.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from backends.xfs.commits import Commits
from backends.xfs.interfaces import NotManaged
from backends.xfs.registry import Entries, Registry
from storageproxy.errors import VolumeUnavailable
from tests.harness import HeldThreads

IDS = range(100, 110)


class CommitsTests(SynchronousTestCase):
    def setUp(self) -> None:
        root = Path(self.mktemp()).absolute()
        root.mkdir(parents=True)
        self.steps: list[str] = []
        self.registry = Registry(str(root / "projects"), str(root / "projid"), self.steps.append)
        self.clock = Clock()
        self.threads = HeldThreads(self.clock, held=True)
        self.commits = Commits(self.registry, self.threads)

    def place(self, path: str) -> Deferred[int]:
        def edit(entries: Entries) -> int:
            project = entries.choose(IDS, 0)
            entries.place(project, path)
            return project

        return self.commits.apply(edit)

    def run_one(self) -> None:
        self.threads.step()

    def test_together(self) -> None:
        """What comes while the files are written is written together, once."""
        first = self.place("/0")
        rest = [self.place(f"/{number}") for number in range(1, 5)]
        self.assertEqual(len(self.threads.calls), 1)
        self.run_one()
        self.assertEqual(self.successResultOf(first), 100)
        for one in rest:
            self.assertNoResult(one)
        self.assertEqual(len(self.threads.calls), 1)
        self.run_one()
        self.assertEqual([self.successResultOf(one) for one in rest], [101, 102, 103, 104])
        self.assertEqual(self.steps.count("projects replaced"), 2)
        self.assertEqual(len(self.threads.calls), 0)

    def test_again(self) -> None:
        """When all is written, the next change begins at once."""
        self.place("/a").addErrback(lambda _: None)
        self.run_one()
        made = self.place("/b")
        self.run_one()
        self.assertEqual(self.successResultOf(made), 101)

    def test_asked_by_result(self) -> None:
        """Who is told may ask for the next change."""
        results: list[Any] = []
        self.place("/a").addCallback(lambda _: self.place("/b").addCallback(results.append))
        self.run_one()
        self.run_one()
        self.assertEqual(results, [101])

    def test_own_failure(self) -> None:
        """One that cannot be done does not hinder the others."""
        self.place("/a").addErrback(lambda _: None)
        wrong, right = self.place("/a\nb"), self.place("/b")
        self.run_one()
        self.run_one()
        self.failureResultOf(wrong, NotManaged)
        self.assertEqual(self.successResultOf(right), 101)

    def test_failure(self) -> None:
        """When the files cannot be written, all are told, and the next ones try again."""
        made = [self.place("/a"), self.place("/b")]
        self.threads.fail(VolumeUnavailable("no answer in time"))
        self.failureResultOf(made[0], VolumeUnavailable)
        self.assertNoResult(made[1])
        self.run_one()
        self.assertEqual(self.successResultOf(made[1]), 100)

    def test_cancel(self) -> None:
        """A change that nobody waits for is made all the same."""
        first, second = self.place("/a"), self.place("/b")
        for made in (first, second):
            made.addErrback(lambda _: None)
            made.cancel()
        self.run_one()
        self.run_one()
        self.assertEqual(self.registry.read().paths, {100: "/a", 101: "/b"})
