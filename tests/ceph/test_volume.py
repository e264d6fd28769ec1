"""
What only volumes on CephFS do: trash in limited scopes, snapshots, limits inside of vfolders.
"""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

from twisted.trial.unittest import TestCase

from backends.cephfs.attributes import MAX_BYTES
from backends.cephfs.volume import _UNFINISHED, SCOPE_TRASH
from backends.vfs import VFSVolume
from storageproxy import files, trees
from storageproxy.errors import (
    FilesystemError,
    InvalidSubpath,
    StorageProxyError,
    VFolderExists,
    VolumeUnavailable,
)
from storageproxy.testing import bare_id, scoped_id
from storageproxy.threads import Progress
from storageproxy.transfer import archive
from storageproxy.vfolder import QuotaScopeID, VFolderID
from tests.ceph import counting
from tests.ceph.volumes import OnCephFS, VolumeCase

MEBI = 1 << 20


def limit(path: Path, size: int, name: str = MAX_BYTES) -> None:
    """Limit a directory as its owner can, by a key that has the capability p."""
    os.setxattr(path, name, str(size).encode())


class TrashTests(VolumeCase):
    """Where deleted vfolders go, and that nothing is left of them."""

    def setUp(self) -> None:
        super().setUp()
        self.one, self.two = scoped_id(1, 0x77), scoped_id(2, 0x77)
        assert self.one.scope is not None
        self.scope: QuotaScopeID = self.one.scope
        self.top = Path(self.path, *self.scope.layout)

    async def make(self, vfid: VFolderID, quota: int | None = None) -> None:
        """Make a vfolder with something in it."""
        await self.volume.create_folder(vfid, None, quota)
        self.fill(vfid)

    async def test_limited_scope(self) -> None:
        """In a limited scope the trash is in there; the next daemon finds and empties it."""
        await self.volume.create_scope(self.scope, 64 * MEBI)
        for vfid, quota in ((self.one, None), (self.two, MEBI)):
            await self.make(vfid, quota)
            self.assertTrue(await self.volume.delete_folder(vfid))
            self.assertFalse(self.place(vfid).exists())
            self.assertFalse(await self.volume.delete_folder(vfid))
        self.assertEqual(len(os.listdir(self.top / SCOPE_TRASH)), 2)
        await self.make_volume(self.path).empty_trash()
        self.assertNotIn(SCOPE_TRASH, os.listdir(self.top))
        await self.volume.empty_trash()
        self.assertEqual(os.listdir(self.top), [])
        self.assertEqual(self.trash(), [])
        self.assertEqual((await self.volume.scope_usage(self.scope)).limit, 64 * MEBI)

    async def test_limited_later(self) -> None:
        """Both trashes are emptied of a scope that was limited between two deletions."""
        await self.make(self.one)
        await self.make(self.two)
        await self.volume.delete_folder(self.one)
        await self.volume.set_scope_limit(self.scope, 64 * MEBI)
        await self.volume.delete_folder(self.two)
        self.assertEqual(len(self.trash()), 2)
        await self.volume.empty_trash()
        self.assertEqual((self.trash(), os.listdir(self.top)), ([], []))

    async def test_scope_gone(self) -> None:
        """A scope that an administrator has removed is no matter of the trash any more."""
        await self.volume.create_scope(self.scope, 64 * MEBI)
        await self.make(self.one)
        await self.volume.delete_folder(self.one)
        shutil.rmtree(self.top)
        await self.volume.empty_trash()
        self.assertEqual(self.trash(), [])

    async def test_limits_inside(self) -> None:
        """Limits that people have set in their vfolders are no obstacle."""
        for vfid in (bare_id(1), self.one):
            await self.make(vfid, 64 * MEBI)
            for names in ((), ("sub",), ("sub", "deep"), ("sub", "deep", "er"), ("sub", "empty")):
                limit(self.place(vfid, *names), 32 * MEBI)
            limit(self.place(vfid, "sub", "deep"), 100, "ceph.quota.max_files")
            self.place(vfid, "sub", "deep").chmod(0o500)
            await self.volume.delete_folder(vfid)
        await self.volume.empty_trash()
        self.assertEqual(self.trash(), [])

    async def test_snapshots(self) -> None:
        """Snapshots of a deleted vfolder are removed with it, wherever in there they are."""
        await self.make(bare_id(1))
        for names in ((), ("sub",), ("sub", "deep", "er"), ("sub", "empty")):
            for name in ("one", "two"):
                self.place(bare_id(1), *names, ".snap", name).mkdir()
        self.place(bare_id(1), "sub", "one").unlink()
        await self.volume.delete_folder(bare_id(1))
        await self.volume.empty_trash()
        self.assertEqual(self.trash(), [])

    async def test_snapshot_above(self) -> None:
        """A snapshot of the volume keeps what it has of a vfolder, and keeps none from removal."""
        await self.make(bare_id(1))
        await self.make(self.one)
        snapshot = Path(self.path, ".snap", "all")
        snapshot.mkdir()
        for vfid in (bare_id(1), self.one):
            await self.volume.delete_folder(vfid)
        await self.volume.empty_trash()
        self.assertEqual(self.trash(), [])
        self.assertEqual(snapshot.joinpath(*self.one.layout, "sub", "one").read_text(), "sub/one")


