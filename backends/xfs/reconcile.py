# -*- test-case-name: tests.test_xfs_reconcile -*-
"""
Registry, limits and inodes are brought together again.

They come apart when the owner of a directory changes its project, when files are moved past it,
when a daemon is killed between two steps, and when the registry gets lost. What belongs to a folder
is told by the registry, else by the inode of the folder itself. A limit is taken away only when
nothing is charged to its project any more: each directory that is there is charged to its own.

What cannot be looked at is told, and keeps nobody from looking at the rest. Projects that others
have written into the registry are left as they are, with their directories.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from attrs import define, field, frozen
from twisted.internet.defer import Deferred, FirstError, gatherResults
from twisted.logger import Logger

from backends.xfs.interfaces import Account, Limit, Mark, NotManaged
from backends.xfs.registry import Entries
from backends.xfs.seizure import Seizure, seize
from backends.xfs.tree import Tree
from storageproxy.beneath import Directory
from storageproxy.errors import BackendFailure
from storageproxy.threads import Progress

if TYPE_CHECKING:
    from backends.xfs.projects import Projects

_REMEDY = "the capability CAP_DAC_READ_SEARCH would, which the agent keeps with read-all"

_REMEDIES = {
    errno.EXDEV: "something is mounted there, and hides what is beneath it: umount it",
    errno.EAGAIN: "somebody has a lease on them (fcntl(2)), and is told in /proc/locks",
    errno.ENOENT: "they were moved or removed meanwhile, and the next round looks for them",
}

#: Folders that are given projects at one time.
_TOGETHER = 100


@frozen
class Place:
    """
    Where a directory that has a project may lie.

    :param scope: the path of the scope that it is a vfolder of, "" when there is none.
    :param is_scope: whether it is a scope itself, which need not have a project.
    :param is_recorded: whether only the registry has it.
    """

    scope: str = ""
    is_scope: bool = False
    is_recorded: bool = False


@frozen
class Found:
    """
    A directory that has a project, or should.

    :param mark: what its inode says; None when it cannot be looked at.
    :param place: what kind of a place it is.
    """

    mark: Mark | None
    place: Place


@define
class Plan:
    """
    What is to be done.

    :ivar recovered: directory to the project on it, which the registry has lost.
    :ivar fresh: directories that need a project.
    :ivar left: projects that have no directory, with the path that the registry has for them.
    :ivar lines: what cannot be repaired.
    """

    recovered: dict[str, int] = field(factory=dict)
    fresh: list[str] = field(factory=list)
    left: dict[int, str] = field(factory=dict)
    lines: list[str] = field(factory=list)


@frozen
class Survey:
    """
    How things are.

    :param accounts: of the projects whose ids are ours to give; read first, so that each project
        which was in use is in the registry as it was read then.
    :param found: by path.
    :param missed: a line for each directory that could not be looked at for folders.
    """

    accounts: Mapping[int, Account]
    entries: Entries
    found: Mapping[str, Found]
    missed: list[str]

    def plan(self, tree: Tree, ids: range) -> Plan:
        """Decide what is to be done."""
        plan = Plan(lines=list(self.missed))
        claims: dict[int, list[str]] = {}
        for path, found in self.found.items():
            if others := self.entries.claims(path, ids):
                plan.lines.extend(_claimed(path, found, others))
                continue
            if found.mark is None or path in self.entries.projects or self._is_of_scope(found):
                continue
            carried = found.mark.project
            recorded = self.entries.paths.get(carried)
            if not carried:
                if not found.place.is_scope:
                    plan.fresh.append(path)
            elif not self.entries.is_ours(carried, ids):
                plan.lines.append(
                    f"{path} has project {carried}, which is not one of those that are given here,"
                    f" and is left alone; with project 0 it would get one of its own"
                )
            elif recorded is not None and (recorded in self.found or not tree.has(recorded)):
                plan.fresh.append(path)
            else:
                claims.setdefault(carried, []).append(path)
        for project, paths in claims.items():
            if len(paths) == 1:
                plan.recovered[paths[0]] = project
            else:
                plan.lines.append(
                    f"project {project} is on {', '.join(paths)}, and which of them it belongs to"
                    " is not known any more; those with project 0 would get one of their own"
                )
        for project in self._without_directory(tree, ids):
            if project not in claims:
                plan.left[project] = self.entries.paths.get(project, "")
        return plan

    def _is_of_scope(self, found: Found) -> bool:
        """Whether it is limited together with its scope, which sees to it that it stays so."""
        scope = self.found.get(found.place.scope)
        if scope is None:
            return False
        has_project = scope.mark is None or scope.mark.project != 0
        return has_project or found.place.scope in self.entries.projects

    def _without_directory(self, tree: Tree, ids: range) -> Iterable[int]:
        for project in sorted({*self.accounts, *self.entries.paths, *self.entries.ours}):
            if not self.entries.is_ours(project, ids):
                continue
            path = self.entries.paths.get(project)
            if path is None or tree.has(path) and path not in self.found:
                yield project


def _claimed(path: str, found: Found, claims: frozenset[int]) -> Iterator[str]:
    """Tell of a directory that somebody else has given a project, when that is odd."""
    carried = None if found.mark is None else found.mark.project
    if not found.place.is_recorded or carried not in claims:
        has = "cannot be looked at" if carried is None else f"has project {carried}"
        yield (
            f"{path} belongs to project {min(claims)}, as a line of somebody else says, and {has}:"
            " it is left alone, and has no limit from here"
        )


def _missed(path: str, error: OSError) -> str:
    """Tell of a directory that cannot be looked at."""
    if error.errno in (errno.EACCES, errno.EPERM):
        why = (
            "as its permissions do not allow it: whoever owns it may have taken it out of its"
            f" project; {_REMEDY}"
        )
    else:
        why = f"with all that is in it: {_REMEDIES.get(error.errno or 0) or error}"
    return f"{path} could not be looked at, {why}"


class Reconciliation:
    """
    One round.

    :param projects: those of a volume.
    """

    log = Logger("backends.xfs.audit")

    def __init__(self, projects: Projects) -> None:
        self._projects = projects
        self._tree = projects.tree
        self._lines: list[str] = []

    async def run(self) -> list[str]:
        """
        Do it.

        :return: a line for each thing found.
        """
        threads = self._projects.threads
        survey = await threads.run_long(self._survey, "looking for projects")
        plan = survey.plan(self._tree, self._projects.ids)
        for line in plan.lines:
            self._tell(line)
        await self._recover(plan.recovered)
        await self._give(plan.fresh, survey)
        for line in await threads.run_long(
            lambda progress: self._seize(survey, progress), "giving folders to their projects"
        ):
            self._tell(line)
        left, strays = await threads.run_long(
            lambda progress: self._look_again(plan.left, progress), "looking for projects left"
        )
        if strays:
            # There may be a million of them.
            self._tell(
                f"{len(strays)} projects that were given to nobody, {strays[0]} among them, are"
                " charged with files or directories that could not be given back to theirs"
            )
        for project in left:
            await self._free(project, plan.left[project])
        return self._lines

    def _tell(self, line: str) -> None:
        self._lines.append(line)
        self.log.warn("{line}", line=line)

    async def _recover(self, recovered: Mapping[str, int]) -> None:
        def edit(entries: Entries) -> list[str]:
            lines = []
            for path, project in recovered.items():
                if path in entries.projects:
                    continue
                old = entries.paths.get(project)
                if not entries.is_ours(project, self._projects.ids):
                    continue
                if old is not None:
                    entries.displace(project)
                entries.place(project, path)
                was = "not in the registry" if old is None else f"in the registry as {old}"
                lines.append(f"{path} was {was}, and is recorded with its project {project} now")
            for project, path in entries.paths.items():
                ours = project in self._projects.ids and project not in entries.others
                if self._tree.has(path) and ours and project not in entries.ours:
                    entries.name(project)
                    lines.append(f"project {project} of {path} had no name, and has one now")
            return lines

        for line in await self._projects.commits.apply(edit):
            self._tell(line)

    async def _give(self, fresh: list[str], survey: Survey) -> None:
        busy = frozenset(survey.accounts)
        for begin in range(0, len(fresh), _TOGETHER):
            paths = fresh[begin : begin + _TOGETHER]
            given = [Deferred.fromCoroutine(self._give_one(path, busy)) for path in paths]
            try:
                lines = await gatherResults(given, consumeErrors=True)
            except FirstError as error:
                error.subFailure.raiseException()
            for line in lines:
                self._tell(line)

    async def _give_one(self, path: str, busy: frozenset[int]) -> str:
        try:
            project = await self._projects.assign(path, busy=busy)
        except NotManaged as error:
            return f"{path} has no project, and gets none: {error}"
        return f"{path} had no project, and has {project} now, without a limit"

    async def _free(self, project: int, path: str) -> None:
        whose = f"project {project} of {path or 'no directory'}"
        try:
            async with self._projects.turn():
                account = await self._projects.retire(project, path)
        except (BackendFailure, NotManaged, OSError) as error:
            self._tell(f"{whose} was left, and cannot be freed: {error}")
            return
        if account is None:
            return
        if account.size or account.inodes:
            self._tell(
                f"{whose}, which is gone, is charged with {account.inodes} files and directories of"
                f" {account.size} bytes still: in the trash, moved elsewhere, or open"
            )
        else:
            self._tell(f"{whose} was left, and is free")

    # ---- in threads

    def _survey(self, progress: Progress) -> Survey:
        kernel = self._tree.kernel
        with self._tree.open() as root:
            accounts = {}
            for account in kernel.accounts(root.descriptor):
                progress.step(0)
                if account.project in self._projects.ids:
                    accounts[account.project] = account
            entries = self._projects.registry.read()
            missed: list[str] = []
            places: dict[str, Place] = {}
            scope = ""
            for path, is_scope in self._tree.folders(
                root, lambda path, error: missed.append(_missed(path, error)), progress.step
            ):
                if is_scope:
                    scope = path
                inside = scope if scope and path.startswith(scope + "/") else ""
                places[path] = Place(inside, is_scope)
            for path in entries.projects:
                if self._tree.has(path):
                    places.setdefault(path, Place(is_recorded=True))
            found = {}
            for path, place in places.items():
                progress.step()
                try:
                    directory = self._tree.find(root, path)
                    if directory is not None:
                        with directory:
                            found[path] = Found(kernel.mark(directory.descriptor), place)
                except OSError:
                    # It is told when it is gone through.
                    found[path] = Found(None, place)
        return Survey(accounts, entries, found, missed)

    def _look_again(self, left: Iterable[int], progress: Progress) -> tuple[list[int], list[int]]:
        """
        Look at projects without a directory, when all that is in others was taken from them.

        :return: those that may be freed, and those that were never given and have no limit, but
            are charged with something.
        """
        taken: list[int] = []
        strays: list[int] = []
        entries = self._projects.registry.read()
        with self._tree.open() as root:
            for project in left:
                progress.step(0)
                account = self._tree.kernel.account(root.descriptor, project)
                if entries.is_taken(project) or account.limit != Limit(0):
                    taken.append(project)
                elif account.size or account.inodes:
                    strays.append(project)
        return taken, strays

    def _seize(self, survey: Survey, progress: Progress) -> list[str]:
        lines: list[str] = []
        with self._tree.open() as root:
            seized = []
            for path in survey.found:
                try:
                    found = self._seize_one(root, path, survey, progress, lines)
                except OSError as error:
                    lines.append(_missed(path, error))
                    continue
                if found is not None:
                    seized.append(found)
            lines += self._outside(root, seized, survey)
        closed = [count for found in seized if (count := found.missed[errno.EACCES])]
        if closed:
            lines.append(
                f"{sum(closed)} files and directories in {len(closed)} folders of"
                f" {self._tree.path} could not be looked at, as their permissions do not allow it;"
                f" {_REMEDY}"
            )
        return lines

    def _seize_one(
        self, root: Directory, path: str, survey: Survey, progress: Progress, lines: list[str]
    ) -> Seizure | None:
        ids = self._projects.ids
        if survey.entries.claims(path, ids):
            return None
        top = self._tree.find(root, path)
        if top is None:
            return None
        with top:
            # After it was opened: what is made there later gets another project.
            entries = self._projects.registry.read()
            project = None if entries.claims(path, ids) else entries.given(path, ids)
            if project is None:
                return None
            others = [
                one[len(path) + 1 :] for one in entries.projects if one.startswith(path + "/")
            ]
            before = self._tree.kernel.mark(top.descriptor)
            found = seize(self._tree.kernel, top, project, others, progress.step)
            self._projects.step("seized")
        if before.project != project and path in survey.entries.projects:
            lines.append(
                f"{path} had project {before.project}, and not its own, which is {project}: it has"
                f" that again, with all that is in it ({found.changed} changed)"
            )
        elif found.changed:
            lines.append(
                f"{path}: {found.changed} files and directories in it were not of its project"
                f" {project}, or did not hand it on, and are and do now"
            )
        for number, count in found.missed.items():
            if number != errno.EACCES:
                lines.append(
                    f"{path}: {count} files and directories in it could not be looked at:"
                    f" {_REMEDIES.get(number) or os.strerror(number)}"
                )
        return found

    def _outside(self, root: Directory, seized: list[Seizure], survey: Survey) -> Iterator[str]:
        """Look for what is charged to projects and not in their directories."""
        for found in seized:
            account = survey.accounts.get(found.project)
            if account is None or found.missed:
                continue
            # What comes and goes meanwhile is not in both.
            charged = self._tree.kernel.account(root.descriptor, found.project).inodes
            outside = min(account.inodes, charged) - found.entries
            if outside > 0:
                path = survey.entries.paths.get(found.project, "a directory")
                yield (
                    f"project {found.project} of {path} is charged with {outside} files and"
                    " directories that are not in it: moved elsewhere, or deleted and still open"
                )
