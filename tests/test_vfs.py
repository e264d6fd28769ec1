"""
The plain backend: the conformance of its volumes, and what only it does.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from typing import Any, TypeVar

from twisted.internet import reactor
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface.verify import verifyObject

from backends.vfs import TRASH, VFSBackend, VFSVolume
from storageproxy import cloning, removal, trees
from storageproxy.beneath import Directory, WritebackError
from storageproxy.config import VolumeSettings
from storageproxy.conformance import VolumeConformance
from storageproxy.durability import Durability
from storageproxy.errors import DiskFull, StorageProxyError
from storageproxy.interfaces import IBackend
from storageproxy.testing import (
    SynchronousThreads,
    bare_id,
    result_of,
    scoped_id,
)
from storageproxy.threads import Progress, VolumeThreads

T = TypeVar("T")

#: An ordinary user.
NOBODY = 65534


class SynchronousVFSTests(VolumeConformance, TestCase):
    def make_volume(self, path: str) -> VFSVolume:
        return VFSVolume("test", path, "", SynchronousThreads())


class ThreadedVFSTests(VolumeConformance, TestCase):
    def make_volume(self, path: str) -> VFSVolume:
        threads = VolumeThreads(reactor, "test", size=8)
        self.addCleanup(threads.stop)
        return VFSVolume("test", path, "", threads)


class VFSVolumeTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = os.path.realpath(self.mktemp())
        os.makedirs(self.path)
        self.volume = VFSVolume("test", self.path, "", SynchronousThreads())

    def throw_away(self, *numbers: int) -> None:
        for number in numbers:
            result_of(self.volume.create_folder(bare_id(number), None, None))
            with open(os.path.join(self.path, *bare_id(number).layout, "file"), "wb"):
                pass
            result_of(self.volume.delete_folder(bare_id(number)))

    def test_steps(self) -> None:
        """An emptying shows that it is alive by each directory that it removes above a folder."""
        progress = Progress()
        seen: list[int] = []
        self.throw_away(1)
        for first in ("00", "01", "02"):
            self.volume._thinned.add((first, "00"))
        self.patch(self.volume, "_prune", lambda *_: seen.append(progress.steps))
        self.volume._empty_trash(progress)
        self.assertEqual(seen, sorted(set(seen)))
        self.assertEqual(len(seen), 4)

    def test_closed(self) -> None:
        """What its owner has closed to himself can be made, and deleted."""
        top = tempfile.mkdtemp()
        self.addCleanup(shutil.rmtree, top)
        os.chown(top, NOBODY, NOBODY)
        volume = VFSVolume("test", top, "", SynchronousThreads())
        path = os.path.join(top, *bare_id(1).layout)
        os.seteuid(NOBODY)
        try:
            for mode in (0, 0o077, 0o500, 0o700):
                result_of(volume.create_folder(bare_id(1), mode, None))
                self.assertEqual(os.stat(path).st_mode & 0o7777, mode)
                self.assertTrue(result_of(volume.delete_folder(bare_id(1))))
                self.assertFalse(os.path.exists(path))
            result_of(volume.empty_trash())
            self.assertEqual(os.listdir(os.path.join(top, TRASH)), [])
            # That is not done when it is something else that is in the way.
            result_of(volume.create_folder(bare_id(1), 0o755, None))
            os.chmod(os.path.dirname(path), 0o555)
            self.assertRaises(PermissionError, result_of, volume.delete_folder(bare_id(1)))
            self.assertEqual(os.stat(path).st_mode & 0o7777, 0o755)
        finally:
            os.seteuid(0)

    def test_no_space(self) -> None:
        """A clone for which there is no space is refused before anything is made."""
        result_of(self.volume.create_folder(bare_id(1), None, None))
        self.patch(cloning, "can_share", lambda source, target: False)
        with open(os.path.join(self.path, *bare_id(1).layout, "big"), "wb") as file:
            file.write(bytes(5001))

        async def free_space() -> int:
            return 5000

        self.patch(self.volume, "free_space", free_space)
        self.assertRaises(
            DiskFull, result_of, self.volume.clone_folder(bare_id(1), self.volume, bare_id(2))
        )
        self.assertFalse(os.path.exists(os.path.join(self.path, *bare_id(2).layout)))

    def test_check(self) -> None:
        """A volume whose directory is gone says so when it is looked at."""
        self.assertIsNone(result_of(self.volume.check()))
        os.rmdir(self.path)
        self.assertRaises(FileNotFoundError, result_of, self.volume.check())

    def test_space_for_what_is_there(self) -> None:
        """A folder of holes, and of files with many names, is cloned where its blocks fit."""
        result_of(self.volume.create_folder(bare_id(1), None, None))
        source = os.path.join(self.path, *bare_id(1).layout)
        with open(os.path.join(source, "sparse"), "wb") as file:
            file.truncate(1 << 42)
        with open(os.path.join(source, "file"), "wb") as file:
            file.write(bytes(3000))
        os.link(os.path.join(source, "file"), os.path.join(source, "again"))
        self.patch(cloning, "can_share", lambda source, target: False)

        async def free_space() -> int:
            return 5000

        self.patch(self.volume, "free_space", free_space)
        result_of(self.volume.clone_folder(bare_id(1), self.volume, bare_id(2)))
        copy = os.path.join(self.path, *bare_id(2).layout)
        self.assertEqual(sorted(os.listdir(copy)), ["again", "file", "sparse"])
        self.assertEqual(result_of(self.volume.used_bytes(bare_id(1))), (1 << 42) + 6000)

    def test_names_after_a_race(self) -> None:
        """All names above a folder are synced when a deletion has taken one of them meanwhile."""
        *above, _ = bare_id(1).layout
        grow = Directory.grow
        raced: list[str] = []
        synced: list[str] = []

        def race(root: Directory, path: str, mode: int = 0o755) -> int:
            there = grow(root, path, mode)
            if not raced:
                raced.append(path)
                os.rmdir(os.path.join(self.path, *above))
            return there

        def sync(directory: Directory) -> None:
            synced.append(os.readlink(f"/proc/self/fd/{directory.descriptor}"))

        self.patch(Directory, "grow", race)
        self.patch(Directory, "sync", sync)
        result_of(self.volume.create_folder(bare_id(1), None, None))
        self.assertEqual(raced, ["/".join(above)])
        expected = [
            os.path.join(self.path, *above[:number]).rstrip("/") for number in range(len(above) + 1)
        ]
        self.assertEqual(synced, expected)

    def test_clone_on_disk(self) -> None:
        """A clone is on stable storage when it is told; one that is not has failed, and is gone."""
        result_of(self.volume.create_folder(bare_id(1), None, None))
        with open(os.path.join(self.path, *bare_id(1).layout, "file"), "wb") as file:
            file.write(b"content")
        synced: list[list[str]] = []

        def sync(directory: Directory) -> None:
            synced.append(os.listdir(directory.descriptor))
            if len(synced) > 1:
                raise WritebackError(5, os.strerror(5))

        self.patch(Directory, "sync_all", sync)
        result_of(self.volume.clone_folder(bare_id(1), self.volume, bare_id(2)))
        self.assertEqual(synced, [["file"]])
        with self.assertRaises(WritebackError):
            result_of(self.volume.clone_folder(bare_id(1), self.volume, bare_id(3)))
        self.assertFalse(os.path.exists(os.path.join(self.path, *bare_id(3).layout)))

    def test_clone_loses_bytes(self) -> None:
        """The sync is told of all that is lost since before the first byte was copied."""
        result_of(self.volume.create_folder(bare_id(1), None, None))
        copied: list[Directory] = []
        synced: list[Directory] = []
        copy = cloning.copy

        def see(source: Directory, target: Directory, *args: Any, **kwargs: Any) -> None:
            copied.append(target)
            copy(source, target, *args, **kwargs)

        self.patch(cloning, "copy", see)
        self.patch(Directory, "sync_all", lambda directory: synced.append(directory))
        result_of(self.volume.clone_folder(bare_id(1), self.volume, bare_id(2)))
        self.assertEqual(len(synced), 1)
        self.assertIs(synced[0], copied[0])

    def test_clone_that_is_not_kept(self) -> None:
        """It is the volume of the copy that says whether a clone is synced."""
        result_of(self.volume.create_folder(bare_id(1), None, None))
        synced: list[int] = []
        for number, durability in enumerate(Durability, 2):
            target = VFSVolume("target", self.path, "", SynchronousThreads(), durability)

            def sync(directory: Directory, number: int = number) -> None:
                synced.append(number)

            self.patch(Directory, "sync_all", sync)
            result_of(self.volume.clone_folder(bare_id(1), target, bare_id(number)))
        self.assertEqual(synced, [2, 3, 4])

    def test_clone_on_fuse(self) -> None:
        """Where not all can be synced at once, each file and directory is, as it stays."""
        result_of(self.volume.create_folder(bare_id(1), None, None))
        top, copy = (os.path.join(self.path, *bare_id(number).layout) for number in (1, 2))
        for names in (("sub", "one"), ("sub", "two")):
            os.makedirs(os.path.join(top, *names))
            with open(os.path.join(top, *names, "file"), "wb") as file:
                file.write(b"content")
        synced: dict[str, int] = {}
        fsync = os.fsync

        def sync(descriptor: int) -> None:
            fsync(descriptor)
            path = os.readlink(f"/proc/self/fd/{descriptor}")
            if path.startswith(copy):
                synced[os.path.relpath(path, copy)] = os.fstat(descriptor).st_ctime_ns

        self.patch(os, "fsync", sync)
        self.patch(Directory, "can_sync_all", lambda directory: False)
        self.patch(Directory, "sync_all", lambda directory: self.fail("all at once"))
        result_of(self.volume.clone_folder(bare_id(1), self.volume, bare_id(2)))
        self.assertEqual(
            {*synced}, {".", "sub", "sub/one", "sub/one/file", "sub/two", "sub/two/file"}
        )
        for path, changed in synced.items():
            self.assertEqual(os.stat(os.path.join(copy, path)).st_ctime_ns, changed, path)
        self.volume.durability = Durability.NONE
        synced.clear()
        shutil.rmtree(copy)
        result_of(self.volume.clone_folder(bare_id(1), self.volume, bare_id(2)))
        self.assertEqual(synced, {})

    def test_clone_syncs_in_its_turn(self) -> None:
        """A sync that takes long holds the turn of its clone, and is not taken for a stall."""
        result_of(self.volume.create_folder(bare_id(1), None, None))
        now: list[Progress] = []
        silent: list[list[bool]] = []

        class Threads(SynchronousThreads):
            async def run_long(self, function: Callable[[Progress], T], what: str = "") -> T:
                now.append(Progress())
                try:
                    return function(now[-1])
                finally:
                    now.clear()

        def sync(directory: Directory) -> None:
            silent.append([progress.silent for progress in now])

        self.volume.threads = Threads()
        self.patch(Directory, "sync_all", sync)
        result_of(self.volume.clone_folder(bare_id(1), self.volume, bare_id(2)))
        self.assertEqual(silent, [[True]])

    def test_usage_limit(self) -> None:
        """Counting for ``/folder/usage`` is given up after a few seconds, not never."""
        seen: list[Any] = []

        def usage(top: Directory, progress: object, limit: float) -> trees.Usage:
            seen.append(limit)
            raise trees.TooSlow

        self.patch(trees, "usage", usage)
        result_of(self.volume.create_folder(bare_id(1), None, None))
        self.assertRaises(trees.TooSlow, result_of, self.volume.usage(bare_id(1)))
        self.assertTrue(0 < seen[0] < 10, seen)

    def test_trash_of_one_volume(self) -> None:
        """Deleted folders wait within the volume, where a rename can put them."""
        self.throw_away(1)
        self.assertEqual(len(os.listdir(os.path.join(self.path, TRASH))), 1)

    def test_same_folder_deleted_again(self) -> None:
        """A folder can be deleted again before the remains of the first one are removed."""
        self.throw_away(1, 1)
        self.assertEqual(len(os.listdir(os.path.join(self.path, TRASH))), 2)
        result_of(self.volume.empty_trash())
        self.assertEqual(os.listdir(os.path.join(self.path, TRASH)), [])

    def test_trash_is_private(self) -> None:
        """Other users of the host cannot look into what was deleted."""
        self.throw_away(1)
        self.assertEqual(os.stat(os.path.join(self.path, TRASH)).st_mode & 0o077, 0)

    def test_planted_trash(self) -> None:
        """A link in the place of the trash is not followed out of the volume, nor emptied."""
        outside = self.mktemp()
        os.makedirs(os.path.join(outside, "precious"))
        os.makedirs(os.path.join(self.path, os.path.dirname(TRASH)))
        os.symlink(os.path.abspath(outside), os.path.join(self.path, TRASH))
        with self.assertRaises(Exception):  # noqa: B017
            result_of(self.volume.empty_trash())
        self.assertEqual(os.listdir(outside), ["precious"])

    def test_one_that_stays(self) -> None:
        """A deleted folder that cannot be removed does not keep the others on the disk."""
        self.throw_away(1, 2, 3)
        trash = os.path.join(self.path, TRASH)
        stubborn = os.listdir(trash)[0]
        remove = removal.remove

        def fail(parent: Directory, name: str, *args: Any) -> None:
            if name == stubborn:
                raise PermissionError(1, os.strerror(1))
            remove(parent, name, *args)

        self.patch(removal, "remove", fail)
        try:
            result_of(self.volume.empty_trash())
        except PermissionError:
            pass
        self.assertEqual(os.listdir(trash), [stubborn])

    def test_link_in_trash(self) -> None:
        """A link among what was deleted is removed itself."""
        trash = os.path.join(self.volume.path, ".storage-proxy", "trash")
        os.makedirs(trash)
        os.symlink("/", os.path.join(trash, "link"))
        result_of(self.volume.empty_trash())
        self.assertEqual(os.listdir(trash), [])

    def test_file_in_trash(self) -> None:
        """Something that is no directory, deleted in the place of a folder, is removed too."""
        os.makedirs(os.path.join(self.path, *bare_id(1).layout[:-1]))
        with open(os.path.join(self.path, *bare_id(1).layout), "wb"):
            pass
        result_of(self.volume.delete_folder(bare_id(1)))
        result_of(self.volume.empty_trash())
        result_of(self.volume.create_folder(bare_id(1), None, None))

    def test_link_in_the_place_of_a_folder(self) -> None:
        """A folder that is a link out of the volume is refused."""
        outside = self.mktemp()
        os.makedirs(outside)
        os.makedirs(os.path.join(self.path, *bare_id(1).layout[:-1]))
        os.symlink(os.path.abspath(outside), os.path.join(self.path, *bare_id(1).layout))
        with self.assertRaises((OSError, StorageProxyError)):
            result_of(self.volume.within(bare_id(1), lambda folder: None))

    def test_descriptors(self) -> None:
        """No operation leaves a descriptor open, whether it succeeds or fails."""
        before = sorted(os.listdir("/proc/self/fd"))
        for vfid in (bare_id(1), scoped_id(1)):
            for _ in range(2):
                for work in (
                    self.volume.create_folder(vfid, None, None),
                    self.volume.usage(vfid),
                    self.volume.clone_folder(vfid, self.volume, bare_id(9)),
                    self.volume.delete_folder(vfid),
                    self.volume.delete_folder(vfid),
                    self.volume.used_bytes(vfid),
                    self.volume.empty_trash(),
                ):
                    try:
                        result_of(work)
                    except Exception:
                        pass
        self.assertEqual(sorted(os.listdir("/proc/self/fd")), before)


class VFSBackendTests(SynchronousTestCase):
    def settings(self, **options: Any) -> VolumeSettings:
        return VolumeSettings(backend="vfs", path="/", options=options)

    def test_interface(self) -> None:
        """The backend is a Twisted plugin that the daemon can use."""
        verifyObject(IBackend, VFSBackend())

    def test_good_options(self) -> None:
        """Options that are allowed are not complained about."""
        self.assertEqual(VFSBackend().check("test", self.settings()), [])
        self.assertEqual(VFSBackend().check("test", self.settings(threads=2, deadline=1.5)), [])

    def test_bad_options(self) -> None:
        """Every complaint names its key."""
        for options, key in (
            ({"threads": 1}, "options.threads"),
            ({"threads": "many"}, "options.threads"),
            ({"deadline": 0}, "options.deadline"),
            ({"deadline": -1.0}, "options.deadline"),
            ({"durability": "always"}, "options.durability"),
            ({"durability": ["none"]}, "options.durability"),
        ):
            complaints = VFSBackend().check("test", self.settings(**options))
            self.assertEqual(len(complaints), 1, options)
            self.assertTrue(complaints[0].startswith(key), complaints)

    def test_volume(self) -> None:
        """The options reach the volume that is made, and its threads."""
        volume = VFSBackend().volume("test", self.settings(), reactor)
        self.assertIs(volume.durability, Durability.PATCH)
        settings = self.settings(threads=8, deadline=3, durability="completion")
        volume = VFSBackend().volume("test", settings, reactor)
        self.assertIs(volume.durability, Durability.COMPLETION)
        self.assertEqual(volume.threads.size, 8)
        self.assertEqual(volume.threads.deadline, 3)
        self.assertEqual(volume.threads.long_calls, 2)