class InsideTests(VolumeCase):
    """What people have in their vfolders."""

    async def test_snapshots_unseen(self) -> None:
        """Neither listings nor archives, nor usage, nor clones have anything of snapshots."""
        vfid = bare_id(1)
        await self.volume.create_folder(vfid, None, None)
        self.fill(vfid)
        for names in ((), ("sub",)):
            self.place(vfid, *names, ".snap", "one").mkdir()
        self.place(vfid, "top").unlink()
        with self.volume.open_folder(vfid) as folder:
            self.assertEqual(trees.usage(folder).files, 2)
            members = archive.members(folder, ".", Progress())
            self.assertNotIn("snap", repr(list(members)))
        pieces = files.listing(lambda: self.volume.open_folder(vfid), self.volume.scan, "/", ".", 0)
        self.assertNotIn(b"snap", b"".join(pieces))
        await counting.counted(str(self.place(vfid)))
        self.assertEqual((await self.volume.usage(vfid)).files, 2)
        await self.volume.clone_folder(vfid, self.volume, bare_id(2))
        self.assertEqual(os.listdir(self.place(bare_id(2))), ["sub"])
        self.assertEqual(os.listdir(self.place(bare_id(2), ".snap")), [])

    async def test_snapshots_untouched(self) -> None:
        """Nobody makes, renames, removes or reads a snapshot by way of the daemon."""
        vfid = bare_id(1)
        await self.volume.create_folder(vfid, None, None)
        self.fill(vfid)
        snapshots = self.place(vfid, ".snap")
        (snapshots / "one").mkdir()
        self.place(vfid, "link").symlink_to(".snap")
        self.place(vfid, "far").symlink_to(".snap/one")

        def refused(operation: Any, *args: Any) -> None:
            with self.volume.open_folder(vfid) as folder:
                error = self.assertRaises(StorageProxyError, operation, folder, *args)
                self.assertIsInstance(error, InvalidSubpath)

        for path in (".snap/two", "sub/.snap/two", "link/two", "far/two"):
            refused(files.make_directory, path, True, False)
            refused(files.rename, "top", path)
        for path in (".snap/one", "link/one", "far/top", ".snap"):
            refused(files.rename, path, "new")
            refused(files.delete, "test", [path], True)
            refused(files.delete, "test", [path], False)
        for path in (".snap", ".snap/one/top", "far/top"):
            refused(lambda folder, path: folder.open_file(path), path)
        self.assertEqual(os.listdir(snapshots), ["one"])
        self.assertEqual(
            os.listdir(self.place(vfid, "sub", ".snap")), ["_one_" + self.number(vfid)]
        )

    def number(self, vfid: VFolderID) -> str:
        """The inode of a vfolder, by which CephFS names what lower directories have of it."""
        return str(os.stat(self.place(vfid)).st_ino)

    async def test_directory_with_snapshots(self) -> None:
        """A directory with snapshots is not deleted for good, which is told at once."""
        vfid = bare_id(1)
        await self.volume.create_folder(vfid, None, None)
        self.fill(vfid)
        self.place(vfid, "sub", ".snap", "one").mkdir()
        with self.volume.changing(vfid) as folder:
            error = self.assertRaises(
                StorageProxyError, files.delete, folder, "test", ["sub"], True
            )
        self.assertEqual((error.status, error.members["errno"]), (400, errno.ENOTEMPTY))
        self.assertEqual(self.place(vfid, "sub", ".snap", "one", "one").read_text(), "sub/one")

    async def test_broken_off(self) -> None:
        """A folder whose creation was broken off before it had its limit is completed."""
        for vfid, mode in ((bare_id(1), None), (scoped_id(1), 0o770)):
            self.volume._make(vfid.layout, mode, _UNFINISHED)
            self.assertTrue(self.place(vfid).stat().st_mode & _UNFINISHED)
            await self.volume.create_folder(vfid, mode, MEBI)
            self.assertEqual(await self.volume.get_quota(vfid), MEBI)
            self.assertEqual(self.place(vfid).stat().st_mode & 0o7777, mode or 0o755)
            with self.assertRaises(VFolderExists):
                await self.volume.create_folder(vfid, mode, MEBI)

    async def test_limit_inside(self) -> None:
        """What cannot be moved into a limited directory of a vfolder is told in plain words."""
        vfid = bare_id(1)
        await self.volume.create_folder(vfid, None, None)
        self.fill(vfid)
        limit(self.place(vfid, "sub"), 64 * MEBI)
        for source, target in (("top", "sub/top"), ("sub/one", "one")):
            with self.assertRaises(FilesystemError) as caught:
                await self.volume.within(vfid, files.rename, source, target)
            self.assertIn("a limit of its own", str(caught.exception))
        await self.volume.within(vfid, files.rename, "sub/one", "sub/deep/one")
        await self.volume.within(vfid, files.rename, "sub", "renamed")

    async def test_full_during_clone(self) -> None:
        """A clone that meets a limit which nobody has foreseen is gone, and nothing is charged."""
        path = os.path.realpath(self.mktemp())
        os.makedirs(path)
        plain = VFSVolume("plain", path, "", self.volume.threads)
        await plain.create_folder(bare_id(1), None, None)
        with open(os.path.join(path, *bare_id(1).layout, "sparse"), "wb") as file:
            file.truncate(64 * MEBI)
        target = scoped_id(1)
        assert target.scope is not None
        await self.volume.create_scope(target.scope, MEBI)
        with self.assertRaises(OSError) as caught:
            await plain.clone_folder(bare_id(1), self.volume, target)
        self.assertEqual(caught.exception.errno, errno.EDQUOT)
        self.assertFalse(self.place(target).exists())
        await self.volume.empty_trash()
        self.assertEqual(os.listdir(Path(self.path, *target.scope.layout)), [])


