"""
The tus 1.0.0 protocol: headers in, a decision or an error out.

https://tus.io/protocols/resumable-upload, with the tolerance that users of the original rely on:
no ``Tus-Resumable`` is 1.0.0, no ``Content-Type`` or ``application/octet-stream`` is fine.
"""

from __future__ import annotations

import base64
import hashlib
import re
import zlib
from collections.abc import Callable, Mapping
from typing import Protocol

from attrs import frozen

from storageproxy.errors import (
    InvalidParameters,
    OffsetMismatch,
    UnsupportedMediaType,
    UnsupportedTusVersion,
    UploadTooLarge,
)

VERSION = "1.0.0"
EXTENSIONS = ("creation", "expiration", "termination", "checksum")
CONTENT_TYPE = "application/offset+octet-stream"

_CONTENT_TYPES = frozenset({CONTENT_TYPE, "application/octet-stream"})
_DECIMAL = re.compile(r"[0-9]{1,19}")


class Hash(Protocol):
    """What computes a checksum, as :mod:`hashlib` does."""

    def update(self, data: bytes | bytearray | memoryview, /) -> None:
        """Add bytes."""

    def digest(self) -> bytes:
        """The value so far."""


class Crc32:
    """The checksum of zip and Ethernet, as four bytes in network order."""

    def __init__(self) -> None:
        self._value = 0

    def update(self, data: bytes | bytearray | memoryview, /) -> None:
        """Add bytes to it."""
        self._value = zlib.crc32(data, self._value)

    def digest(self) -> bytes:
        """Its value so far."""
        return self._value.to_bytes(4, "big")


#: Name in ``Tus-Checksum-Algorithm`` to what computes it.
CHECKSUMS: Mapping[str, Callable[[], Hash]] = {
    "sha1": hashlib.sha1,
    "sha256": hashlib.sha256,
    "sha512": hashlib.sha512,
    "md5": hashlib.md5,
    "crc32": Crc32,
}


@frozen
class Checksum:
    """
    What the client says of the bytes it sends.

    :param algorithm: a key of :data:`CHECKSUMS`.
    :param digest: the value it has to have.
    """

    algorithm: str
    digest: bytes


@frozen
class Patch:
    """
    A request to append.

    :param offset: where the client believes the upload to be, in bytes.
    :param checksum: what the client says of the bytes to come, if it does.
    """

    offset: int
    checksum: Checksum | None


def check_version(headers: Mapping[str, str]) -> None:
    """
    Refuse other versions of the protocol (section "Tus-Resumable").

    :param headers: of the request, by their names in lower case.
    :raises UnsupportedTusVersion:
    """
    version = headers.get("tus-resumable", VERSION)
    if version != VERSION:
        raise UnsupportedTusVersion(f"tus {version!r} is not spoken here, only {VERSION}")


def parse_patch(headers: Mapping[str, str]) -> Patch:
    """
    Read the headers of a PATCH.

    :param headers: of the request, by their names in lower case.
    :raises UnsupportedTusVersion: 412
    :raises UnsupportedMediaType: 415
    :raises InvalidParameters: 400, the offset or the checksum cannot be read.
    """
    check_version(headers)
    media_type = headers.get("content-type", CONTENT_TYPE).partition(";")[0].strip().lower()
    if media_type not in _CONTENT_TYPES:
        raise UnsupportedMediaType(f"a PATCH carries {CONTENT_TYPE}, not {media_type}")
    offset = _decimal(headers, "Upload-Offset")
    if offset is None:
        raise InvalidParameters.of({"Upload-Offset": "is required"})
    return Patch(offset, _checksum(headers.get("upload-checksum")))


def parse_creation(headers: Mapping[str, str], size: int) -> None:
    """
    Check the headers of a POST against the session that the token was made for.

    :param size: bytes that the token announces.
    :raises UnsupportedTusVersion: 412
    :raises InvalidParameters: 400, the client announces another length, or none.
    """
    check_version(headers)
    length = _decimal(headers, "Upload-Length")
    if length is None:
        raise InvalidParameters.of({"Upload-Length": "is required"})
    if length != size:
        raise InvalidParameters.of({"Upload-Length": f"the token was made for {size} bytes"})


def check_append(patch: Patch, offset: int, size: int, length: int | None) -> None:
    """
    Decide whether a PATCH may append.

    :param offset: bytes that the session holds.
    :param size: bytes that were announced for the whole file.
    :param length: bytes of the body, None when the client does not say.
    :raises OffsetMismatch: 409
    :raises UploadTooLarge: 413
    """
    if patch.offset != offset:
        raise OffsetMismatch(
            f"the upload is at {offset}, not at {patch.offset}",
            headers={"Upload-Offset": str(offset)},
        )
    if length is not None and offset + length > size:
        raise UploadTooLarge(f"{length} bytes at {offset} are more than the {size} announced")


def _decimal(headers: Mapping[str, str], name: str) -> int | None:
    value = headers.get(name.lower())
    if value is None:
        return None
    if not _DECIMAL.fullmatch(value):
        raise InvalidParameters.of({name: "expected a count of bytes"})
    return int(value)


def _checksum(value: str | None) -> Checksum | None:
    if value is None:
        return None
    algorithm, _, encoded = value.strip().partition(" ")
    if algorithm not in CHECKSUMS:
        raise InvalidParameters.of(
            {"Upload-Checksum": f"the algorithm has to be one of {', '.join(CHECKSUMS)}"}
        )
    try:
        digest = base64.b64decode(encoded.strip(), validate=True)
    except ValueError:
        raise InvalidParameters.of({"Upload-Checksum": "the value is not base64"}) from None
    if len(digest) != len(CHECKSUMS[algorithm]().digest()):
        raise InvalidParameters.of({"Upload-Checksum": f"not the length of a {algorithm}"})
    return Checksum(algorithm, digest)
