# -*- test-case-name: tests.test_xfs_volume -*-
"""
A volume on XFS: each vfolder is a project of its own, whose limit the kernel enforces.

A project lies either on the vfolder or on the directory of its quota scope, never on both: the
kernel moves nothing from one project into another. In a scope that was made or limited as a whole
(:class:`~storageproxy.interfaces.IQuotaScope`), vfolders belong to the project of the scope. In any
other scope, and in none, each has its own, and its limit, before it is told to exist.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import Any, TypeAlias

from attrs import evolve, frozen
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from backends.vfs import VFSVolume
from backends.xfs import creations
from backends.xfs.creations import Creation, Wanted
from backends.xfs.interfaces import (
    Account,
    Drifted,
    IKernel,
    IProjects,
    Limit,
    NotManaged,
    Quotas,
)
from backends.xfs.releases import Releases
from storageproxy.background import Background
from storageproxy.beneath import Directory
from storageproxy.durability import Durability
from storageproxy.errors import (
    BackendFailure,
    InvalidParameters,
    QuotaScopeExists,
    QuotaScopeNotFound,
    StorageProxyError,
    UnsupportedOperation,
    VFolderExists,
    VFolderNotFound,
)
from storageproxy.interfaces import IMaintained, IQuota, IQuotaScope, IThreads, ScopeUsage
from storageproxy.schema import ENDLESS
from storageproxy.threads import Progress
from storageproxy.trees import Usage
from storageproxy.vfolder import QuotaScopeID, VFolderID

#: Bytes above which a limit is as good as none. xfs_quota takes no larger ones.
LARGEST = 2**62

_NONE = Limit(0)

#: A creation, and its directory, open.
_Begun: TypeAlias = tuple[Creation, Directory]

#: The name of a deleted vfolder that has a project.
_IN_TRASH = re.compile(r".+-[0-9a-f]{32}-([1-9][0-9]*)")


@frozen
class _Place:
    """
    A directory, open.

    :param project: what its inode says, which its owner can change; 0 for none.
    :param inherited: whether it belongs to the project of the directory it lies in, whatever its
        owner has made of its own.
    """

    directory: Directory
    project: int
    inherited: bool

    def close(self) -> None:
        """Close the directory."""
        self.directory.close()


@implementer(IMaintained, IQuota, IQuotaScope)
class XFSVolume(VFSVolume):
    """
    A tree of vfolders on a mounted XFS.

    What a vfolder with a project holds is told at once, as the kernel counts it: whole blocks, and
    directories among the files.

    :param reactor: for pauses.
    :param connect: finds the :class:`~backends.xfs.interfaces.IProjects`, when it is first needed.
    :param kernel: an :class:`~backends.xfs.interfaces.IKernel`, for what needs no privilege.
    :param reconcile_interval: seconds between two rounds of reconciling, 0 to leave them to others.
    """

    backend = "xfs"

    def __init__(
        self,
        name: str,
        path: str,
        fsprefix: str,
        threads: IThreads,
        reactor: IReactorTime,
        connect: Callable[[], IProjects],
        kernel: IKernel,
        durability: Durability = Durability.PATCH,
        reconcile_interval: float = 0.0,
    ) -> None:
        super().__init__(name, path, fsprefix, threads, durability)
        self.maintenance_interval = reconcile_interval
        self._connect = connect
        self._kernel = kernel
        self._log = Logger("storageproxy.xfs")
        #: A call that a manager no longer waits for goes on, with the descriptor that it needs.
        self._background = Background()
        self._is_sound = False
        self._projects: IProjects | None = None
        self._releases = Releases(name, reactor, self._connected)

    async def check(self) -> None:
        """See :meth:`storageproxy.interfaces.IVolume.check`."""
        await super().check()
        # Files are served all the same when there is no way to set limits.
        self._connected()

    def open_root(self) -> Directory:
        """
        See :meth:`storageproxy.interfaces.IVolume.open_root`.

        :raises BackendFailure: when the file system cannot limit projects. Each call looks anew,
            until it can.
        """
        root = super().open_root()
        if not self._is_sound:
            try:
                self._inspect(root)
            except BaseException:
                root.close()
                raise
            self._is_sound = True
        return root

    @contextmanager
    def changing(self, vfid: VFolderID, root: Directory | None = None) -> Iterator[Directory]:
        """See :meth:`storageproxy.interfaces.IVolume.changing`."""
        with self.open_folder(vfid, root) as folder, self._telling_quota(vfid.layout):
            yield folder

    async def create_folder(self, vfid: VFolderID, mode: int | None, quota: int | None) -> None:
        """See :meth:`storageproxy.interfaces.IVolume.create_folder`."""
        limit = _limit(quota or 0)
        exists = VFolderExists(vfid=str(vfid))
        await self._background.run(
            f"The creation of {vfid}", self._create_folder(vfid, mode, limit, exists)
        )

    async def empty_trash(self) -> None:
        """See :meth:`storageproxy.interfaces.IVolume.empty_trash`."""
        try:
            for line in await self._mend_creations():
                self._log.warn("Volume {name}: {line}", name=self.name, line=line)
            await super().empty_trash()
        finally:
            await self._releases.release()

    async def usage(self, vfid: VFolderID) -> Usage:
        """See :meth:`storageproxy.interfaces.IVolume.usage`."""
        account = await self._told(vfid)
        if account is None:
            return await super().usage(vfid)
        # The kernel counts the vfolder's own directory too.
        return Usage(max(0, account.inodes - 1), account.size)

    async def used_bytes(self, vfid: VFolderID) -> int:
        """See :meth:`storageproxy.interfaces.IVolume.used_bytes`."""
        account = await self._told(vfid)
        return await super().used_bytes(vfid) if account is None else account.size

    async def hardware_info(self) -> dict[str, Any]:
        """See :meth:`storageproxy.interfaces.IVolume.hardware_info`."""
        try:
            await self.check()
        except (StorageProxyError, OSError) as error:
            return {"status": "unavailable", "status_info": str(error), "metadata": {}}
        return await super().hardware_info()

    # ---- IMaintained

    async def maintain(self) -> None:
        """See :meth:`storageproxy.interfaces.IMaintained.maintain`."""
        lines = await self._connected().reconcile()
        self._log.info(
            "Volume {name} is reconciled, with {count} findings.", name=self.name, count=len(lines)
        )

    # ---- IQuota

    async def get_quota(self, vfid: VFolderID) -> int:
        """See :meth:`storageproxy.interfaces.IQuota.get_quota`."""
        account = await self._account(vfid.layout, _missing(vfid), self._scope_is_limited())
        return 0 if account is None else account.limit.size

    async def set_quota(self, vfid: VFolderID, size: int) -> None:
        """See :meth:`storageproxy.interfaces.IQuota.set_quota`."""
        refused = UnsupportedOperation(
            f"volume {self.name}: vfolder {vfid} has no project and is not empty: clone it to one"
            " that can be limited, or have the projects reconciled if it had one"
        )
        await self._background.run(
            f"The limit of {vfid}",
            self._set_limit(vfid.layout, _limit(size), _missing(vfid), refused),
        )

    async def room(self, vfid: VFolderID) -> int | None:
        """See :meth:`storageproxy.interfaces.IQuota.room`."""
        account = None
        with suppress(VFolderNotFound):
            account = await self._account(vfid.layout, _missing(vfid))
        if account is None and vfid.scope is not None:
            with suppress(QuotaScopeNotFound):
                account = await self._account(vfid.scope.layout, QuotaScopeNotFound())
        if account is None or not account.limit.size:
            return None
        return max(0, account.limit.size - account.size)

    # ---- IQuotaScope

    async def create_scope(self, scope: QuotaScopeID, limit: int | None) -> None:
        """See :meth:`storageproxy.interfaces.IQuotaScope.create_scope`."""
        await self._background.run(
            f"The creation of {scope}",
            self._create(scope.layout, None, _limit(limit or 0), QuotaScopeExists()),
        )

    async def scope_usage(self, scope: QuotaScopeID) -> ScopeUsage:
        """See :meth:`storageproxy.interfaces.IQuotaScope.scope_usage`."""
        account = await self._account(scope.layout, QuotaScopeNotFound())
        if account is None:
            return ScopeUsage(None, None)
        return ScopeUsage(account.size, account.limit.size or None)

    async def set_scope_limit(self, scope: QuotaScopeID, limit: int) -> None:
        """See :meth:`storageproxy.interfaces.IQuotaScope.set_scope_limit`."""
        try:
            await self._set_scope_limit(scope, _limit(limit))
        except QuotaScopeNotFound:
            await self.create_scope(scope, limit)

    async def unset_scope_limit(self, scope: QuotaScopeID) -> None:
        """See :meth:`storageproxy.interfaces.IQuotaScope.unset_scope_limit`."""
        if await self._account(scope.layout, QuotaScopeNotFound()) is not None:
            await self._set_scope_limit(scope, _NONE)

    # ---- in the reactor

    def _connected(self) -> IProjects:
        """
        Where limits are set.

        :raises StorageProxyError: when there is no way to do so.
        """
        if self._projects is None:
            self._projects = self._connect()
        return self._projects

    async def _create_folder(
        self, vfid: VFolderID, mode: int | None, limit: Limit, exists: StorageProxyError
    ) -> None:
        if vfid.scope is None or not await self.threads.run(self._has_project, vfid.scope):
            await self._create(vfid.layout, mode, limit, exists)
            return
        if limit.size:
            raise self._scope_is_limited()
        if not await self.threads.run(self._make, vfid.layout, mode):
            raise exists

    async def _create(
        self, names: Sequence[str], mode: int | None, limit: Limit, exists: StorageProxyError
    ) -> None:
        """
        Make a directory that has a project.

        :param exists: raised when it is there, or when somebody else makes it.
        """
        # Nothing is made where it could not be limited.
        self._connected()
        begun = await self.threads.submit(
            partial(self._begin, names, Wanted(limit, mode), exists), self.threads.deadline, _close
        )
        try:
            await self._finish(*begun)
        except BaseException:
            await self.threads.run(self._undo, begun[0])
            raise
        finally:
            self.threads.clean_up(partial(_close, begun))

    async def _finish(self, creation: Creation, directory: Directory) -> None:
        projects = self._connected()
        await projects.allocate(directory.descriptor)
        if creation.wanted.limit != _NONE:
            await projects.set_limit(directory.descriptor, creation.wanted.limit)
        await self.threads.run(self._complete, creation, directory)

    async def _mend_creations(self) -> list[str]:
        """
        Take away what creations that were broken off have left, and complete those whose folders
        somebody has found and put something into.

        :return: a line for each that stays, as one of them shall not hold up the others.
        """
        lines, used = await self.threads.submit(
            self._undo_creations, self.threads.deadline, _close_all
        )
        try:
            for creation, directory in used:
                try:
                    await self._finish(creation, directory)
                except (StorageProxyError, OSError) as error:
                    lines.append(
                        f"the creation of {creation} was broken off, and cannot be completed"
                        f" ({error}). It is tried again in the next round."
                    )
        finally:
            self.threads.clean_up(partial(_close_all, (lines, used)))
        return lines

    async def _account(
        self,
        names: Sequence[str],
        missing: StorageProxyError,
        inherited: StorageProxyError | None = None,
    ) -> Account | None:
        """
        What the kernel says of the project of a directory.

        :param missing: raised when there is no such directory.
        :param inherited: raised when it has the project of the one it lies in.
        :return: None when it has none of its own.
        """

        async def ask() -> Account | None:
            async with self._open(names, missing) as place:
                if not place.inherited:
                    return await self._own_account(place)
                if inherited is not None:
                    raise inherited
                return None

        return await self._background.run("A look at a quota", ask())

    async def _own_account(self, place: _Place) -> Account | None:
        """
        :return: None for a directory that was never given a project. Only who gives them knows: the
            owner of one that was can have it say so, too.
        """
        try:
            return await self._connected().account(place.directory.descriptor)
        except NotManaged:
            if place.project:
                raise
            return None

    async def _told(self, vfid: VFolderID) -> Account | None:
        """:return: what the kernel says of a vfolder, None when that is not about what is in it."""
        try:
            return await self._account(vfid.layout, _missing(vfid))
        except (Drifted, NotManaged):
            return None

    async def _set_limit(
        self,
        names: Sequence[str],
        limit: Limit,
        missing: StorageProxyError,
        refused: StorageProxyError,
    ) -> None:
        """
        :param missing: raised when there is no such directory.
        :param refused: raised when it has no project, and cannot be given any.
        """
        async with self._open(names, missing) as place:
            if place.inherited:
                raise self._scope_is_limited()
            projects, descriptor = self._connected(), place.directory.descriptor
            account = await self._own_account(place)
            if account is None:
                if await self.threads.run(os.listdir, descriptor):
                    raise refused
                await projects.allocate(descriptor)
                account = await projects.account(descriptor)
            # Managers say nothing of inodes; an administrator may have.
            await projects.set_limit(descriptor, evolve(limit, inodes=account.limit.inodes))

    async def _set_scope_limit(self, scope: QuotaScopeID, limit: Limit) -> None:
        refused = UnsupportedOperation(
            f"volume {self.name}: the vfolders of {scope} are limited one by one, as they were made"
            " before it was"
        )
        await self._background.run(
            f"The limit of {scope}", self._limit_scope(scope, limit, refused)
        )

    async def _limit_scope(
        self, scope: QuotaScopeID, limit: Limit, refused: StorageProxyError
    ) -> None:
        # What vfolders have left above them that some process has deleted is no reason to refuse.
        await self.threads.run(self._prune_below, scope.layout)
        await self._set_limit(scope.layout, limit, QuotaScopeNotFound(), refused)

    @asynccontextmanager
    async def _open(
        self, names: Sequence[str], missing: StorageProxyError
    ) -> AsyncIterator[_Place]:
        place = await self.threads.submit(
            partial(self._look, names, missing), self.threads.deadline, _Place.close
        )
        try:
            yield place
        finally:
            self.threads.clean_up(place.close)

    def _scope_is_limited(self) -> StorageProxyError:
        return UnsupportedOperation(
            f"volume {self.name}: the quota scope is limited, not the vfolders in it"
        )

    # ---- in threads

    def _inspect(self, root: Directory) -> None:
        quotas = self._kernel.quotas(root.descriptor)
        advice = quotas.value
        if quotas is Quotas.ENFORCED:
            if not self._kernel.mark(root.descriptor).inherited:
                return
            advice = "hands its project on to all vfolders: take that away with chattr -P"
        raise BackendFailure(f"volume {self.name}: {self.path} {advice}")

    def _make(self, names: Sequence[str], mode: int | None, mark: int = 0) -> bool:
        with self._telling_quota(names[:1]):
            return super()._make(names, mode, mark)

    def _begin(self, names: Sequence[str], wanted: Wanted, exists: StorageProxyError) -> _Begun:
        """Make an empty directory, or take up one whose creation was broken off."""
        with self.open_root() as root:
            creation = creations.begin(root, names, wanted)
            if creation is None:
                raise exists
            try:
                # Nobody else has anything to do with it before it is limited.
                self._make(names, None if wanted.mode is None else 0o700)
                directory = root.descend("/".join(names))
            except BaseException:
                with creation.note:
                    self._undo(creation)
                raise
        return creation, directory

    def _complete(self, creation: Creation, directory: Directory) -> None:
        with self.open_root() as root:
            durable = self.durability.keeps_files
            creations.complete(root, creation, directory, durable=durable)

    def _undo(self, creation: Creation) -> bool:
        """
        Take away what nobody was told of.

        :return: False when it stays, as somebody has found it and put something in.
        """
        with self.open_root() as root:
            try:
                with root.descend("/".join(creation.names)) as directory:
                    if os.listdir(directory.descriptor):
                        return False
                self._throw_away(creation.names)
            except (FileNotFoundError, NotADirectoryError):
                pass
            with suppress(FileNotFoundError):
                creations.end(root, creation)
        return True

    def _undo_creations(self) -> tuple[list[str], list[_Begun]]:
        """:return: a line for each that stays, and those whose directories are used."""
        lines: list[str] = []
        used: list[_Begun] = []
        with self.open_root() as root:
            for creation in creations.broken_off(root):
                try:
                    if not self._undo(creation):
                        used.append((creation, root.descend("/".join(creation.names))))
                        continue
                except (StorageProxyError, OSError) as error:
                    lines.append(f"what is left of {creation} cannot be taken away: {error}")
                creation.note.close()
        return lines, used

    def _look(self, names: Sequence[str], missing: StorageProxyError) -> _Place:
        with self._parent(names, missing) as parent:
            try:
                directory = parent.descend(names[-1])
            except (FileNotFoundError, NotADirectoryError):
                raise missing from None
            try:
                project = self._project_of(directory)
                above = self._kernel.mark(parent.descriptor)
            except BaseException:
                directory.close()
                raise
        return _Place(directory, project, above.inherited and above.project != 0)

    def _parent(self, names: Sequence[str], missing: StorageProxyError) -> Directory:
        with self.open_root() as root:
            try:
                return root.descend("/".join(names[:-1]) or ".")
            except (FileNotFoundError, NotADirectoryError):
                raise missing from None

    def _project_of(self, directory: Directory) -> int:
        return self._kernel.mark(directory.descriptor).project

    def _has_project(self, scope: QuotaScopeID) -> bool:
        try:
            with self._look(scope.layout, QuotaScopeNotFound()).directory as directory:
                return self._project_of(directory) != 0
        except QuotaScopeNotFound:
            return False

    @contextmanager
    def _telling_quota(self, names: Sequence[str]) -> Iterator[None]:
        """Say of a full project that it is one; XFS says that there is no space on the device."""
        try:
            yield
        except OSError as error:
            if error.errno == errno.ENOSPC and self._is_tight(names):
                raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)) from error
            raise

    def _is_tight(self, names: Sequence[str]) -> bool:
        """Whether a directory has less room than its disk: statfs(2) tells that of its project."""
        try:
            with self.open_root() as root, root.descend("/".join(names)) as directory:
                here = os.fstatvfs(directory.descriptor)
                disk = os.fstatvfs(root.descriptor)
        except (OSError, StorageProxyError):
            return False
        return here.f_bavail < disk.f_bavail or here.f_favail == 0 < disk.f_favail

    def _name_in_trash(self, parent: Directory, name: str) -> str:
        """With its project, which can be released when nothing else is left of it."""
        plain = super()._name_in_trash(parent, name)
        try:
            with parent.descend(name, links=False) as directory:
                project = self._project_of(directory)
        except (OSError, StorageProxyError):
            return plain
        return plain if project in (0, self._project_of(parent)) else f"{plain}-{project}"

    def _remove(self, trash: Directory, name: str, progress: Progress) -> None:
        super()._remove(trash, name, progress)
        found = _IN_TRASH.fullmatch(name)
        if found:
            self._releases.add(int(found[1]))


def _limit(size: int) -> Limit:
    """
    :param size: bytes, as a manager may give them.
    """
    if not 0 <= size <= ENDLESS:
        raise InvalidParameters.of({"quota": f"from 0 (no limit) to {ENDLESS} bytes"})
    return _NONE if size > LARGEST else Limit(size)


def _close(begun: _Begun) -> None:
    creation, directory = begun
    directory.close()
    creation.note.close()


def _close_all(found: tuple[list[str], list[_Begun]]) -> None:
    for begun in found[1]:
        _close(begun)


def _missing(vfid: VFolderID) -> StorageProxyError:
    return VFolderNotFound(vfid=str(vfid))
