"""
Volumes on CephFS, without CephFS: the conformance, and what only they do.
"""

from __future__ import annotations

import errno
import os
from types import SimpleNamespace
from typing import Any

from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface.verify import verifyObject

from backends.cephfs.attributes import MAX_BYTES
from backends.cephfs.cluster import ICluster
from backends.cephfs.live import LiveDirectory
from backends.cephfs.testing import FakeAttributes, FakeCluster
from backends.cephfs.volume import PAUSE, SCOPE_TRASH, CephFSVolume
from backends.vfs import TRASH
from storageproxy import removal, trees
from storageproxy.beneath import Directory
from storageproxy.conformance_quota import NestedLimitsConformance, QuotaConformance
from storageproxy.errors import (
    BackendFailure,
    FilesystemError,
    QuotaScopeExists,
    UnsupportedOperation,
    VFolderExists,
    VolumeUnavailable,
)
from storageproxy.interfaces import IPerformanceMetric, capabilities
from storageproxy.testing import SynchronousThreads, bare_id, result_of, scoped_id
from storageproxy.threads import VolumeThreads
from storageproxy.vfolder import VFolderID

MEBI = 1 << 20


class CephFSConformance(QuotaConformance, NestedLimitsConformance):
    def setUp(self) -> None:
        self.attributes = FakeAttributes()
        super().setUp()


class SynchronousTests(CephFSConformance, TestCase):
    def make_volume(self, path: str) -> CephFSVolume:
        return CephFSVolume("test", path, "", SynchronousThreads(), Clock(), self.attributes)


class ThreadedTests(CephFSConformance, TestCase):
    def make_volume(self, path: str) -> CephFSVolume:
        threads = VolumeThreads(reactor, "test", size=8)
        self.addCleanup(threads.stop)
        clock: Any = reactor
        return CephFSVolume("test", path, "", threads, clock, self.attributes)


class CephFSTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = os.path.realpath(self.mktemp())
        os.makedirs(self.path)
        self.attributes = FakeAttributes()
        self.cluster = FakeCluster()
        self.clock = Clock()
        self.volume = self.make_volume()

    def make_volume(self, **more: Any) -> CephFSVolume:
        threads = SynchronousThreads()
        return CephFSVolume("test", self.path, "", threads, self.clock, self.attributes, **more)

    def place(self, vfid: VFolderID, *names: str) -> str:
        return os.path.join(self.path, *vfid.layout, *names)

    def write(self, vfid: VFolderID, name: str, size: int) -> None:
        with open(self.place(vfid, name), "wb") as file:
            file.write(bytes(size))


class CheckTests(CephFSTestCase):
    def test_not_cephfs(self) -> None:
        """A volume that is not on CephFS is not used, until it is."""
        self.attributes.missing = True
        for work in (
            self.volume.check,
            lambda: self.volume.create_folder(bare_id(1), None, None),
            lambda: self.volume.used_bytes(bare_id(1)),
            lambda: self.volume.within(bare_id(1), lambda folder: None),
            lambda: self.volume.delete_folder(bare_id(1)),
            self.volume.empty_trash,
        ):
            error = self.assertRaises(VolumeUnavailable, result_of, work())
            self.assertIn("volume test", error.message)
            self.assertIn('backend = "vfs"', error.remedy)
            self.assertNotIn(self.path, error.message)
        self.assertEqual(os.listdir(self.path), [])
        self.attributes.missing = False
        result_of(self.volume.check())

    def test_looked_at_once(self) -> None:
        """A mount that is right is not looked at again, before another is in its place."""
        result_of(self.volume.check())
        self.attributes.missing = True
        result_of(self.volume.create_folder(bare_id(1), None, None))
        status = os.fstat
        self.patch(os, "fstat", lambda fd: SimpleNamespace(st_dev=status(fd).st_dev + 1))
        work = self.volume.create_folder(bare_id(2), None, None)
        self.assertRaises(VolumeUnavailable, result_of, work)

    def test_no_descriptor_left(self) -> None:
        """A root that is refused is closed."""
        self.attributes.missing = True
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(10):
            self.assertRaises(VolumeUnavailable, self.volume.open_root)
        self.assertEqual(len(os.listdir("/proc/self/fd")), before)

    def test_key(self) -> None:
        """A key without the capability p is told at the start, with what to grant."""
        self.attributes.refusal = errno.EACCES
        error = self.assertRaises(BackendFailure, result_of, self.volume.check())
        self.assertIn("the capability p", error.message)
        self.assertIn("rwp", error.message)

    def test_owner(self) -> None:
        """A directory that the daemon may not write to is told, with its owner."""
        result_of(self.volume.create_folder(bare_id(1), None, None))
        self.attributes.refusal = errno.EPERM
        self.patch(os, "access", lambda path, mode: False)
        work = self.volume.set_quota(bare_id(1), MEBI)
        error = self.assertRaises(BackendFailure, result_of, work)
        self.assertIn(f"uid {os.getuid()}", error.message)
        self.assertNotIn("capability", error.message)

    def test_root(self) -> None:
        """All that is opened below the root hides snapshots."""
        result_of(self.volume.create_folder(bare_id(1), None, None))
        with self.volume.open_root() as root, self.volume.open_folder(bare_id(1)) as folder:
            self.assertIsInstance(root, LiveDirectory)
            self.assertIsInstance(folder, LiveDirectory)


