"""
The plain backend: any mounted file system, by nothing but the interfaces of Linux.

It is what adapters of particular storage systems build upon.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Any, Concatenate, ParamSpec, TypeVar
from uuid import uuid4

from attrs import define
from twisted.internet.defer import Deferred
from zope.interface import implementer

from storageproxy import cloning, files, removal, trees
from storageproxy.beneath import Directory
from storageproxy.config import VolumeSettings
from storageproxy.durability import Durability
from storageproxy.errors import DiskFull, QuotaExceeded, VFolderExists, VFolderNotFound
from storageproxy.interfaces import IBackend, IQuota, IThreads, IVolume
from storageproxy.schema import Complaint, Duration, structure
from storageproxy.threads import Progress, VolumeThreads
from storageproxy.vfolder import UPLOADS, VFolderID

P = ParamSpec("P")
T = TypeVar("T")

#: Seconds that counting a folder may take before ``/folder/usage`` says "too many" (-1).
USAGE_LIMIT = 3.0

#: Where deleted folders wait for their removal, in the root of the volume.
TRASH = ".storage-proxy/trash"

#: What something says that somebody has removed; the last one when it was another machine.
TAKEN_AWAY = frozenset({errno.ENOENT, errno.ESTALE})

#: How often a directory is made again when a deletion nearby takes its parent away.
_RACES = 16


@define(frozen=True)
class Options:
    """
    ``[volume.NAME.options]``.

    :param threads: calls at most that are made on the mount at one time.
    :param deadline: seconds that a call may take before the volume is said to be unavailable.
    :param durability: when uploads are put on stable storage.
    """

    threads: int = 16
    deadline: Duration = Duration(15.0)
    durability: Durability = Durability.PATCH

    def problems(self) -> list[str]:
        """A complaint for each value that is of the right type, and is out of bounds."""
        if not 2 <= self.threads <= 1024:
            return ["options.threads: a number from 2 to 1024"]
        return [] if self.deadline > 0 else ["options.deadline: more than 0 seconds"]

    def make_threads(self, name: str, reactor: Any) -> VolumeThreads:
        """The threads of a volume of this name."""
        return VolumeThreads(
            reactor,
            name,
            size=self.threads,
            deadline=self.deadline,
            long_calls=max(1, self.threads // 4),
        )


@implementer(IVolume)
class VFSVolume:
    """
    A mounted tree of vfolders.

    :param threads: where calls on the mount are made.
    :param durability: when uploads are put on stable storage.
    """

    backend = "vfs"

    def __init__(
        self,
        name: str,
        path: str,
        fsprefix: str,
        threads: IThreads,
        durability: Durability = Durability.PATCH,
    ) -> None:
        self.name = name
        self.path = path
        self.fsprefix = fsprefix
        self.threads = threads
        self.durability = durability
        self._trash_is_full = False
        self._emptying_trash = False
        #: Directories above folders that were thrown away, which may be empty.
        self._thinned: set[tuple[str, ...]] = set()

    async def check(self) -> None:
        """See :meth:`storageproxy.interfaces.IVolume.check`."""
        await self.threads.run(lambda: self.open_root().close())

    def open_root(self) -> Directory:
        """See :meth:`storageproxy.interfaces.IVolume.open_root`."""
        return Directory.open_root(self.path)

    def open_folder(self, vfid: VFolderID, root: Directory | None = None) -> Directory:
        """See :meth:`storageproxy.interfaces.IVolume.open_folder`."""
        if root is None:
            with self.open_root() as opened:
                return self.open_folder(vfid, opened)
        try:
            return root.descend("/".join(vfid.layout))
        except (FileNotFoundError, NotADirectoryError):
            raise VFolderNotFound(vfid=str(vfid)) from None

    def changing(
        self, vfid: VFolderID, root: Directory | None = None
    ) -> AbstractContextManager[Directory]:
        """See :meth:`storageproxy.interfaces.IVolume.changing`."""
        return self.open_folder(vfid, root)

    def within(
        self,
        vfid: VFolderID,
        operation: Callable[Concatenate[Directory, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Deferred[T]:
        """See :meth:`storageproxy.interfaces.IVolume.within`."""

        def call() -> T:
            with self.changing(vfid) as folder:
                return operation(folder, *args, **kwargs)

        return self.threads.run(call)

    def scan(self, directory: Directory, limit: int) -> files.Scan:
        """See :meth:`storageproxy.interfaces.IVolume.scan`."""
        return files.scan(directory, limit)

    async def create_folder(self, vfid: VFolderID, mode: int | None, quota: int | None) -> None:
        """See :meth:`storageproxy.interfaces.IVolume.create_folder`."""
        if not await self.threads.run(self._make, vfid.layout, mode):
            raise VFolderExists(vfid=str(vfid))

    async def delete_folder(self, vfid: VFolderID) -> bool:
        """See :meth:`storageproxy.interfaces.IVolume.delete_folder`."""
        return await self.threads.run(self._throw_away, vfid.layout)

    async def empty_trash(self) -> None:
        """See :meth:`storageproxy.interfaces.IVolume.empty_trash`."""
        self._trash_is_full = True
        if self._emptying_trash:
            # Whoever does it already goes round once more.
            return
        self._emptying_trash = True
        try:
            failed: OSError | None = None
            while self._trash_is_full:
                self._trash_is_full = False
                failed = await self.threads.run_long(self._empty_trash, "emptying the trash")
            if failed is not None:
                raise failed
        finally:
            self._emptying_trash = False

    async def clone_folder(self, vfid: VFolderID, target: IVolume, target_vfid: VFolderID) -> None:
        """See :meth:`storageproxy.interfaces.IVolume.clone_folder`."""
        needed = await self.threads.run_long(
            lambda progress: self._needed(vfid, progress), f"measuring {vfid}"
        )
        free = await target.free_space()
        if needed.blocks > free and not await self.threads.run(self._can_share, vfid, target):
            raise DiskFull(
                f"volume {target.name}: the clone needs {needed.blocks} bytes, and {free} are free"
            )
        if IQuota.providedBy(target):
            await _check_room(target, target_vfid, needed.least)
        made = await self._make_target(target, target_vfid)
        try:
            await self.threads.run_long(
                lambda progress: self._copy(vfid, target, target_vfid, progress),
                f"cloning {vfid} to {target_vfid} on {target.name}",
            )
        except BaseException:
            # Only what was made here; a target that was there may hold more than the copy.
            if made:
                await target.delete_folder(target_vfid)
            raise

    async def usage(self, vfid: VFolderID) -> trees.Usage:
        """See :meth:`storageproxy.interfaces.IVolume.usage`."""
        return await self.within(vfid, lambda folder: self._measure(folder, limit=USAGE_LIMIT))

    async def used_bytes(self, vfid: VFolderID) -> int:
        """See :meth:`storageproxy.interfaces.IVolume.used_bytes`."""
        return await self.threads.run_long(
            lambda progress: self._count(vfid, progress), f"counting {vfid}"
        )

    async def fs_usage(self) -> tuple[int, int]:
        """See :meth:`storageproxy.interfaces.IVolume.fs_usage`."""
        status = await self.threads.run(self._status)
        return (
            status.f_frsize * status.f_blocks,
            status.f_frsize * (status.f_blocks - status.f_bavail),
        )

    async def free_space(self) -> int:
        """See :meth:`storageproxy.interfaces.IVolume.free_space`."""
        status = await self.threads.run(self._status)
        return status.f_frsize * status.f_bavail

    async def hardware_info(self) -> dict[str, Any]:
        """See :meth:`storageproxy.interfaces.IVolume.hardware_info`."""
        return {"status": "healthy", "status_info": None, "metadata": {}}

    async def stop(self) -> None:
        """See :meth:`storageproxy.interfaces.IVolume.stop`."""
        self.threads.stop()

    # ---- in threads

    def _status(self) -> os.statvfs_result:
        with self.open_root() as root:
            return os.fstatvfs(root.descriptor)

    def _make(self, names: Sequence[str], mode: int | None, mark: int = 0) -> bool:
        """
        Make a directory and those above it; False when it is there already.

        :param mark: a bit that is added to its mode.
        """
        *above, name = names
        with self.open_root() as root:
            for again in range(_RACES):
                try:
                    parent, there = root.grow("/".join(above)) if above else (root.descend("."), 0)
                    with parent:
                        wanted = (0o755 if mode is None else mode) | mark
                        os.mkdir(name, wanted, dir_fd=parent.descriptor)
                        if mode is not None:
                            # An explicit mode is meant as it is, whatever the umask.
                            os.chmod(name, wanted, dir_fd=parent.descriptor)
                    if self.durability.keeps_files:
                        # After a race there is no telling which of them an earlier round has made.
                        root.sync_names("/".join(names), 0 if again else there)
                    return True
                except FileExistsError:
                    return False
                except FileNotFoundError:
                    # The last folder of this prefix was deleted in between.
                    continue
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    def _throw_away(self, names: Sequence[str]) -> bool:
        *above, name = names
        with self.open_root() as root:
            try:
                parent = root.descend("/".join(above) or ".")
            except (FileNotFoundError, NotADirectoryError):
                return False
            with parent:
                try:
                    self._move_to_trash(root, parent, names)
                except FileNotFoundError:
                    return False
                self.durability.at_completion(parent.sync)
        # Soon enough with the trash: the next one may be made just there.
        self._thinned.add(tuple(above))
        return True

    def _prune_thinned(self, root: Directory, progress: Progress) -> None:
        # What is lost of this, as the process ends, is found by the janitor.
        with suppress(KeyError):
            while True:
                progress.step(0)
                self._prune(root, self._thinned.pop())

    def _prune(self, root: Directory, above: Sequence[str]) -> None:
        """Remove the directories above a folder that was the last one in them."""
        # The scope's directory stays, as the original leaves it.
        for depth in (len(above), len(above) - 1):
            with suppress(OSError):
                os.rmdir("/".join(above[:depth]), dir_fd=root.descriptor)

    def _prune_below(self, names: Sequence[str]) -> None:
        """Remove the directories in that of a scope that have no folder, whoever has left them."""
        with suppress(OSError), self.open_root() as root:
            with root.descend("/".join(names), links=False) as scope:
                for name in os.listdir(scope.descriptor):
                    with suppress(OSError), scope.descend(name, links=False) as prefix:
                        for below in os.listdir(prefix.descriptor):
                            self._prune(scope, [name, below])
                        self._prune(scope, [name])

    def _move_to_trash(self, root: Directory, parent: Directory, names: Sequence[str]) -> None:
        with root.ensure(TRASH, 0o700) as trash:
            self._move(parent, names[-1], trash)

    def _move(self, parent: Directory, name: str, trash: Directory) -> None:
        def move() -> None:
            os.rename(
                name,
                self._name_in_trash(parent, name),
                src_dir_fd=parent.descriptor,
                dst_dir_fd=trash.descriptor,
            )

        try:
            move()
        except PermissionError:
            # What is moved elsewhere has to be writable: its ".." changes.
            if parent.status(name).st_mode & stat.S_IWUSR:
                raise
            removal.make_writable(parent, name)
            move()

    def _name_in_trash(self, parent: Directory, name: str) -> str:
        return f"{name}-{uuid4().hex}"

    def _empty_trash(self, progress: Progress) -> OSError | None:
        failed: OSError | None = None
        with self.open_root() as root:
            self._prune_thinned(root, progress)
            try:
                trash = root.descend(TRASH, links=False)
            except FileNotFoundError:
                return None
            with trash:
                for name in os.listdir(trash.descriptor):
                    try:
                        self._remove(trash, name, progress)
                    except OSError as error:
                        # Another worker may be at it too.
                        if error.errno not in TAKEN_AWAY:
                            # The others need not stay for that one.
                            failed = error
        return failed

    def _remove(self, trash: Directory, name: str, progress: Progress) -> None:
        try:
            removal.remove(trash, name, progress.step, self._unhold)
        except OSError as error:
            if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                raise
            os.unlink(name, dir_fd=trash.descriptor)

    def _unhold(self, directory: Directory) -> None:
        """See :data:`storageproxy.removal.Release`."""
        removal.refuse(directory)

    def _count(self, vfid: VFolderID, progress: Progress) -> int:
        with self.open_folder(vfid) as folder:
            return self._measure(folder, progress.step).used_bytes

    def _measure(
        self, folder: Directory, step: trees.Step = trees.unwatched, limit: float | None = None
    ) -> trees.Usage:
        return trees.usage(folder, step, limit)

    def _needed(self, vfid: VFolderID, progress: Progress) -> cloning.Needed:
        with self.open_folder(vfid) as folder:
            return cloning.needed(folder, progress.step, skip=UPLOADS)

    async def _make_target(self, target: IVolume, vfid: VFolderID) -> bool:
        try:
            await target.create_folder(vfid, None, None)
        except VFolderExists:
            return False
        return True

    def _copy(
        self, vfid: VFolderID, target: IVolume, target_vfid: VFolderID, progress: Progress
    ) -> None:
        with self.open_folder(vfid) as source, target.changing(target_vfid) as copy:
            kept = target.durability.keeps_files
            at_once = copy.can_sync_all()
            cloning.copy(source, copy, progress.step, UPLOADS, durable=kept and not at_once)
            if kept and at_once:
                # One sync for all the files, as one for each would take many times as long. What
                # others write adds to it. A loss is told only to those who were open before it
                # (syncfs(2)).
                with progress.silence():
                    copy.sync_all()

    def _can_share(self, vfid: VFolderID, target: IVolume) -> bool:
        with self.open_folder(vfid) as source, target.open_root() as root:
            return cloning.can_share(source, root)


async def _check_room(target: Any, vfid: VFolderID, needed: int) -> None:
    """A clone that shares its blocks is charged in full all the same."""
    room = await target.room(vfid)
    if room is not None and needed > room:
        raise QuotaExceeded(
            f"volume {target.name}: the clone needs at least {needed} bytes, and its quota"
            f" leaves {room}"
        )


def check_options(settings: VolumeSettings, cls: type[Options]) -> list[str]:
    """
    See :meth:`storageproxy.interfaces.IBackend.check`.

    :param cls: what the options are to be.
    """
    try:
        return structure(settings.options, cls).problems()
    except Complaint as error:
        written = {key.replace("-", "_"): key for key in settings.options}
        return [f"options.{written.get(key, key)}: {why}" for key, why in error.fields.items()]


@implementer(IBackend)
class VFSBackend:
    """``backend = "vfs"``."""

    name = "vfs"

    def check(self, name: str, settings: VolumeSettings) -> list[str]:
        """See :meth:`storageproxy.interfaces.IBackend.check`."""
        return check_options(settings, Options)

    def volume(self, name: str, settings: VolumeSettings, reactor: Any) -> VFSVolume:
        """See :meth:`storageproxy.interfaces.IBackend.volume`."""
        options = structure(settings.options, Options)
        threads = options.make_threads(name, reactor)
        return VFSVolume(name, settings.path, settings.fsprefix, threads, options.durability)
