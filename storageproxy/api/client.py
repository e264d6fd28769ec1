"""
The client API: uploads by tus, downloads by ranged HTTP, for holders of a token.
"""

from __future__ import annotations

import os
import posixpath
import stat
from collections.abc import Callable
from functools import partial
from typing import Any
from urllib.parse import urlencode

from attrs import frozen
from twisted.python.failure import Failure
from twisted.web.http import datetimeToString

import storageproxy
from storageproxy import tus
from storageproxy.api import handover
from storageproxy.api.handover import Handover
from storageproxy.api.routing import answer_json, application, parameters, translate
from storageproxy.beneath import Directory, File
from storageproxy.conditional import LAST_SECOND, Validators, Verdict, evaluate, select
from storageproxy.errors import (
    FileNotFound,
    InvalidSubpath,
    MethodNotAllowed,
    NotRegularFile,
    PreconditionFailed,
    UploadTooLarge,
    VFolderNotFound,
    from_os_error,
)
from storageproxy.interfaces import IVolume
from storageproxy.schema import Flag, RelativePath
from storageproxy.threads import Progress
from storageproxy.tokens import DownloadToken, TokenKey, UploadToken
from storageproxy.transfer import archive, bodies, downloads
from storageproxy.transfer.request import StreamingRequest
from storageproxy.transfer.uploads import Session, Uploads
from storageproxy.vfolder import relative_path
from storageproxy.volumes import Volumes

_MEDIA_TYPE = "application/octet-stream"
_TUS_HEADERS = (
    "Tus-Resumable, Upload-Length, Upload-Metadata, Upload-Offset, Content-Type,"
    " Upload-Checksum, Upload-Defer-Length, X-HTTP-Method-Override, X-Request-ID"
)
_EXPOSED = (
    "Tus-Resumable, Upload-Length, Upload-Metadata, Upload-Offset, Content-Type, Upload-Expires,"
    " Location, Tus-Version, Tus-Extension, Tus-Max-Size, Tus-Checksum-Algorithm,"
    " Content-Disposition, Content-Length, Content-Range, Accept-Ranges, ETag, Last-Modified,"
    " Retry-After, X-Request-ID"
)
_METHODS = "GET, HEAD, POST, PATCH, DELETE, OPTIONS"


@frozen
class UploadQuery:
    """What the URL of an upload says beside its token."""

    dst_dir: RelativePath = RelativePath(".")


@frozen
class DownloadQuery:
    """What the URL of a download says beside its token."""

    archive: Flag = Flag(False)
    no_cache: Flag = Flag(False)
    dst_dir: RelativePath = RelativePath(".")


