"""
Every error that a client or a manager can be told, in one table.

Each class carries its HTTP status, the suffix of its problem type (RFC 9457), the ``error_code``
that managers of 25.12 and later read (``domain_operation_detail``) and its title. They are raised
where the mistake is found and become an answer only in :mod:`storageproxy.api.routing`.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

TYPE_PREFIX = "https://api.backend.ai/probs/storage/"


class StorageProxyError(Exception):
    """
    Something that is answered with a problem document.

    :param message: what went wrong, for a person; the title when it is left out.
    :param headers: response headers that belong to the answer.
    :param members: further members of the document, such as ``data`` or ``vfid``.
    :ivar remedy: what an operator can do, which is for the log alone.
    """

    status: ClassVar[int] = 500
    suffix: ClassVar[str] = "internal-error"
    error_code: ClassVar[str] = "storage-proxy_generic_internal-error"
    title: ClassVar[str] = "Internal server error"
    remedy = ""

    def __init__(
        self,
        message: str | None = None,
        *,
        headers: Mapping[str, str] | None = None,
        **members: Any,
    ) -> None:
        super().__init__(message or self.title)
        self.message = message or self.title
        self.headers = dict(headers or {})
        self.members = members

    def document(self) -> dict[str, Any]:
        """
        The problem document. ``msg`` is in all of them: managers of 22.03 fail without it.
        """
        return {
            "type": TYPE_PREFIX + self.suffix,
            "title": self.title,
            "status": self.status,
            "msg": self.message,
            "error_code": self.error_code,
            **self.members,
        }


# ---- the request itself


class MalformedRequest(StorageProxyError):
    """The request cannot be read at all."""

    status = 400
    suffix = "malformed-request"
    error_code = "api_parse_malformed-request"
    title = "Malformed request"


class InvalidParameters(StorageProxyError):
    """
    A parameter is missing or wrong; ``data`` says which and why.
    """

    status = 400
    suffix = "invalid-api-params"
    error_code = "api_parse_invalid-parameters"
    title = "Invalid API parameters"

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> InvalidParameters:
        """
        The error for a set of complaints.

        :param data: field name to complaint.
        """
        message = "; ".join(f"{field}: {why}" for field, why in data.items())
        return cls(f"{cls.title}: {message}", data=dict(data))


class Forbidden(StorageProxyError):
    """The shared secret of the manager API is missing or wrong."""

    status = 403
    suffix = "forbidden"
    error_code = "api_access_forbidden"
    title = "Forbidden"


class NoSuchRoute(StorageProxyError):
    """No route has this path."""

    status = 404
    suffix = "url-not-found"
    error_code = "api_access_not-found"
    title = "No such API"


class MethodNotAllowed(StorageProxyError):
    """The path exists, but not for this method."""

    status = 405
    suffix = "method-not-allowed"
    error_code = "api_access_not-allowed"
    title = "Method not allowed"


class RequestTooLarge(StorageProxyError):
    """The body is larger than this route takes."""

    status = 413
    suffix = "request-too-large"
    error_code = "api_parse_too-large"
    title = "Request body too large"


class UnsupportedMediaType(StorageProxyError):
    """The body has a content type that the route does not take."""

    status = 415
    suffix = "unsupported-media-type"
    error_code = "api_parse_unsupported-media-type"
    title = "Unsupported media type"


# ---- volumes and vfolders


class UnknownVolume(StorageProxyError):
    """No volume has this name."""

    status = 400
    suffix = "volume/invalid"
    error_code = "volume_read_invalid-parameters"
    title = "Unknown volume"


class UnsupportedOperation(StorageProxyError):
    """The volume's backend cannot do this."""

    status = 400
    suffix = "unsupported-operation"
    error_code = "volume_access_not-implemented"
    title = "Unsupported operation by the storage backend"


