"""
The projects of a volume, on a kernel in memory.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import LogEvent, formatEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from backends.xfs.interfaces import (
    Account,
    Drifted,
    IKernel,
    ILimits,
    IProjects,
    Limit,
    Mark,
    NotManaged,
    Quotas,
)
from backends.xfs.projects import HIGHEST_LIMIT, IDS, Projects, asked_by
from backends.xfs.testing import MemoryKernel
from storageproxy.errors import BackendFailure, InvalidParameters, VolumeUnavailable
from storageproxy.testing import SynchronousThreads, result_of
from tests.harness import HeldThreads
from tests.xfs_fakes import MemoryLimits, Rig

T = TypeVar("T")


@contextmanager
def opened(path: str, flags: int = os.O_RDONLY) -> Iterator[int]:
    descriptor = os.open(path, flags)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


class ProjectsCase(SynchronousTestCase):
    def setUp(self) -> None:
        directory = os.path.abspath(self.mktemp())
        os.makedirs(directory)
        self.rig = Rig(directory, SynchronousThreads())
        self.kernel, self.projects = self.rig.kernel, self.rig.projects

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return result_of(work)

    def allocate(self, path: str, projects: Projects | None = None) -> int:
        with opened(path) as descriptor:
            return self.do((projects or self.projects).allocate(descriptor))

    def set_limit(self, path: str, limit: Limit) -> Account:
        with opened(path) as descriptor:
            return self.do(self.projects.set_limit(descriptor, limit))

    def account(self, path: str) -> Account:
        with opened(path) as descriptor:
            return self.do(self.projects.account(descriptor))

    def folder(self, digits: int = 1, limit: int = 0) -> tuple[str, int]:
        path = self.rig.folder(digits)
        project = self.allocate(path)
        if limit:
            self.set_limit(path, Limit(limit))
        return path, project

    def assertThere(self, project: int) -> None:
        """A project is not released, as its directory is there: nothing is to be waited for."""
        error = self.assertRaises(NotManaged, self.do, self.projects.release(project))
        self.assertIn("is there", str(error))

    def lines(self, path: str) -> list[str]:
        with open(path) as file:
            return file.read().splitlines()

    def assertRegistered(self, expected: dict[int, str]) -> None:
        """The registry has exactly these."""
        entries = self.projects.registry.read()
        self.assertEqual(entries.paths, expected)
        self.assertEqual(entries.ours, set(expected))


class AllocateTests(ProjectsCase):
    def test_interfaces(self) -> None:
        """The parts are what is wanted of them, the fakes, too."""
        verifyObject(IProjects, self.projects)
        verifyObject(IProjects, Projects.embedded(Clock(), self.rig.top, self.rig.threads))
        verifyObject(IKernel, MemoryKernel(self.rig.top))
        verifyObject(ILimits, MemoryLimits(self.kernel))

    def test_allocate(self) -> None:
        """A directory gets the first free id; it is recorded before it is on the inode."""
        path, project = self.folder()
        self.assertEqual(project, 1000)
        self.assertEqual(self.kernel.of(path), Mark(1000, True))
        self.assertEqual(self.lines(self.rig.places), [f"1000:{path}"])
        self.assertEqual(self.lines(self.rig.names), ["storage-proxy-1000:1000"])
        self.assertEqual(
            self.rig.steps,
            [
                "projid written",
                "projid replaced",
                "projects written",
                "projects replaced",
                "recorded",
                "marked",
                "synced",
            ],
        )

    def test_again(self) -> None:
        """Asked again it says which project a directory has, also when it is full by then."""
        path, project = self.folder()
        self.kernel.make(os.path.join(path, "file"), b"content")
        self.assertEqual(self.allocate(path), project)
        self.assertEqual(self.lines(self.rig.places), [f"1000:{path}"])

    def test_others(self) -> None:
        """Each directory has its own, and what others have written stays."""
        with open(self.rig.places, "w") as file:
            file.write("# mine\n1000:/elsewhere")
        with open(self.rig.names, "w") as file:
            file.write("theirs:1001\n")
        found = [self.folder(digits)[1] for digits in range(3)]
        self.assertEqual(found, [1002, 1003, 1004])
        self.assertEqual(self.lines(self.rig.places)[:2], ["# mine", "1000:/elsewhere"])

    def test_two_daemons(self) -> None:
        """Two daemons that share the registry never give the same id."""
        other = self.rig.another()
        found = [
            self.allocate(self.rig.folder(digits), (self.projects, other)[digits % 2])
            for digits in range(20)
        ]
        self.assertEqual(len(set(found)), 20)

    def test_kernel_knows(self) -> None:
        """Ids that the kernel has something of are not given, though the registry has lost them."""
        self.kernel.limits[1000] = Limit(4096)
        self.kernel.put(self.kernel.make(self.rig.path("stray")), 1001)
        path, project = self.folder()
        self.assertNotIn(project, (1000, 1001))
        self.assertEqual(self.kernel.of(path), Mark(project, True))
        self.assertEqual(self.projects.registry.read().paths, {project: path})

    def test_inherited(self) -> None:
        """In a scope that has a project, a directory gets one of its own all the same."""
        scope = self.kernel.make(self.rig.path("a" * 32))
        self.assertEqual(self.allocate(scope), 1000)
        path = self.kernel.make(os.path.join(scope, "b"))
        self.assertEqual(self.kernel.of(path), Mark(1000, True))
        self.assertEqual(self.allocate(path), 1001)
        self.assertEqual(self.kernel.of(path), Mark(1001, True))

    def test_made_again(self) -> None:
        """What was in a deleted folder of this name is not charged to the new one."""
        path, project = self.folder(limit=8192)
        os.mkdir(self.rig.path("trash"))
        os.rename(path, self.rig.path("trash", "1"))
        path, second = self.folder()
        self.assertNotEqual(second, project)
        entries = self.projects.registry.read()
        self.assertEqual(entries.paths, {second: path})
        self.assertEqual(entries.ours, {project, second}, "the first is still in use")
        self.assertEqual(self.account(path).limit, Limit(0))

    def test_broken_off(self) -> None:
        """One that was recorded, and no more, is taken up again."""
        path = self.rig.folder(1)
        self.rig.on_step = self.fail_at("recorded")
        self.assertRaises(ZeroDivisionError, self.allocate, path)
        self.rig.on_step = lambda name: None
        self.assertEqual(self.allocate(path), 1000)
        self.assertRegistered({1000: path})

    def fail_at(self, step: str) -> Any:
        def fail(name: str) -> None:
            if name == step:
                raise ZeroDivisionError

        return fail

    def test_flag(self) -> None:
        """A directory that does not hand its project on does so again."""
        path, project = self.folder()
        self.kernel.put(path, project, inherited=False)
        self.allocate(path)
        self.assertEqual(self.kernel.of(path), Mark(project, True))

    def test_wraps(self) -> None:
        """At the end of the range it goes on with what is free at its beginning."""
        self.projects.ids = range(1000, 1003)
        paths = [self.folder(digits)[0] for digits in range(3)]
        error = self.assertRaises(NotManaged, self.folder, 3)
        self.assertIn("1000 to 1002", str(error))
        shutil.rmtree(paths[1])
        self.assertTrue(self.do(self.projects.release(1001)))
        self.assertEqual(self.folder(3)[1], 1001)

    def test_retired_meanwhile(self) -> None:
        """One whose project is given back between two steps gets another one."""
        path = self.rig.folder(1)
        registry = self.projects.registry

        def retire(name: str) -> None:
            if name == "synced" and self.rig.steps.count("synced") == 1:
                registry.change([lambda entries: entries.displace(1000)])

        self.rig.on_step = retire
        project = self.allocate(path)
        self.assertNotEqual(project, 1000)
        self.assertEqual(self.kernel.of(path), Mark(project, True))
        self.assertEqual(registry.read().paths, {project: path})

    def test_audit(self) -> None:
        """Each change is told, with who has asked for it; what changes nothing is not."""
        events: list[LogEvent] = []
        globalLogPublisher.addObserver(events.append)
        self.addCleanup(globalLogPublisher.removeObserver, events.append)
        token = asked_by.set("uid 4711")
        self.addCleanup(asked_by.reset, token)
        path, _ = self.folder(limit=8192)
        self.allocate(path)
        shutil.rmtree(path)
        self.do(self.projects.release(1000))
        told = [
            formatEvent(event)
            for event in events
            if event.get("log_namespace") == "backends.xfs.audit"
        ]
        self.assertEqual(
            told,
            [
                f"Project 1000 is that of {path}, for uid 4711.",
                "Project 1000 has a limit of 8192 bytes and 0 inodes (0: none), for uid 4711.",
                "Project 1000 has a limit of 0 bytes and 0 inodes (0: none), for uid 4711.",
                f"Project 1000 of {path} is released, for uid 4711.",
            ],
        )


class DirectoryTests(ProjectsCase):
    """What is refused as a directory."""

    def refused(self, path: str, flags: int = os.O_RDONLY) -> str:
        with opened(path, flags) as descriptor:
            for work in (
                self.projects.allocate(descriptor),
                self.projects.account(descriptor),
                self.projects.set_limit(descriptor, Limit(4096)),
            ):
                error = self.assertRaises(NotManaged, self.do, work)
        self.assertEqual(self.projects.registry.read().files, (b"", b""))
        return str(error)

    def test_elsewhere(self) -> None:
        """A directory that is not in the volume is refused, also one whose name begins so."""
        self.assertIn("is not in the volume", self.refused("/"))
        os.mkdir(self.rig.top + "2")
        self.refused(self.rig.top + "2")
        self.refused(os.path.dirname(self.rig.top))

    def test_top(self) -> None:
        """So is the volume itself."""
        self.refused(self.rig.top)

    def test_link(self) -> None:
        """A link in the volume that leads out of it is what it leads to."""
        os.symlink("/", self.rig.path("link"))
        self.refused(self.rig.path("link"))

    def test_swapped(self) -> None:
        """A directory that is swapped when it is open is not taken for the other one."""
        path = self.kernel.make(self.rig.path("a"))
        with opened(path) as descriptor:
            os.rename(path, os.path.join(os.path.dirname(self.rig.top), "out"))
            os.symlink("/", path)
            work = self.projects.allocate(descriptor)
            self.assertRaises(NotManaged, self.do, work)
        self.assertEqual(self.kernel.of("/"), Mark(0, False))

    def test_above_is_link(self) -> None:
        """The way to it has no links: what it was opened through may have been another mount."""
        path = self.kernel.make(self.kernel.make(self.rig.path("a")) + "/b")
        os.rename(self.rig.path("a"), self.rig.path("c"))
        os.symlink("c", self.rig.path("a"))
        self.patch(os, "readlink", lambda link: path)
        with opened(self.rig.path("c", "b")) as descriptor:
            self.assertRaises(NotManaged, self.do, self.projects.allocate(descriptor))

    def test_another(self) -> None:
        """When another directory is at its path, as in another namespace, it is refused."""
        for name in "ab":
            self.kernel.make(self.rig.path(name))
        self.patch(os, "readlink", lambda link: self.rig.path("b"))
        self.assertIn("is another directory", self.refused(self.rig.path("a")))

    def test_deleted(self) -> None:
        """A directory that is deleted by now is refused."""
        path = self.kernel.make(self.rig.path("a"))
        with opened(path) as descriptor:
            os.rmdir(path)
            self.assertRaises(NotManaged, self.do, self.projects.allocate(descriptor))

    def test_other_file_system(self) -> None:
        """What is mounted in the volume is not of it."""
        self.patch(os, "readlink", lambda link: self.rig.path("proc"))
        self.assertIn("another file system", self.refused("/proc"))

    def test_file(self) -> None:
        """A file, or anything else, is no directory."""
        self.refused(self.kernel.make(self.rig.path("file"), b""))
        ours, theirs = socket.socketpair()
        self.addCleanup(ours.close)
        self.addCleanup(theirs.close)
        self.assertRaises(NotManaged, self.do, self.projects.allocate(ours.fileno()))

    def test_not_open(self) -> None:
        """A descriptor that allows nothing is refused."""
        path = self.kernel.make(self.rig.path("a"))
        with opened(path, os.O_PATH) as descriptor:
            error = self.assertRaises(NotManaged, self.do, self.projects.allocate(descriptor))
        self.assertIn("open for reading", str(error))

    def test_full(self) -> None:
        """A directory that is not empty is none that was just made."""
        path = self.rig.folder(1)
        self.kernel.make(os.path.join(path, "file"), b"")
        self.assertIn("is not empty", self.refused_by_allocate(path))
        self.assertEqual(self.kernel.of(path), Mark(0, False))

    def refused_by_allocate(self, path: str) -> str:
        with opened(path) as descriptor:
            return str(self.assertRaises(NotManaged, self.do, self.projects.allocate(descriptor)))

    def test_odd_path(self) -> None:
        """A directory whose path cannot be recorded is refused."""
        path = self.kernel.make(self.rig.path("a\nb"))
        self.assertIn("cannot be recorded", self.refused_by_allocate(path))
        self.assertEqual(self.projects.registry.read().files, (b"", b""))

    def test_no_quotas(self) -> None:
        """Without quotas it is said what to do."""
        path = self.rig.folder(1)
        for state, remedy in (
            (Quotas.NOT_XFS, "is not on XFS"),
            (Quotas.OFF, "pquota"),
            (Quotas.COUNTED, "not pqnoenforce"),
        ):
            self.kernel.state = state
            with opened(path) as descriptor:
                error = self.assertRaises(
                    BackendFailure, self.do, self.projects.allocate(descriptor)
                )
            self.assertIn(remedy, str(error))
            self.assertIn(self.rig.top, str(error))

    def test_claimed(self) -> None:
        """A directory that somebody else has given a project is his."""
        path, project = self.folder(limit=8192)
        for lines in (f"{project}:{path}\n42:{path}\n", f"42:{path}/\n{project}:{path}\n"):
            with open(self.rig.places, "w") as file:
                file.write(lines)
            with opened(path) as descriptor:
                for work in (
                    self.projects.allocate(descriptor),
                    self.projects.account(descriptor),
                    self.projects.set_limit(descriptor, Limit(4096)),
                ):
                    error = self.assertRaises(NotManaged, self.do, work)
                    self.assertIn("project 42", str(error))
            os.rename(path, self.rig.path("out"))
            self.assertRaises(NotManaged, self.do, self.projects.release(42))
            os.rename(self.rig.path("out"), path)
        self.assertEqual(self.kernel.limits, {project: Limit(8192)})
        self.assertEqual(self.kernel.of(path), Mark(project, True))

    def test_descriptors(self) -> None:
        """Whatever happens, no descriptor is left open, and the caller's stays."""
        path, _ = self.folder()
        before = sorted(os.listdir("/proc/self/fd"))
        self.allocate(path)
        self.set_limit(path, Limit(4096))
        self.account(path)
        with opened("/") as descriptor:
            self.assertRaises(NotManaged, self.do, self.projects.account(descriptor))
            os.fstat(descriptor)
        self.assertEqual(sorted(os.listdir("/proc/self/fd")), before)