class ClientAPI:
    """
    The routes.

    :param clock: returns seconds since the epoch.
    :param max_upload_size: bytes of one upload.
    :param handover: which downloads a proxy in front sends itself.
    """

    app = application()

    def __init__(
        self,
        volumes: Volumes,
        uploads: Uploads,
        key: TokenKey,
        max_upload_size: int,
        clock: Callable[[], float],
        handover: Handover,
    ) -> None:
        self._handover = handover
        self._volumes = volumes
        self._uploads = uploads
        self._key = key
        self._max_upload_size = max_upload_size
        self._clock = clock

    def failed(self, request: StreamingRequest, failure: Failure) -> bytes:
        """The answer when no route has made one."""
        request.setHeader(b"Tus-Resumable", tus.VERSION.encode())
        return translate(request, failure)

    @app.route("/", methods=["GET"])
    def status(self, request: StreamingRequest) -> bytes:
        """Say that the daemon is there."""
        return answer_json(
            request,
            {
                "status": "ok",
                "type": "client-facing",
                "storage-proxy": storageproxy.__version__,
            },
        )

    # ---- uploads

    @app.route("/upload", methods=["OPTIONS"])
    def upload_options(self, request: StreamingRequest) -> None:
        """tus: what is spoken here. CORS: what a page may send."""
        self._answer_tus(
            request,
            200,
            {
                "Tus-Version": tus.VERSION,
                "Tus-Extension": ",".join(tus.EXTENSIONS),
                "Tus-Checksum-Algorithm": ",".join(tus.CHECKSUMS),
                "Tus-Max-Size": str(self._max_upload_size),
                "Content-Length": "0",
            },
        )

    @app.route("/upload", methods=["HEAD"])
    async def upload_offset(self, request: StreamingRequest) -> None:
        """tus: how far the upload is."""
        token, session = self._session(request)
        tus.check_version(request.header_map())
        offset = await self._on_volume(session, self._uploads.offset(session))
        self._answer_tus(
            request,
            200,
            {
                "Upload-Offset": str(offset),
                "Upload-Length": str(token.size),
                "Upload-Expires": _http_date(token.exp),
                "Cache-Control": "no-store",
                # Of the answer to a HEAD; without it a body would be expected by some.
                "Content-Length": "0",
            },
        )

    @app.route("/upload", methods=["PATCH"])
    async def upload_append(self, request: StreamingRequest) -> None:
        """tus: add to the upload."""
        token, session = self._session(request)
        patch = tus.parse_patch(request.header_map())
        offset = await self._on_volume(session, self._uploads.append(session, patch, request))
        self._answer_tus(
            request,
            204,
            {
                "Upload-Offset": str(offset),
                "Upload-Length": str(token.size),
                "Upload-Expires": _http_date(token.exp),
                "Cache-Control": "no-store",
            },
        )

    @app.route("/upload", methods=["POST"])
    async def upload_create(self, request: StreamingRequest) -> None:
        """
        tus creation: the session was made with the token, and is told to clients that ask for it.
        """
        override = request.header("x-http-method-override")
        if override is not None:
            await self._override(request, override)
            return
        token, session = self._session(request)
        tus.parse_creation(request.header_map(), token.size)
        await self._on_volume(session, self._uploads.offset(session))
        query = request.query_map()
        known = [(name, query[name]) for name in ("token", "dst_dir") if name in query]
        self._answer_tus(
            request,
            201,
            {
                # Relative to /upload, whatever a proxy has put before it.
                "Location": f"upload?{urlencode(known)}",
                "Upload-Expires": _http_date(token.exp),
                "Content-Length": "0",
            },
        )

    @app.route("/upload", methods=["DELETE"])
    async def upload_terminate(self, request: StreamingRequest) -> None:
        """tus termination: give the upload up."""
        _, session = self._session(request)
        tus.check_version(request.header_map())
        await self._on_volume(session, self._uploads.terminate(session))
        self._answer_tus(request, 204, {})

    async def _override(self, request: StreamingRequest, method: str) -> None:
        routes = {
            "HEAD": self.upload_offset,
            "PATCH": self.upload_append,
            "DELETE": self.upload_terminate,
        }
        if method not in routes:
            raise MethodNotAllowed(headers={"Allow": ", ".join(routes)})
        request.route = f"/upload ({method})"
        await routes[method](request)

    def _session(self, request: StreamingRequest) -> tuple[UploadToken, Session]:
        request.route = request.route or "/upload"
        query = request.query_map()
        token = self._key.verify(self._clock(), query.get("token"), UploadToken)
        options = parameters(query, UploadQuery)
        volume = self._volumes.get(token.volume)
        if token.size > self._max_upload_size:
            raise UploadTooLarge(f"at most {self._max_upload_size} bytes are taken")
        return token, Session(
            volume, token.vfid, token.session, _below(options.dst_dir, token.relpath), token.size
        )

    async def _on_volume(self, session: Session, work: Any) -> Any:
        try:
            return await work
        except OSError as error:
            raise from_os_error(error, session.volume.name, [session.path]) from error

    def _answer_tus(self, request: StreamingRequest, status: int, headers: dict[str, str]) -> None:
        request.setResponseCode(status)
        request.setHeader(b"Tus-Resumable", tus.VERSION.encode())
        request.setHeader(b"X-Content-Type-Options", b"nosniff")
        for name, value in headers.items():
            request.setHeader(name.encode("ascii"), value.encode("ascii"))

    # ---- downloads

    @app.route("/download", methods=["OPTIONS"])
    def download_options(self, request: StreamingRequest) -> None:
        """CORS: what a page may ask for."""
        request.setHeader(b"Content-Length", b"0")

    @app.route("/download", methods=["GET", "HEAD"])
    async def download(self, request: StreamingRequest) -> None:
        """Send a file, parts of it, or a directory as an archive."""
        request.route = "/download"
        query = request.query_map()
        token = self._key.verify(self._clock(), query.get("token"), DownloadToken)
        options = parameters(query, DownloadQuery)
        volume = self._volumes.get(token.volume)
        path = _below(options.dst_dir, token.relpath)
        if options.no_cache:
            request.setHeader(b"Cache-Control", b"no-store")
        request.setHeader(b"X-Content-Type-Options", b"nosniff")
        try:
            opened = await volume.threads.submit(
                partial(_open, volume, token, path), volume.threads.deadline, _close
            )
            if opened is None:
                if not (options.archive or token.archive):
                    raise NotRegularFile()
                await self._send_archive(request, volume, token, path)
                return
            file, status = opened
            try:
                if not await self._hand_over(request, volume, file, path):
                    await self._send_file(request, volume, file, status, path)
            finally:
                volume.threads.clean_up(file.close)
        except OSError as error:
            raise from_os_error(error, volume.name, [path]) from error

    async def _hand_over(
        self, request: StreamingRequest, volume: IVolume, file: File, path: str
    ) -> bool:
        prefix = self._handover.prefix(volume, request.client)
        if prefix is None:
            return False
        place = await volume.threads.run(handover.location, prefix, volume, file)
        if place is None:
            return False
        # Conditions and ranges are its business, and so are their headers.
        request.route = "/download (handed over)"
        request.setHeader(b"X-Accel-Redirect", place.encode("ascii"))
        self._describe(request, _MEDIA_TYPE, posixpath.basename(path))
        return True

    async def _send_file(
        self,
        request: StreamingRequest,
        volume: IVolume,
        file: File,
        status: os.stat_result,
        path: str,
    ) -> None:
        headers = request.header_map()
        validators = Validators.of(status)
        request.setHeader(b"ETag", validators.etag.encode("ascii"))
        request.setHeader(b"Last-Modified", validators.last_modified.encode("ascii"))
        request.setHeader(b"Accept-Ranges", b"bytes")
        verdict = evaluate(headers, validators)
        if verdict is Verdict.FAILED:
            raise PreconditionFailed()
        if verdict is Verdict.NOT_MODIFIED:
            request.setResponseCode(304)
            return
        size = status.st_size
        # A HEAD has no ranges (RFC 9110 section 14.2).
        ranges = select(headers, validators, size) if request.method == b"GET" else None
        media_type = _MEDIA_TYPE
        if ranges is None:
            body = bodies.whole(file, size)
        else:
            request.setResponseCode(206)
            if len(ranges) == 1:
                body = bodies.part(file, ranges[0])
                request.setHeader(b"Content-Range", ranges[0].content_range(size).encode("ascii"))
            else:
                body, media_type = bodies.multipart(file, ranges, size, _MEDIA_TYPE)
        self._describe(request, media_type, posixpath.basename(path))
        await downloads.send(request, volume.threads, body)

    async def _send_archive(
        self, request: StreamingRequest, volume: IVolume, token: DownloadToken, path: str
    ) -> None:
        open_folder = partial(_open_folder, volume, token)

        def prepare(progress: Progress) -> bodies.Body:
            with open_folder() as folder:
                return archive.archive(open_folder, archive.members(folder, path, progress))

        body = await volume.threads.run_long(prepare, f"listing {token.vfid} for an archive")
        name = posixpath.basename(posixpath.normpath(path)).strip(".") or token.vfid.folder.hex
        self._describe(request, "application/zip", f"{name}.zip")
        await downloads.send(request, volume.threads, body)

    def _describe(self, request: StreamingRequest, media_type: str, name: str) -> None:
        request.setHeader(b"Content-Type", media_type.encode("ascii"))
        request.setHeader(
            b"Content-Disposition", downloads.content_disposition(name).encode("ascii")
        )


