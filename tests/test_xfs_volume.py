"""
Volumes on XFS, without XFS: the conformance, and what only they do.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock
from twisted.internet.testing import EventLoggingObserver
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface.verify import verifyObject

from backends.vfs import TRASH, VFSVolume
from backends.xfs import creations
from backends.xfs.creations import CREATING, Wanted
from backends.xfs.interfaces import (
    Account,
    Drifted,
    IKernel,
    IProjects,
    Limit,
    Mark,
    NotManaged,
    Quotas,
)
from backends.xfs.releases import LAGS
from backends.xfs.testing import MemoryKernel, MemoryProjects
from backends.xfs.volume import XFSVolume
from storageproxy.beneath import Directory
from storageproxy.conformance_quota import QuotaConformance, SingleLimitConformance
from storageproxy.errors import (
    BackendFailure,
    StorageProxyError,
    UnsupportedOperation,
    VFolderExists,
    VolumeUnavailable,
)
from storageproxy.interfaces import IMaintained, ScopeUsage
from storageproxy.testing import SynchronousThreads, bare_id, result_of, scoped_id
from storageproxy.threads import VolumeThreads
from storageproxy.trees import Usage
from storageproxy.vfolder import QuotaScopeID, VFolderID

MEBI = 1 << 20
#: An ordinary user.
NOBODY = 65534


class XFSConformance(QuotaConformance, SingleLimitConformance):
    filled = Usage(6, 2 * 4096)

    def setUp(self) -> None:
        self.systems: dict[str, MemoryProjects] = {}
        super().setUp()

    def projects(self, path: str) -> MemoryProjects:
        return self.systems.setdefault(path, MemoryProjects(MemoryKernel(path)))


class SynchronousXFSTests(XFSConformance, TestCase):
    def make_volume(self, path: str) -> XFSVolume:
        projects = self.projects(path)
        return XFSVolume(
            "test", path, "", SynchronousThreads(), Clock(), lambda: projects, projects.kernel
        )


class ThreadedXFSTests(XFSConformance, TestCase):
    def make_volume(self, path: str) -> XFSVolume:
        projects = self.projects(path)
        threads = VolumeThreads(reactor, "test", size=8)
        self.addCleanup(threads.stop)
        return XFSVolume("test", path, "", threads, reactor, lambda: projects, projects.kernel)


class XFSTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = self.make_path()
        self.kernel = MemoryKernel(self.path)
        self.projects = MemoryProjects(self.kernel)
        self.clock = Clock()
        self.volume = self.make_volume()

    def make_path(self) -> str:
        path = os.path.realpath(self.mktemp())
        os.makedirs(path)
        return path

    def make_volume(self, connect: Callable[[], Any] | None = None) -> XFSVolume:
        return XFSVolume(
            "test",
            self.path,
            "",
            SynchronousThreads(),
            self.clock,
            connect or (lambda: self.projects),
            self.kernel,
        )

    def place(self, vfid: VFolderID, *names: str) -> str:
        return os.path.join(self.path, *vfid.layout, *names)

    def write(self, vfid: VFolderID, name: str, size: int) -> None:
        with open(self.place(vfid, name), "wb") as file:
            file.write(bytes(size))

    def trash(self) -> list[str]:
        try:
            return os.listdir(os.path.join(self.path, TRASH))
        except FileNotFoundError:
            return []

    def make_plain(self, vfid: VFolderID) -> None:
        """A folder as a volume of another backend has made it."""
        plain = VFSVolume("plain", self.path, "", SynchronousThreads())
        result_of(plain.create_folder(vfid, 0o755, None))

    def allocated(self) -> int:
        return len(self.projects.places)

    def creating(self) -> list[str]:
        return os.listdir(os.path.join(self.path, CREATING))

    def break_off(self, vfid: VFolderID, when: str) -> None:
        """Have the daemon end in the middle of a creation: the note stays, and is not locked."""

        class Killed(BaseException):
            pass

        def die(*args: Any) -> Any:
            raise Killed

        volume = self.make_volume()
        # Who is dead takes nothing away.
        volume._undo = lambda creation: None  # type: ignore[method-assign]
        if when == "noted":
            volume._make = die  # type: ignore[method-assign]
        elif when == "limited":
            volume._complete = die  # type: ignore[method-assign]
        else:
            step = {"made": "allocate", "allocated": "set_limit"}[when]
            calls = {"allocate": self.projects.allocate, "account": self.projects.account}
            broken = SimpleNamespace(**calls | {step: die})
            volume._connected = lambda: broken  # type: ignore[assignment, method-assign]
        work = volume.create_folder(vfid, 0o755, 16 * MEBI)
        self.assertRaises(Killed, result_of, work)


class FakeTests(XFSTestCase):
    def test_interfaces(self) -> None:
        """The fakes have all that the volume asks of the kernel and of the privileged side."""
        verifyObject(IKernel, self.kernel)
        verifyObject(IProjects, self.projects)

    def test_kernel(self) -> None:
        """What is made in a directory counts for its project; what was in it stays as it was."""
        os.makedirs(os.path.join(self.path, "a", "old"))
        with self.volume.open_root() as root, root.descend("a") as a, root.descend("a/old") as old:
            self.assertEqual(self.kernel.mark(old.descriptor), Mark(0, False))
            self.kernel.set_mark(a.descriptor, Mark(7, True))
            self.kernel.limits[7] = Limit(4096)
            self.assertEqual(self.kernel.mark(old.descriptor), Mark(0, False))
            os.mkdir(os.path.join(self.path, "a", "b"))
            self.assertEqual(self.kernel.of(os.path.join(self.path, "a", "b")), Mark(7, True))
            self.assertEqual(self.kernel.mark(root.descriptor), Mark(0, False))
            with open(os.path.join(self.path, "a", "b", "file"), "wb") as file:
                file.write(bytes(5000))
            expected = Account(7, Limit(4096), 8192, 3)
            self.assertEqual(self.kernel.account(root.descriptor, 7), expected)
            self.assertIn(expected, list(self.kernel.accounts(root.descriptor)))

    def test_projects(self) -> None:
        """Directories get different projects, each of which is free when it holds nothing."""
        found = []
        for name in ("a", "b"):
            os.mkdir(os.path.join(self.path, name))
            with self.volume.open_root() as root, root.descend(name) as directory:
                descriptor = directory.descriptor
                found.append(result_of(self.projects.allocate(descriptor)))
                self.assertEqual(result_of(self.projects.allocate(descriptor)), found[-1])
                account = Account(found[-1], Limit(8192), 0, 1)
                limited = self.projects.set_limit(descriptor, Limit(5000))
                self.assertEqual(result_of(limited), account)
                self.assertEqual(result_of(self.projects.account(descriptor)), account)
        self.assertEqual(len(set(found)), 2)
        self.assertRaises(NotManaged, result_of, self.projects.release(found[0]))
        os.rmdir(os.path.join(self.path, "a"))
        self.assertTrue(result_of(self.projects.release(found[0])))
        os.rmdir(os.path.join(self.path, "b"))
        self.assertEqual(len(result_of(self.projects.reconcile())), 1)
        self.assertEqual(self.projects.places, {})


class MaintenanceTests(XFSTestCase):
    def test_reconcile(self) -> None:
        """To maintain a volume is to have its projects reconciled."""
        verifyObject(IMaintained, self.volume)
        result_of(self.volume.create_folder(bare_id(1), None, MEBI))
        os.rmdir(self.place(bare_id(1)))
        result_of(self.volume.maintain())
        self.assertEqual(self.projects.places, {})


class CheckTests(XFSTestCase):
    def test_advice(self) -> None:
        """A volume where nothing can be limited is not used; each time it says what to do."""
        for state, word in (
            (Quotas.NOT_XFS, 'backend = "vfs"'),
            (Quotas.OFF, "pquota"),
            (Quotas.COUNTED, "does not limit"),
        ):
            self.kernel.state = state
            for work in (
                self.volume.check,
                lambda: self.volume.create_folder(bare_id(1), None, None),
                lambda: self.volume.used_bytes(bare_id(1)),
                lambda: self.volume.within(bare_id(1), lambda folder: None),
                lambda: self.volume.delete_folder(bare_id(1)),
                self.volume.empty_trash,
            ):
                error = self.assertRaises(BackendFailure, result_of, work())
                self.assertIn(word, error.message)
                self.assertIn("volume test", error.message)
        self.assertEqual(os.listdir(self.path), [])

    def test_recovery(self) -> None:
        """A volume that was mounted rightly at last is used without a restart."""
        self.kernel.state = Quotas.OFF
        self.assertRaises(BackendFailure, result_of, self.volume.check())
        self.kernel.state = Quotas.ENFORCED
        result_of(self.volume.create_folder(bare_id(1), None, None))
        result_of(self.volume.check())

    def test_looked_at_once(self) -> None:
        """A volume that is right is not looked at again for each call."""
        result_of(self.volume.check())

        def fail(descriptor: int) -> Quotas:
            raise AssertionError("looked at again")

        self.patch(self.kernel, "quotas", fail)
        result_of(self.volume.create_folder(bare_id(1), None, None))

    def test_project_of_volume(self) -> None:
        """A volume is refused whose vfolders would all be in one project."""
        descriptor = os.open(self.path, os.O_RDONLY)
        self.addCleanup(os.close, descriptor)
        self.kernel.set_mark(descriptor, Mark(5, True))
        error = self.assertRaises(BackendFailure, result_of, self.volume.check())
        self.assertIn("chattr -P", error.message)

    def test_hardware_info(self) -> None:
        """A manager is told what is wrong with a volume."""
        self.assertEqual(result_of(self.volume.hardware_info())["status"], "healthy")
        self.volume = self.make_volume()
        self.kernel.state = Quotas.OFF
        info = result_of(self.volume.hardware_info())
        self.assertEqual(info["status"], "unavailable")
        self.assertIn("pquota", info["status_info"])
        os.rmdir(self.path)
        info = result_of(self.volume.hardware_info())
        self.assertEqual(info["status"], "unavailable")

    def test_no_agent(self) -> None:
        """Files are served when there is no way to set limits; all else says why it fails."""
        result_of(self.volume.create_folder(bare_id(1), None, 16 * MEBI))
        reachable: list[MemoryProjects] = []

        def connect() -> MemoryProjects:
            if not reachable:
                raise VolumeUnavailable("start the agent")
            return reachable[0]

        volume = self.make_volume(connect)
        self.assertEqual(result_of(volume.within(bare_id(1), lambda folder: 17)), 17)
        for work in (
            volume.check(),
            volume.create_folder(bare_id(2), None, None),
            volume.get_quota(bare_id(1)),
            volume.set_quota(bare_id(1), MEBI),
            volume.used_bytes(bare_id(1)),
        ):
            error = self.assertRaises(VolumeUnavailable, result_of, work)
            self.assertEqual(error.message, "start the agent")
        self.assertFalse(os.path.exists(self.place(bare_id(2))))
        reachable.append(self.projects)
        self.assertEqual(result_of(volume.get_quota(bare_id(1))), 16 * MEBI)


class CreationTests(XFSTestCase):
    def test_noted(self) -> None:
        """A folder that is being made has a note until it has its limit and that is on disk."""
        steps: list[tuple[str, int]] = []
        [name] = ["-".join(bare_id(1).layout)]

        def step(what: str) -> None:
            steps.append((what, self.creating().count(name)))

        def watch(cls: Any, method: str) -> None:
            call = getattr(cls, method)

            def tell(*args: Any) -> Any:
                step(method)
                return call(*args)

            self.patch(cls, method, tell)

        watch(XFSVolume, "_make")
        watch(MemoryProjects, "allocate")
        watch(MemoryProjects, "set_limit")
        watch(Directory, "sync")
        result_of(self.volume.create_folder(bare_id(1), None, 16 * MEBI))
        self.assertEqual(
            [step for step in steps if step[0] != "sync"],
            [("_make", 1), ("allocate", 1), ("set_limit", 1)],
        )
        self.assertEqual(steps[-1], ("sync", 0))

    def test_refused(self) -> None:
        """A folder that cannot get its project is not made, in either layout."""
        self.projects.refusal = VolumeUnavailable("the agent is gone")
        for vfid in (bare_id(1), scoped_id(1)):
            work = self.volume.create_folder(vfid, None, 16 * MEBI)
            self.assertRaises(VolumeUnavailable, result_of, work)
            self.assertFalse(os.path.exists(self.place(vfid)))
        self.projects.refusal = None
        result_of(self.volume.create_folder(bare_id(1), None, 32 * MEBI))
        self.assertEqual(result_of(self.volume.get_quota(bare_id(1))), 32 * MEBI)

    def test_refused_too_late(self) -> None:
        """A project that was given to a folder whose creation fails is released again."""
        allocate = self.projects.allocate

        async def fail(directory: int) -> int:
            await allocate(directory)
            raise VolumeUnavailable("no answer")

        self.patch(self.projects, "allocate", fail)
        work = self.volume.create_folder(bare_id(1), None, None)
        self.assertRaises(VolumeUnavailable, result_of, work)
        self.assertEqual(self.allocated(), 1)
        result_of(self.make_volume().empty_trash())
        self.assertEqual(self.allocated(), 0)

    def test_broken_off(self) -> None:
        """A creation that was broken off anywhere is taken up by the next one."""
        for number, when in enumerate(("noted", "made", "allocated", "limited")):
            vfid = bare_id(number)
            self.break_off(vfid, when)
            result_of(self.volume.create_folder(vfid, 0o700, 32 * MEBI))
            self.assertEqual(result_of(self.volume.get_quota(vfid)), 32 * MEBI)
            self.assertEqual(os.stat(self.place(vfid)).st_mode & 0o777, 0o700)
            work = self.volume.create_folder(vfid, None, None)
            self.assertRaises(VFolderExists, result_of, work)
        self.assertEqual(self.creating(), [])
        self.assertEqual(self.allocated(), 4)

    def test_broken_off_for_good(self) -> None:
        """When none comes, nothing is left of it after the next round, but what is complete."""
        result_of(self.volume.create_folder(bare_id(9), None, MEBI))
        for number, when in enumerate(("noted", "made", "allocated", "limited")):
            self.break_off(bare_id(number), when)
        result_of(self.volume.empty_trash())
        self.assertEqual(self.creating(), [])
        self.assertEqual(self.trash(), [])
        self.assertEqual(list(self.projects.places.values()), [self.place(bare_id(9))])
        for number in range(4):
            self.assertFalse(os.path.exists(self.place(bare_id(number))))

    def test_broken_off_and_used(self) -> None:
        """
        What somebody has put into a folder that he was never told of stays, and the folder gets
        the limit and the mode that it was to have.
        """
        for number, when in enumerate(("made", "allocated", "limited")):
            self.break_off(bare_id(number), when)
            self.write(bare_id(number), "file", 13)
        result_of(self.volume.empty_trash())
        self.assertEqual(self.creating(), [])
        for number in range(3):
            self.assertEqual(os.listdir(self.place(bare_id(number))), ["file"])
            self.assertEqual(result_of(self.volume.get_quota(bare_id(number))), 16 * MEBI)
            self.assertEqual(os.stat(self.place(bare_id(number))).st_mode & 0o7777, 0o755)

    def test_broken_off_and_used_without_project(self) -> None:
        """One that can get no project before it is reconciled gets its limit after that."""
        for number, when in ((1, "made"), (2, "limited")):
            self.break_off(bare_id(number), when)
            self.write(bare_id(number), "file", 13)
        events = EventLoggingObserver.createWithCleanup(self, globalLogPublisher)
        allocate, closed = self.projects.allocate, self.place(bare_id(1))

        async def refuse(directory: int) -> int:
            if os.readlink(f"/proc/self/fd/{directory}") == closed:
                raise NotManaged("it is not empty: reconciling gives it a project")
            return await allocate(directory)

        self.patch(self.projects, "allocate", refuse)
        before = sorted(os.listdir("/proc/self/fd"))
        result_of(self.volume.empty_trash())
        self.assertEqual(sorted(os.listdir("/proc/self/fd")), before)
        self.assertEqual(self.creating(), ["-".join(bare_id(1).layout)])
        [told] = [event["line"] for event in events if "line" in event]
        self.assertIn("/".join(bare_id(1).layout), told)
        self.assertIn("reconciling", told)
        self.patch(self.projects, "allocate", allocate)
        result_of(self.volume.empty_trash())
        self.assertEqual(self.creating(), [])
        for number in (1, 2):
            self.assertEqual(result_of(self.volume.get_quota(bare_id(number))), 16 * MEBI)

    def test_note_lost(self) -> None:
        """A note that has lost its bytes is that of a creation like any other."""
        for number, when in ((1, "made"), (2, "limited")):
            for bytes_ in (b"", b"\0" * 64, b"[]", b'{"size": 1', b'{"size": 1}'):
                self.break_off(bare_id(number), when)
                path = os.path.join(self.path, CREATING, "-".join(bare_id(number).layout))
                with open(path, "wb") as note:
                    note.write(bytes_)
                if when == "made":
                    self.write(bare_id(number), "file", 13)
                result_of(self.volume.empty_trash())
                self.assertEqual(self.creating(), [])
                self.assertEqual(os.path.exists(self.place(bare_id(number))), when == "made")
                result_of(self.volume.delete_folder(bare_id(number)))

    def test_broken_off_and_stuck(self) -> None:
        """What cannot be taken away does not keep the trash from being emptied."""
        self.break_off(bare_id(1), "made")
        result_of(self.volume.create_folder(bare_id(2), None, MEBI))
        result_of(self.volume.delete_folder(bare_id(2)))
        self.assertNotEqual(self.trash(), [])
        undo = self.volume._undo

        def fail(creation: Any) -> bool:
            raise PermissionError(13, "Permission denied")

        self.volume._undo = fail  # type: ignore[method-assign]
        result_of(self.volume.empty_trash())
        self.assertEqual(self.trash(), [])
        self.assertEqual(len(self.creating()), 1)
        # What is no note of ours does not, either.
        path = os.path.join(self.path, CREATING, "..-..-x")
        with open(path, "wb"):
            pass
        result_of(self.volume.empty_trash())
        self.assertEqual(len(self.creating()), 2)
        os.unlink(path)
        self.volume._undo = undo  # type: ignore[method-assign]
        result_of(self.volume.empty_trash())
        self.assertEqual(self.creating(), [])

    def test_broken_off_and_refused(self) -> None:
        """One that is taken up and fails again is taken away."""
        self.break_off(bare_id(1), "limited")
        self.projects.refusal = VolumeUnavailable("the agent is gone")
        work = self.volume.create_folder(bare_id(1), None, None)
        self.assertRaises(VolumeUnavailable, result_of, work)
        self.assertFalse(os.path.exists(self.place(bare_id(1))))
        self.projects.refusal = None
        result_of(self.volume.empty_trash())
        self.assertEqual(self.allocated(), 0)

    def test_broken_off_scope(self) -> None:
        """The same for the directory of a scope."""
        scope = scoped_id(1).scope
        assert scope is not None
        self.projects.refusal = VolumeUnavailable("the agent is gone")
        work = self.volume.set_scope_limit(scope, MEBI)
        self.assertRaises(VolumeUnavailable, result_of, work)
        self.assertFalse(os.path.exists(os.path.join(self.path, *scope.layout)))
        self.assertEqual(self.creating(), [])

    def test_under_way(self) -> None:
        """A creation that is under way elsewhere is neither taken up nor taken away."""
        with self.volume.open_root() as root:
            wanted = Wanted(Limit(0), None)
            creation = creations.begin(root, bare_id(1).layout, wanted)
            assert creation is not None
            self.addCleanup(creation.note.close)
        self.make_plain(bare_id(1))
        work = self.volume.create_folder(bare_id(1), None, None)
        self.assertRaises(VFolderExists, result_of, work)
        result_of(self.volume.empty_trash())
        self.assertTrue(os.path.isdir(self.place(bare_id(1))))
        self.assertEqual(len(self.creating()), 1)
        self.assertEqual(self.allocated(), 0)

    def test_exists(self) -> None:
        """To make a folder that exists leaves nothing, also when another backend has made it."""
        self.make_plain(bare_id(1))
        work = self.volume.create_folder(bare_id(1), None, None)
        self.assertRaises(VFolderExists, result_of, work)
        self.assertEqual(self.creating(), [])
        self.assertEqual(self.allocated(), 0)

    def test_reconciled_meanwhile(self) -> None:
        """A folder that got its project from somebody else gets the limit that it is made with."""
        allocate = self.projects.allocate

        async def late(directory: int) -> int:
            await allocate(directory)
            return await allocate(directory)

        self.patch(self.projects, "allocate", late)
        result_of(self.volume.create_folder(bare_id(1), None, 16 * MEBI))
        self.assertEqual(result_of(self.volume.get_quota(bare_id(1))), 16 * MEBI)
        self.assertEqual(self.allocated(), 1)

    def test_manager_gone(self) -> None:
        """A creation goes on when the manager no longer waits for it."""
        answer: Deferred[None] = Deferred()
        allocate = self.projects.allocate

        async def wait(directory: int) -> int:
            await answer
            return await allocate(directory)

        self.patch(self.projects, "allocate", wait)
        creation = Deferred.fromCoroutine(self.volume.create_folder(bare_id(1), None, 16 * MEBI))
        creation.cancel()
        self.failureResultOf(creation, CancelledError)
        answer.callback(None)
        self.assertEqual(result_of(self.volume.get_quota(bare_id(1))), 16 * MEBI)

    def test_descriptors(self) -> None:
        """No call leaves a descriptor open, whether it succeeds or fails."""
        before = sorted(os.listdir("/proc/self/fd"))
        for refusal in (None, VolumeUnavailable("gone")):
            self.projects.refusal = refusal
            for vfid in (bare_id(1), scoped_id(1), scoped_id(1, 9)):
                for work in (
                    self.volume.create_scope(QuotaScopeID.parse(f"user:{9:032x}"), MEBI),
                    self.volume.create_folder(vfid, 0o755, MEBI),
                    self.volume.create_folder(vfid, None, None),
                    self.volume.set_quota(vfid, 2 * MEBI),
                    self.volume.get_quota(vfid),
                    self.volume.room(vfid),
                    self.volume.usage(vfid),
                    self.volume.used_bytes(vfid),
                    self.volume.clone_folder(vfid, self.volume, bare_id(2)),
                    self.volume.delete_folder(vfid),
                    self.volume.set_quota(vfid, 2 * MEBI),
                    self.volume.empty_trash(),
                ):
                    try:
                        result_of(work)
                    except Exception:
                        pass
        self.assertEqual(sorted(os.listdir("/proc/self/fd")), before)


class ClosedTests(XFSTestCase):
    """Folders that are closed to an unprivileged daemon by their permissions."""

    def make_path(self) -> str:
        path = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, path)
        os.chown(path, NOBODY, NOBODY)
        return os.path.realpath(path)

    def test_closed(self) -> None:
        """
        A folder can be made with a mode that closes it to the daemon itself, and be deleted; while
        it has no limit, nobody else can put anything into it.
        """
        modes: list[int] = []
        allocate = self.projects.allocate

        async def look(directory: int) -> int:
            modes.append(os.fstat(directory).st_mode & 0o7777)
            return await allocate(directory)

        self.patch(self.projects, "allocate", look)
        os.seteuid(NOBODY)
        try:
            for number, mode in enumerate((0, 0o077, 0o500, 0o777)):
                result_of(self.volume.create_folder(bare_id(number), mode, MEBI))
                self.assertEqual(os.stat(self.place(bare_id(number))).st_mode & 0o7777, mode)
                self.assertTrue(result_of(self.volume.delete_folder(bare_id(number))))
            self.assertEqual(self.creating(), [])
            result_of(self.volume.empty_trash())
            self.assertEqual(self.trash(), [])
        finally:
            os.seteuid(0)
        self.assertEqual(modes, [0o700] * 4)
        self.assertEqual(self.projects.places, {})

    def test_closed_and_refused(self) -> None:
        """What is left of one whose creation fails is taken away, too."""
        os.seteuid(NOBODY)
        try:
            for when in ("noted", "made", "allocated", "limited"):
                self.projects.refusal = None
                self.break_off(bare_id(1), when)
                self.projects.refusal = VolumeUnavailable("the agent is gone")
                work = self.volume.create_folder(bare_id(1), 0, None)
                self.assertRaises(VolumeUnavailable, result_of, work)
                self.assertFalse(os.path.exists(self.place(bare_id(1))))
                self.assertEqual(self.creating(), [])
        finally:
            os.seteuid(0)


class QuotaTests(XFSTestCase):
    def test_inodes(self) -> None:
        """A limit of inodes that an administrator has set stays."""
        result_of(self.volume.create_folder(bare_id(1), None, 16 * MEBI))
        [project] = self.projects.places
        self.kernel.limits[project] = Limit(16 * MEBI, 100)
        result_of(self.volume.set_quota(bare_id(1), 8 * MEBI))
        self.assertEqual(self.kernel.limits[project], Limit(8 * MEBI, 100))

    def test_made_elsewhere(self) -> None:
        """
        A folder without a project is counted one by one. It is limited when it is empty; else it
        is told how it could be.
        """
        self.make_plain(bare_id(1))
        self.assertEqual(result_of(self.volume.get_quota(bare_id(1))), 0)
        self.assertIsNone(result_of(self.volume.room(bare_id(1))))
        self.write(bare_id(1), "file", 13)
        self.assertEqual(result_of(self.volume.usage(bare_id(1))), Usage(1, 13))
        self.assertEqual(result_of(self.volume.used_bytes(bare_id(1))), 13)
        work = self.volume.set_quota(bare_id(1), MEBI)
        error = self.assertRaises(UnsupportedOperation, result_of, work)
        self.assertIn("clone", error.message)
        os.unlink(self.place(bare_id(1), "file"))
        result_of(self.volume.set_quota(bare_id(1), MEBI))
        self.assertEqual(result_of(self.volume.get_quota(bare_id(1))), MEBI)

    def test_usage_is_the_kernels(self) -> None:
        """What a folder holds is not counted by going through it."""
        result_of(self.volume.create_folder(bare_id(1), None, None))

        async def account(directory: int) -> Account:
            return Account(1001, Limit(0), 1 << 50, 10**9)

        self.patch(self.projects, "account", account)
        self.assertEqual(result_of(self.volume.usage(bare_id(1))), Usage(10**9 - 1, 1 << 50))
        self.assertEqual(result_of(self.volume.used_bytes(bare_id(1))), 1 << 50)

    def test_drifted(self) -> None:
        """
        Of a folder that has left its project, what is in it is counted; its limit is not told, and
        cannot be set, and it is said why.
        """
        result_of(self.volume.create_folder(bare_id(1), None, MEBI))
        self.write(bare_id(1), "file", 13)
        for error in (Drifted("it has project 7: reconciling"), NotManaged("no project")):
            self.projects.refusal = error
            self.assertEqual(result_of(self.volume.usage(bare_id(1))), Usage(1, 13))
            self.assertEqual(result_of(self.volume.used_bytes(bare_id(1))), 13)
            for work in (
                self.volume.get_quota(bare_id(1)),
                self.volume.set_quota(bare_id(1), MEBI),
                self.volume.room(bare_id(1)),
            ):
                raised = self.assertRaises(type(error), result_of, work)
                document = raised.document()
                self.assertEqual((document["status"], document["msg"]), (409, str(error)))
                self.assertNotIn("internal", document["error_code"])

    def test_emptied(self) -> None:
        """A folder whose owner has emptied it and left its project gets no other one."""
        result_of(self.volume.create_folder(bare_id(1), None, MEBI))
        self.kernel.put(self.place(bare_id(1)), 0)
        self.assertRaises(Drifted, result_of, self.volume.set_quota(bare_id(1), MEBI))
        self.assertRaises(Drifted, result_of, self.volume.get_quota(bare_id(1)))
        self.assertEqual(self.allocated(), 1)

    def test_left_scope(self) -> None:
        """Nor does one in a scope that is limited as a whole."""
        scope = scoped_id(1).scope
        assert scope is not None
        result_of(self.volume.create_scope(scope, MEBI))
        result_of(self.volume.create_folder(scoped_id(1), None, None))
        for foreign in (0, 7):
            self.kernel.put(self.place(scoped_id(1)), foreign)
            for work in (
                self.volume.set_quota(scoped_id(1), MEBI),
                self.volume.get_quota(scoped_id(1)),
            ):
                error = self.assertRaises(UnsupportedOperation, result_of, work)
                self.assertIn("the quota scope is limited", error.message)
        self.assertEqual(self.allocated(), 1)

    def test_scope_of_limited_folders(self) -> None:
        """A scope cannot be limited when its folders are, one by one; nothing of it is counted."""
        result_of(self.volume.create_folder(scoped_id(1), None, MEBI))
        scope = scoped_id(1).scope
        assert scope is not None
        self.assertEqual(result_of(self.volume.scope_usage(scope)), ScopeUsage(None, None))
        work = self.volume.set_scope_limit(scope, MEBI)
        error = self.assertRaises(UnsupportedOperation, result_of, work)
        self.assertIn("one by one", error.message)
        result_of(self.volume.unset_scope_limit(scope))
        self.assertEqual(result_of(self.volume.get_quota(scoped_id(1))), MEBI)

    def limit_emptied(self, volume: XFSVolume) -> None:
        """Limit a scope whose last folder was deleted a moment ago."""
        scope = scoped_id(1).scope
        assert scope is not None
        result_of(self.volume.create_folder(scoped_id(1), None, MEBI))
        result_of(self.volume.delete_folder(scoped_id(1)))
        result_of(volume.set_scope_limit(scope, MEBI))
        self.assertEqual(result_of(volume.scope_usage(scope)), ScopeUsage(0, MEBI))

    def test_empty_scope(self) -> None:
        """A scope whose folders are all deleted can be limited."""
        self.limit_emptied(self.volume)

    def test_emptied_by_another(self) -> None:
        """It can, also when another process has deleted them."""
        self.limit_emptied(self.make_volume())


class FullTests(XFSTestCase):
    """What an error means that XFS gives for a full disk and for a full project alike."""

    def setUp(self) -> None:
        super().setUp()
        result_of(self.volume.create_folder(bare_id(1), None, MEBI))
        self.room: dict[str, tuple[int, int]] = {}

        def fstatvfs(descriptor: int) -> Any:
            path = os.readlink(f"/proc/self/fd/{descriptor}")
            blocks, inodes = self.room[path]
            return SimpleNamespace(f_bavail=blocks, f_favail=inodes)

        self.patch(os, "fstatvfs", fstatvfs)

    def fail(self, number: int) -> int | None:
        """The number that an error has outside which has this one inside."""

        def operation(folder: Directory) -> None:
            raise OSError(number, os.strerror(number))

        with self.assertRaises(OSError) as caught:
            result_of(self.volume.within(bare_id(1), operation))
        return caught.exception.errno

    def test_blocks(self) -> None:
        """The quota is full when it leaves less room than the disk does, else the disk is."""
        for folder, disk, expected in (
            ((0, 50), (70, 50), errno.EDQUOT),
            # What could not be written has been taken back meanwhile.
            ((60, 50), (70, 50), errno.EDQUOT),
            ((7, 50), (7, 50), errno.ENOSPC),
            ((0, 50), (0, 50), errno.ENOSPC),
            # Kernels up to 6.12 tell the rest of the limit whatever the disk has.
            ((60, 50), (0, 50), errno.ENOSPC),
            # No room for inodes.
            ((70, 0), (70, 50), errno.EDQUOT),
            ((70, 0), (70, 0), errno.ENOSPC),
        ):
            self.room = {self.place(bare_id(1)): folder, self.path: disk}
            self.assertEqual(self.fail(errno.ENOSPC), expected, (folder, disk))

    def test_other_errors(self) -> None:
        """Other errors are told as they are."""
        self.room = {self.place(bare_id(1)): (0, 0), self.path: (70, 50)}
        for number in (errno.EACCES, errno.EDQUOT, errno.EIO, errno.EXDEV):
            self.assertEqual(self.fail(number), number)

    def test_folder_gone(self) -> None:
        """When there is no folder to look at any more, it is the disk."""
        self.room = {}

        def operation(folder: Directory) -> None:
            result_of(self.volume.delete_folder(bare_id(1)))
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with self.assertRaises(OSError) as caught:
            result_of(self.volume.within(bare_id(1), operation))
        self.assertEqual(caught.exception.errno, errno.ENOSPC)

    def test_full_scope(self) -> None:
        """A folder cannot be made in a scope that is full, and it is told that this is why."""
        scope = scoped_id(1).scope
        assert scope is not None
        result_of(self.volume.create_scope(scope, MEBI))
        self.room = {os.path.join(self.path, *scope.layout): (0, 50), self.path: (70, 50)}

        def fail(*args: Any, **kwargs: Any) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        self.patch(os, "mkdir", fail)
        with self.assertRaises(OSError) as caught:
            result_of(self.volume.create_folder(scoped_id(1), None, None))
        self.assertEqual(caught.exception.errno, errno.EDQUOT)


class TrashTests(XFSTestCase):
    def throw_away(self, vfid: VFolderID) -> None:
        result_of(self.volume.create_folder(vfid, None, 16 * MEBI))
        self.write(vfid, "file", 5000)
        self.assertTrue(result_of(self.volume.delete_folder(vfid)))

    def test_released(self) -> None:
        """A project is given back, with its limit, when nothing is left of its folder."""
        self.throw_away(bare_id(1))
        self.assertEqual(len(self.projects.places), 1)
        result_of(self.volume.empty_trash())
        self.assertEqual((self.projects.places, self.kernel.limits), ({}, {}))
        self.assertEqual(self.trash(), [])

    def test_released_after_restart(self) -> None:
        """So is one whose folder was deleted before a restart."""
        for vfid in (bare_id(1), scoped_id(1)):
            self.throw_away(vfid)
        result_of(self.make_volume().empty_trash())
        self.assertEqual((self.projects.places, self.kernel.limits), ({}, {}))

    def test_project_in_the_trash(self) -> None:
        """What its owner makes of a deleted folder's project changes nothing about which it was."""
        self.throw_away(bare_id(1))
        [name] = self.trash()
        descriptor = os.open(os.path.join(self.path, TRASH, name), os.O_RDONLY)
        self.addCleanup(os.close, descriptor)
        self.kernel.set_mark(descriptor, Mark(77, True))
        result_of(self.volume.empty_trash())
        self.assertEqual(self.projects.places, {})

    def test_lag(self) -> None:
        """A project to which something is charged for a moment more is released after it."""
        answers = [False, False, True]
        asked: list[int] = []

        async def release(project: int) -> bool:
            asked.append(project)
            return answers[len(asked) - 1]

        self.patch(self.projects, "release", release)
        self.throw_away(bare_id(1))
        [project] = self.projects.places
        emptying = Deferred.fromCoroutine(self.volume.empty_trash())
        self.assertEqual(asked, [project])
        self.clock.pump([LAGS[0], LAGS[1]])
        self.assertEqual(asked, [project] * 3)
        self.assertIsNone(self.successResultOf(emptying))

    def test_still_charged(self) -> None:
        """One to which something stays charged is left to be reconciled."""

        async def release(project: int) -> bool:
            return False

        self.patch(self.projects, "release", release)
        self.throw_away(bare_id(1))
        emptying = Deferred.fromCoroutine(self.volume.empty_trash())
        self.clock.pump(LAGS)
        self.assertIsNone(self.successResultOf(emptying))

    def test_of_another(self) -> None:
        """Nobody waits for a project that is that of another folder."""
        result_of(self.volume.create_folder(bare_id(1), None, MEBI))
        [project] = self.projects.places
        result_of(self.volume.create_folder(bare_id(2), None, None))
        self.kernel.put(self.place(bare_id(2)), project)
        result_of(self.volume.delete_folder(bare_id(2)))
        result_of(self.volume.empty_trash())
        self.assertEqual(result_of(self.volume.get_quota(bare_id(1))), MEBI)

    def test_agent_gone(self) -> None:
        """A project that cannot be released now is released in the next round."""
        self.throw_away(bare_id(1))
        self.projects.refusal = VolumeUnavailable("the agent is gone")
        self.assertRaises(VolumeUnavailable, result_of, self.volume.empty_trash())
        self.assertEqual(self.trash(), [])
        self.projects.refusal = None
        result_of(self.volume.empty_trash())
        self.assertEqual(self.projects.places, {})

    def test_not_ours(self) -> None:
        """A project that is not to be released is no reason to leave the others."""
        for number in (1, 2):
            self.throw_away(bare_id(number))
        release = self.projects.release
        asked: list[int] = []

        async def refuse(project: int) -> bool:
            asked.append(project)
            if len(asked) == 1:
                raise NotManaged("none of ours")
            return await release(project)

        self.patch(self.projects, "release", refuse)
        result_of(self.volume.empty_trash())
        result_of(self.volume.empty_trash())
        self.assertEqual(len(asked), 2)

    def test_scope(self) -> None:
        """The project of a scope is not asked to be released with one of its folders."""
        asked: list[int] = []

        async def release(project: int) -> bool:
            asked.append(project)
            return True

        self.patch(self.projects, "release", release)
        scope = scoped_id(1).scope
        assert scope is not None
        result_of(self.volume.create_scope(scope, MEBI))
        result_of(self.volume.create_folder(scoped_id(1), None, None))
        result_of(self.volume.delete_folder(scoped_id(1)))
        result_of(self.volume.empty_trash())
        self.assertEqual(asked, [])

    def test_made_elsewhere(self) -> None:
        """A folder without a project, and what is no folder, are removed and release nothing."""
        self.make_plain(bare_id(1))
        with open(self.place(bare_id(2)), "wb"):
            pass
        os.symlink("/", self.place(bare_id(3)))
        for number in (1, 2, 3):
            self.assertTrue(result_of(self.volume.delete_folder(bare_id(number))))
        self.projects.refusal = VolumeUnavailable("asked")
        result_of(self.volume.empty_trash())
        self.assertEqual(self.trash(), [])

    def test_clone_removed(self) -> None:
        """A clone that fails gives its project back."""
        result_of(self.volume.create_folder(bare_id(1), None, None))

        def fail(*args: Any) -> None:
            raise StorageProxyError("broken off")

        self.patch(self.volume, "_copy", fail)
        work = self.volume.clone_folder(bare_id(1), self.volume, bare_id(2))
        self.assertRaises(StorageProxyError, result_of, work)
        result_of(self.volume.empty_trash())
        self.assertEqual(list(self.projects.places.values()), [self.place(bare_id(1))])