class LimitTests(ProjectsCase):
    def test_set(self) -> None:
        """A limit is set, and what holds then is read back, in whole blocks."""
        path, project = self.folder()
        found = self.set_limit(path, Limit(10_000, 20))
        self.assertEqual(found.limit, Limit(12288, 20))
        self.assertEqual(found.inodes, 1)
        self.assertEqual(self.account(path), found)
        self.assertEqual(self.rig.limits.calls, [(self.mount(), project, Limit(12288, 20))])

    def test_small(self) -> None:
        """A limit of a few bytes is one, though small numbers are none to xfs_quota."""
        path, _ = self.folder()
        self.assertEqual(self.set_limit(path, Limit(1)).limit, Limit(4096))

    def mount(self) -> str:
        path = self.rig.top
        while not os.path.ismount(path):
            path = os.path.dirname(path)
        return path

    def test_lift(self) -> None:
        """A limit of 0 is none."""
        path, project = self.folder(limit=8192)
        self.assertEqual(self.set_limit(path, Limit(0)).limit, Limit(0))
        self.assertNotIn(project, self.kernel.limits)

    def test_failure(self) -> None:
        """When nothing was set, what was said about it is told."""
        path, _ = self.folder()
        self.rig.limits.says = "cannot set limits: Operation not permitted"
        error = self.assertRaises(BackendFailure, self.set_limit, path, Limit(8192))
        self.assertIn("Operation not permitted", str(error))
        self.assertEqual(self.account(path).limit, Limit(0))

    def test_numbers(self) -> None:
        """Numbers that can be no limit are refused."""
        path, _ = self.folder()
        for limit in (
            Limit(-1),
            Limit(0, -1),
            Limit(HIGHEST_LIMIT + 1),
            Limit(0, HIGHEST_LIMIT + 1),
        ):
            self.assertRaises(InvalidParameters, self.set_limit, path, limit)
        self.assertEqual(self.rig.limits.calls, [])

    def test_no_project(self) -> None:
        """A directory without a project has no limit to be set or read."""
        path = self.rig.folder(1)
        self.assertRaises(NotManaged, self.set_limit, path, Limit(4096))
        self.assertRaises(NotManaged, self.account, path)

    def test_drifted(self) -> None:
        """When its owner has changed the project of a directory, that of another stays as it is."""
        path, project = self.folder(1, limit=4096)
        other, victim = self.folder(2, limit=8192)
        for strange in (victim, 0, 42):
            self.kernel.put(path, strange)
            error = self.assertRaises(Drifted, self.set_limit, path, Limit(0))
            self.assertIn(str(project), str(error))
            self.assertIn("reconciling", str(error))
            self.assertRaises(Drifted, self.account, path)
        self.assertEqual(self.account(other).limit, Limit(8192))
        self.assertEqual(self.kernel.limits[project], Limit(4096))

    def test_two_at_once(self) -> None:
        """Two that limit the same project wait for each other, so that neither seems to fail."""
        path, project = self.folder()
        with opened(path) as descriptor:
            turn = self.projects.turn()
            self.do(turn.__aenter__())
            waiting = Deferred.fromCoroutine(self.projects.set_limit(descriptor, Limit(4096)))
            self.assertNoResult(waiting)
            self.assertEqual(self.rig.limits.calls, [])
            self.do(turn.__aexit__(None, None, None))
            self.assertEqual(self.successResultOf(waiting).project, project)

    def test_other_process(self) -> None:
        """So do two processes."""
        places = self.rig.places
        with self.projects.tree.lock(places):
            [name] = [one for one in os.listdir(os.path.dirname(places)) if one.endswith(".lock")]
            with opened(os.path.join(os.path.dirname(places), name)) as descriptor:
                self.assertRaises(
                    BlockingIOError, fcntl.flock, descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB
                )
        self.projects.tree.lock(places).close()

    def test_lock_of_others(self) -> None:
        """Nobody can lock what they wait for, who can only read the volume or the registry."""
        path, _ = self.folder()
        self.set_limit(path, Limit(4096))
        beside = os.path.dirname(self.rig.places)
        locks = [one for one in os.listdir(beside) if one.endswith(".lock")]
        self.assertEqual(len(locks), 2, "of the registry, and of the file system")
        for name in locks:
            self.assertEqual(os.stat(os.path.join(beside, name)).st_mode & 0o777, 0o600)
        for readable in (self.rig.top, self.rig.places, self.rig.names):
            with opened(readable) as descriptor:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self.set_limit(path, Limit(8192))

    def test_usage(self) -> None:
        """What is in a directory is charged to it."""
        path, project = self.folder()
        self.kernel.make(os.path.join(path, "file"), b"x" * 10_000)
        found = self.account(path)
        self.assertEqual((found.project, found.inodes), (project, 2))
        self.assertGreaterEqual(found.size, 10_000)


