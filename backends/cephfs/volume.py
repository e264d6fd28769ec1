# -*- test-case-name: tests.test_ceph_volume -*-
"""
A volume on CephFS: limits are set on directories, and clients of the cluster keep to them.

A vfolder can have a limit, and the directory of its quota scope another one: both hold. The kernel
moves nothing into a directory with a limit, nor out of it, so what is deleted in a limited scope
has a trash there.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from zope.interface import alsoProvides, implementer

from backends.cephfs.attributes import BYTES, ENTRIES, FILES, MAX_BYTES, IAttributes
from backends.cephfs.cluster import ICluster
from backends.cephfs.live import SNAPSHOTS, LiveDirectory
from backends.vfs import TAKEN_AWAY, TRASH, VFSVolume
from storageproxy.beneath import Directory
from storageproxy.durability import Durability
from storageproxy.errors import (
    BackendFailure,
    FilesystemError,
    InvalidParameters,
    QuotaScopeExists,
    QuotaScopeNotFound,
    StorageProxyError,
    UnsupportedOperation,
    VFolderExists,
    VFolderNotFound,
    VolumeUnavailable,
)
from storageproxy.interfaces import (
    IPerformanceMetric,
    IQuota,
    IQuotaScope,
    IThreads,
    ScopeUsage,
)
from storageproxy.schema import ENDLESS
from storageproxy.threads import Progress
from storageproxy.trees import Usage
from storageproxy.vfolder import QuotaScopeID, VFolderID

#: Where deleted vfolders of a limited scope wait, in the directory of the scope.
SCOPE_TRASH = ".trash"

#: The name of a scope's directory, and of the note in the volume's trash that the scope has one.
_SCOPE = re.compile(r"[0-9a-f]{32}")

#: What marks a directory that is to be limited, and is not yet: a bit of its mode that managers
#: cannot ask for.
_UNFINISHED = stat.S_ISVTX

#: The daemon's own directory in the root of the volume.
_OWN = ".storage-proxy"

#: Seconds between two looks at the size of a file system that is not told yet.
PAUSE = 0.25

#: How often a trash is made again when another daemon takes it away.
_RACES = 16


@implementer(IQuota, IQuotaScope)
class CephFSVolume(VFSVolume):
    """
    A tree of vfolders on a mounted CephFS.

    What a vfolder holds is told at once, as the cluster keeps account of it, some seconds late.

    :param reactor: for pauses.
    :param attributes: the :class:`~backends.cephfs.attributes.IAttributes` of directories.
    :param cluster: whom to ask how the cluster is; None when nobody may.
    :param exact_usage: whether files are counted one by one instead.
    """

    backend = "cephfs"

    def __init__(
        self,
        name: str,
        path: str,
        fsprefix: str,
        threads: IThreads,
        reactor: IReactorTime,
        attributes: IAttributes,
        durability: Durability = Durability.SHARED,
        cluster: ICluster | None = None,
        exact_usage: bool = False,
    ) -> None:
        super().__init__(name, path, fsprefix, threads, durability)
        self._reactor = reactor
        self._attributes = attributes
        self._cluster = cluster
        self._exact_usage = exact_usage
        #: The device number of the mount that was found to be CephFS.
        self._device: int | None = None
        if cluster is not None:
            alsoProvides(self, IPerformanceMetric)

    async def check(self) -> None:
        """See :meth:`storageproxy.interfaces.IVolume.check`."""
        await self.threads.run(self._check)

    def open_root(self) -> LiveDirectory:
        """
        See :meth:`storageproxy.interfaces.IVolume.open_root`.

        :raises VolumeUnavailable: when CephFS is not mounted there, so that nothing is ever put
            into the empty directory below a mount that is gone.
        """
        root = LiveDirectory.open_root(self.path)
        try:
            device = os.fstat(root.descriptor).st_dev
            if device != self._device:
                self._inspect(root)
                self._device = device
        except BaseException:
            root.close()
            raise
        return root

    @contextmanager
    def changing(self, vfid: VFolderID, root: Directory | None = None) -> Iterator[Directory]:
        """See :meth:`storageproxy.interfaces.IVolume.changing`."""
        with self.open_folder(vfid, root) as folder:
            try:
                yield folder
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                raise FilesystemError(
                    "a directory in the vfolder has a limit of its own: nothing can be moved into"
                    " it or out of it",
                    errno=errno.EXDEV,
                    paths=[],
                ) from error

    async def create_folder(self, vfid: VFolderID, mode: int | None, quota: int | None) -> None:
        """See :meth:`storageproxy.interfaces.IVolume.create_folder`."""
        limit = _limit(quota or 0)
        if not await self.threads.run(self._make_limited, vfid.layout, mode, limit):
            raise VFolderExists(vfid=str(vfid))

    async def usage(self, vfid: VFolderID) -> Usage:
        """See :meth:`storageproxy.interfaces.IVolume.usage`."""
        if self._exact_usage:
            return await super().usage(vfid)
        return await self.threads.run(self._usage, vfid)

    async def used_bytes(self, vfid: VFolderID) -> int:
        """See :meth:`storageproxy.interfaces.IVolume.used_bytes`."""
        if self._exact_usage:
            return await super().used_bytes(vfid)
        return (await self.threads.run(self._usage, vfid)).used_bytes

    async def fs_usage(self) -> tuple[int, int]:
        """
        See :meth:`storageproxy.interfaces.IVolume.fs_usage`.

        :raises VolumeUnavailable: when the mount goes on saying that it has no room at all, as it
            does for a moment when it is new, and when the cluster has no manager daemon.
        """
        end = self._reactor.seconds() + self.threads.deadline
        while True:
            capacity, used = await super().fs_usage()
            if capacity:
                return capacity, used
            if self._reactor.seconds() >= end:
                raise VolumeUnavailable(
                    f"volume {self.name}: the cluster does not say how large it is: is there an"
                    " active ceph-mgr?"
                )
            await deferLater(self._reactor, PAUSE)

    async def free_space(self) -> int:
        """See :meth:`storageproxy.interfaces.IVolume.free_space`."""
        capacity, used = await self.fs_usage()
        return capacity - used

    async def hardware_info(self) -> dict[str, Any]:
        """See :meth:`storageproxy.interfaces.IVolume.hardware_info`."""
        info: dict[str, Any] = {
            "status": "unavailable",
            "status_info": "options.client does not say as whom the cluster can be asked",
            "metadata": {},
        }
        if self._cluster is not None:
            info = await self._cluster.hardware_info()
        try:
            await self.check()
        except (StorageProxyError, OSError) as error:
            said = f"{error}; {info['status_info']}" if info["status_info"] else str(error)
            info = {**info, "status": "unavailable", "status_info": said}
        return info

    # ---- IPerformanceMetric

    async def performance_metric(self) -> dict[str, Any]:
        """See :meth:`storageproxy.interfaces.IPerformanceMetric.performance_metric`."""
        if self._cluster is None:
            raise UnsupportedOperation(f"volume {self.name}: {UnsupportedOperation.title}")
        metric: dict[str, Any] = await self._cluster.performance_metric()
        return metric

    # ---- IQuota

    async def get_quota(self, vfid: VFolderID) -> int:
        """See :meth:`storageproxy.interfaces.IQuota.get_quota`."""
        return await self.threads.run(self._limit_of, vfid.layout, _missing(vfid))

    async def set_quota(self, vfid: VFolderID, size: int) -> None:
        """See :meth:`storageproxy.interfaces.IQuota.set_quota`."""
        await self.threads.run(self._set_limit, vfid.layout, _limit(size), _missing(vfid))

    async def room(self, vfid: VFolderID) -> int | None:
        """See :meth:`storageproxy.interfaces.IQuota.room`."""
        return await self.threads.run(self._room, vfid)

    # ---- IQuotaScope

    async def create_scope(self, scope: QuotaScopeID, limit: int | None) -> None:
        """See :meth:`storageproxy.interfaces.IQuotaScope.create_scope`."""
        size = _limit(limit or 0)
        if not await self.threads.run(self._make_limited, scope.layout, None, size):
            raise QuotaScopeExists()

    async def scope_usage(self, scope: QuotaScopeID) -> ScopeUsage:
        """See :meth:`storageproxy.interfaces.IQuotaScope.scope_usage`."""
        return await self.threads.run(self._scope_usage, scope)

    async def set_scope_limit(self, scope: QuotaScopeID, limit: int) -> None:
        """See :meth:`storageproxy.interfaces.IQuotaScope.set_scope_limit`."""
        size = _limit(limit)
        while True:
            with suppress(QuotaScopeNotFound):
                await self.threads.run(self._set_limit, scope.layout, size, QuotaScopeNotFound())
                return
            with suppress(QuotaScopeExists):
                await self.create_scope(scope, size)
                return

    async def unset_scope_limit(self, scope: QuotaScopeID) -> None:
        """See :meth:`storageproxy.interfaces.IQuotaScope.unset_scope_limit`."""
        await self.threads.run(self._set_limit, scope.layout, 0, QuotaScopeNotFound())

    # ---- in threads

    def _inspect(self, root: Directory) -> None:
        try:
            is_cephfs = self._attributes.get(root.descriptor, ENTRIES) > 0
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            is_cephfs = False
        if not is_cephfs:
            raise VolumeUnavailable(
                f"volume {self.name}: it is not on CephFS",
                remedy=f'mount one at {self.path}, or say backend = "vfs"',
            )

    def _check(self) -> None:
        # Limits can be set at all when they can be set on a directory that the daemon has made.
        with self.open_root() as root, root.ensure(_OWN, 0o700) as own:
            self._limit_directory(own, 0)

    @contextmanager
    def _directory(
        self, names: Sequence[str], missing: StorageProxyError
    ) -> Iterator[LiveDirectory]:
        with self.open_root() as root:
            try:
                directory = root.descend("/".join(names))
            except (FileNotFoundError, NotADirectoryError):
                raise missing from None
            with directory:
                yield directory

    def _limit_of(self, names: Sequence[str], missing: StorageProxyError) -> int:
        with self._directory(names, missing) as directory:
            return self._attributes.get(directory.descriptor, MAX_BYTES)

    def _set_limit(self, names: Sequence[str], limit: int, missing: StorageProxyError) -> None:
        with self._directory(names, missing) as directory:
            self._limit_directory(directory, limit)

    def _limit_directory(self, directory: Directory, limit: int) -> None:
        try:
            self._attributes.set(directory.descriptor, MAX_BYTES, limit)
        except PermissionError:
            raise BackendFailure(f"volume {self.name}: {_advice(directory)}") from None
        found = self._attributes.get(directory.descriptor, MAX_BYTES)
        if found != limit:
            raise BackendFailure(
                f"volume {self.name}: a limit of {limit} bytes was set, and it is {found}"
            )

    def _make_limited(self, names: Sequence[str], mode: int | None, limit: int) -> bool:
        # The mark is there until the limit is, so that a creation that was broken off is known.
        if self._make(names, mode, _UNFINISHED if limit else 0):
            if not limit:
                return True
        elif not self._is_marked(names):
            return False
        with self._directory(names, VFolderNotFound()) as directory:
            # Where directories are not locked between mounts, as with ceph-fuse, two who are asked
            # for the same one at the same moment have both made it.
            fcntl.flock(directory.descriptor, fcntl.LOCK_EX)
            if not self._is_unfinished(directory):
                return False
            try:
                if limit:
                    self._limit_directory(directory, limit)
                found = os.fstat(directory.descriptor).st_mode
                os.fchmod(directory.descriptor, stat.S_IMODE(found) & ~_UNFINISHED)
                self.durability.at_completion(directory.sync)
            except BaseException:
                # Unless somebody has found it, and put something in.
                with suppress(OSError, StorageProxyError), self.open_root() as root:
                    os.rmdir("/".join(names), dir_fd=root.descriptor)
                    self._prune(root, names[:-1])
                raise
        return True

    def _is_marked(self, names: Sequence[str]) -> bool:
        with self.open_root() as root, suppress(FileNotFoundError):
            mode = root.status("/".join(names)).st_mode
            return stat.S_ISDIR(mode) and bool(mode & _UNFINISHED)
        return False

    def _is_unfinished(self, directory: Directory) -> bool:
        # People may set that bit on a vfolder of theirs, too.
        if not os.fstat(directory.descriptor).st_mode & _UNFINISHED:
            return False
        with os.scandir(directory.descriptor) as found:
            is_empty = next(found, None) is None
        return is_empty and not self._attributes.get(directory.descriptor, MAX_BYTES)

    def _usage(self, vfid: VFolderID) -> Usage:
        with self._directory(vfid.layout, _missing(vfid)) as folder:
            files = self._attributes.get(folder.descriptor, FILES)
            return Usage(files, self._attributes.get(folder.descriptor, BYTES))

    def _room(self, vfid: VFolderID) -> int | None:
        places = [vfid.layout] if vfid.scope is None else [vfid.layout, vfid.scope.layout]
        found = []
        for names in places:
            with suppress(VFolderNotFound), self._directory(names, _missing(vfid)) as directory:
                limit = self._attributes.get(directory.descriptor, MAX_BYTES)
                if limit:
                    used = self._attributes.get(directory.descriptor, BYTES)
                    found.append(max(0, limit - used))
        return min(found, default=None)

    def _scope_usage(self, scope: QuotaScopeID) -> ScopeUsage:
        with self._directory(scope.layout, QuotaScopeNotFound()) as directory:
            limit = self._attributes.get(directory.descriptor, MAX_BYTES)
            return ScopeUsage(self._attributes.get(directory.descriptor, BYTES), limit or None)

    def _move_to_trash(self, root: Directory, parent: Directory, names: Sequence[str]) -> None:
        try:
            super()._move_to_trash(root, parent, names)
            return
        except OSError as error:
            if error.errno != errno.EXDEV or not _SCOPE.fullmatch(names[0]):
                raise
        for again in range(_RACES, 0, -1):
            with root.ensure(f"{names[0]}/{SCOPE_TRASH}", 0o700) as trash:
                _note(root, names[0])
                try:
                    self._move(parent, names[-1], trash)
                    return
                except FileNotFoundError:
                    # Another daemon has emptied that trash and taken it away, or there is no such
                    # vfolder.
                    os.stat(names[-1], dir_fd=parent.descriptor, follow_symlinks=False)
                    if again == 1:
                        raise

    def _remove(self, trash: Directory, name: str, progress: Progress) -> None:
        if not _SCOPE.fullmatch(name):
            super()._remove(trash, name, progress)
            return
        with self.open_root() as root:
            with suppress(FileNotFoundError), root.descend(f"{name}/{SCOPE_TRASH}") as inner:
                failed: OSError | None = None
                for item in os.listdir(inner.descriptor):
                    try:
                        super()._remove(inner, item, progress)
                    except OSError as error:
                        if error.errno not in TAKEN_AWAY:
                            failed = error
                if failed is not None:
                    raise failed
            # Whoever puts something in writes the note when the directory is there, and before.
            with suppress(FileNotFoundError):
                os.unlink(name, dir_fd=trash.descriptor)
            try:
                os.rmdir(f"{name}/{SCOPE_TRASH}", dir_fd=root.descriptor)
            except FileNotFoundError:
                pass
            except OSError:
                _note(root, name)

    def _unhold(self, directory: Directory) -> None:
        """Remove the snapshots of a directory of the trash."""
        found = False
        try:
            snapshots = os.open(
                SNAPSHOTS, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=directory.descriptor
            )
        except FileNotFoundError:
            super()._unhold(directory)
            return
        with Directory(snapshots):
            for name in os.listdir(snapshots):
                # Those that are of a directory above it do not hold it.
                if not name.startswith("_"):
                    self._remove_snapshot(snapshots, name)
                    found = True
        if not found:
            super()._unhold(directory)

    def _remove_snapshot(self, snapshots: int, name: str) -> None:
        try:
            os.rmdir(name, dir_fd=snapshots)
        except PermissionError as error:
            raise OSError(
                error.errno,
                "a deleted vfolder has snapshots: remove them (rmdir .snap/*), or let the key of"
                " the mount do so (mds 'allow rwps')",
            ) from None


def _note(root: Directory, scope: str) -> None:
    """Note in the volume's trash that a scope has one."""
    with root.ensure(TRASH, 0o700) as trash:
        trash.open_file(scope, os.O_WRONLY | os.O_CREAT, links=False).close()


def _advice(directory: Directory) -> str:
    # Who may write to a directory may limit it, if the key of the mount allows that.
    if not os.access(f"/proc/self/fd/{directory.descriptor}", os.W_OK):
        owner = os.fstat(directory.descriptor).st_uid
        return (
            f"uid {os.geteuid()} cannot set a limit on a directory of uid {owner}: run the daemon"
            " as that user, or let its own user write to the directory"
        )
    return (
        "limits cannot be set, as the key of the mount has not the capability p: ceph fs authorize"
        " FILE-SYSTEM client.NAME / rwp (ceph auth caps, where it has others already), and mount"
        " anew"
    )


def _limit(size: int) -> int:
    """
    :param size: bytes, as a manager may give them.
    """
    if not 0 <= size <= ENDLESS:
        raise InvalidParameters.of({"quota": f"from 0 (no limit) to {ENDLESS} bytes"})
    return size


def _missing(vfid: VFolderID) -> StorageProxyError:
    return VFolderNotFound(vfid=str(vfid))
