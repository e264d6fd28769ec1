"""
What needs privilege on XFS, as the volume asks for it.

The volume is unprivileged and everything in a vfolder belongs to its user, so a directory is always
handed over as an open descriptor, which cannot be swapped.
"""

from __future__ import annotations

from collections.abc import Coroutine, Iterator
from enum import Enum
from typing import Any

from attrs import frozen
from zope.interface import Interface

from storageproxy.errors import StorageProxyError


class NotManaged(StorageProxyError):
    """The directory is none that projects are given to, or has none; the message says why."""

    status = 409
    suffix = "project/not-managed"
    error_code = "project_access_not-managed"
    title = "No project is given there"


class Drifted(StorageProxyError):
    """
    The project on the directory is not the one that the registry has for it.

    Whoever owns a directory can change its project. Reconciling gives it back.
    """

    status = 409
    suffix = "project/drifted"
    error_code = "project_access_conflict"
    title = "The directory is in another project than its own"


@frozen
class Limit:
    """
    What a project may hold.

    :param size: bytes, 0 for no limit.
    :param inodes: files, directories and links, 0 for no limit.
    """

    size: int
    inodes: int = 0


@frozen
class Account:
    """
    What the kernel says of a project.

    :param project: its id.
    :param limit: what it may hold.
    :param size: bytes that it holds.
    :param inodes: files, directories and links that it holds, its own directory among them.
    """

    project: int
    limit: Limit
    size: int
    inodes: int


class IProjects(Interface):
    """
    The projects of a mounted XFS: in this process, when it is root, or in the agent's.
    """

    def allocate(directory: int) -> Coroutine[Any, Any, int]:
        """
        Give a directory a project of its own, which what is made in it later inherits.

        It is recorded in the registry first. Asked again for a directory that has its own project
        already, it says which.

        :param directory: a descriptor of an empty directory beneath a configured mount; it stays
            open, and the caller's.
        :return: the project's id.
        """

    def account(directory: int) -> Coroutine[Any, Any, Account]:
        """
        Read limit and usage from the kernel.

        :param directory: a descriptor of a directory that was given to :meth:`allocate`.
        """

    def set_limit(directory: int, limit: Limit) -> Coroutine[Any, Any, Account]:
        """
        Limit a project, and read back what holds then.

        :param directory: as above. That the project on it is really the one that the registry has
            for this directory is checked, as its owner may have changed it to that of another.
        :return: what holds now; sizes are rounded up to whole blocks.
        """

    def release(project: int) -> Coroutine[Any, Any, bool]:
        """
        Forget a project whose directory is gone from its place, and lift its limit.

        :return: whether it is free; when something is charged to it still, it keeps its limit, and
            its id stays taken, until it is reconciled.
        :raises NotManaged: when its directory is there, or it is none of those that are given here.
        """

    def reconcile() -> Coroutine[Any, Any, list[str]]:
        """
        Bring registry, limits and inodes together, and repair what is safe.

        :return: a line for each thing found, in words for the administrator.
        """


class Quotas(Enum):
    """Whether a file system can limit projects. The values say what to do, behind its path."""

    NOT_XFS = 'is not on XFS: mount one there, or say backend = "vfs"'
    OFF = (
        "is on an XFS without project quotas: mount it with the option pquota, in /etc/fstab also;"
        " umount it first, as a remount does not switch that on (for the root file system it is"
        " rootflags=pquota on the kernel's command line)"
    )
    COUNTED = (
        "is on an XFS that counts what projects have, but does not limit it: mount it with the"
        " option pquota, not pqnoenforce; umount it first, as a remount does not switch that on"
    )
    ENFORCED = "is on an XFS that limits projects"


@frozen
class Mark:
    """
    What the inode of a file or directory says.

    :param project: the project that it is charged to, 0 for none.
    :param inherited: whether what is made in it belongs to the same project; files never say so.
    """

    project: int
    inherited: bool


class IKernel(Interface):
    """
    What the kernel knows of the projects of a mounted XFS. Every call blocks.

    A descriptor is one that was opened for reading (``O_PATH`` is not enough).
    """

    def quotas(descriptor: int) -> Quotas:
        """
        :param descriptor: any file or directory on the file system.
        """

    def mark(descriptor: int) -> Mark:
        """
        :param descriptor: a regular file or directory.
        """

    def set_mark(descriptor: int, mark: Mark) -> None:
        """
        Charge a file or directory to a project, even when that goes beyond its limit.

        What a directory holds already stays as it is.
        """

    def account(descriptor: int, project: int) -> Account:
        """
        Read limit and usage of a project, which are 0 of one that was never used.

        :param descriptor: any file or directory on the file system.
        """

    def accounts(descriptor: int) -> Iterator[Account]:
        """
        All projects that have a limit or a usage, by their ids.

        :param descriptor: any file or directory on the file system.
        """


class ILimits(Interface):
    """What sets limits."""

    def set(mount: str, project: int, limit: Limit) -> Coroutine[Any, Any, str]:
        """
        Try to limit a project. Whether it was done is for the caller to read from the kernel.

        :param mount: where the file system is mounted.
        :return: what was said, for the message when it was not done.
        """