class PinnedTests(ProjectsCase):
    """Somebody gives files of his the ids that would be given next."""

    def pin(self, ids: range) -> None:
        directory = self.kernel.make(self.rig.path("files"))
        for project in ids:
            self.kernel.put(self.kernel.make(f"{directory}/{project}", b""), project)

    def test_some(self) -> None:
        """Others are found without looking at all that are in use, which may be very many."""
        self.pin(range(1000, 1100))
        self.patch(self.projects, "in_use", lambda: self.fail("looked at all"))
        path, project = self.folder(limit=8192)
        self.assertNotIn(project, range(1000, 1100))
        self.assertEqual(self.account(path), Account(project, Limit(8192), 0, 1))
        self.assertEqual(self.folder(2)[1], project + 1 if project < 1999 else 1100)

    def test_most(self) -> None:
        """The last one is found all the same."""
        self.projects.ids = range(1000, 1100)
        self.pin(range(1000, 1099))
        self.assertEqual(self.folder()[1], 1099)
        self.assertRaises(NotManaged, self.folder, 2)


class ReleaseTests(ProjectsCase):
    def test_release(self) -> None:
        """When its directory is gone, a project loses its limit, and its id is free."""
        path, project = self.folder(limit=8192)
        os.rmdir(path)
        self.assertTrue(self.do(self.projects.release(project)))
        self.assertEqual(self.kernel.limits, {})
        self.assertRegistered({})

    def test_there(self) -> None:
        """A project whose directory is there is not released."""
        path, project = self.folder(limit=8192)
        self.assertThere(project)
        self.assertEqual(self.account(path).limit, Limit(8192))

    def test_charged(self) -> None:
        """What is in the trash keeps the id taken, and its limit, until it is gone."""
        path, project = self.folder(limit=8192)
        trash = self.rig.path("trash")
        os.rename(path, trash)
        self.assertFalse(self.do(self.projects.release(project)))
        self.assertEqual(self.kernel.limits, {project: Limit(8192)})
        self.assertRegistered({project: path})
        self.assertNotEqual(self.folder(2)[1], project)
        os.rmdir(trash)
        self.assertTrue(self.do(self.projects.release(project)))
        self.assertFalse(self.projects.registry.read().is_taken(project))

    def test_made_again(self) -> None:
        """A directory that was made again at its place does not keep it."""
        path, project = self.folder(limit=8192)
        os.rename(path, self.rig.path("trash"))
        _, second = self.folder()
        self.assertFalse(self.do(self.projects.release(project)), "the trash is full")
        self.assertEqual(self.account(path).project, second)
        os.rmdir(self.rig.path("trash"))
        self.assertTrue(self.do(self.projects.release(project)))
        self.assertRegistered({second: path})

    def test_twice(self) -> None:
        """Released once more there is nothing to do."""
        path, project = self.folder()
        os.rmdir(path)
        self.assertTrue(self.do(self.projects.release(project)))
        self.assertTrue(self.do(self.projects.release(project)))
        self.assertRegistered({})

    def test_not_ours(self) -> None:
        """Projects of others are not released, wherever their directories are."""
        with open(self.rig.places, "w") as file:
            file.write("1500:/elsewhere\n")
        with open(self.rig.names, "w") as file:
            file.write("theirs:1501\n")
        for project in (0, 1, 999, 1500, 1501, 2000):
            self.assertRaises(NotManaged, self.do, self.projects.release(project))
        self.assertEqual(self.rig.limits.calls, [])

    def test_back(self) -> None:
        """A directory that comes back between two steps keeps its project and its limit."""
        path, project = self.folder(limit=8192)
        os.rmdir(path)
        self.rig.on_step = lambda name: name == "displaced" and self.rig.folder(1)
        self.assertFalse(self.do(self.projects.release(project)))
        self.assertRegistered({project: path})
        self.assertEqual(self.kernel.limits, {project: Limit(8192)})

    def test_charged_meanwhile(self) -> None:
        """So does a project that something is charged to by then."""
        path, project = self.folder(limit=8192)
        elsewhere = self.kernel.make(self.rig.path("elsewhere"))
        os.rmdir(path)
        self.rig.on_step = lambda name: name == "displaced" and self.kernel.put(elsewhere, project)
        self.assertFalse(self.do(self.projects.release(project)))
        self.assertRegistered({project: path})
        self.assertEqual(self.kernel.limits, {project: Limit(8192)})

    def test_mark_of_other(self) -> None:
        """What is at its place keeps its limit, though its owner has changed its project."""
        path, project = self.folder(1, limit=8192)
        second, other = self.folder(2, limit=4096)
        self.kernel.put(second, project)
        self.kernel.put(path, 0)
        os.rmdir(second)
        self.assertThere(project)
        self.kernel.put(path, other)
        self.assertFalse(self.do(self.projects.release(other)), "it is charged with the first")
        self.assertEqual(self.kernel.limits, {project: Limit(8192), other: Limit(4096)})
        self.assertRegistered({project: path, other: second})

    def test_unknown_path(self) -> None:
        """Nor is a limit lifted of a project that the registry has lost, when something has it."""
        path, project = self.folder(1, limit=8192)
        for name in (self.rig.places, self.rig.names):
            os.unlink(name)
        self.assertFalse(self.do(self.projects.release(project)))
        self.assertEqual(self.kernel.of(path).project, project)
        self.assertEqual(self.kernel.limits, {project: Limit(8192)})

    def test_second_directory(self) -> None:
        """A project that has a second directory, as an administrator says, keeps its limit."""
        path, project = self.folder(1, limit=8192)
        other = self.kernel.make(self.rig.path("other"))
        with open(self.rig.places, "a") as file:
            file.write(f"{project}:{other}\n")
        os.rmdir(path)
        self.assertFalse(self.do(self.projects.release(project)))
        self.assertThere(project)
        self.assertEqual(self.kernel.limits, {project: Limit(8192)})
        self.assertEqual(self.lines(self.rig.places), [f"{project}:{other}"])

    def test_failure(self) -> None:
        """When the limit cannot be lifted, the id stays taken."""
        path, project = self.folder(limit=8192)
        os.rmdir(path)
        self.rig.limits.says = "no"
        self.assertRaises(BackendFailure, self.do, self.projects.release(project))
        self.assertTrue(self.projects.registry.read().is_taken(project))
        self.rig.limits.says = ""
        self.assertTrue(self.do(self.projects.release(project)))


