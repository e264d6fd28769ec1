"""
When what an upload brings is put on stable storage.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum


class Durability(Enum):
    """
    What a power failure, or a crash of the kernel, may cost. A daemon that is killed costs nothing:
    the kernel has the bytes.

    All but :attr:`SHARED` is for volumes that one machine writes to: whether bytes may be lost is
    told by when the machine was started that looks, not the one that wrote them.
    """

    #: No byte whose offset was told, on a volume that several machines write to. None but offsets
    #: that were noted count, as nobody can tell whether another machine went down.
    SHARED = "shared"
    #: No byte whose offset was told.
    PATCH = "patch"
    #: Uploads that are not complete: they begin again. No file that is complete.
    COMPLETION = "completion"
    #: Also files that have been uploaded a short while before.
    NONE = "none"

    @property
    def keeps_offsets(self) -> bool:
        """Whether bytes are on stable storage before their offset is told, and the offset, too."""
        return self in (Durability.PATCH, Durability.SHARED)

    @property
    def trusts_sizes(self) -> bool:
        """Whether what a file has beyond the offset noted counts, until this machine goes down."""
        return self is not Durability.SHARED

    @property
    def keeps_files(self) -> bool:
        """Whether a file is on stable storage before it is told to be complete."""
        return self is not Durability.NONE

    def at_patch(self, sync: Callable[[], None]) -> None:
        """
        Sync what a request has changed, if offsets are kept.

        :param sync: such as :meth:`storageproxy.beneath.File.sync_data`.
        """
        if self.keeps_offsets:
            sync()

    def at_completion(self, sync: Callable[[], None]) -> None:
        """
        Sync what completes a file, if files are kept.

        :param sync: such as :meth:`storageproxy.beneath.File.sync`.
        """
        if self.keeps_files:
            sync()