class LimitTests(CephFSTestCase):
    def test_refused(self) -> None:
        """A vfolder or scope that was to be limited and cannot be is not made."""
        self.attributes.refusal = errno.EACCES
        scope = scoped_id(1).scope
        assert scope is not None
        for work in (
            self.volume.create_scope(scope, MEBI),
            self.volume.create_folder(bare_id(1), None, MEBI),
            self.volume.create_folder(scoped_id(1), None, MEBI),
        ):
            self.assertRaises(BackendFailure, result_of, work)
        self.assertEqual(os.listdir(self.path), [*scope.layout])
        self.assertEqual(os.listdir(os.path.join(self.path, *scope.layout)), [])

    def test_broken_off(self) -> None:
        """A creation that was broken off before the limit was set is completed by the next one."""

        class Killed(BaseException):
            pass

        def die(*args: Any, **kwargs: Any) -> None:
            raise Killed

        scope = scoped_id(1).scope
        assert scope is not None
        for create, mode, names in (
            (lambda: self.volume.create_folder(bare_id(1), None, MEBI), 0o755, bare_id(1).layout),
            (lambda: self.volume.create_folder(bare_id(2), 0o770, MEBI), 0o770, bare_id(2).layout),
            (lambda: self.volume.create_scope(scope, MEBI), 0o755, scope.layout),
        ):
            path = os.path.join(self.path, *names)
            patches = [self.patch(self.attributes, "set", die), self.patch(os, "rmdir", die)]
            self.assertRaises(Killed, result_of, create())
            for patch in patches:
                patch.restore()
            self.assertTrue(os.path.isdir(path))
            result_of(create())
            self.assertEqual(os.stat(path).st_mode & 0o7777, mode)
            self.assertEqual(self.limit_of(path), MEBI)
            self.assertRaises((VFolderExists, QuotaScopeExists), result_of, create())

    def test_odd_modes(self) -> None:
        """A folder that is in use is there, whatever bits its owner has set."""
        for number, limit in ((1, MEBI), (2, None)):
            vfid = bare_id(number)
            result_of(self.volume.create_folder(vfid, None, limit))
            os.chmod(self.place(vfid), 0o1777)
            if limit is None:
                self.write(vfid, "file", 1)
            work = self.volume.create_folder(vfid, None, 2 * MEBI)
            self.assertRaises(VFolderExists, result_of, work)
            self.assertEqual(os.stat(self.place(vfid)).st_mode & 0o7777, 0o1777)
            self.assertEqual(result_of(self.volume.get_quota(vfid)), limit or 0)

    def limit_of(self, path: str) -> int:
        with Directory.open_root(path) as directory:
            return self.attributes.get(directory.descriptor, MAX_BYTES)

    def test_not_kept(self) -> None:
        """A limit that is not there when it is read back is an error."""
        result_of(self.volume.create_folder(bare_id(1), None, None))
        self.patch(self.attributes, "set", lambda directory, name, value: None)
        work = self.volume.set_quota(bare_id(1), MEBI)
        error = self.assertRaises(BackendFailure, result_of, work)
        self.assertIn(f"{MEBI} bytes was set, and it is 0", error.message)

    def test_scope_race(self) -> None:
        """A scope that somebody else makes at the same time is limited all the same."""
        scope = scoped_id(1).scope
        assert scope is not None
        create = self.volume.create_scope
        others: list[None] = []

        async def late(*args: Any) -> None:
            if not others:
                others.append(await create(scope, None))
                raise QuotaScopeExists()
            await create(*args)

        self.patch(self.volume, "create_scope", late)
        result_of(self.volume.set_scope_limit(scope, MEBI))
        self.assertEqual(result_of(self.volume.scope_usage(scope)).limit, MEBI)

    def test_moved(self) -> None:
        """That nothing is moved across limits is told as such; other errors as they are."""

        def fail(folder: Any, number: int) -> None:
            raise OSError(number, os.strerror(number))

        result_of(self.volume.create_folder(bare_id(1), None, None))
        work = self.volume.within(bare_id(1), fail, errno.EXDEV)
        error = self.assertRaises(FilesystemError, result_of, work)
        self.assertIn("a limit of its own", error.message)
        self.assertEqual((error.status, error.members["errno"]), (400, errno.EXDEV))
        for number in (errno.EDQUOT, errno.EROFS):
            work = self.volume.within(bare_id(1), fail, number)
            self.assertEqual(self.assertRaises(OSError, result_of, work).errno, number)