class ThreadTests(SynchronousTestCase):
    """When a volume hangs."""

    def setUp(self) -> None:
        directory = os.path.abspath(self.mktemp())
        os.makedirs(directory)
        self.threads = HeldThreads(Clock())
        self.rig = Rig(directory, self.threads)
        self.path = self.rig.folder(1)

    def test_late(self) -> None:
        """The descriptor of a call that hangs is not closed behind its back."""
        self.threads.held = True
        with opened(self.path) as descriptor:
            made = Deferred.fromCoroutine(self.rig.projects.allocate(descriptor))
        self.assertNoResult(made)
        self.threads.held = False
        self.threads.step()
        self.assertEqual(self.successResultOf(made), 1000)

    def test_unavailable(self) -> None:
        """A volume that does not answer is unavailable, and the next one gets his turn."""
        with opened(self.path) as descriptor:
            result_of(self.rig.projects.allocate(descriptor))
            self.threads.held = True
            made = Deferred.fromCoroutine(self.rig.projects.set_limit(descriptor, Limit(4096)))
            self.threads.fail(VolumeUnavailable("no answer"))
            self.failureResultOf(made, VolumeUnavailable)
            self.threads.held = False
            result_of(self.rig.projects.set_limit(descriptor, Limit(4096)))

    def test_default_ids(self) -> None:
        """By default there are enough ids, none of them low."""
        self.assertGreater(len(IDS), 1_000_000)
        self.assertGreater(IDS.start, 65536)
