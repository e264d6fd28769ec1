"""
The manager API: what a Backend.AI Manager does to vfolders, by JSON RPC.

It speaks to managers of every era at once: both dialects of vfolder ids, unknown keys are ignored,
and answers have everything that any of them reads.
"""

from __future__ import annotations

import binascii
import hmac
import posixpath
from base64 import b64decode
from collections.abc import Callable, Mapping
from functools import partial
from itertools import islice
from typing import Any
from uuid import uuid4

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure
from werkzeug.exceptions import HTTPException

import storageproxy
from storageproxy import files
from storageproxy.api.parameters import (
    Clone,
    Create,
    Delete,
    MakeDirectories,
    Metadata,
    Mount,
    Move,
    NewQuota,
    OnFolder,
    OnPath,
    OnVolume,
    Quota,
    Rename,
    Upload,
)
from storageproxy.api.routing import answer_json, application, translate
from storageproxy.api.rpc import Answer, Nothing, Pieces, Stream, rpc
from storageproxy.background import Background
from storageproxy.beneath import Directory, File
from storageproxy.disposal import Disposal
from storageproxy.errors import (
    DiskFull,
    FileNotFound,
    Forbidden,
    InvalidParameters,
    InvalidSubpath,
    QuotaExceeded,
    StorageProxyError,
    UnsupportedOperation,
    UploadTooLarge,
    VFolderGone,
    VFolderNotFound,
    from_os_error,
)
from storageproxy.interfaces import (
    IPerformanceMetric,
    IQuota,
    IVolume,
    IVolumeQuota,
    capabilities,
)
from storageproxy.threads import Progress
from storageproxy.tokens import TokenKey
from storageproxy.transfer.request import StreamingRequest
from storageproxy.transfer.uploads import Uploads
from storageproxy.trees import TooSlow
from storageproxy.vfolder import VFolderID, relative_path
from storageproxy.volumes import Volumes

SECRET_HEADER = "x-backendai-storage-auth-token"

#: Paths in one call of mkdir, as managers of 24.03 and later limit them.
MAX_PATHS = 50


_LIMIT_FOLDER = "limit a single vfolder"
_LIMIT_VOLUME = "limit the volume as a whole, which is what a quota without vfid is"


class MountRefused(StorageProxyError):
    """What managers of 22.03 turn into InvalidAPIParameters when a session is made."""

    status = 400
    suffix = "invalid-api-params"
    error_code = "vfolder_read_invalid-parameters"
    title = "Invalid API parameters"


