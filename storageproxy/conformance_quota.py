"""
What every backend with quotas has to pass, beside :mod:`storageproxy.conformance`.

A backend adds those that its volumes provide: :class:`QuotaConformance`, and for scopes
:class:`SingleLimitConformance` or :class:`NestedLimitsConformance`. Those which limits are enforced
in have a name that says so, and are for where the storage system is a real one.
"""

from __future__ import annotations

import errno
import os
from typing import Any

from zope.interface.verify import verifyObject

from storageproxy.beneath import Directory
from storageproxy.conformance import VolumeConformance
from storageproxy.errors import (
    InvalidParameters,
    QuotaExceeded,
    QuotaScopeExists,
    QuotaScopeNotFound,
    UnsupportedOperation,
    VFolderExists,
    VFolderNotFound,
)
from storageproxy.interfaces import IQuota, IQuotaScope, ScopeUsage
from storageproxy.testing import bare_id, scoped_id
from storageproxy.vfolder import QuotaScopeID, VFolderID

MEBI = 1 << 20

#: Bytes that a storage system may round a limit up by, or be late with.
GRAIN = 4 * MEBI


def fill_up(folder: Directory, name: str, size: int) -> None:
    """Write a file, in pieces; what the storage system takes of it stays."""
    piece = os.urandom(MEBI // 4)
    with folder.open_file(name, os.O_WRONLY | os.O_CREAT) as file:
        for offset in range(0, size, len(piece)):
            file.write([piece], offset)


class QuotaConformance(VolumeConformance):
    """What the daemon expects of a volume that provides :class:`IQuota`."""

    @property
    def limits(self) -> Any:
        """The volume, as one that has quotas."""
        return self.volume

    def test_quota_interface(self) -> None:
        """A volume with quotas has all that the daemon calls for them."""
        verifyObject(IQuota, self.volume)

    async def test_no_quota(self) -> None:
        """A folder that was made without a limit has none."""
        for vfid in (bare_id(1), scoped_id(1)):
            await self.volume.create_folder(vfid, None, None)
            self.assertEqual(await self.limits.get_quota(vfid), 0)
            self.assertIsNone(await self.limits.room(vfid))

    async def test_create_with_quota(self) -> None:
        """A folder has the limit that it was made with, in either layout, from the beginning."""
        for vfid in (bare_id(1), scoped_id(1)):
            await self.volume.create_folder(vfid, 0o750, 16 * MEBI)
            self.assertEqual(await self.limits.get_quota(vfid), 16 * MEBI)
            self.assertEqual(await self.limits.room(vfid), 16 * MEBI)

    async def test_create_again_with_quota(self) -> None:
        """To make a folder that exists changes nothing of its limit."""
        await self.volume.create_folder(bare_id(1), None, 16 * MEBI)
        with self.assertRaises(VFolderExists):
            await self.volume.create_folder(bare_id(1), None, 32 * MEBI)
        self.assertEqual(await self.limits.get_quota(bare_id(1)), 16 * MEBI)

    async def test_set_quota(self) -> None:
        """A limit can be set, raised, lowered, and taken away again."""
        await self.volume.create_folder(bare_id(1), None, None)
        for size in (16 * MEBI, 64 * MEBI, 8 * MEBI, 0, 1 << 50):
            await self.limits.set_quota(bare_id(1), size)
            self.assertEqual(await self.limits.get_quota(bare_id(1)), size)

    async def test_odd_quota(self) -> None:
        """A limit that the storage system cannot count exactly is rounded up."""
        await self.volume.create_folder(bare_id(1), None, 16 * MEBI + 1)
        found = await self.limits.get_quota(bare_id(1))
        self.assertTrue(16 * MEBI < found <= 16 * MEBI + GRAIN, found)
        await self.limits.set_quota(bare_id(1), 1)
        self.assertTrue(1 <= await self.limits.get_quota(bare_id(1)) <= GRAIN)

    async def test_quota_is_apart(self) -> None:
        """The limit of a folder is none of its neighbour's."""
        for vfid in (bare_id(1), bare_id(2)):
            await self.volume.create_folder(vfid, None, None)
        await self.limits.set_quota(bare_id(1), 16 * MEBI)
        self.assertEqual(await self.limits.get_quota(bare_id(2)), 0)

    async def test_quota_below_usage(self) -> None:
        """A limit may be less than what a folder has, which stays."""
        await self.volume.create_folder(bare_id(1), None, None)
        await self.volume.within(bare_id(1), fill_up, "large", 2 * GRAIN)
        await self.limits.set_quota(bare_id(1), GRAIN)
        await self.counted()
        self.assertEqual(await self.limits.get_quota(bare_id(1)), GRAIN)
        self.assertEqual(await self.limits.room(bare_id(1)), 0)
        self.assertEqual(os.stat(self.place(bare_id(1), "large")).st_size, 2 * GRAIN)

    async def test_room(self) -> None:
        """What is in a folder takes from the room that its limit leaves."""
        await self.volume.create_folder(bare_id(1), None, 8 * GRAIN)
        await self.volume.within(bare_id(1), fill_up, "large", 3 * GRAIN)
        await self.counted()
        room = await self.limits.room(bare_id(1))
        self.assertTrue(4 * GRAIN <= room <= 5 * GRAIN, room)

    async def test_bad_quota(self) -> None:
        """What can be no limit is refused, and the limit stays as it was."""
        await self.volume.create_folder(bare_id(1), None, 16 * MEBI)
        for size in (-1, 2**63, 2**64, 10**30):
            with self.assertRaises(InvalidParameters):
                await self.limits.set_quota(bare_id(1), size)
            with self.assertRaises(InvalidParameters):
                await self.volume.create_folder(bare_id(2), None, size)
        self.assertEqual(await self.limits.get_quota(bare_id(1)), 16 * MEBI)
        self.assertFalse(os.path.exists(self.place(bare_id(2))))

    async def test_endless_quota(self) -> None:
        """The largest sizes that can be said are as good as no limit."""
        await self.volume.create_folder(bare_id(1), None, 2**63 - 1)
        for size in (2**63 - 1, 2**63 - 4096, 2**62):
            await self.limits.set_quota(bare_id(1), size)
            room = await self.limits.room(bare_id(1))
            self.assertTrue(room is None or room > 2**61, room)

    async def test_quota_missing(self) -> None:
        """A folder that does not exist has no limit to tell or to set, and none is made for it."""
        for vfid in (bare_id(1), scoped_id(1)):
            with self.assertRaises(VFolderNotFound):
                await self.limits.get_quota(vfid)
            with self.assertRaises(VFolderNotFound):
                await self.limits.set_quota(vfid, MEBI)
            self.assertIsNone(await self.limits.room(vfid))
            self.assertFalse(os.path.exists(self.place(vfid)))

    async def test_quota_after_restart(self) -> None:
        """Limits are kept by the storage system, not by the daemon."""
        await self.volume.create_folder(bare_id(1), None, 16 * MEBI)
        again: Any = self.make_volume(self.path)
        self.assertEqual(await again.get_quota(bare_id(1)), 16 * MEBI)

    async def test_quota_of_deleted(self) -> None:
        """A folder that is made anew has nothing of the limit of the deleted one."""
        for _ in range(2):
            await self.volume.create_folder(bare_id(1), None, None)
            self.assertEqual(await self.limits.get_quota(bare_id(1)), 0)
            await self.limits.set_quota(bare_id(1), 16 * MEBI)
            await self.volume.delete_folder(bare_id(1))
            await self.volume.empty_trash()

    async def test_quota_of_clone(self) -> None:
        """A clone has a limit of its own, which is that of the target when it exists."""
        await self.volume.create_folder(bare_id(1), None, 16 * MEBI)
        self.fill(bare_id(1))
        await self.volume.create_folder(bare_id(2), None, 32 * MEBI)
        for vfid, limit in ((bare_id(2), 32 * MEBI), (bare_id(3), 0)):
            await self.volume.clone_folder(bare_id(1), self.volume, vfid)
            self.assertEqual(await self.limits.get_quota(vfid), limit)
        self.assertEqual(await self.limits.get_quota(bare_id(1)), 16 * MEBI)

    async def test_clone_beyond_quota(self) -> None:
        """A clone that does not fit is refused before anything of it is in the target."""
        await self.volume.create_folder(bare_id(1), None, None)
        await self.volume.within(bare_id(1), fill_up, "large", 3 * GRAIN)
        await self.volume.create_folder(bare_id(2), None, 2 * GRAIN)
        with self.assertRaises(QuotaExceeded) as caught:
            await self.volume.clone_folder(bare_id(1), self.volume, bare_id(2))
        self.assertIn(self.volume.name, str(caught.exception))
        self.assertEqual(os.listdir(self.place(bare_id(2))), [])


class EnforcedQuotaConformance(QuotaConformance):
    """What holds when the storage system enforces its quotas at once."""

    async def exceed(self, vfid: VFolderID, size: int) -> None:
        """Write until the limit says no, with the number that quotas have."""
        with self.assertRaises(OSError) as caught:
            await self.volume.within(vfid, fill_up, "large", size)
        self.assertEqual(caught.exception.errno, errno.EDQUOT)

    async def test_write_beyond_quota(self) -> None:
        """What goes beyond the limit is not written; what was written before it stays."""
        await self.volume.create_folder(bare_id(1), None, 2 * GRAIN)
        await self.exceed(bare_id(1), 6 * GRAIN)
        size = os.stat(self.place(bare_id(1), "large")).st_size
        self.assertTrue(GRAIN <= size <= 3 * GRAIN, size)

    async def test_full(self) -> None:
        """In a full folder one can read, rename and delete, and then write again."""
        await self.volume.create_folder(bare_id(1), None, 2 * GRAIN)
        self.fill(bare_id(1))
        await self.exceed(bare_id(1), 6 * GRAIN)
        with open(self.place(bare_id(1), "top.txt"), "rb") as file:
            self.assertEqual(file.read(), b"top")
        os.rename(self.place(bare_id(1), "top.txt"), self.place(bare_id(1), "sub", "top.txt"))
        os.truncate(self.place(bare_id(1), "large"), 0)
        await self.counted()
        await self.volume.within(bare_id(1), fill_up, "small", MEBI)

    async def test_raised_quota(self) -> None:
        """A limit that is raised holds at once."""
        await self.volume.create_folder(bare_id(1), None, 2 * GRAIN)
        await self.exceed(bare_id(1), 6 * GRAIN)
        await self.limits.set_quota(bare_id(1), 10 * GRAIN)
        await self.volume.within(bare_id(1), fill_up, "large", 6 * GRAIN)

    async def test_lowered_quota(self) -> None:
        """A limit below what there is stops all growth."""
        await self.volume.create_folder(bare_id(1), None, None)
        await self.volume.within(bare_id(1), fill_up, "large", 2 * GRAIN)
        await self.limits.set_quota(bare_id(1), GRAIN)
        await self.exceed(bare_id(1), 4 * GRAIN)

    async def test_full_neighbour(self) -> None:
        """A folder that is full is no matter of its neighbour's."""
        for number in (1, 2):
            await self.volume.create_folder(bare_id(number), None, 2 * GRAIN)
        await self.exceed(bare_id(1), 6 * GRAIN)
        await self.volume.within(bare_id(2), fill_up, "large", GRAIN)


class ScopeConformance(VolumeConformance):
    """What the daemon expects of a volume that provides :class:`IQuotaScope`."""

    @property
    def scopes(self) -> Any:
        """The volume, as one that has quotas of scopes."""
        return self.volume

    def scope(self, vfid: VFolderID) -> QuotaScopeID:
        """The quota scope of a folder."""
        assert vfid.scope is not None
        return vfid.scope

    def setUp(self) -> None:
        """Make the names of two folders in one scope."""
        super().setUp()
        self.one, self.two = scoped_id(1, 0x77), scoped_id(2, 0x77)
        self.owner = self.scope(self.one)

    def test_scope_interface(self) -> None:
        """A volume with quotas of scopes has all that the daemon calls for them."""
        verifyObject(IQuotaScope, self.volume)

    async def test_create_scope(self) -> None:
        """A scope has the limit that it was made with, and nothing in it."""
        await self.scopes.create_scope(self.owner, 16 * MEBI)
        self.assertEqual(await self.scopes.scope_usage(self.owner), ScopeUsage(0, 16 * MEBI))
        self.assertEqual(os.listdir(os.path.join(self.path, *self.owner.layout)), [])

    async def test_create_scope_without_limit(self) -> None:
        """A scope without a limit is counted all the same."""
        await self.scopes.create_scope(self.owner, None)
        self.assertEqual(await self.scopes.scope_usage(self.owner), ScopeUsage(0, None))

    async def test_create_scope_twice(self) -> None:
        """A scope that exists is told, and keeps its limit."""
        await self.scopes.create_scope(self.owner, 16 * MEBI)
        with self.assertRaises(QuotaScopeExists):
            await self.scopes.create_scope(self.owner, None)
        self.assertEqual((await self.scopes.scope_usage(self.owner)).limit, 16 * MEBI)

    async def test_scope_missing(self) -> None:
        """A scope that does not exist is told."""
        with self.assertRaises(QuotaScopeNotFound):
            await self.scopes.scope_usage(self.owner)
        with self.assertRaises(QuotaScopeNotFound):
            await self.scopes.unset_scope_limit(self.owner)
        self.assertEqual(os.listdir(self.path), [])

    async def test_set_scope_limit(self) -> None:
        """A limit can be set, changed and taken away; a scope is made for it when it is missing."""
        for limit in (16 * MEBI, 64 * MEBI):
            await self.scopes.set_scope_limit(self.owner, limit)
            self.assertEqual((await self.scopes.scope_usage(self.owner)).limit, limit)
        await self.scopes.unset_scope_limit(self.owner)
        await self.scopes.unset_scope_limit(self.owner)
        self.assertIsNone((await self.scopes.scope_usage(self.owner)).limit)

    async def test_bad_scope_limit(self) -> None:
        """What can be no limit is refused, and no scope is made for it."""
        for limit in (-1, 2**63):
            with self.assertRaises(InvalidParameters):
                await self.scopes.set_scope_limit(self.owner, limit)
        self.assertEqual(os.listdir(self.path), [])

    async def test_folders_of_scope(self) -> None:
        """The folders of a scope count together, with what is in the deleted ones."""
        await self.scopes.create_scope(self.owner, 16 * GRAIN)
        for vfid in (self.one, self.two):
            await self.volume.create_folder(vfid, None, None)
            await self.volume.within(vfid, fill_up, "large", GRAIN)
        await self.counted()
        found = await self.scopes.scope_usage(self.owner)
        self.assertTrue(2 * GRAIN <= found.used <= 3 * GRAIN, found)
        self.assertEqual(os.stat(self.place(self.one, "large")).st_size, GRAIN)

    async def test_other_scope(self) -> None:
        """The limit of a scope is none of the others'."""
        await self.scopes.create_scope(self.owner, GRAIN)
        other = scoped_id(1, 0x78)
        await self.volume.create_folder(other, None, None)
        await self.volume.within(other, fill_up, "large", 2 * GRAIN)
        await self.counted()
        self.assertEqual((await self.scopes.scope_usage(self.owner)).used, 0)

    async def test_deleted_folder_of_scope(self) -> None:
        """A folder of a scope can be deleted, and the scope keeps its limit."""
        await self.scopes.create_scope(self.owner, 16 * MEBI)
        await self.volume.create_folder(self.one, None, None)
        self.fill(self.one)
        self.assertTrue(await self.volume.delete_folder(self.one))
        await self.volume.empty_trash()
        self.assertEqual((await self.scopes.scope_usage(self.owner)).limit, 16 * MEBI)
        await self.volume.create_folder(self.one, None, None)
        self.assertEqual(os.listdir(self.place(self.one)), [])

    async def test_create_twice_in_scope(self) -> None:
        """A folder that exists in a limited scope is told."""
        await self.scopes.create_scope(self.owner, None)
        await self.volume.create_folder(self.one, 0o750, None)
        with self.assertRaises(VFolderExists):
            await self.volume.create_folder(self.one, None, None)

    async def test_room_in_scope(self) -> None:
        """The room in a folder is what its scope has left, also when it is yet to be made."""
        await self.scopes.create_scope(self.owner, 8 * GRAIN)
        self.assertEqual(await self.scopes.room(self.one), 8 * GRAIN)
        await self.volume.create_folder(self.one, None, None)
        await self.volume.within(self.one, fill_up, "large", 3 * GRAIN)
        await self.counted()
        for vfid in (self.one, self.two):
            room = await self.scopes.room(vfid)
            self.assertTrue(4 * GRAIN <= room <= 5 * GRAIN, room)

    async def test_clone_beyond_scope(self) -> None:
        """A clone that does not fit into a scope is refused, and leaves no folder there."""
        await self.volume.create_folder(bare_id(1), None, None)
        await self.volume.within(bare_id(1), fill_up, "large", 3 * GRAIN)
        await self.scopes.create_scope(self.owner, 2 * GRAIN)
        with self.assertRaises(QuotaExceeded):
            await self.volume.clone_folder(bare_id(1), self.volume, self.one)
        self.assertFalse(os.path.exists(self.place(self.one)))

    async def test_clone_into_scope(self) -> None:
        """A folder is cloned into a limited scope, within it, and out of it."""
        await self.scopes.create_scope(self.owner, 16 * GRAIN)
        await self.volume.create_folder(bare_id(1), None, None)
        self.fill(bare_id(1))
        for source, target in (
            (bare_id(1), self.one),
            (self.one, self.two),
            (self.two, bare_id(2)),
        ):
            await self.volume.clone_folder(source, self.volume, target)
            self.assertEqual(os.readlink(self.place(target, "sub", "link")), "../to")
            with open(self.place(target, "sub", "run.sh"), "rb") as file:
                self.assertEqual(file.read(), b"#!sh")


class SingleLimitConformance(ScopeConformance):
    """What holds where a folder of a limited scope has no limit of its own."""

    async def test_quota_in_scope(self) -> None:
        """The folders of a limited scope have no limits of their own."""
        await self.scopes.create_scope(self.owner, 16 * MEBI)
        with self.assertRaises(UnsupportedOperation):
            await self.volume.create_folder(self.one, None, MEBI)
        self.assertFalse(os.path.exists(self.place(self.one)))
        await self.volume.create_folder(self.one, None, None)
        with self.assertRaises(UnsupportedOperation):
            await self.scopes.get_quota(self.one)
        with self.assertRaises(UnsupportedOperation):
            await self.scopes.set_quota(self.one, MEBI)


class NestedLimitsConformance(ScopeConformance):
    """What holds where a folder of a limited scope can have a limit, too."""

    async def test_quota_in_scope(self) -> None:
        """Both limits hold, and the room is what the stricter one leaves."""
        await self.scopes.create_scope(self.owner, 16 * MEBI)
        await self.volume.create_folder(self.one, None, MEBI)
        self.assertEqual(await self.scopes.get_quota(self.one), MEBI)
        self.assertEqual(await self.scopes.room(self.one), MEBI)
        await self.scopes.set_quota(self.one, 64 * MEBI)
        self.assertEqual(await self.scopes.room(self.one), 16 * MEBI)
        await self.scopes.set_scope_limit(self.owner, 0)
        self.assertEqual(await self.scopes.room(self.one), 64 * MEBI)


class EnforcedScopeConformance(EnforcedQuotaConformance, ScopeConformance):
    """What holds of scopes, too, when the storage system enforces its quotas at once."""

    async def test_full_scope(self) -> None:
        """A scope that is full takes nothing in any of its folders, until its limit is raised."""
        await self.scopes.create_scope(self.owner, 2 * GRAIN)
        for vfid in (self.one, self.two):
            await self.volume.create_folder(vfid, None, None)
        await self.exceed(self.one, 6 * GRAIN)
        await self.counted()
        await self.exceed(self.two, 6 * GRAIN)
        await self.scopes.set_scope_limit(self.owner, 8 * GRAIN)
        await self.volume.within(self.two, fill_up, "small", MEBI)