class MountTests(OnCephFS, TestCase):
    """Mounts that cannot be used, or not yet."""

    mount = "later"

    async def test_new_mount(self) -> None:
        """No mount is ever said to have no room at all, not even one that is new."""
        for number in range(3):
            path = counting.cluster().mount(f"new-{number}")
            capacity, used = await self.make_volume(str(path)).fs_usage()
            self.assertGreater(capacity, 0)
            self.assertLessEqual(used, capacity)
            counting.cluster().unmount(f"new-{number}")

    async def test_not_cephfs(self) -> None:
        """A volume on another file system is told."""
        path = os.path.realpath(self.mktemp())
        os.makedirs(path)
        with self.assertRaises(VolumeUnavailable) as caught:
            await self.make_volume(path).check()
        self.assertIn("not on CephFS", str(caught.exception))

    async def test_unmounted(self) -> None:
        """When the mount is gone nothing is put below it, and it is used again when it is back."""
        mount = counting.cluster().mount(self.mount)
        volume = self.make_volume(str(mount))
        await volume.create_folder(bare_id(1), None, MEBI)
        counting.cluster().unmount(self.mount)
        with self.assertRaises(VolumeUnavailable):
            await volume.create_folder(bare_id(2), None, None)
        self.assertEqual(os.listdir(mount), [])
        counting.cluster().mount(self.mount)
        self.assertEqual(await volume.get_quota(bare_id(1)), MEBI)
        await volume.delete_folder(bare_id(1))
        await volume.empty_trash()
