"""
What has several implementations: the storage systems, and the threads that calls on them run in.

The core of a volume is :class:`IVolume`. What only some storage systems can do has a small
interface of its own; a volume provides those it can do, and the capabilities that ``/volumes``
reports are computed from that (:func:`capabilities`).
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from attrs import frozen
from twisted.internet.defer import Deferred
from zope.interface import Attribute, Interface

if TYPE_CHECKING:
    from storageproxy.beneath import Directory
    from storageproxy.config import VolumeSettings
    from storageproxy.files import Scan
    from storageproxy.threads import Progress
    from storageproxy.trees import Usage
    from storageproxy.vfolder import QuotaScopeID, VFolderID

P = ParamSpec("P")
T = TypeVar("T")


class IThreads(Interface):
    """Where the blocking calls of one volume are made."""

    deadline = Attribute("Seconds that an ordinary call may take.")
    slow_deadline = Attribute("Seconds that a call may take that moves or syncs bulk data.")

    def run(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> Deferred[T]:
        """
        Make a short call, with the usual deadline.

        Cancelling takes the call back when it has not begun, and lets go of its result when it
        has.

        :return: a Deferred with what the function returns or raises.
        :raises storageproxy.errors.VolumeUnavailable: (in the Deferred) when it takes too long, or
            when too much is waiting already.
        """

    def submit(
        function: Callable[[], T], deadline: float | None, discard: Callable[[T], object] | None
    ) -> Deferred[T]:
        """
        Make a call with another deadline, or whose result must not get lost.

        :param deadline: seconds, None for no limit.
        :param discard: called with the result, in a thread, when nobody waits for it any more.
        :return: as :meth:`run`.
        """

    def run_long(
        function: Callable[[Progress], T], what: str = "a long operation"
    ) -> Coroutine[Any, Any, T]:
        """
        Make a call that may take as long as it likes while it makes progress.

        :param function: called with a :class:`storageproxy.threads.Progress`.
        :param what: names it in the log, which tells how far it is when it takes long.
        :return: a coroutine with what the function returns or raises.
        :raises storageproxy.errors.VolumeUnavailable: when it makes no progress, other than in a
            :meth:`~storageproxy.threads.Progress.silence`.
        """

    def clean_up(function: Callable[[], object]) -> None:
        """
        Make a call that nobody waits for, such as closing a file, however much is waiting.
        """

    def stop() -> None:
        """Take no more calls, and let the threads end with those that they have."""


class IBackend(Interface):
    """
    A storage system, found as a Twisted plugin in ``twisted.plugins``.
    """

    name = Attribute("What ``backend = …`` says in the configuration.")

    def check(name: str, settings: VolumeSettings) -> list[str]:
        """
        Look at the settings of a volume before anything is started, without touching its mount.

        :param name: the volume's name.
        :param settings: a :class:`storageproxy.config.VolumeSettings`.
        :return: a list of complaints, each naming a key and what is allowed.
        """

    def volume(name: str, settings: VolumeSettings, reactor: Any) -> IVolume:
        """
        Make the volume; nothing is done on its mount before it is used.

        :return: an :class:`IVolume`.
        """


class IVolume(Interface):
    """
    A mounted tree of vfolders.

    The methods that return a Directory are to be called in the volume's threads; the others
    return Deferreds or coroutines.
    """

    name = Attribute("Its name in the configuration.")
    backend = Attribute("The name of its backend.")
    path = Attribute("Where it is mounted, absolute and without symbolic links.")
    fsprefix = Attribute("What ``/volumes`` reports; it is used nowhere else.")
    threads = Attribute("Its IThreads.")
    durability = Attribute("The storageproxy.durability.Durability of uploads to it.")

    def check() -> Coroutine[Any, Any, None]:
        """
        See whether the volume can be used, as it is configured and mounted.

        :raises storageproxy.errors.StorageProxyError: saying what to do about it.
        """

    def open_root() -> Directory:
        """
        Open the root of the volume. In threads only.

        :return: a :class:`storageproxy.beneath.Directory`, to be closed.
        """

    def open_folder(vfid: VFolderID, root: Directory | None = None) -> Directory:
        """
        Open a vfolder. In threads only.

        :param root: from :meth:`open_root`, by who has it open already.
        :return: a :class:`storageproxy.beneath.Directory`, to be closed.
        :raises storageproxy.errors.VFolderNotFound: when there is none.
        """

    def changing(
        vfid: VFolderID, root: Directory | None = None
    ) -> AbstractContextManager[Directory]:
        """
        Open a vfolder for as long as something is written to it. In threads only.

        There are file systems that say of a quota that it is the disk which is full: an OSError
        that leaves the ``with`` block says EDQUOT when it is the quota.

        :param root: as for :meth:`open_folder`.
        :return: a context manager with the :class:`storageproxy.beneath.Directory`.
        :raises storageproxy.errors.VFolderNotFound: when there is none.
        """

    def within(
        vfid: VFolderID,
        operation: Callable[Concatenate[Directory, P], T],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Deferred[T]:
        """
        Call ``operation(folder, *args)`` in a thread, with the open vfolder, as :meth:`changing`.

        :return: a Deferred with what it returns or raises.
        """

    def scan(directory: Directory, limit: int) -> Scan:
        """
        The entries of one directory, by whatever tells them fastest. In threads only.

        :param directory: an open one of this volume.
        :param limit: how many will be taken at most, 0 for all; there may be more all the same.
        :return: a generator of names and what :func:`os.lstat` says of them, in any order. To close
            it ends what it has begun.
        """

    def create_folder(
        vfid: VFolderID, mode: int | None, quota: int | None
    ) -> Coroutine[Any, Any, None]:
        """
        Make a vfolder.

        :param mode: its permissions, None for ``0o755`` less the umask.
        :param quota: its limit in bytes, None or 0 for none; backends without quotas ignore it.
        :raises storageproxy.errors.VFolderExists:
        """

    def delete_folder(vfid: VFolderID) -> Coroutine[Any, Any, bool]:
        """
        Take a vfolder away at once, and leave its contents, and the directories above it if it was
        the last one in them, for :meth:`empty_trash`.

        :return: whether there was one.
        """

    def empty_trash() -> Coroutine[Any, Any, None]:
        """Remove what deleted vfolders have left, also before a restart."""

    def clone_folder(
        vfid: VFolderID, target: IVolume, target_vfid: VFolderID
    ) -> Coroutine[Any, Any, None]:
        """
        Copy a vfolder into another one, which is made when it does not exist.

        :param target: the :class:`IVolume` of the copy.
        """

    def usage(vfid: VFolderID) -> Coroutine[Any, Any, Usage]:
        """
        Count files and bytes. Where the storage system keeps account of them, its own count is
        told: directories are among the files then, and bytes are those of whole blocks.

        :return: a :class:`storageproxy.trees.Usage`.
        :raises storageproxy.trees.TooSlow: when counting takes more than a few seconds.
        """

    def used_bytes(vfid: VFolderID) -> Coroutine[Any, Any, int]:
        """
        Bytes in a vfolder, however long it takes to count them; otherwise as :meth:`usage`.
        """

    def fs_usage() -> Coroutine[Any, Any, tuple[int, int]]:
        """
        The size of the file system.

        :return: capacity and used bytes, as a pair.
        """

    def free_space() -> Coroutine[Any, Any, int]:
        """
        :return: the bytes that the mount itself says can still be written.
        """

    def hardware_info() -> Coroutine[Any, Any, dict[str, Any]]:
        """
        The state of the storage system.

        :return: a table with ``status`` (healthy, degraded, offline, unavailable), ``status_info``
            (text or None) and ``metadata`` (a table).
        """

    def stop() -> Coroutine[Any, Any, None]:
        """Let go of all that the volume has, at the end of the daemon. It takes no more calls."""


class IQuota(Interface):
    """
    A volume that can limit the size of a vfolder.

    A limit is in bytes; 0 stands for none. It may be less than what the folder has, which stays
    then, and cannot grow.
    """

    def get_quota(vfid: VFolderID) -> Coroutine[Any, Any, int]:
        """
        :return: the limit that holds.
        :raises storageproxy.errors.UnsupportedOperation: when it can have none.
        """

    def set_quota(vfid: VFolderID, size: int) -> Coroutine[Any, Any, None]:
        """
        :param size: the limit; it is rounded up to what the storage system can count.
        :raises storageproxy.errors.UnsupportedOperation: when it can have none.
        :raises storageproxy.errors.InvalidParameters: when there are no such limits.
        """

    def room(vfid: VFolderID) -> Coroutine[Any, Any, int | None]:
        """
        :param vfid: a vfolder, also one that is yet to be made.
        :return: the bytes that may still be put into it, None where there is no limit. How much the
            disk has is another question.
        """


class IVolumeQuota(Interface):
    """
    A volume that can be limited as a whole. Managers are not told by a capability: ``quota`` would
    have them limit vfolders.
    """

    def get_volume_quota() -> Coroutine[Any, Any, int]:
        """
        :return: the limit that holds, in bytes; 0 stands for none.
        """

    def set_volume_quota(size: int) -> Coroutine[Any, Any, None]:
        """
        :param size: the limit in bytes, 0 for none.
        :raises storageproxy.errors.InvalidParameters: when there are no such limits.
        """


@frozen
class ScopeUsage:
    """
    How much of its limit a quota scope has used.

    :param used: bytes, None when they are not counted.
    :param limit: bytes, None for no limit.
    """

    used: int | None
    limit: int | None


class IQuotaScope(Interface):
    """A volume that can limit what all vfolders of a quota scope have together."""

    def create_scope(scope: QuotaScopeID, limit: int | None) -> Coroutine[Any, Any, None]:
        """
        Make the directory of a quota scope.

        :param limit: bytes that its vfolders may have together, None or 0 for any number.
        :raises storageproxy.errors.QuotaScopeExists:
        """

    def scope_usage(scope: QuotaScopeID) -> Coroutine[Any, Any, ScopeUsage]:
        """
        :return: a :class:`ScopeUsage`.
        :raises storageproxy.errors.QuotaScopeNotFound:
        """

    def set_scope_limit(scope: QuotaScopeID, limit: int) -> Coroutine[Any, Any, None]:
        """
        Limit a quota scope, which is made when it is missing.

        :param limit: bytes, as for :meth:`IQuota.set_quota`.
        :raises storageproxy.errors.UnsupportedOperation: when its vfolders are limited one by one.
        """

    def unset_scope_limit(scope: QuotaScopeID) -> Coroutine[Any, Any, None]:
        """
        Limit a quota scope no more.

        :raises storageproxy.errors.QuotaScopeNotFound:
        """


class IMaintained(Interface):
    """A volume that has to be looked after now and then, by one of the processes that use it."""

    maintenance_interval = Attribute("Seconds between two rounds, 0 for none.")

    def maintain() -> Coroutine[Any, Any, None]:
        """Make a round, which may take long."""


class IPerformanceMetric(Interface):
    """A volume that knows how busy its storage system is."""

    def performance_metric() -> Coroutine[Any, Any, dict[str, Any]]:
        """
        :return: a table with ``iops_read``, ``iops_write``, ``io_bytes_read``, ``io_bytes_write``,
            ``io_usec_read`` and ``io_usec_write``.
        """


class IFastScan(Interface):
    """
    A volume that counts files by something faster than to ask for each of them.

    Which is known of some volumes only after a look at them: they provide it from then on
    (:func:`zope.interface.alsoProvides`).
    """


_CAPABILITIES = {
    IVolume: "vfolder",
    IQuota: "quota",
    IPerformanceMetric: "metric",
    IFastScan: "fast-scan",
}


def capabilities(volume: object) -> list[str]:
    """The capabilities that ``/volumes`` reports of a volume: those that it provides."""
    return [name for ability, name in _CAPABILITIES.items() if ability.providedBy(volume)]
