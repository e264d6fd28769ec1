"""
What every backend has to pass, also those that others write.

A backend subclasses :class:`VolumeConformance` together with Twisted's ``TestCase`` and says how
its volumes are made; everything that the daemon expects of a volume is tested then.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from twisted.internet.defer import Deferred, gatherResults
from zope.interface.verify import verifyObject

from storageproxy import cloning, trees
from storageproxy.beneath import Directory
from storageproxy.errors import VFolderExists, VFolderNotFound, VolumeUnavailable
from storageproxy.interfaces import (
    IFastScan,
    IPerformanceMetric,
    IQuota,
    IThreads,
    IVolume,
    capabilities,
)
from storageproxy.testing import bare_id, scoped_id
from storageproxy.vfolder import UPLOADS, VFolderID

if TYPE_CHECKING:
    from twisted.trial.unittest import TestCase
else:
    TestCase = object


class VolumeConformance(TestCase):
    """
    What the daemon expects of every :class:`~storageproxy.interfaces.IVolume`.

    To be mixed into :class:`twisted.trial.unittest.TestCase`. The tests look at the disk below
    the volume's path by themselves, as the user that runs them.
    """

    #: Makes a volume; to be supplied by the subclass, as a method. It is given an existing
    #: directory, from :meth:`make_path`; a second volume on the same path stands for the daemon
    #: after a restart.
    make_volume: Callable[[str], IVolume]

    #: What :meth:`fill` puts into a folder, as the volume counts it.
    filled = trees.Usage(4, 13)

    def make_path(self) -> str:
        """Make an empty directory that can be a volume; a subclass may take it from a mount."""
        path: str = os.path.realpath(self.mktemp())
        os.makedirs(path)
        return path

    def break_clones(self) -> None:
        """Make clones fail when something was copied already. A subclass may know another way."""

        def fail(source: Directory, target: Directory, *args: Any, **kwargs: Any) -> None:
            with target.open_file("half", os.O_WRONLY | os.O_CREAT | os.O_EXCL) as file:
                file.write([b"copied before the failure"], 0)
            raise OSError(5, os.strerror(5))

        self.patch(cloning, "copy", fail)

    def setUp(self) -> None:
        """Make the volume that most of the tests use."""
        self.path = self.make_path()
        self.volume = self.make_volume(self.path)

    # ---- helpers

    def place(self, vfid: VFolderID, *names: str, root: str | None = None) -> str:
        """The path of something in a vfolder, as the disk has it."""
        return os.path.join(root or self.path, *vfid.layout, *names)

    def fill(self, vfid: VFolderID) -> None:
        """Put some of everything into a vfolder: 4 files and links, 13 bytes, 2 directories."""
        os.makedirs(self.place(vfid, "sub", "empty"))
        for names, content in (
            (("top.txt",), b"top"),
            (("sub", "run.sh"), b"#!sh"),
        ):
            with open(self.place(vfid, *names), "wb") as file:
                file.write(content)
        os.symlink("../to", self.place(vfid, "sub", "link"))
        os.symlink("x", self.place(vfid, "l"))

    async def counted(self) -> None:
        """
        Return when the storage system has counted what was written. A subclass says how, when that
        takes a while.
        """

    def names_left(self) -> set[str]:
        """The names of all files below the volume's path."""
        return {name for _, _, names in os.walk(self.path) for name in names}

    # ---- what it is

    def test_interface(self) -> None:
        """A volume has all that the daemon calls, with the arguments that it passes."""
        verifyObject(IVolume, self.volume)
        verifyObject(IThreads, self.volume.threads)

    def test_path(self) -> None:
        """A volume says where it is mounted by an absolute path without symbolic links."""
        self.assertEqual(self.volume.path, os.path.realpath(self.volume.path))

    def test_capabilities(self) -> None:
        """What a volume says that it can do is what it can do."""
        found = capabilities(self.volume)
        self.assertIn("vfolder", found)
        self.assertEqual("quota" in found, IQuota.providedBy(self.volume))
        self.assertEqual("metric" in found, IPerformanceMetric.providedBy(self.volume))
        self.assertEqual("fast-scan" in found, IFastScan.providedBy(self.volume))
        for ability, name in ((IQuota, "quota"), (IPerformanceMetric, "metric")):
            if name in found:
                verifyObject(ability, self.volume)

    # ---- listing

    async def test_scan(self) -> None:
        """A directory is listed as the kernel tells it, whatever the names in it."""
        await self.volume.create_folder(bare_id(1), None, None)
        await self.volume.check()
        self.fill(bare_id(1))
        for name in (b"line\nbreak", b"\xff\xfe"):
            with open(os.path.join(os.fsencode(self.place(bare_id(1))), name), "wb"):
                pass

        def scan(folder: Directory) -> dict[str, tuple[int, int, int]]:
            found = self.volume.scan(folder, 0)
            return {
                name: (status.st_mode, status.st_size, status.st_mtime_ns // 10**9)
                for name, status in found
            }

        expected = {
            entry.name: (status.st_mode, status.st_size, status.st_mtime_ns // 10**9)
            for entry in os.scandir(self.place(bare_id(1)))
            for status in [entry.stat(follow_symlinks=False)]
        }
        self.assertEqual(await self.volume.within(bare_id(1), scan), expected)

    # ---- create

    async def test_create_bare(self) -> None:
        """A folder with a bare id lies where the original would look for it."""
        await self.volume.create_folder(bare_id(1), None, None)
        self.assertTrue(os.path.isdir(os.path.join(self.path, "ab", "cd", "0" * 27 + "1")))

    async def test_create_scoped(self) -> None:
        """A folder with a scoped id lies in the directory of its quota scope."""
        await self.volume.create_folder(scoped_id(1, 0x77), None, None)
        self.assertTrue(
            os.path.isdir(os.path.join(self.path, "0" * 30 + "77", "ab", "cd", "0" * 27 + "1"))
        )

    async def test_create_empty(self) -> None:
        """A new folder is empty."""
        await self.volume.create_folder(bare_id(1), None, None)
        self.assertEqual(os.listdir(self.place(bare_id(1))), [])

    async def test_create_mode(self) -> None:
        """A folder has exactly the mode that the manager has asked for, whatever the umask."""
        before = os.umask(0o077)
        self.addCleanup(os.umask, before)
        await self.volume.create_folder(bare_id(1), 0o775, None)
        mode = stat.S_IMODE(os.stat(self.place(bare_id(1))).st_mode)
        self.assertEqual(oct(mode), oct(0o775))

    async def test_create_default_mode(self) -> None:
        """Without a mode, a folder can be entered by others and written by its owner only."""
        before = os.umask(0o022)
        self.addCleanup(os.umask, before)
        await self.volume.create_folder(bare_id(1), None, None)
        mode = stat.S_IMODE(os.stat(self.place(bare_id(1))).st_mode)
        self.assertEqual(oct(mode), oct(0o755))

    async def test_create_twice(self) -> None:
        """A folder that exists is told, and keeps what is in it."""
        await self.volume.create_folder(bare_id(1), None, None)
        self.fill(bare_id(1))
        with self.assertRaises(VFolderExists):
            await self.volume.create_folder(bare_id(1), 0o700, None)
        self.assertIn("top.txt", os.listdir(self.place(bare_id(1))))

    async def test_create_both_dialects(self) -> None:
        """The same UUID in both dialects names two folders."""
        for vfid in (bare_id(1), scoped_id(1)):
            await self.volume.create_folder(vfid, None, None)
        self.fill(bare_id(1))
        self.assertEqual(os.listdir(self.place(scoped_id(1))), [])

    # ---- delete

    async def test_delete(self) -> None:
        """A deleted folder is gone when the answer comes, and can be made anew, empty."""
        for vfid in (bare_id(1), scoped_id(1)):
            await self.volume.create_folder(vfid, None, None)
            self.fill(vfid)
            self.assertTrue(await self.volume.delete_folder(vfid))
            self.assertFalse(os.path.lexists(self.place(vfid)))
            await self.volume.create_folder(vfid, None, None)
            self.assertEqual(os.listdir(self.place(vfid)), [])

    async def test_delete_twice(self) -> None:
        """Deleting what is not there says so, and is no error."""
        for vfid in (bare_id(1), scoped_id(1)):
            self.assertFalse(await self.volume.delete_folder(vfid))
            await self.volume.create_folder(vfid, None, None)
            self.assertTrue(await self.volume.delete_folder(vfid))
            self.assertFalse(await self.volume.delete_folder(vfid))

    async def test_delete_prefixes(self) -> None:
        """The directories above the last folder of a prefix go with it."""
        for vfid in (bare_id(1), scoped_id(1)):
            await self.volume.create_folder(vfid, None, None)
            await self.volume.delete_folder(vfid)
        await self.volume.empty_trash()
        left = os.listdir(self.path)
        self.assertNotIn("ab", left)
        self.assertEqual(os.listdir(os.path.join(self.path, scoped_id(1).layout[0])), [])

    async def test_delete_keeps_scope(self) -> None:
        """The directory of a quota scope stays, as the original leaves it."""
        await self.volume.create_folder(scoped_id(1), None, None)
        await self.volume.delete_folder(scoped_id(1))
        self.assertIn(scoped_id(1).layout[0], os.listdir(self.path))

    async def test_delete_neighbour(self) -> None:
        """A folder beside the deleted one keeps all that it has."""
        for vfid in (bare_id(1), bare_id(2)):
            await self.volume.create_folder(vfid, None, None)
            self.fill(vfid)
        await self.volume.delete_folder(bare_id(1))
        await self.volume.empty_trash()
        self.assertEqual(sorted(os.listdir(self.place(bare_id(2)))), ["l", "sub", "top.txt"])

    async def test_create_and_delete_race(self) -> None:
        """Folders that share a prefix can be made and deleted at the same time."""

        async def come_and_go(vfid: VFolderID) -> None:
            for _ in range(20):
                await self.volume.create_folder(vfid, None, None)
                deleted = await self.volume.delete_folder(vfid)
                self.assertTrue(deleted)
                await self.volume.empty_trash()

        await gatherResults(
            [
                Deferred.fromCoroutine(come_and_go(make(number)))
                for number in range(1, 5)
                for make in (bare_id, scoped_id)
            ],
            consumeErrors=True,
        )
        await self.volume.empty_trash()
        self.assertNotIn("ab", os.listdir(self.path))

    # ---- trash

    async def test_empty_trash(self) -> None:
        """What deleted folders had in them is removed from the disk."""
        await self.volume.create_folder(bare_id(1), None, None)
        self.fill(bare_id(1))
        await self.volume.delete_folder(bare_id(1))
        await self.volume.empty_trash()
        self.assertEqual(self.names_left() & {"top.txt", "run.sh", "link", "l"}, set())

    async def test_empty_trash_after_restart(self) -> None:
        """What a daemon had no time to remove is removed by the next one."""
        await self.volume.create_folder(scoped_id(1), None, None)
        self.fill(scoped_id(1))
        await self.volume.delete_folder(scoped_id(1))
        await self.make_volume(self.path).empty_trash()
        self.assertEqual(self.names_left() & {"top.txt", "run.sh", "link", "l"}, set())

    async def test_empty_trash_without_any(self) -> None:
        """A volume that nothing was deleted from has nothing to be emptied."""
        await self.volume.empty_trash()
        await self.volume.create_folder(bare_id(1), None, None)
        await self.volume.empty_trash()
        self.assertTrue(os.path.isdir(self.place(bare_id(1))))

    async def test_empty_trash_does_not_follow_links(self) -> None:
        """A link in a deleted folder is removed, and what it leads to stays."""
        for vfid in (bare_id(1), bare_id(2)):
            await self.volume.create_folder(vfid, None, None)
        self.fill(bare_id(2))
        os.symlink(self.place(bare_id(2)), self.place(bare_id(1), "neighbour"))
        await self.volume.delete_folder(bare_id(1))
        await self.volume.empty_trash()
        self.assertEqual(sorted(os.listdir(self.place(bare_id(2)))), ["l", "sub", "top.txt"])

    # ---- work in a folder

    async def test_within(self) -> None:
        """An operation gets the open folder and its arguments, and its result is told."""
        await self.volume.create_folder(scoped_id(1), None, None)
        self.fill(scoped_id(1))

        def operation(folder: Directory, name: str) -> list[str]:
            with folder.descend(name) as sub:
                return sorted(os.listdir(sub.descriptor))

        found = await self.volume.within(scoped_id(1), operation, "sub")
        self.assertEqual(found, ["empty", "link", "run.sh"])

    async def test_within_missing(self) -> None:
        """A folder that does not exist is told, also when its prefix does."""
        await self.volume.create_folder(bare_id(2), None, None)
        for vfid in (bare_id(1), scoped_id(1)):
            with self.assertRaises(VFolderNotFound):
                await self.volume.within(vfid, lambda folder: None)

    async def test_within_file(self) -> None:
        """A file in the place of a folder is no folder."""
        await self.volume.create_folder(bare_id(2), None, None)
        with open(self.place(bare_id(1)), "wb"):
            pass
        with self.assertRaises(VFolderNotFound):
            await self.volume.within(bare_id(1), lambda folder: None)

    async def test_within_error(self) -> None:
        """What an operation raises is told as it is."""
        await self.volume.create_folder(bare_id(1), None, None)

        def operation(folder: Directory) -> None:
            raise KeyError("of the operation")

        with self.assertRaises(KeyError):
            await self.volume.within(bare_id(1), operation)

    def test_open_root(self) -> None:
        """The root that a volume opens is the directory that it is mounted at."""
        with self.volume.open_root() as root:
            self.assertTrue(os.path.samestat(os.fstat(root.descriptor), os.stat(self.volume.path)))

    # ---- counting

    async def test_usage(self) -> None:
        """Files and links are counted, with their sizes."""
        await self.volume.create_folder(bare_id(1), None, None)
        self.assertEqual(await self.volume.usage(bare_id(1)), trees.Usage(0, 0))
        self.fill(bare_id(1))
        await self.counted()
        self.assertEqual(await self.volume.usage(bare_id(1)), self.filled)

    async def test_usage_missing(self) -> None:
        """Nothing is counted of a folder that does not exist."""
        with self.assertRaises(VFolderNotFound):
            await self.volume.usage(bare_id(1))

    async def test_used_bytes(self) -> None:
        """The bytes of a folder are those that its usage tells."""
        await self.volume.create_folder(scoped_id(1), None, None)
        self.fill(scoped_id(1))
        await self.counted()
        self.assertEqual(await self.volume.used_bytes(scoped_id(1)), self.filled.used_bytes)

    async def test_used_bytes_missing(self) -> None:
        """A folder that does not exist has no bytes to tell."""
        with self.assertRaises(VFolderNotFound):
            await self.volume.used_bytes(scoped_id(1))

    async def test_fs_usage(self) -> None:
        """The size of the file system is told with what is used of it."""
        capacity, used = await self.volume.fs_usage()
        self.assertIsInstance(capacity, int)
        self.assertIsInstance(used, int)
        self.assertGreater(capacity, 0)
        self.assertTrue(0 <= used <= capacity, (used, capacity))

    async def test_free_space(self) -> None:
        """What can still be written is told, as the mount has it."""
        free = await self.volume.free_space()
        self.assertIsInstance(free, int)
        self.assertGreater(free, 0)

    async def test_stop(self) -> None:
        """A volume that is stopped takes no more calls."""
        await self.volume.stop()
        with self.assertRaises(VolumeUnavailable):
            await self.volume.create_folder(bare_id(1), None, None)

    async def test_hardware_info(self) -> None:
        """The state of the storage system has the form that managers read."""
        info = await self.volume.hardware_info()
        self.assertEqual(sorted(info), ["metadata", "status", "status_info"])
        self.assertIn(info["status"], ("healthy", "degraded", "offline", "unavailable"))
        self.assertIsInstance(info["metadata"], dict)

    # ---- clone

    async def _source(self) -> VFolderID:
        vfid = bare_id(1)
        await self.volume.create_folder(vfid, None, None)
        self.fill(vfid)
        return vfid

    def _content(self, *path: str) -> bytes:
        with open(os.path.join(*path), "rb") as file:
            return file.read()

    async def test_clone(self) -> None:
        """A clone has what the folder has, in either layout, and the folder keeps it."""
        source = await self._source()
        for target in (bare_id(2), scoped_id(2)):
            await self.volume.clone_folder(source, self.volume, target)
            for vfid in (source, target):
                self.assertEqual(self._content(self.place(vfid, "top.txt")), b"top")
                self.assertEqual(self._content(self.place(vfid, "sub", "run.sh")), b"#!sh")
                self.assertEqual(os.listdir(self.place(vfid, "sub", "empty")), [])
            await self.counted()
            self.assertEqual(await self.volume.usage(target), await self.volume.usage(source))

    async def test_clone_is_apart(self) -> None:
        """What is written into a clone does not show in the folder."""
        source = await self._source()
        await self.volume.clone_folder(source, self.volume, bare_id(2))
        with open(self.place(bare_id(2), "top.txt"), "wb") as file:
            file.write(b"other")
        self.assertEqual(self._content(self.place(source, "top.txt")), b"top")

    async def test_clone_links(self) -> None:
        """Symbolic links are cloned as links, wherever they lead."""
        source = await self._source()
        os.symlink(self.place(source), self.place(source, "absolute"))
        await self.volume.clone_folder(source, self.volume, bare_id(2))
        self.assertEqual(os.readlink(self.place(bare_id(2), "sub", "link")), "../to")
        self.assertEqual(os.readlink(self.place(bare_id(2), "absolute")), self.place(source))

    async def test_clone_modes_and_times(self) -> None:
        """Files and directories of a clone keep their permissions and times."""
        source = await self._source()
        for name, mode in (("sub/run.sh", 0o750), ("top.txt", 0o640), ("sub/empty", 0o711)):
            os.chmod(self.place(source, name), mode)
        for name in ("sub/run.sh", "top.txt", "sub/empty", "sub"):
            os.utime(self.place(source, name), (1_000_000_000, 1_100_000_000))
        await self.volume.clone_folder(source, self.volume, bare_id(2))
        for name in ("sub/run.sh", "top.txt", "sub/empty", "sub"):
            before, after = (os.stat(self.place(vfid, name)) for vfid in (source, bare_id(2)))
            self.assertEqual(oct(before.st_mode), oct(after.st_mode), name)
            self.assertEqual(before.st_mtime_ns, after.st_mtime_ns, name)

    async def test_clone_leaves_out_fifo(self) -> None:
        """A FIFO is not cloned, and makes nobody wait."""
        source = await self._source()
        os.mkfifo(self.place(source, "fifo"))
        await self.volume.clone_folder(source, self.volume, bare_id(2))
        self.assertEqual(sorted(os.listdir(self.place(bare_id(2)))), ["l", "sub", "top.txt"])

    async def test_clone_leaves_out_uploads(self) -> None:
        """Unfinished uploads belong to the folder that they were begun in."""
        source = await self._source()
        os.makedirs(self.place(source, UPLOADS))
        with open(self.place(source, UPLOADS, "session"), "wb"):
            pass
        os.makedirs(self.place(source, "sub", UPLOADS))
        await self.volume.clone_folder(source, self.volume, bare_id(2))
        self.assertNotIn(UPLOADS, os.listdir(self.place(bare_id(2))))
        self.assertIn(UPLOADS, os.listdir(self.place(bare_id(2), "sub")))

    async def test_clone_into_existing(self) -> None:
        """A clone into a folder that exists keeps its other files, and replaces those named so."""
        source = await self._source()
        target = bare_id(2)
        await self.volume.create_folder(target, None, None)
        for name in ("kept", "top.txt"):
            with open(self.place(target, name), "wb") as file:
                file.write(b"of the target")
        await self.volume.clone_folder(source, self.volume, target)
        self.assertEqual(self._content(self.place(target, "kept")), b"of the target")
        self.assertEqual(self._content(self.place(target, "top.txt")), b"top")

    async def test_clone_does_not_write_through_links(self) -> None:
        """A link in the target is replaced; what it leads to is not written."""
        source = await self._source()
        target = bare_id(2)
        await self.volume.create_folder(target, None, None)
        with open(self.place(target, "kept"), "wb") as file:
            file.write(b"of the target")
        os.symlink("kept", self.place(target, "top.txt"))
        await self.volume.clone_folder(source, self.volume, target)
        self.assertEqual(self._content(self.place(target, "kept")), b"of the target")
        self.assertFalse(os.path.islink(self.place(target, "top.txt")))

    async def test_clone_across_volumes(self) -> None:
        """A folder is cloned to another volume."""
        source = await self._source()
        root = self.make_path()
        await self.volume.clone_folder(source, self.make_volume(root), scoped_id(2))
        self.assertEqual(self._content(self.place(scoped_id(2), "top.txt", root=root)), b"top")
        self.assertFalse(os.path.exists(self.place(scoped_id(2))))

    async def test_clone_missing(self) -> None:
        """A folder that does not exist cannot be cloned, and nothing is made for it."""
        with self.assertRaises(VFolderNotFound):
            await self.volume.clone_folder(bare_id(1), self.volume, bare_id(2))
        self.assertFalse(os.path.exists(self.place(bare_id(2))))

    async def test_failed_clone_is_removed(self) -> None:
        """A clone that fails leaves no half of a folder."""
        source = await self._source()
        self.break_clones()
        for target in (bare_id(2), scoped_id(2)):
            with self.assertRaises(OSError):
                await self.volume.clone_folder(source, self.volume, target)
            self.assertFalse(os.path.exists(self.place(target)))
        self.assertEqual(self._content(self.place(source, "top.txt")), b"top")

    async def test_failed_clone_keeps_target(self) -> None:
        """A clone that fails takes no folder away that was there before it."""
        source = await self._source()
        target = bare_id(2)
        await self.volume.create_folder(target, None, None)
        with open(self.place(target, "kept"), "wb") as file:
            file.write(b"of the target")
        self.break_clones()
        with self.assertRaises(OSError):
            await self.volume.clone_folder(source, self.volume, target)
        self.assertEqual(self._content(self.place(target, "kept")), b"of the target")
