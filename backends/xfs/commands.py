# -*- test-case-name: tests.test_xfs_commands -*-
"""
xfs_quota(8), which sets limits.

It gets empty files of projects and names, and ids as numbers: it looks up every directory that it
knows of when it starts, which takes as long as there are such, and one on a mount that hangs would
hang it, too. Its exit status says little: 0 on most failures.
"""

from __future__ import annotations

from typing import Any

from attrs import define
from zope.interface import implementer

from backends.xfs.interfaces import ILimits, Limit
from storageproxy import process
from storageproxy.errors import BackendFailure, VolumeUnavailable

#: Where it finds neither projects nor names.
_EMPTY = "/dev/null"


@implementer(ILimits)
@define(eq=False)
class XFSQuota:
    """
    The command.

    :param reactor: where it is run.
    :param deadline: seconds that it may take.
    :param command: its name, or its path.
    """

    reactor: Any
    deadline: float = 15.0
    command: str = "xfs_quota"

    async def set(self, mount: str, project: int, limit: Limit) -> str:
        """
        See :meth:`backends.xfs.interfaces.ILimits.set`.

        Soft limits are taken away: statvfs(2) would tell them in the place of the hard ones.
        """
        wanted = f"bsoft=0 bhard={limit.size} isoft=0 ihard={limit.inodes}"
        argv = [self.command, "-x", "-D", _EMPTY, "-P", _EMPTY]
        argv += ["-c", f"limit -p {wanted} {project}", mount]
        try:
            outcome = await process.run(self.reactor, argv, self.deadline)
        except process.CommandTimedOut as error:
            raise VolumeUnavailable(f"{mount}: {error}") from None
        except process.CommandFailed as error:
            raise BackendFailure(f"{mount}: {error} (xfs_quota is in xfsprogs)") from None
        said = (outcome.errors or outcome.output).decode("utf-8", "replace").strip()
        return said or f"{self.command} has ended with status {outcome.status}"
