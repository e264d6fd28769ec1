"""
What managers send: one class for the parameters of each kind of call.

Keys that a class does not have are ignored: managers of other eras send them.
"""

from __future__ import annotations

from attrs import field, frozen

from storageproxy.schema import ByteSize, FileName, Flag, RelativePath, RelativePaths, Text
from storageproxy.vfolder import VFolderID


@frozen
class OnVolume:
    """A volume."""

    volume: Text


@frozen
class OnFolder(OnVolume):
    """A vfolder."""

    vfid: VFolderID


@frozen
class CreationOptions:
    """``options`` of a creation; those of later releases are for quota scopes."""

    quota: ByteSize | None = None


@frozen
class Create(OnFolder):
    """A vfolder to make."""

    options: CreationOptions | None = None
    mode: int | None = None


@frozen
class Clone:
    """Two vfolders."""

    src_volume: Text
    src_vfid: VFolderID
    dst_vfid: VFolderID
    dst_volume: Text | None = None


@frozen
class Mount(OnFolder):
    """A vfolder, and a path in it that has to be inside."""

    subpath: str = "."


@frozen
class Quota(OnVolume):
    """What a quota is for."""

    vfid: VFolderID | None = None


@frozen
class NewQuota(Quota):
    """A quota to set."""

    size_bytes: ByteSize = field(kw_only=True)


@frozen
class Metadata(OnFolder):
    """Metadata to keep, in base64."""

    payload: str


@frozen
class OnPath(OnFolder):
    """A path in a vfolder."""

    relpath: RelativePath


@frozen
class MakeDirectories(OnFolder):
    """Directories to make."""

    relpath: RelativePaths
    parents: Flag = Flag(True)
    exist_ok: Flag = Flag(False)


@frozen
class Rename(OnPath):
    """A file or directory, and its new name; ``is_dir`` of some eras means nothing."""

    new_name: FileName


@frozen
class Move(OnFolder):
    """Two paths in a vfolder."""

    src_relpath: RelativePath
    dst_relpath: RelativePath


@frozen
class Upload(OnPath):
    """A file to come, and its size in bytes."""

    size: int


@frozen
class Delete(OnFolder):
    """Files, and with ``recursive`` directories."""

    relpaths: list[RelativePath]
    recursive: Flag = Flag(False)
