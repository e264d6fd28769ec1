"""
Mounts whose keys lack a capability: what is said, and that the rest goes on.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path

from backends.cephfs.volume import CephFSVolume
from storageproxy.errors import BackendFailure
from storageproxy.testing import bare_id, scoped_id
from tests.ceph import counting
from tests.ceph.volumes import VolumeCase

MEBI = 1 << 20


@functools.cache
def mount(client: str, capabilities: str) -> Path:
    """A mount by a key of its own."""
    counting.cluster().authorize(client, capabilities)
    return counting.cluster().mount(client, client)


class KeyTests(VolumeCase):
    """Beside the volume, whose key may do all, there is another of the same directory."""

    def beside(self, client: str, capabilities: str) -> CephFSVolume:
        """A volume by a key that may do less."""
        return self.make_volume(str(mount(client, capabilities) / Path(self.path).name))

    async def test_no_limits(self) -> None:
        """Without the capability p no limit can be set, which is said at the start."""
        volume = self.beside("limitless", "rw")
        await self.volume.create_folder(bare_id(1), None, MEBI)
        for work in (
            volume.check(),
            volume.set_quota(bare_id(1), 2 * MEBI),
            volume.set_quota(bare_id(1), 0),
            volume.create_folder(bare_id(2), None, MEBI),
            volume.create_scope(scoped_id(1).scope, MEBI),  # type: ignore[arg-type]
        ):
            with self.assertRaises(BackendFailure) as caught:
                await work
            self.assertIn("the capability p", str(caught.exception))
        self.assertEqual(sorted(os.listdir(self.path)), [".storage-proxy", "ab"])
        self.assertFalse(self.place(bare_id(2)).exists())
        self.assertEqual(await volume.get_quota(bare_id(1)), MEBI)
        info = await volume.hardware_info()
        self.assertEqual(info["status"], "unavailable")
        self.assertIn("the capability p", info["status_info"])

    async def test_files_all_the_same(self) -> None:
        """What needs no limits to be set is done without that capability."""
        volume = self.beside("limitless", "rw")
        await volume.create_folder(bare_id(1), None, None)
        self.fill(bare_id(1))
        await volume.clone_folder(bare_id(1), volume, bare_id(2))
        self.assertEqual(self.place(bare_id(2), "top").read_text(), "top")
        await volume.delete_folder(bare_id(1))
        await volume.empty_trash()
        self.assertEqual(self.trash(), [])

    async def test_no_snapshots(self) -> None:
        """Without the capability s a vfolder with snapshots stays in the trash, and no other."""
        volume = self.beside("snapless", "rwp")
        for number in (1, 2, 3):
            await self.volume.create_folder(bare_id(number), None, None)
            self.fill(bare_id(number))
        snapshot = self.place(bare_id(2), "sub", ".snap", "one")
        snapshot.mkdir()
        for number in (1, 2, 3):
            await volume.delete_folder(bare_id(number))
        with self.assertRaises(PermissionError) as caught:
            await volume.empty_trash()
        self.assertIn("rwps", str(caught.exception))
        (left,) = self.trash()
        self.assertTrue(left.startswith(bare_id(2).layout[-1]))
        await self.volume.empty_trash()
        self.assertEqual(self.trash(), [])

    async def test_limits_inside(self) -> None:
        """Without p, a limit inside of a vfolder keeps that one in the trash, and no other."""
        volume = self.beside("limitless", "rw")
        for number in (1, 2):
            await self.volume.create_folder(bare_id(number), None, None)
            self.fill(bare_id(number))
        os.setxattr(self.place(bare_id(1), "sub"), "ceph.quota.max_bytes", b"1000000")
        for number in (1, 2):
            await volume.delete_folder(bare_id(number))
        with self.assertRaises(PermissionError):
            await volume.empty_trash()
        self.assertEqual(len(self.trash()), 1)
        await self.volume.empty_trash()
        self.assertEqual(self.trash(), [])
