# -*- test-case-name: tests.test_xfs_projects -*-
"""
The projects of a volume, for who has the privilege: the agent, or a daemon that runs as root.

The truth is on the inodes and in the kernel. The registry says which ids are taken, and to which
directories they were given; it is written first, and what is left of anything that was broken off
is put right by reconciling.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any

from twisted.internet.defer import DeferredLock
from twisted.logger import Logger
from zope.interface import implementer

from backends.xfs.commands import XFSQuota
from backends.xfs.commits import Commits
from backends.xfs.interfaces import (
    Account,
    Drifted,
    ILimits,
    IProjects,
    Limit,
    Mark,
    NotManaged,
)
from backends.xfs.kernel import LAST_PROJECT, Kernel
from backends.xfs.reconcile import Reconciliation
from backends.xfs.registry import Entries, Registry, no_step
from backends.xfs.tree import Tree
from storageproxy.beneath import Directory, File
from storageproxy.errors import BackendFailure, InvalidParameters
from storageproxy.interfaces import IThreads

#: The ids that are given when nobody says which.
IDS = range(1_000_000, LAST_PROJECT + 1)

#: Bytes, or inodes, of the highest limit; xfs_quota takes no larger numbers.
HIGHEST_LIMIT = 2**62

#: Ids that are tried before all that are in use are looked for, which may be very many.
MOST_TRIES = 16

#: Who wants what is done, for the log.
asked_by: ContextVar[str] = ContextVar("asked_by", default="this process")

_audit = Logger("backends.xfs.audit")


def audit(what: str, **values: Any) -> None:
    """
    Tell the log about a change.

    :param what: how it is told.
    """
    _audit.info(what + ", for {asked_by}.", asked_by=asked_by.get(), **values)


def is_charged(account: Account) -> bool:
    """Whether something belongs to a project."""
    return account.size != 0 or account.inodes != 0


def is_unused(account: Account) -> bool:
    """Whether the kernel has nothing of a project."""
    return account.limit == Limit(0) and not is_charged(account)


@implementer(IProjects)
class Projects:
    """
    The projects of one volume.

    :param tree: the volume's directories.
    :param commits: changes the registry.
    :param limits: an :class:`ILimits`.
    :param threads: where the calls on the volume are made.
    :param ids: those that may be given.
    :param step: called between any two steps, with a name for what was done; for tests that end
        the process there.
    """

    def __init__(
        self,
        tree: Tree,
        commits: Commits,
        limits: ILimits,
        threads: IThreads,
        ids: range = IDS,
        step: Callable[[str], object] = no_step,
    ) -> None:
        self.tree = tree
        self.commits = commits
        self.threads = threads
        self.ids = ids
        self.step = step
        self._limits = limits
        self._last = 0
        self._lock = DeferredLock()

    @classmethod
    def embedded(
        cls,
        reactor: Any,
        path: str,
        threads: IThreads,
        registry: Registry | None = None,
        ids: range = IDS,
    ) -> Projects:
        """
        Those of a volume of this process, which has to be root.

        :param path: the volume's directory.
        :param threads: those of the volume.
        :param registry: ``/etc/projects`` and ``/etc/projid`` when it is left out.
        """
        commits = Commits(registry or Registry(), threads)
        return cls(Tree(path, Kernel()), commits, XFSQuota(reactor), threads, ids)

    @property
    def registry(self) -> Registry:
        """The registry."""
        return self.commits.registry

    async def allocate(self, directory: int) -> int:
        """See :meth:`backends.xfs.interfaces.IProjects.allocate`."""
        with File(os.dup(directory)) as held:
            path, carried = await self.threads.run(self._locate_new, held)
            project, busy = 0, frozenset[int]()
            while True:
                project = await self.assign(path, carried, project, busy)
                if await self.threads.run(self._take, held, path, project):
                    return project
                # The kernel has an id that the registry has lost, or that somebody has given to
                # files of his; or it was lost by now.
                busy |= {project}
                if len(busy) == MOST_TRIES:
                    busy |= await self.threads.run(self.in_use)

    async def account(self, directory: int) -> Account:
        """See :meth:`backends.xfs.interfaces.IProjects.account`."""
        with File(os.dup(directory)) as held:
            return await self.threads.run(self._own_account, held)

    async def set_limit(self, directory: int, limit: Limit) -> Account:
        """See :meth:`backends.xfs.interfaces.IProjects.set_limit`."""
        if not (0 <= limit.size <= HIGHEST_LIMIT and 0 <= limit.inodes <= HIGHEST_LIMIT):
            raise InvalidParameters(f"a limit is a number from 0 to {HIGHEST_LIMIT}")
        with File(os.dup(directory)) as held:
            async with self.turn():
                before = await self.threads.run(self._own_account, held)
                account = await self._set(before.project, limit)
                await self.threads.run(self._persist, held)
        return account

    async def release(self, project: int) -> bool:
        """See :meth:`backends.xfs.interfaces.IProjects.release`."""
        async with self.turn():
            path = await self.threads.run(self._gone_from, project)
            account = await self.retire(project, path)
            return account is not None and is_unused(account)

    async def reconcile(self) -> list[str]:
        """See :meth:`backends.xfs.interfaces.IProjects.reconcile`."""
        return await Reconciliation(self).run()

    # ---- what reconciling needs, too

    async def assign(
        self, path: str, carried: int = 0, lost: int = 0, busy: frozenset[int] = frozenset()
    ) -> int:
        """
        Record a project for a directory, unless there is one.

        :param path: of the directory.
        :param carried: the project that its inode says; when it is recorded, that is enough.
        :param lost: the project that was recorded for it, and could not be taken.
        :param busy: ids that the kernel has something of.
        """

        def edit(entries: Entries) -> int:
            current = entries.given(path, self.ids)
            if current is not None:
                if current == carried or current != lost:
                    return current
                # It was that of a directory which is in the trash by now.
                entries.displace(current)
            if lost:
                # Whoever has taken that one may have taken a million behind it.
                last = secrets.choice(self.ids)
            else:
                last = self._last or max(
                    (one for one in (*entries.paths, *entries.ours) if one in self.ids), default=0
                )
            project = entries.choose(self.ids, last, busy)
            entries.place(project, path)
            self._last = project
            return project

        known = await self.threads.run(self._given, path)
        if known is not None and known == carried:
            return known
        project = await self.commits.apply(edit)
        self.step("recorded")
        audit("Project {project} is that of {path}", project=project, path=path)
        return project

    def in_use(self) -> frozenset[int]:
        """
        Look for ids that the kernel has something of. In threads only.
        """
        with self.tree.open() as root:
            return frozenset(
                account.project
                for account in self.tree.kernel.accounts(root.descriptor)
                if account.project in self.ids and not is_unused(account)
            )

    async def retire(self, project: int, path: str) -> Account | None:
        """
        Take away the limit of a project and give its id back, unless there is a directory at its
        path, or something is charged to it. To be done in one's turn.

        Whoever owns a directory can take it out of its project, and another one in. So neither is
        told by the inodes alone: what is there keeps its project whatever its inode says, and what
        is elsewhere (an administrator may have moved it) is charged to its own.

        :param path: where its directory was; "" when that is not known.
        :return: what the kernel has of it: nothing when the id was given back. None when its
            directory is there.
        """

        def displace(entries: Entries) -> bool:
            if entries.paths.get(project, "") != path or not entries.is_ours(project, self.ids):
                return False
            entries.displace(project)
            return project not in entries.paths

        def restore(entries: Entries) -> None:
            if path and path not in entries.projects:
                entries.place(project, path)

        account = await self.threads.run(self._left, project, path)
        if account is None or is_charged(account):
            return account
        if not await self.commits.apply(displace):
            return None
        self.step("displaced")
        # Once more, as it may have been made again: see _take.
        account = await self.threads.run(self._left, project, path)
        if account is None or is_charged(account):
            await self.commits.apply(restore)
            return account
        if account.limit != Limit(0):
            account = await self._set(project, Limit(0))
        if not is_unused(account):
            return account
        await self.commits.apply(lambda entries: entries.forget(project))
        self.step("forgotten")
        audit(
            "Project {project} of {path} is released",
            project=project,
            path=path or "no directory",
        )
        return account

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """
        For what may not be done by two at once, be it in this process or in another one: setting
        limits, which would be taken for failed, and giving ids back.

        :return: a context.
        """
        await self._lock.acquire()
        try:
            held = await self.threads.submit(
                lambda: self.tree.lock(self.registry.projects),
                self.threads.deadline,
                lambda late: late.close(),
            )
            try:
                yield
            finally:
                self.threads.clean_up(held.close)
        finally:
            self._lock.release()

    # ---- in threads

    def _locate_new(self, held: File) -> tuple[str, int]:
        with held.descriptor() as directory:
            path = self.tree.locate(directory)
            carried = self._carried(directory)
            if self._given(path) != carried and os.listdir(directory):
                raise NotManaged(f"{path} is not empty: reconciling gives it a project")
            return path, carried

    def _take(self, held: File, path: str, project: int) -> bool:
        kernel = self.tree.kernel
        with held.descriptor() as directory:
            # First, as another process may be about to mark it, too.
            account = kernel.account(directory, project)
            mark = kernel.mark(directory)
            if mark.project != project and not is_unused(account):
                return False
            if mark != Mark(project, True):
                kernel.set_mark(directory, Mark(project, True))
                self.step("marked")
            os.fsync(directory)
            self.step("synced")
        # Who retires a project looks for what it is charged with after he has taken its directory
        # from it, so one of both sees the other.
        return self._given(path) == project

    def _own_account(self, held: File) -> Account:
        with held.descriptor() as directory:
            path = self.tree.locate(directory)
            project = self._given(path)
            if project is None:
                raise NotManaged(f"{path} has no project: reconciling gives it one")
            found = self._carried(directory)
            if found != project:
                raise Drifted(
                    f"{path} has project {found}, and not its own, which is {project}:"
                    " reconciling gives it back"
                )
            return self.tree.kernel.account(directory, project)

    def _carried(self, directory: int) -> int:
        try:
            return self.tree.kernel.mark(directory).project
        except OSError as error:
            raise NotManaged(f"a directory has to be open for reading: {error}") from None

    def _given(self, path: str) -> int | None:
        return self.registry.read().given(path, self.ids)

    def _account(self, project: int) -> Account:
        with self.tree.open() as root:
            return self.tree.kernel.account(root.descriptor, project)

    def _persist(self, held: File) -> None:
        kernel = self.tree.kernel
        with held.descriptor() as directory:
            # fsync(2) of a directory that has not changed does nothing; so, it writes the log of
            # the file system, which has the limit.
            kernel.set_mark(directory, kernel.mark(directory))
            os.fsync(directory)

    def _gone_from(self, project: int) -> str:
        entries = self.registry.read()
        if not entries.is_ours(project, self.ids):
            raise NotManaged(f"project {project} is none of ours")
        path = entries.paths.get(project)
        if path is None:
            return ""
        if not self.tree.has(path):
            raise NotManaged(f"project {project} is that of {path}, not in {self.tree.path}")
        with self.tree.open() as root:
            if self._is_there(root, path):
                raise NotManaged(f"project {project} is that of {path}, which is there")
        return path

    def _left(self, project: int, path: str) -> Account | None:
        """What is left of a project, unless its directory is there."""
        with self.tree.open() as root:
            if path and self._is_there(root, path):
                return None
            return self.tree.kernel.account(root.descriptor, project)

    def _is_there(self, root: Directory, path: str) -> bool:
        try:
            found = self.tree.find(root, path)
        except OSError:
            # What cannot be looked at is there, at least.
            return True
        if found is None:
            return False
        found.close()
        return True

    # ----

    async def _set(self, project: int, limit: Limit) -> Account:
        mount, block = await self.threads.run(
            lambda: (self.tree.mount, os.statvfs(self.tree.path).f_frsize)
        )
        # xfs_quota rounds down to 512 bytes, which makes no limit of a small one.
        wanted = Limit(-(-limit.size // block) * block, limit.inodes)
        said = await self._limits.set(mount, project, wanted)
        self.step("limited")
        account = await self.threads.run(self._account, project)
        if account.limit != wanted:
            raise BackendFailure(f"{self.tree.path}: project {project} cannot be limited: {said}")
        audit(
            "Project {project} has a limit of {size} bytes and {inodes} inodes (0: none)",
            project=project,
            size=wanted.size,
            inodes=wanted.inodes,
        )
        return account