class VolumeUnavailable(StorageProxyError):
    """
    The volume did not answer in time, or cannot answer.

    :param retry_after: seconds after which a client may ask again.
    :param remedy: what an operator can do.
    """

    status = 503
    suffix = "volume/unavailable"
    error_code = "volume_access_unavailable"
    title = "The volume does not answer"

    def __init__(self, message: str | None = None, retry_after: int = 5, remedy: str = "") -> None:
        super().__init__(message, headers={"Retry-After": str(retry_after)})
        self.remedy = remedy


class ShuttingDown(VolumeUnavailable):
    """The daemon is about to end."""

    suffix = "shutting-down"
    error_code = "storage-proxy_access_unavailable"
    title = "The storage proxy is shutting down"


class BackendFailure(StorageProxyError):
    """The storage itself failed; the message names the volume and what it said."""

    status = 500
    suffix = "backend/failure"
    error_code = "volume_access_internal-error"
    title = "The storage backend failed"


class VFolderNotFound(StorageProxyError):
    """The vfolder has no directory."""

    status = 404
    suffix = "vfolder/not-found"
    error_code = "vfolder_read_not-found"
    title = "VFolder not found"


class VFolderExists(StorageProxyError):
    """The vfolder has a directory already."""

    status = 409
    suffix = "vfolder/already-exists"
    error_code = "vfolder_create_already-exists"
    title = "VFolder already exists"


class VFolderGone(StorageProxyError):
    """The vfolder is deleted (how managers of 25.12 and later are told)."""

    status = 410
    suffix = "vfolder/gone"
    error_code = "vfolder_delete_gone"
    title = "VFolder is gone"


class QuotaScopeNotFound(StorageProxyError):
    """The quota scope has no directory."""

    status = 404
    suffix = "quota-scope/not-found"
    error_code = "quota-scope_read_not-found"
    title = "Quota scope not found"


class QuotaScopeExists(StorageProxyError):
    """The quota scope has a directory already."""

    status = 409
    suffix = "quota-scope/already-exists"
    error_code = "quota-scope_create_already-exists"
    title = "Quota scope already exists"


class InvalidSubpath(StorageProxyError):
    """The path does not stay inside its vfolder."""

    status = 400
    suffix = "subpath/invalid"
    error_code = "vfolder_access_invalid-subpath"
    title = "Invalid vfolder subpath"

    @classmethod
    def unnamed(cls, path: str) -> InvalidSubpath:
        """The error for a path that ends in ``.`` or ``..``, where a name is needed."""
        return cls("the path has to name something inside of the vfolder", subpath=path)


class FileNotFound(StorageProxyError):
    """The vfolder has no such file."""

    status = 404
    suffix = "file-not-found"
    error_code = "vfolder_read_file-not-found"
    title = "File not found"


class NotRegularFile(StorageProxyError):
    """The path names something that is no plain file."""

    status = 400
    suffix = "not-a-regular-file"
    error_code = "vfolder_read_not-a-regular-file"
    title = "The file is not a regular file"


class TargetConflict(StorageProxyError):
    """The target of a move, a rename, an upload or a file of a clone is a directory."""

    status = 409
    suffix = "target-conflict"
    error_code = "vfolder_update_conflict"
    title = "The target is an existing directory"


class FilesystemError(StorageProxyError):
    """The filesystem refused; ``errno`` and ``paths`` say what and where."""

    status = 400
    suffix = "filesystem-error"
    error_code = "vfolder_access_filesystem-error"
    title = "The filesystem refused the operation"


class DiskFull(StorageProxyError):
    """The volume has no space left."""

    status = 507
    suffix = "disk-full"
    error_code = "volume_update_disk-full"
    title = "No space left on the volume"


class QuotaExceeded(StorageProxyError):
    """The vfolder, or the daemon's user, has no quota left."""

    status = 413
    suffix = "quota-exceeded"
    error_code = "vfolder_update_quota-exceeded"
    title = "The quota is exceeded"


# ---- uploads and downloads


