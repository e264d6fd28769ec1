"""
The short-lived tokens that managers hand to clients: JWT (RFC 7519), HS256.

They can be exchanged with nodes of the original that have the same secret, in both directions.
"""

from __future__ import annotations

import hmac
import json
import re
from base64 import urlsafe_b64encode
from collections import OrderedDict
from collections.abc import Callable
from typing import NewType, TypeVar

import jwt
from attrs import field, frozen

from storageproxy.errors import InvalidParameters
from storageproxy.schema import (
    Complaint,
    Flag,
    RelativePath,
    Text,
    register,
    structure,
    text,
    whole_number,
)
from storageproxy.vfolder import VFolderID

ALGORITHM = "HS256"

#: Tokens whose claims are in memory.
RECENT = 1024

_encode = json.JSONEncoder(separators=(",", ":")).encode
_HEADER = b"eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9"  # {"alg":"HS256","typ":"JWT"}
_SESSION = re.compile(r"[A-Za-z0-9_-]{1,64}")
Claims = TypeVar("Claims", "DownloadToken", "UploadToken")


#: ``op`` of a download.
Download = NewType("Download", str)
#: ``op`` of an upload.
Upload = NewType("Upload", str)
#: Bytes of an upload.
Size = NewType("Size", int)
#: The name of a session, which is that of a file too.
SessionName = NewType("SessionName", str)


def _operation(wanted: str) -> Callable[[object], str]:
    def check(value: object) -> str:
        if value != wanted:
            raise ValueError(f"the token is for {value!r}, not for {wanted!r}")
        return wanted

    return check


def _size(value: object) -> int:
    if whole_number(value) < 0:
        raise ValueError("a size cannot be negative")
    return whole_number(value)


def _session(value: object) -> str:
    if not _SESSION.fullmatch(text(value)):
        raise ValueError("not the name of an upload session")
    return text(value)


register(Download, _operation("download"))
register(Upload, _operation("upload"))
register(Size, _size)
register(SessionName, _session)


@frozen
class DownloadToken:
    """
    The right to read one path of a vfolder.

    :param exp: when it ends, in seconds since the epoch.
    :param archive: whether a directory may come as an archive, as the URL can also say.
    :param unmanaged_path: a directory of the volume to take instead of the vfolder.
    """

    op: Download
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

    op: Upload
    volume: Text
    vfid: VFolderID
    relpath: RelativePath
    size: Size
    session: SessionName
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
    _key: bytes = field(init=False, repr=False)
    #: What was signed or verified lately: clients come back with the same token for each part of
    #: what they read, and most come at once. A guess that differs tells nothing by the time that it
    #: takes, as what is compared first is a hash of both that nobody else can know.
    _recent: OrderedDict[str, DownloadToken | UploadToken] = field(
        init=False, repr=False, eq=False, factory=OrderedDict
    )

    def download(self, now: float, volume: str, vfid: VFolderID, relpath: str) -> str:
        """
        A token for a download.

        :param now: seconds since the epoch.
        """
        return self._sign(
            DownloadToken(
                op=Download("download"),
                volume=Text(volume),
                vfid=vfid,
                relpath=RelativePath(relpath),
                exp=self._end(now),
            )
        )

    def upload(
        self, now: float, volume: str, vfid: VFolderID, relpath: str, size: int, session: str
    ) -> str:
        """
        A token for an upload session.

        :param now: seconds since the epoch.
        :param size: bytes of the whole file.
        """
        return self._sign(
            UploadToken(
                op=Upload("upload"),
                volume=Text(volume),
                vfid=vfid,
                relpath=RelativePath(relpath),
                size=Size(size),
                session=SessionName(session),
                exp=self._end(now),
            ),
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
        verified = self._recent.get(token)
        if not isinstance(verified, cls):
            verified = self._verified(token, cls)
            self._remember(token, verified)
        if verified.exp <= now:
            raise InvalidParameters.of(
                {"token": "cannot decode the given value as JWT: Signature has expired"}
            )
        return verified

    def _verified(self, token: str, cls: type[Claims]) -> Claims:
        try:
            claims = jwt.decode(
                token,
                self._key,
                algorithms=[ALGORITHM],
                # The time is checked against the clock that is passed in.
                options={"require": ["exp"], "verify_exp": False, "verify_iat": False},
            )
            return structure(claims, cls)
        except jwt.PyJWTError as error:
            raise InvalidParameters.of(
                {"token": f"cannot decode the given value as JWT: {error}"}
            ) from None
        except Complaint as error:
            raise InvalidParameters.of({"token": error.nested()}) from None

    def _end(self, now: float) -> int:
        # A whole second, as every node of the original writes it.
        return int(now + self.lifetime)

    def _sign(self, token: DownloadToken | UploadToken, **more: object) -> str:
        claims = {
            "op": token.op,
            "volume": token.volume,
            "vfid": str(token.vfid),
            "relpath": token.relpath,
            **more,
            "exp": token.exp,
        }
        # Compact serialization (RFC 7515 section 7.1); PyJWT takes its time to find out, for each
        # token again, that the key is none of other algorithms.
        signed = b"%b.%b" % (_HEADER, _base64(_encode(claims).encode("ascii")))
        signature = hmac.digest(self._key, signed, "sha256")
        text = (signed + b"." + _base64(signature)).decode("ascii")
        self._remember(text, token)
        return text

    def _remember(self, text: str, token: DownloadToken | UploadToken) -> None:
        self._recent[text] = token
        if len(self._recent) > RECENT:
            self._recent.popitem(last=False)

    @_key.default
    def _padded(self) -> bytes:
        # HMAC pads a short key with zeros itself (RFC 2104); PyJWT warns of it for each token.
        return self.secret.encode("utf-8").ljust(32, b"\0")


def _base64(data: bytes) -> bytes:
    return urlsafe_b64encode(data).rstrip(b"=")
