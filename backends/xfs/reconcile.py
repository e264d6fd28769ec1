# -*- test-case-name: tests.test_xfs_reconcile -*-
"""
Registry, limits and inodes are brought together again.

They come apart when the owner of a directory changes its project, when files are moved past it,
when a daemon is killed between two steps, and when the registry gets lost. What belongs to a folder
is told by the registry, else by the inode of the folder itself. A limit is taken away only when
nothing is charged to its project any more: each directory that is there is charged to its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from attrs import define, field, frozen
from twisted.internet.defer import Deferred, FirstError, gatherResults
from twisted.logger import Logger

from backends.xfs.interfaces import Account, Limit, Mark
from backends.xfs.registry import Entries
from backends.xfs.tree import Seizure, Tree
from storageproxy.beneath import Directory
from storageproxy.threads import Progress

if TYPE_CHECKING:
    from backends.xfs.projects import Projects

_REMEDY = "the capability CAP_DAC_READ_SEARCH would, which the agent keeps with read-all"

#: Folders that are given projects at one time.
_TOGETHER = 100


@frozen
class Found:
    """
    A directory that has a project, or should.

    :param mark: what its inode says; None when its permissions do not allow to look.
    :param scope: the path of the scope that it is a vfolder of, "" when there is none.
    :param is_scope: whether it is a scope itself, which need not have a project.
    """

    mark: Mark | None
    scope: str = ""
    is_scope: bool = False


@define
class Plan:
    """
    What is to be done.

    :ivar recovered: directory to the project on it, which the registry has lost.
    :ivar fresh: directories that need a project.
    :ivar free: projects that nothing is charged to and that have no directory, with the path that
        the registry has for them.
    :ivar lines: what cannot be repaired.
    """

    recovered: dict[str, int] = field(factory=dict)
    fresh: list[str] = field(factory=list)
    free: dict[int, str] = field(factory=dict)
    lines: list[str] = field(factory=list)


@frozen
class Survey:
    """
    How things are.

    :param accounts: of the projects whose ids are ours to give; read first, so that each project
        which was in use is in the registry as it was read then.
    :param found: by path.
    """

    accounts: Mapping[int, Account]
    entries: Entries
    found: Mapping[str, Found]

    def plan(self, tree: Tree, ids: range) -> Plan:
        """Decide what is to be done."""
        plan = Plan()
        claims: dict[int, list[str]] = {}
        for path, found in self.found.items():
            if found.mark is None or path in self.entries.projects or self._is_of_scope(found):
                continue
            carried = found.mark.project
            if not carried:
                if not found.is_scope:
                    plan.fresh.append(path)
            elif carried not in ids:
                plan.lines.append(
                    f"{path} has project {carried}, which is not one of those that are given here,"
                    f" and is left alone; with project 0 it would get one of its own"
                )
            elif self.entries.paths.get(carried, "") in self.found:
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
        for project, account in self._without_directory(tree):
            path = self.entries.paths.get(project, "")
            if project in claims:
                continue
            if account.size or account.inodes:
                plan.lines.append(
                    f"project {project} of {path or 'no directory'}, which is gone, is charged with"
                    f" {account.inodes} files and directories of {account.size} bytes still: in the"
                    " trash, moved elsewhere, or open"
                )
            else:
                plan.free[project] = path
        return plan

    def _is_of_scope(self, found: Found) -> bool:
        """Whether it is limited together with its scope, which sees to it that it stays so."""
        scope = self.found.get(found.scope)
        if scope is None:
            return False
        has_project = scope.mark is None or scope.mark.project != 0
        return has_project or found.scope in self.entries.projects

    def _without_directory(self, tree: Tree) -> Iterable[tuple[int, Account]]:
        for project in sorted({*self.accounts, *self.entries.paths, *self.entries.ours}):
            path = self.entries.paths.get(project)
            if path is None:
                account = self.accounts.get(project, Account(project, Limit(0), 0, 0))
                is_known = account.limit != Limit(0) or account.size or account.inodes
                if project in self.entries.ours or is_known and project not in self.entries.others:
                    yield project, account
            elif tree.has(path) and path not in self.found:
                yield project, self.accounts.get(project, Account(project, Limit(0), 0, 0))


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
        for project, path in plan.free.items():
            await self._free(project, path)
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
                if old is not None:
                    entries.displace(project)
                entries.place(project, path)
                was = "not in the registry" if old is None else f"in the registry as {old}"
                lines.append(f"{path} was {was}, and is recorded with its project {project} now")
            for project, path in entries.paths.items():
                named = project in entries.ours or project in entries.others
                if self._tree.has(path) and not named:
                    entries.name(project)
                    lines.append(f"project {project} of {path} had no name, and has one now")
            return lines

        for line in await self._projects.commits.apply(edit):
            self._tell(line)

    async def _give(self, fresh: list[str], survey: Survey) -> None:
        busy = frozenset(survey.accounts)
        for begin in range(0, len(fresh), _TOGETHER):
            paths = fresh[begin : begin + _TOGETHER]
            given = [
                Deferred.fromCoroutine(self._projects.assign(path, busy=busy)) for path in paths
            ]
            try:
                projects = await gatherResults(given, consumeErrors=True)
            except FirstError as error:
                error.subFailure.raiseException()
            for path, project in zip(paths, projects, strict=True):
                self._tell(f"{path} had no project, and has {project} now, without a limit")

    async def _free(self, project: int, path: str) -> None:
        async with self._projects.turn():
            if await self._projects.retire(project, path):
                self._tell(f"project {project} of {path or 'no directory'} was left, and is free")

    # ---- in threads

    def _survey(self, progress: Progress) -> Survey:
        kernel = self._tree.kernel
        with self._tree.open() as root:
            accounts = {
                account.project: account
                for account in kernel.accounts(root.descriptor)
                if account.project in self._projects.ids
            }
            entries = self._projects.registry.read()
            places: dict[str, tuple[str, bool]] = {}
            scope = ""
            for path, is_scope in self._tree.folders(root, progress.step):
                if is_scope:
                    scope = path
                inside = scope if scope and path.startswith(scope + "/") else ""
                places[path] = (inside, is_scope)
            for path in entries.paths.values():
                if self._tree.has(path):
                    places.setdefault(path, ("", False))
            found = {}
            for path, (inside, is_scope) in places.items():
                progress.step()
                try:
                    directory = self._tree.find(root, path)
                except PermissionError:
                    found[path] = Found(None, inside, is_scope)
                    continue
                if directory is not None:
                    with directory:
                        found[path] = Found(kernel.mark(directory.descriptor), inside, is_scope)
        return Survey(accounts, entries, found)

    def _seize(self, survey: Survey, progress: Progress) -> list[str]:
        lines: list[str] = []
        with self._tree.open() as root:
            seized = [
                found
                for path in survey.found
                if (found := self._seize_one(root, path, survey, progress, lines)) is not None
            ]
            lines += self._outside(root, seized, survey)
        closed = [found.closed for found in seized if found.closed]
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
        try:
            top = self._tree.find(root, path)
        except PermissionError:
            lines.append(
                f"{path} could not be looked at, as its permissions do not allow it: whoever owns"
                f" it may have taken it out of its project; {_REMEDY}"
            )
            return None
        if top is None:
            return None
        with top:
            # After it was opened: what is made there later gets another project.
            entries = self._projects.registry.read()
            project = entries.projects.get(path)
            if project is None:
                return None
            others = {
                one[len(path) + 1 :] for one in entries.projects if one.startswith(path + "/")
            }
            before = self._tree.kernel.mark(top.descriptor)
            found = self._tree.seize(top, project, others, progress.step)
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
        return found

    def _outside(self, root: Directory, seized: list[Seizure], survey: Survey) -> Iterator[str]:
        """Look for what is charged to projects and not in their directories."""
        for found in seized:
            account = survey.accounts.get(found.project)
            if account is None or found.closed:
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