class UnsupportedTusVersion(StorageProxyError):
    """The client speaks another version of tus."""

    status = 412
    suffix = "unsupported-tus-version"
    error_code = "upload_parse_unsupported-version"
    title = "Unsupported tus version"

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message, headers={"Tus-Version": "1.0.0"})


class NoSuchUpload(StorageProxyError):
    """The upload session was never made, is ended, or was swept away."""

    status = 404
    suffix = "no-such-upload-session"
    error_code = "upload_read_not-found"
    title = "No such upload session"


class OffsetMismatch(StorageProxyError):
    """The client sends another part of the file than the one that is missing."""

    status = 409
    suffix = "upload-offset-mismatch"
    error_code = "upload_update_offset-mismatch"
    title = "Upload offset mismatch"


class UploadTooLarge(StorageProxyError):
    """More bytes than announced, or than the daemon takes."""

    status = 413
    suffix = "upload-too-large"
    error_code = "upload_update_too-large"
    title = "The upload is too large"


class ArchiveTooLarge(StorageProxyError):
    """A directory has too many files for one archive."""

    status = 413
    suffix = "archive-too-large"
    error_code = "download_read_too-large"
    title = "The directory is too large for one archive"


class UploadLocked(StorageProxyError):
    """Another request holds the session and did not let go in time."""

    status = 423
    suffix = "upload-locked"
    error_code = "upload_update_locked"
    title = "The upload session is in use"


class ChecksumMismatch(StorageProxyError):
    """The chunk is not what the client meant to send (tus 1.0.0, checksum extension)."""

    status = 460
    suffix = "checksum-mismatch"
    error_code = "upload_update_checksum-mismatch"
    title = "Checksum mismatch"


class PreconditionFailed(StorageProxyError):
    """If-Match or If-Unmodified-Since does not hold (RFC 9110 section 13)."""

    status = 412
    suffix = "precondition-failed"
    error_code = "download_read_precondition-failed"
    title = "Precondition failed"


class RangeNotSatisfiable(StorageProxyError):
    """
    None of the asked ranges can be sent (RFC 9110 section 15.5.17).

    :param size: bytes of the whole file.
    """

    status = 416
    suffix = "range-not-satisfiable"
    error_code = "download_read_range-not-satisfiable"
    title = "Range not satisfiable"

    def __init__(self, size: int) -> None:
        super().__init__(headers={"Content-Range": f"bytes */{size}"})


#: What a mount says when it is gone or its server is, rather than the file.
_SICK_VOLUME = frozenset(
    {
        errno.ESTALE,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.ETIMEDOUT,
        errno.ENODEV,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOMEM,
        errno.EAGAIN,
    }
)

#: What it says when no call on it will ever succeed again: the process behind a FUSE mount is gone,
#: or was in the midst of the call, or its server has shut it out (CephFS).
_DEAD_MOUNT = frozenset({errno.ENOTCONN, errno.ECONNABORTED, errno.ESHUTDOWN})


def from_os_error(error: OSError, volume: str, paths: Iterable[str] = ()) -> StorageProxyError:
    """
    What a failed system call means for the caller.

    :param error: what the call raised.
    :param volume: the name of the volume it was made on.
    :param paths: what it was made on, relative to the vfolder.
    :return: an error to raise.
    """
    number = error.errno or 0
    said = os.strerror(number) if number else str(error)
    if number == errno.ENOSPC:
        return DiskFull(f"volume {volume}: {said}")
    if number == errno.EDQUOT:
        return QuotaExceeded(f"volume {volume}: {said}")
    if number in _DEAD_MOUNT:
        where = os.fsdecode(error.filename) if error.filename else "it"
        return VolumeUnavailable(
            f"volume {volume}: {said}: its mount is dead",
            remedy=f"unmount {where} and mount it again; the daemon need not be restarted",
        )
    if number in _SICK_VOLUME:
        return VolumeUnavailable(f"volume {volume}: {said}")
    if number in (errno.EIO, errno.EROFS, 0):
        return BackendFailure(f"volume {volume}: {said}")
    return FilesystemError(said, errno=number, paths=list(paths))
