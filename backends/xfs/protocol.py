"""
What is said on the agent's socket: commands of AMP (twisted.protocols.amp).

A directory comes as an open descriptor. Each command names the volume that it is about, as one
agent may serve several.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from twisted.protocols import amp

from backends.xfs.interfaces import Account, Drifted, Limit, NotManaged
from storageproxy.errors import (
    BackendFailure,
    InvalidParameters,
    ShuttingDown,
    VolumeUnavailable,
)

#: Requests at most that one side has under way on a connection.
MAX_PENDING = 128

#: Bytes at most of the lines of one answer; AMP holds 65,535.
_MAX_LINES = 60_000

#: Those that are the same on both sides, the particular ones before the general.
ERRORS: dict[type[Exception], bytes] = {
    NotManaged: b"NOT_MANAGED",
    Drifted: b"DRIFTED",
    InvalidParameters: b"INVALID",
    ShuttingDown: b"SHUTTING_DOWN",
    VolumeUnavailable: b"UNAVAILABLE",
    BackendFailure: b"FAILED",
}


class Path(amp.String):
    """A path, which need not be text."""

    def toString(self, inObject: str) -> bytes:
        """See :meth:`twisted.protocols.amp.Argument.toString`."""
        return os.fsencode(inObject)

    def fromString(self, inString: bytes) -> str:
        """See :meth:`twisted.protocols.amp.Argument.fromString`."""
        return os.fsdecode(inString)


_ACCOUNT: list[tuple[bytes, amp.Argument]] = [
    (b"project", amp.Integer()),
    (b"size_limit", amp.Integer()),
    (b"inode_limit", amp.Integer()),
    (b"size", amp.Integer()),
    (b"inodes", amp.Integer()),
]


class Allocate(amp.Command):
    """See :meth:`backends.xfs.interfaces.IProjects.allocate`."""

    arguments = [(b"volume", Path()), (b"directory", amp.Descriptor())]
    response = [(b"project", amp.Integer())]
    errors = ERRORS


class GetAccount(amp.Command):
    """See :meth:`backends.xfs.interfaces.IProjects.account`."""

    arguments = [(b"volume", Path()), (b"directory", amp.Descriptor())]
    response = _ACCOUNT
    errors = ERRORS


class SetLimit(amp.Command):
    """See :meth:`backends.xfs.interfaces.IProjects.set_limit`."""

    arguments = [
        (b"volume", Path()),
        (b"directory", amp.Descriptor()),
        (b"size", amp.Integer()),
        (b"inodes", amp.Integer()),
    ]
    response = _ACCOUNT
    errors = ERRORS


class Release(amp.Command):
    """See :meth:`backends.xfs.interfaces.IProjects.release`."""

    arguments = [(b"volume", Path()), (b"project", amp.Integer())]
    response = [(b"free", amp.Boolean())]
    errors = ERRORS


class Reconcile(amp.Command):
    """See :meth:`backends.xfs.interfaces.IProjects.reconcile`."""

    arguments = [(b"volume", Path())]
    response = [(b"lines", amp.ListOf(Path()))]
    errors = ERRORS


def from_account(account: Account) -> dict[str, int]:
    """The answer that tells an account."""
    return {
        "project": account.project,
        "size_limit": account.limit.size,
        "inode_limit": account.limit.inodes,
        "size": account.size,
        "inodes": account.inodes,
    }


def to_account(answer: dict[str, int]) -> Account:
    """The account that an answer tells."""
    limit = Limit(answer["size_limit"], answer["inode_limit"])
    return Account(answer["project"], limit, answer["size"], answer["inodes"])


def fitting(lines: Iterable[str]) -> list[str]:
    """As many lines as an answer holds; the agent's log has all of them."""
    fitting: list[str] = []
    room = _MAX_LINES
    rest = 0
    for line in lines:
        # Each has its length before it.
        room -= len(os.fsencode(line)) + 2
        if room >= 0:
            fitting.append(line)
        else:
            rest += 1
    if rest:
        fitting.append(f"and {rest} more, which the agent's log has")
    return fitting


def is_told(error: Exception) -> bool:
    """Whether the other side is told an error as it is."""
    return isinstance(error, tuple(ERRORS))
