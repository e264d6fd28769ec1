"""
The short-lived tokens that managers hand to clients: JWT (RFC 7519), HS256.

They can be exchanged with nodes of the original that have the same secret, in both directions.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import jwt
from attrs import field, frozen, validators

from storageproxy.errors import InvalidParameters
from storageproxy.schema import Complaint, Flag, RelativePath, Text, structure
from storageproxy.vfolder import VFolderID

ALGORITHM = "HS256"

_SESSION = re.compile(r"[A-Za-z0-9_-]{1,64}")
Claims = TypeVar("Claims", "DownloadToken", "UploadToken")


def _session(_: object, __: object, value: str) -> None:
    if not _SESSION.fullmatch(value):
        raise ValueError("not the name of an upload session")


def _operation(wanted: str) -> Callable[[Any, Any, str], None]:
    def check(_: object, __: object, value: str) -> None:
        if value != wanted:
            raise ValueError(f"the token is for {value!r}, not for {wanted!r}")

    return check


@frozen
class DownloadToken:
    """
    The right to read one path of a vfolder.

    :param exp: when it ends, in seconds since the epoch.
    :param archive: whether a directory may come as an archive, as the URL can also say.
    :param unmanaged_path: a directory of the volume to take instead of the vfolder.
    """

    op: str = field(validator=_operation("download"))
    volume: Text
    vfid: VFolderID
    relpath: RelativePath
    exp: float
    archive: Flag = Flag(False)
    unmanaged_path: str | None = None


@frozen
class UploadToken:
    """
    The right to write one file of a vfolder, in one upload session.

    :param size: bytes of the whole file.
    :param session: the name of the session, which is the name of its staging file.
    :param exp: when it ends, in seconds since the epoch.
    """

    op: str = field(validator=_operation("upload"))
    volume: Text
    vfid: VFolderID
    relpath: RelativePath
    size: int = field(validator=validators.ge(0))
    session: str = field(validator=_session)
    exp: float


@frozen
class TokenKey:
    """
    What signs and verifies tokens.

    :param secret: ``[storage-proxy] secret``, the same on all nodes.
    :param lifetime: seconds that a new token is good for (``session-expire``).
    """

    secret: str = field(repr=False)
    lifetime: float

    def download(self, now: float, volume: str, vfid: VFolderID, relpath: str) -> str:
        """
        A token for a download.

        :param now: seconds since the epoch.
        """
        return self._sign(now, op="download", volume=volume, vfid=str(vfid), relpath=relpath)

    def upload(
        self, now: float, volume: str, vfid: VFolderID, relpath: str, size: int, session: str
    ) -> str:
        """
        A token for an upload session.

        :param now: seconds since the epoch.
        :param size: bytes of the whole file.
        """
        return self._sign(
            now,
            op="upload",
            volume=volume,
            vfid=str(vfid),
            relpath=relpath,
            size=size,
            session=session,
        )

    def verify(self, now: float, token: str | None, cls: type[Claims]) -> Claims:
        """
        The claims of a token.

        :param now: seconds since the epoch.
        :param token: what came in the query, None if nothing did.
        :param cls: what the token has to be for.
        :raises InvalidParameters: when it is missing, forged, expired, or for something else. It
            is a 400, as clients of the original know it.
        """
        if token is None:
            raise InvalidParameters.of({"token": "is required"})
        try:
            # The time is checked against the clock that was passed in.
            claims = jwt.decode(
                token,
                self.secret,
                algorithms=[ALGORITHM],
                options={"require": ["exp"], "verify_exp": False, "verify_iat": False},
            )
            verified = structure(claims, cls)
        except jwt.PyJWTError as error:
            raise InvalidParameters.of(
                {"token": f"cannot decode the given value as JWT: {error}"}
            ) from None
        except Complaint as error:
            raise InvalidParameters.of({"token": error.nested()}) from None
        if verified.exp <= now:
            raise InvalidParameters.of(
                {"token": "cannot decode the given value as JWT: Signature has expired"}
            )
        return verified

    def _sign(self, now: float, **claims: object) -> str:
        # A whole second, as every node of the original writes it.
        return jwt.encode(
            {**claims, "exp": int(now + self.lifetime)}, self.secret, algorithm=ALGORITHM
        )