class CountingTests(CephFSTestCase):
    def test_accounts(self) -> None:
        """Usage is what the cluster says, and no file is looked at."""
        result_of(self.volume.create_folder(bare_id(1), None, None))
        self.write(bare_id(1), "file", 1000)

        def fail(*args: Any) -> None:
            raise AssertionError("counted")

        self.patch(trees, "usage", fail)
        self.assertEqual(result_of(self.volume.usage(bare_id(1))), trees.Usage(1, 1000))
        self.assertEqual(result_of(self.volume.used_bytes(bare_id(1))), 1000)

    def test_exact(self) -> None:
        """Files are counted one by one where the configuration asks for that."""
        volume = self.make_volume(exact_usage=True)
        result_of(volume.create_folder(bare_id(1), None, None))
        self.write(bare_id(1), "file", 1000)
        self.patch(self.attributes, "get", lambda directory, name: 7)
        self.assertEqual(result_of(volume.usage(bare_id(1))), trees.Usage(1, 1000))
        self.assertEqual(result_of(volume.used_bytes(bare_id(1))), 1000)

    def sizes(self, *blocks: int) -> None:
        """Let the file system say that it has so many blocks, one after the other."""
        left = list(blocks)

        def status(descriptor: int) -> Any:
            size = left.pop(0) if len(left) > 1 else left[0]
            return SimpleNamespace(f_frsize=4096, f_blocks=size, f_bavail=size // 2)

        self.patch(os, "fstatvfs", status)

    def test_new_mount(self) -> None:
        """A file system without any room is asked again until it has some."""
        self.sizes(0, 0, 10)
        work = Deferred.fromCoroutine(self.volume.fs_usage())
        for _ in range(2):
            self.assertNoResult(work)
            self.clock.advance(PAUSE)
        self.assertEqual(self.successResultOf(work), (40960, 20480))

    def test_never(self) -> None:
        """When it never has, that is said within the deadline."""
        self.sizes(0)
        work = Deferred.fromCoroutine(self.volume.fs_usage())
        self.clock.pump([PAUSE] * int(15 / PAUSE))
        error = self.failureResultOf(work, VolumeUnavailable).value
        self.assertIn("ceph-mgr", error.message)


class SharedTrashTests(CephFSTestCase):
    def test_taken_away(self) -> None:
        """What another machine removes at the same time is no failure; anything else is."""
        scope = scoped_id(1).scope
        assert scope is not None
        for number, fails in ((errno.ENOENT, False), (errno.ESTALE, False), (errno.EIO, True)):
            places = [TRASH, f"{scope.layout[0]}/{SCOPE_TRASH}"]
            for place in places:
                os.makedirs(os.path.join(self.path, place, "item"), exist_ok=True)
            note = os.path.join(self.path, TRASH, scope.layout[0])
            with open(note, "w"):
                pass

            def remove(*args: Any, number: int = number) -> None:
                raise OSError(number, os.strerror(number))

            patch = self.patch(removal, "remove", remove)
            if fails:
                self.assertRaises(OSError, result_of, self.volume.empty_trash())
            else:
                result_of(self.volume.empty_trash())
            patch.restore()
            result_of(self.volume.empty_trash())


class TrashTests(CephFSTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.one = scoped_id(1)
        self.top = os.path.join(self.path, self.one.layout[0])
        result_of(self.volume.create_folder(self.one, None, None))
        self.write(self.one, "file", 10)

    def set_apart(self) -> None:
        """Let nothing be moved out of the scope, as if it were limited."""
        rename = os.rename

        def move(source: str, target: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
            places = [os.readlink(f"/proc/self/fd/{one}") for one in (src_dir_fd, dst_dir_fd)]
            if len({place.startswith(self.top) for place in places}) > 1:
                raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
            rename(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

        self.patch(os, "rename", move)

    def trash(self) -> list[str]:
        return os.listdir(os.path.join(self.path, TRASH))

    def test_scope(self) -> None:
        """What cannot leave its scope has a trash in there, which the volume's trash notes."""
        self.set_apart()
        self.assertTrue(result_of(self.volume.delete_folder(self.one)))
        self.assertEqual(self.trash(), [self.one.layout[0]])
        self.assertIn(SCOPE_TRASH, os.listdir(self.top))
        self.assertFalse(result_of(self.volume.delete_folder(self.one)))
        result_of(self.make_volume().empty_trash())
        result_of(self.volume.empty_trash())
        self.assertEqual((self.trash(), os.listdir(self.top)), ([], []))

    def test_trash_taken_away(self) -> None:
        """A daemon that takes an empty trash away takes nothing with it that comes meanwhile."""
        self.set_apart()
        rename = os.rename
        taken: list[str] = []

        def move(source: str, target: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
            place = os.readlink(f"/proc/self/fd/{dst_dir_fd}")
            if place.endswith(SCOPE_TRASH) and not taken:
                taken.append(place)
                result_of(self.make_volume().empty_trash())
            rename(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

        self.patch(os, "rename", move)
        self.assertTrue(result_of(self.volume.delete_folder(self.one)))
        self.assertEqual(len(taken), 1)
        self.assertEqual(self.trash(), [self.one.layout[0]])
        result_of(self.volume.empty_trash())
        self.assertEqual((self.trash(), os.listdir(self.top)), ([], []))

    def test_something_comes(self) -> None:
        """What is thrown away while the trash of its scope is emptied is not forgotten."""
        self.set_apart()
        two = scoped_id(2)
        result_of(self.volume.create_folder(two, None, None))
        result_of(self.volume.delete_folder(self.one))
        unlink = os.unlink

        def late(name: str, *, dir_fd: int | None = None) -> None:
            unlink(name, dir_fd=dir_fd)
            if name == self.one.layout[0] and os.path.exists(self.place(two)):
                result_of(self.volume.delete_folder(two))

        self.patch(os, "unlink", late)
        result_of(self.volume.empty_trash())
        result_of(self.volume.empty_trash())
        self.assertEqual((self.trash(), os.listdir(self.top)), ([], []))

    def test_other_directory(self) -> None:
        """Where no scope is the reason nothing is moved, which is told."""
        result_of(self.volume.create_folder(bare_id(1), None, None))

        def move(*args: Any, **kwargs: Any) -> None:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

        self.patch(os, "rename", move)
        error = self.assertRaises(OSError, result_of, self.volume.delete_folder(bare_id(1)))
        self.assertEqual(error.errno, errno.EXDEV)

    def test_one_that_stays(self) -> None:
        """One that cannot be removed is told, and keeps the note, and none of the others."""
        self.set_apart()
        for number in (2, 3):
            result_of(self.volume.create_folder(scoped_id(number), None, None))
        for number in (1, 2, 3):
            result_of(self.volume.delete_folder(scoped_id(number)))
        rmdir = os.rmdir

        def refuse(name: str, *, dir_fd: int | None = None) -> None:
            if name.startswith(scoped_id(2).layout[-1]):
                raise PermissionError(errno.EACCES, "no")
            rmdir(name, dir_fd=dir_fd)

        self.patch(os, "rmdir", refuse)
        self.assertRaises(PermissionError, result_of, self.volume.empty_trash())
        self.assertEqual(len(os.listdir(os.path.join(self.top, SCOPE_TRASH))), 1)
        self.assertEqual(self.trash(), [self.one.layout[0]])


class ClusterTests(CephFSTestCase):
    def test_interface(self) -> None:
        """The fake has all that the volume asks for."""
        verifyObject(ICluster, self.cluster)

    def test_without(self) -> None:
        """Where nobody can be asked there are no metrics, and no error in the state."""
        self.assertEqual(capabilities(self.volume), ["vfolder", "quota"])
        info = result_of(self.volume.hardware_info())
        self.assertEqual((info["status"], info["metadata"]), ("unavailable", {}))
        self.assertIn("options.client", info["status_info"])
        work = self.volume.performance_metric()
        self.assertRaises(UnsupportedOperation, result_of, work)

    def test_with(self) -> None:
        """What the cluster says of itself is passed on."""
        volume = self.make_volume(cluster=self.cluster)
        self.assertEqual(capabilities(volume), ["vfolder", "quota", "metric"])
        verifyObject(IPerformanceMetric, volume)
        self.assertEqual(result_of(volume.hardware_info()), self.cluster.info)
        self.assertEqual(result_of(volume.performance_metric()), self.cluster.metric)

    def test_mount(self) -> None:
        """A mount that cannot be used is unavailable, however well the cluster is."""
        volume = self.make_volume(cluster=self.cluster)
        self.attributes.missing = True
        info = result_of(volume.hardware_info())
        self.assertEqual(info["status"], "unavailable")
        self.assertIn("not on CephFS", info["status_info"])
        self.assertEqual(info["metadata"], self.cluster.info["metadata"])

    def test_check_changes_nothing(self) -> None:
        """Limits that are there are the same after a check."""
        result_of(self.volume.create_folder(bare_id(1), None, MEBI))
        result_of(self.volume.check())
        with self.volume.open_folder(bare_id(1)) as folder:
            self.assertEqual(self.attributes.get(folder.descriptor, MAX_BYTES), MEBI)
