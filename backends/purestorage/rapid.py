# -*- test-case-name: tests.test_rapid -*-
"""
A volume whose directories are worked on by the commands of the RapidFile Toolkit, as far as they
are there and do it rightly. What they do not do, the plain backend does.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import closing
from itertools import islice
from typing import Any

from twisted.internet.defer import DeferredLock
from twisted.logger import Logger
from zope.interface import alsoProvides

from backends.purestorage import rapidfile
from backends.purestorage.probe import Findings, probe
from backends.purestorage.rapidfile import Toolkit
from backends.vfs import VFSVolume
from storageproxy import files, trees
from storageproxy.beneath import Directory
from storageproxy.durability import Durability
from storageproxy.errors import BackendFailure
from storageproxy.interfaces import IFastScan, IThreads
from storageproxy.process import CommandFailed
from storageproxy.threads import Progress

#: Entries of a listing that is made without a command: by the time it has begun they are there, and
#: it would go on to list all the others.
FEW = 10_000

#: Entries of a listing that are there before the first is told: up to then it can begin anew.
HEAD = 1024


class RapidFileVolume(VFSVolume):
    """
    A mounted tree of vfolders, and commands for it.

    It provides :class:`~storageproxy.interfaces.IFastScan` when the toolkit can count.

    :param reactor: where commands are run.
    :param environ: of the daemon, with the path on which commands are looked for.
    :ivar versions: of the commands that were found.
    """

    def __init__(
        self,
        name: str,
        path: str,
        fsprefix: str,
        threads: IThreads,
        reactor: Any,
        durability: Durability = Durability.PATCH,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        super().__init__(name, path, fsprefix, threads, durability)
        self.versions: Mapping[str, str] = {}
        self._reactor = reactor
        self._environ = environ
        self._tools_log = Logger("storageproxy.rapidfile")
        self._toolkit: Toolkit | None = None
        self._findings = Findings()
        self._looking = DeferredLock()
        self._is_settled = self._has_warned = False

    async def check(self) -> None:
        """See :meth:`storageproxy.interfaces.IVolume.check`."""
        await super().check()
        await self._looking.run(self._settle)

    async def _settle(self) -> None:
        """Find out what the toolkit is good for here, once."""
        if self._is_settled:
            return
        versions, complaints = await rapidfile.find(self._reactor, self._environ)
        toolkit, findings = None, Findings()
        try:
            if versions:
                toolkit, findings = await self.threads.run_long(
                    lambda progress: self._try(versions, progress), "trying the RapidFile Toolkit"
                )
            self._is_settled = True
        except OSError as error:
            # The disk may be full just now.
            complaints.append(f"it cannot be tried: {error}")
        self.versions = versions
        self._toolkit, self._findings = toolkit, findings
        self._tell([*complaints, *findings.complaints])
        if findings.counts:
            alsoProvides(self, IFastScan)

    def _software(self) -> list[str]:
        # Nothing of a volume is software, wherever it is mounted.
        path = f"{os.path.realpath(self.path)}/"
        return [place for place in rapidfile.SOFTWARE if not path.startswith(f"{place}/")]

    def _try(
        self, versions: Mapping[str, str], progress: Progress
    ) -> tuple[Toolkit | None, Findings]:
        toolkit = Toolkit(self._reactor, versions, self._software(), self._environ)
        with self.open_root() as root:
            return toolkit, probe(toolkit, root, progress.step)

    def _tell(self, complaints: list[str]) -> None:
        if self.versions:
            self._tools_log.info(
                "Volume {name}: RapidFile Toolkit: {versions}.",
                name=self.name,
                versions=", ".join(
                    f"{name} {version} ({self._findings.uses.get(name, 'not used')})"
                    for name, version in self.versions.items()
                ),
            )
        if complaints and not self._has_warned:
            self._has_warned = True
            self._tools_log.warn(
                "Volume {name}: what these commands of the RapidFile Toolkit would do is done"
                " without them, slowly: {complaints}. Install the toolkit, and see that it works"
                " on {path}.",
                name=self.name,
                complaints="; ".join(complaints),
                path=self.path,
            )

    # ---- in threads

    def scan(self, directory: Directory, limit: int) -> files.Scan:
        """See :meth:`storageproxy.interfaces.IVolume.scan`."""
        permissions = self._findings.permissions
        if self._toolkit is None or permissions is None or 0 < limit <= FEW:
            return super().scan(directory, limit)
        return self._listed(directory, self._toolkit.scan(directory, permissions))

    def _listed(self, directory: Directory, found: rapidfile.Records) -> files.Scan:
        with closing(found):
            try:
                head = list(islice(found, HEAD))
            except CommandFailed as error:
                self._do_without(error)
                yield from super().scan(directory, 0)
                return
            yield from head
            try:
                yield from found
            except CommandFailed as error:
                raise BackendFailure(f"volume {self.name}: {error}") from None

    def _measure(
        self, folder: Directory, step: trees.Step = trees.unwatched, limit: float | None = None
    ) -> trees.Usage:
        if self._toolkit is not None and self._findings.counts:
            watched = step if limit is None else trees.limited(limit, step)
            try:
                return self._toolkit.count(folder, watched)
            except CommandFailed as error:
                self._do_without(error)
        return super()._measure(folder, step, limit)

    def _remove(self, trash: Directory, name: str, progress: Progress) -> None:
        if self._toolkit is not None and self._findings.removes:
            try:
                self._toolkit.remove(trash, name, progress.step)
                return
            except CommandFailed as error:
                self._do_without(error)
        # It takes away what is left.
        super()._remove(trash, name, progress)

    def _do_without(self, error: CommandFailed) -> None:
        self._tools_log.warn(
            "Volume {name}: {error}. It is done again without the RapidFile Toolkit.",
            name=self.name,
            error=str(error),
        )
