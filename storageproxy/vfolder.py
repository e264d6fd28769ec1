"""
The names of vfolders, where they lie on a volume, and paths inside of them.

Two dialects of vfolder ids are in use, each with its own layout on disk, and both are understood
side by side: a bare UUID (managers up to 23.03.4) lies at ``hh/hh/<28 hex digits>``, a scoped id
``user:<uuid>/<hex>`` (later ones) at ``<32 hex digits of the scope>/hh/hh/<28 hex digits>``.
"""

from __future__ import annotations

import os
import re
from uuid import UUID

from attrs import frozen

#: The directory of unfinished uploads in a vfolder, shared with nodes of the original.
UPLOADS = ".upload"

_SCOPE = re.compile(r"(user|project):(.+)", re.IGNORECASE | re.DOTALL)


@frozen
class QuotaScopeID:
    """
    The owner of vfolders that share a quota.

    :param kind: ``user`` or ``project``.
    :param owner: the id of that user or project.
    """

    kind: str
    owner: UUID

    @classmethod
    def parse(cls, text: str) -> QuotaScopeID:
        """
        :param text: ``user:<uuid>`` or ``project:<uuid>``.
        :raises ValueError: for anything else.
        """
        found = _SCOPE.fullmatch(text)
        if found is None:
            raise ValueError("a quota scope is user:<uuid> or project:<uuid>")
        return cls(found[1].lower(), _uuid(found[2]))

    def __str__(self) -> str:
        return f"{self.kind}:{self.owner}"

    @property
    def layout(self) -> tuple[str, ...]:
        """The name of its directory in the root of the volume."""
        return (self.owner.hex,)


@frozen
class VFolderID:
    """
    A vfolder.

    :param scope: the quota scope, None in the dialect of bare UUIDs.
    :param folder: the folder's own id.
    """

    scope: QuotaScopeID | None
    folder: UUID

    @classmethod
    def parse(cls, text: str) -> VFolderID:
        """
        :param text: an id in either dialect, in any form that :class:`uuid.UUID` takes.
        :raises ValueError: when it is neither.
        """
        scope, slash, folder = text.rpartition("/")
        return cls(QuotaScopeID.parse(scope) if slash else None, _uuid(folder))

    def __str__(self) -> str:
        if self.scope is None:
            return str(self.folder)
        return f"{self.scope}/{self.folder.hex}"

    @property
    def layout(self) -> tuple[str, ...]:
        """The names of the directories from the root of the volume down to the vfolder."""
        digits = self.folder.hex
        names = (digits[0:2], digits[2:4], digits[4:])
        return names if self.scope is None else (*self.scope.layout, *names)


def _uuid(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise ValueError("not a UUID") from None


def relative_path(text: str) -> str:
    """
    A path inside a vfolder, in its shortest form.

    ``..`` is kept as it is: where it leads is for the kernel to say
    (:class:`storageproxy.beneath.Directory`).

    :param text: a relative path; the empty one means the vfolder itself.
    :raises ValueError: when it is absolute, or can be no path at all.
    """
    if "\0" in text:
        raise ValueError("a path has no NUL characters")
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        raise ValueError("not a path that can be encoded") from None
    if text.startswith("/"):
        raise ValueError("expected relative path but the value is absolute")
    return "/".join(part for part in text.split("/") if part not in ("", ".")) or "."


def file_name(text: str) -> str:
    """
    One name in a directory.

    :raises ValueError: when it is empty, ``.`` or ``..``, or has a slash or NUL in it.
    """
    if text in ("", ".", "..") or "/" in text:
        raise ValueError("expected a single file name")
    relative_path(text)
    return text