class ManagerAPI:
    """
    The routes.

    :param secret: what a manager has to send.
    :param scandir_limit: entries at most in a listing, 0 for all.
    :param max_upload_size: bytes of one upload.
    :param delete_status: what a finished deletion is answered with: 202, 204 or 410.
    :param background: where what is done goes on when a manager does not wait any more.
    :param disposal: sees to what was deleted.
    :param clock: returns seconds since the epoch.
    :ivar draining: whether new work should go elsewhere.
    """

    app = application()

    def __init__(
        self,
        volumes: Volumes,
        uploads: Uploads,
        key: TokenKey,
        secret: str,
        scandir_limit: int,
        max_upload_size: int,
        delete_status: int,
        background: Background,
        disposal: Disposal,
        clock: Callable[[], float],
    ) -> None:
        self._volumes = volumes
        self._uploads = uploads
        self._key = key
        self._secret = secret.encode("utf-8")
        self._scandir_limit = scandir_limit
        self._max_upload_size = max_upload_size
        self._delete_status = delete_status
        self._background = background
        self._disposal = disposal
        self._clock = clock
        self.draining = False

    def failed(self, request: StreamingRequest, failure: Failure) -> bytes:
        """The answer when no route has made one."""
        if failure.check(HTTPException):
            # Whoever has not the secret is not told which routes there are.
            try:
                self.authorize(request)
            except Forbidden:
                return translate(request, Failure())
        return translate(request, failure)

    def authorize(self, request: StreamingRequest) -> None:
        """
        :raises Forbidden: when the secret is missing or wrong.
        """
        given = request.header(SECRET_HEADER) or ""
        if not hmac.compare_digest(given.encode("latin-1"), self._secret):
            raise Forbidden()

    # ---- the daemon itself

    @app.route("/status", methods=["GET"])
    @app.route("/livez", methods=["GET"])
    @app.route("/health", methods=["GET"])
    def health(self, request: StreamingRequest) -> bytes:
        """Say that the daemon is there; for those who have no secret."""
        return answer_json(request, _status())

    @app.route("/readyz", methods=["GET"])
    def readiness(self, request: StreamingRequest) -> bytes:
        """Say whether new work should be sent here."""
        if self.draining:
            return answer_json(request, {**_status(), "status": "draining"}, 503)
        return answer_json(request, _status())

    @rpc(app, "GET", "/", Nothing)
    async def status(self, _: Nothing) -> Mapping[str, Any]:
        """Say that the daemon is there, and that the secret is right."""
        return _status()

    # ---- volumes

    @rpc(app, "GET", "/volumes", Nothing)
    async def volumes(self, _: Nothing) -> Mapping[str, Any]:
        """Which volumes there are; without a look at any of them."""
        return {
            "volumes": [
                {
                    "name": volume.name,
                    "backend": volume.backend,
                    "path": volume.path,
                    "fsprefix": volume.fsprefix,
                    "capabilities": capabilities(volume),
                }
                for volume in self._volumes
            ]
        }

    @rpc(app, "GET", "/volume/hwinfo", OnVolume)
    async def hardware_info(self, params: OnVolume) -> Mapping[str, Any]:
        """How the storage system is."""
        return await self._volumes.get(params.volume).hardware_info()

    @rpc(app, "GET", "/volume/performance-metric", OnVolume)
    async def performance_metric(self, params: OnVolume) -> Mapping[str, Any]:
        """How busy the storage system is."""
        volume = _able(self._volumes.get(params.volume), IPerformanceMetric, "tell how busy it is")
        return {"metric": await volume.performance_metric()}

    @rpc(app, "GET", "/volume/quota", Quota)
    async def quota(self, params: Quota) -> Any:
        """The limit of a vfolder, or of the volume, as a bare number."""
        volume = self._volumes.get(params.volume)
        if params.vfid is None:
            return await _able(volume, IVolumeQuota, _LIMIT_VOLUME).get_volume_quota()
        return await _able(volume, IQuota, _LIMIT_FOLDER).get_quota(params.vfid)

    @rpc(app, "PATCH", "/volume/quota", NewQuota)
    async def set_quota(self, params: NewQuota) -> None:
        """Limit a vfolder, or the volume."""
        volume = self._volumes.get(params.volume)
        if params.vfid is None:
            await _able(volume, IVolumeQuota, _LIMIT_VOLUME).set_volume_quota(params.size_bytes)
        else:
            await _able(volume, IQuota, _LIMIT_FOLDER).set_quota(params.vfid, params.size_bytes)

    @rpc(app, "GET", "/folder/fs-usage", OnVolume)
    async def fs_usage(self, params: OnVolume) -> Mapping[str, Any]:
        """How large and how full the file system is."""
        capacity, used = await self._volumes.get(params.volume).fs_usage()
        return {"capacity_bytes": capacity, "used_bytes": used}

    # ---- vfolders

    @rpc(app, "POST", "/folder/create", Create)
    async def create(self, params: Create) -> None:
        """Make a vfolder."""
        if params.mode is not None and not 0 <= params.mode <= 0o777:
            raise InvalidParameters.of({"mode": "permissions from 0 to 0o777"})
        quota = params.options.quota if params.options is not None else None
        await self._volumes.get(params.volume).create_folder(params.vfid, params.mode, quota)

    @rpc(app, "POST", "/folder/delete", OnFolder)
    async def delete(self, params: OnFolder) -> Answer | None:
        """Delete a vfolder: it is gone at once, its contents follow in the background."""
        volume = self._volumes.get(params.volume)
        await volume.delete_folder(params.vfid)
        self._disposal.soon(volume)
        if self._delete_status == 410:
            raise VFolderGone(vfid=str(params.vfid))
        if self._delete_status == 202:
            return Answer({"bgtask_id": str(uuid4())}, 202)
        return None

    @rpc(app, "POST", "/folder/clone", Clone)
    async def clone(self, params: Clone) -> Mapping[str, Any]:
        """Copy a vfolder, to another volume also."""
        source = self._volumes.get(params.src_volume)
        target = self._volumes.get(params.dst_volume or params.src_volume)
        if target is source and params.src_vfid.layout == params.dst_vfid.layout:
            raise InvalidParameters.of({"dst_vfid": "is the source itself"})
        # It goes on when the manager's patience ends.
        await self._background.run(
            "A clone", self._clone(source, params.src_vfid, target, params.dst_vfid)
        )
        return {"bgtask_id": str(uuid4())}

    async def _clone(
        self, source: IVolume, vfid: VFolderID, target: IVolume, target_vfid: VFolderID
    ) -> None:
        try:
            await source.clone_folder(vfid, target, target_vfid)
        except BaseException:
            # What was copied is deleted, and takes up space for as long as it is in the trash.
            self._disposal.soon(target)
            raise

    @rpc(app, "GET", "/folder/mount", Mount)
    async def mount(self, params: Mount) -> Mapping[str, Any]:
        """Where a vfolder lies on the host: always its root, with a subpath also."""
        volume = self._volumes.get(params.volume)
        vfid = str(params.vfid)
        try:
            await volume.within(params.vfid, _check_subpath, params.subpath)
        except VFolderNotFound:
            raise MountRefused("VFolder not found", vfid=vfid) from None
        except (InvalidSubpath, NotADirectoryError):
            raise MountRefused(
                "Invalid vfolder subpath", vfid=vfid, subpath=params.subpath
            ) from None
        return {"path": posixpath.join(volume.path, *params.vfid.layout)}

    @rpc(app, "GET", "/folder/usage", OnFolder)
    async def usage(self, params: OnFolder) -> Mapping[str, Any]:
        """Files and bytes in a vfolder; -1 when there are too many to count."""
        try:
            found = await self._volumes.get(params.volume).usage(params.vfid)
        except TooSlow:
            return {"file_count": -1, "used_bytes": -1}
        return {"file_count": found.files, "used_bytes": found.used_bytes}

    @rpc(app, "GET", "/folder/used-bytes", OnFolder)
    async def used_bytes(self, params: OnFolder) -> Mapping[str, Any]:
        """Bytes in a vfolder."""
        return {"used_bytes": await self._volumes.get(params.volume).used_bytes(params.vfid)}

    @rpc(app, "GET", "/folder/metadata", OnFolder)
    async def metadata(self, params: OnFolder) -> Mapping[str, Any]:
        """What was kept with a vfolder."""
        payload = await self._within(params, files.read_metadata)
        return {"status": "ok", "payload": payload}

    @rpc(app, "POST", "/folder/metadata", Metadata, files.MAX_METADATA * 3 // 2)
    async def set_metadata(self, params: Metadata) -> Mapping[str, Any]:
        """Keep something with a vfolder."""
        try:
            payload = b64decode(params.payload, validate=True)
        except (binascii.Error, ValueError):
            raise InvalidParameters.of({"payload": "value is not base64"}) from None
        await self._within(params, files.write_metadata, payload)
        return {"status": "ok"}

    # ---- files

    @rpc(app, "POST", "/folder/file/mkdir", MakeDirectories)
    async def make_directories(self, params: MakeDirectories) -> Answer:
        """Make directories, and say of each what became of it."""
        if not 1 <= len(params.relpath) <= MAX_PATHS:
            raise InvalidParameters.of({"relpath": f"from 1 to {MAX_PATHS} paths"})
        volume = self._volumes.get(params.volume)
        success, errors = await volume.threads.run(_make_each, volume, params)
        failed = [{"msg": error.message, "item": path} for path, error in errors]
        results = {"success": [{"msg": None, "item": path} for path in success], "failed": failed}
        if not errors:
            return Answer({"results": results}, 200)
        message = "; ".join(f"{path}: {error.message}" for path, error in errors)
        for full in (QuotaExceeded, DiskFull):
            # Where there is no room for any of them it is no matter of the paths.
            if not success and all(isinstance(error, full) for _, error in errors):
                raise full(message, results=results)
        said = {"results": results, "msg": message, "error_code": "vfolder_create_failed"}
        return Answer(said, 207 if success else 422)

    @rpc(app, "POST", "/folder/file/list", OnPath)
    async def list_files(self, params: OnPath) -> bytes | Pieces:
        """One level of a directory."""
        volume = self._volumes.get(params.volume)
        host_path = posixpath.join(volume.path, *params.vfid.layout)
        pieces = files.listing(
            partial(volume.open_folder, params.vfid),
            volume.scan,
            host_path,
            params.relpath,
            self._scandir_limit,
        )
        head = await volume.threads.submit(
            lambda: list(islice(pieces, 2)), volume.threads.deadline, lambda _: pieces.close()
        )
        return head[0] if len(head) == 1 else Pieces(volume, b"".join(head), pieces)

    @rpc(app, "POST", "/folder/file/rename", Rename)
    async def rename(self, params: Rename) -> None:
        """Give a file or directory another name."""
        target = posixpath.join(posixpath.dirname(params.relpath), params.new_name)
        await self._within(params, files.rename, params.relpath, target)

    @rpc(app, "POST", "/folder/file/move", Move)
    async def move(self, params: Move) -> None:
        """Put a file or directory somewhere else in its vfolder."""
        await self._within(params, files.rename, params.src_relpath, params.dst_relpath)

    @rpc(app, "POST", "/folder/file/fetch", OnPath)
    async def fetch(self, params: OnPath) -> Stream:
        """The contents of a file."""
        volume = self._volumes.get(params.volume)

        def open_file() -> tuple[File, int]:
            with volume.open_folder(params.vfid) as folder:
                file = folder.open_file(params.relpath)
                return file, file.status().st_size

        try:
            file, size = await volume.threads.submit(
                open_file, volume.threads.deadline, lambda opened: opened[0].close()
            )
        except (FileNotFoundError, NotADirectoryError):
            raise FileNotFound(paths=[params.relpath]) from None
        return Stream(volume, file, size)

    @rpc(app, "POST", "/folder/file/download", OnPath)
    async def download(self, params: OnPath) -> Mapping[str, Any]:
        """A token for a download; nothing is looked at before it is used."""
        self._volumes.get(params.volume)
        token = self._key.download(self._clock(), params.volume, params.vfid, params.relpath)
        return {"token": token}

    @rpc(app, "POST", "/folder/file/upload", Upload)
    async def upload(self, params: Upload) -> Mapping[str, Any]:
        """Begin an upload session, and make a token for it."""
        volume = self._volumes.get(params.volume)
        if params.size < 0:
            raise InvalidParameters.of({"size": "a size cannot be negative"})
        if params.size > self._max_upload_size:
            raise UploadTooLarge(f"at most {self._max_upload_size} bytes are taken")
        session = await self._uploads.create(volume, params.vfid, params.relpath, params.size)
        token = self._key.upload(
            self._clock(), params.volume, params.vfid, params.relpath, params.size, session
        )
        return {"token": token}

    @rpc(app, "POST", "/folder/file/delete", Delete)
    async def delete_files(self, params: Delete) -> Mapping[str, Any]:
        """Delete files."""
        volume = self._volumes.get(params.volume)

        def delete(progress: Progress) -> None:
            with volume.changing(params.vfid) as folder:
                files.delete(
                    folder, params.volume, params.relpaths, params.recursive, progress.step
                )

        if params.recursive:
            await volume.threads.run_long(delete, f"deleting files of {params.vfid}")
        else:
            await volume.threads.run(delete, Progress())
        return {"status": "ok"}

    def _within(self, params: OnFolder, operation: Any, *args: Any) -> Deferred[Any]:
        volume = self._volumes.get(params.volume)
        return volume.within(params.vfid, operation, *args)


def _status() -> dict[str, Any]:
    return {
        "status": "ok",
        "type": "manager-facing",
        "storage-proxy": storageproxy.__version__,
    }


def _able(volume: IVolume, ability: Any, what: str) -> Any:
    if not ability.providedBy(volume):
        raise UnsupportedOperation(
            f"volume {volume.name}: the backend {volume.backend} cannot {what}"
        )
    return volume


def _check_subpath(folder: Directory, subpath: str) -> None:
    try:
        folder.status(relative_path(subpath), follow=True)
    except FileNotFoundError:
        # It may be made later on, as long as it does not lead out.
        if ".." in subpath.split("/"):
            raise InvalidSubpath(subpath=subpath) from None
    except ValueError:
        raise InvalidSubpath(subpath=subpath) from None


def _make_each(
    volume: IVolume, params: MakeDirectories
) -> tuple[list[str], list[tuple[str, StorageProxyError]]]:
    success: list[str] = []
    failed: list[tuple[str, StorageProxyError]] = []
    for path in params.relpath:
        try:
            with volume.changing(params.vfid) as folder:
                files.make_directory(folder, path, params.parents, params.exist_ok)
        except VFolderNotFound:
            raise
        except OSError as error:
            failed.append((path, from_os_error(error, volume.name)))
        except StorageProxyError as error:
            failed.append((path, error))
        else:
            success.append(path)
    return success, failed