def allow_origin(request: StreamingRequest) -> None:
    """
    Let pages of other origins read the answer, errors too; without it they see "network error".

    A page that sends credentials needs its own origin echoed (Fetch standard, CORS protocol).
    """
    origin = request.header("origin")
    headers = {"Access-Control-Expose-Headers": _EXPOSED, "Vary": "Origin"}
    if origin is None:
        headers["Access-Control-Allow-Origin"] = "*"
        headers["Access-Control-Allow-Methods"] = "*"
        headers["Access-Control-Allow-Headers"] = _TUS_HEADERS
    else:
        asked = request.header("access-control-request-headers")
        headers["Access-Control-Allow-Origin"] = origin
        headers["Access-Control-Allow-Credentials"] = "true"
        headers["Access-Control-Allow-Methods"] = _METHODS
        headers["Access-Control-Allow-Headers"] = asked or _TUS_HEADERS
    for name, value in headers.items():
        request.setHeader(name.encode("ascii"), value.encode("latin-1", "replace"))


def _open(volume: IVolume, token: DownloadToken, path: str) -> tuple[File, os.stat_result] | None:
    """
    The file that a token is for and its state, or None when it is a directory.
    """
    try:
        with _open_folder(volume, token) as folder:
            try:
                file = folder.open_file(path)
                return file, file.status()
            except NotRegularFile:
                if stat.S_ISDIR(folder.status(path, follow=True).st_mode):
                    return None
                raise
    except (FileNotFoundError, NotADirectoryError, InvalidSubpath, VFolderNotFound):
        raise FileNotFound() from None
    except OSError as error:
        translated = from_os_error(error, volume.name, [path])
        raise (FileNotFound() if translated.status == 400 else translated) from None


def _close(opened: tuple[File, os.stat_result] | None) -> None:
    if opened is not None:
        opened[0].close()


def _open_folder(volume: IVolume, token: DownloadToken) -> Directory:
    if token.unmanaged_path is None:
        return volume.open_folder(token.vfid)
    # Such a directory has no id. It has to be on the volume all the same.
    try:
        inside = relative_path(posixpath.relpath(token.unmanaged_path, volume.path))
    except ValueError:
        raise InvalidSubpath() from None
    if inside == ".":
        raise InvalidSubpath("it is the whole volume")
    with volume.open_root() as root:
        return root.descend(inside)


def _below(directory: str, path: str) -> str:
    return path if directory == "." else posixpath.join(directory, path)


def _http_date(seconds: float) -> str:
    date: bytes = datetimeToString(int(min(seconds, LAST_SECOND)))
    return date.decode("ascii")
