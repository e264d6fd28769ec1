"""
Upload sessions: what the requests of the client API do to them.

An offset that was told is on stable storage, and never shrinks.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar

from attrs import define, field, frozen
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from storageproxy import tus
from storageproxy.background import Background
from storageproxy.beneath import Directory, File, WritebackError
from storageproxy.errors import (
    ChecksumMismatch,
    NoSuchUpload,
    OffsetMismatch,
    ShuttingDown,
    UploadLocked,
    UploadTooLarge,
    VolumeUnavailable,
)
from storageproxy.interfaces import IThreads, IVolume
from storageproxy.transfer import staging
from storageproxy.transfer.locks import PATIENCE, Lease, SessionLocks
from storageproxy.transfer.request import StreamingRequest
from storageproxy.transfer.sink import FileSink, Outcome
from storageproxy.transfer.staging import Completed, Staged
from storageproxy.vfolder import VFolderID

T = TypeVar("T")

#: Seconds between two looks at a session that another process holds.
POLL = 0.1


class Interrupted(Exception):
    """The client is gone, or a newer request took over: there is nobody to answer."""


@frozen
class Session:
    """
    An upload session, as its token describes it.

    :param name: the name of its staging file.
    :param path: where the file has to go, relative to the vfolder.
    :param size: bytes that were announced.
    """

    volume: IVolume
    vfid: VFolderID
    name: str
    path: str
    size: int


@define(eq=False)
class Uploads:
    """
    All uploads of this process.

    :param reactor: for bounded waits.
    """

    reactor: IReactorTime
    _log: Logger = field(factory=lambda: Logger("storageproxy.uploads"))
    _locks: SessionLocks = field(init=False)
    _background: Background = field(factory=Background)
    _stopping: bool = False

    def __attrs_post_init__(self) -> None:
        self._locks = SessionLocks(self.reactor)

    async def create(self, volume: IVolume, vfid: VFolderID, path: str, size: int) -> str:
        """
        Begin a session. An empty file is made at once: clients send nothing for it.

        :return: the name of the session.
        """

        def make(folder: Directory) -> str:
            staging.check_target(folder, path)
            return staging.create(folder)

        name: str = await volume.within(vfid, make)
        if size == 0:
            session = Session(volume, vfid, name, path, size)
            try:
                await self.offset(session)
            except BaseException:
                # Nobody will ever know of this session.
                self._background.start("Ending a session", self._terminate(session))
                raise
        return name

    def offset(self, session: Session) -> Deferred[int]:
        """
        What a HEAD is told: the bytes of a session that are on stable storage.
        """
        return self._background.run("an upload", self._offset(session))

    def append(
        self, session: Session, patch: tus.Patch, request: StreamingRequest
    ) -> Deferred[int]:
        """
        Add a request's body to a session.

        Cancelling changes nothing: what has arrived is kept, whether or not the client still waits.

        :return: a Deferred with the new offset.
        :raises Interrupted: when there is nobody left to be told.
        """
        return self._background.run("an upload", self._append(session, patch, request))

    def terminate(self, session: Session) -> Deferred[None]:
        """
        End a session, and forget its bytes.

        :raises NoSuchUpload: also when it is complete: the file is not the session's any more.
        """
        return self._background.run("an upload", self._terminate(session))

    async def stop(self) -> None:
        """Let all uploads keep what they have, and end."""
        self._stopping = True
        self._locks.stop_all()
        await self._background.wait()

    async def _offset(self, session: Session) -> int:
        async with self._hold(session) as (staged, _):
            if staged is None:
                return session.size
            try:
                await self._sync(session, staged.file)
            except WritebackError:
                # Bytes that were told may be among those that are lost: nothing here can be
                # trusted any more.
                await self._discard(session, staged.file)
                raise
            return await self._conclude(session, staged.file, staged.offset)

    async def _append(self, session: Session, patch: tus.Patch, request: StreamingRequest) -> int:
        async with self._hold(session) as (staged, lease):
            offset = session.size if staged is None else staged.offset
            tus.check_append(patch, offset, session.size, request.body_length)
            if staged is None:
                if request.body_length is None:
                    raise OffsetMismatch("the upload is complete")
                return offset
            return await self._receive(session, patch, request, staged, lease)

    async def _receive(
        self,
        session: Session,
        patch: tus.Patch,
        request: StreamingRequest,
        staged: Staged,
        lease: Lease,
    ) -> int:
        announced = patch.checksum
        checksum = None
        if announced is not None:
            checksum = tus.CHECKSUMS[announced.algorithm]()
            await session.volume.within(
                session.vfid,
                staging.remember_fallback,
                session.name,
                staged.file,
                staged.offset,
            )
        if self._stopping:
            raise ShuttingDown()
        sink = FileSink(
            session.volume.threads,
            staged.file,
            staged.offset,
            session.size - staged.offset,
            checksum,
        )
        lease.on_stop(sink.stop)
        request.deliver_body(sink)
        try:
            outcome = await sink.done
            if announced is None:
                await self._sync(session, staged.file)
        except Exception as error:
            if announced is not None or isinstance(error, WritebackError):
                await self._keep(session, staged.file, staged.offset)
            raise
        if outcome is Outcome.OVERFLOW:
            # Nothing of it: had the file its full size, it would be taken for complete.
            await self._keep(session, staged.file, staged.offset)
            raise UploadTooLarge(f"more bytes than the {session.size} announced")
        if announced is not None and checksum is not None:
            verified = outcome is Outcome.COMPLETE and checksum.digest() == announced.digest
            await self._keep(session, staged.file, sink.offset if verified else staged.offset)
            if outcome is Outcome.COMPLETE and not verified:
                raise ChecksumMismatch(
                    f"the {announced.algorithm} of the bytes is not the one announced"
                )
        if outcome is Outcome.CUT:
            raise Interrupted(f"the client is gone, and {sink.offset} bytes are kept")
        return await self._conclude(session, staged.file, sink.offset)

    async def _conclude(self, session: Session, file: File, offset: int) -> int:
        if offset >= session.size:
            threads = session.volume.threads
            finish = partial(_in_folder, session, staging.finish, session.name, file, session.path)
            await threads.submit(finish, threads.slow_deadline, None)
            self._log.info(
                "Volume {volume}: a file of {size} bytes is uploaded to vfolder {vfid}.",
                volume=session.volume.name,
                vfid=str(session.vfid),
                size=session.size,
            )
        return min(offset, session.size)

    async def _terminate(self, session: Session) -> None:
        async with self._hold(session) as (staged, _):
            if staged is None:
                raise NoSuchUpload("the upload is complete, and its file stays")
            await self._discard(session, staged.file)

    async def _discard(self, session: Session, file: File) -> None:
        discard = partial(_in_folder, session, staging.discard, session.name, file)
        await session.volume.threads.run(discard)

    async def _keep(self, session: Session, file: File, size: int) -> None:
        await session.volume.within(session.vfid, staging.settle_checksum, session.name, file, size)

    async def _sync(self, session: Session, file: File) -> None:
        threads = session.volume.threads
        await threads.submit(file.sync_data, threads.slow_deadline, None)

    @asynccontextmanager
    async def _hold(self, session: Session) -> AsyncIterator[tuple[Staged | None, Lease]]:
        """
        Hold a session, against other requests and other processes; None stands for a complete one.
        """
        key = (session.volume.name, session.name)
        lease = await self._locks.acquire(key)
        try:
            staged = await self._open(session)
            try:
                yield staged, lease
            finally:
                if staged is not None:
                    await _close(session.volume.threads, staged.file)
        finally:
            self._locks.release(key)

    async def _open(self, session: Session) -> Staged | None:
        end = self.reactor.seconds() + PATIENCE
        while True:
            try:
                staged: Staged = await session.volume.threads.submit(
                    partial(_in_folder, session, staging.hold, session.name),
                    session.volume.threads.deadline,
                    lambda staged: staged.file.close(),
                )
                return staged
            except Completed:
                return None
            except staging.Busy:
                if self.reactor.seconds() >= end:
                    raise UploadLocked() from None
                await deferLater(self.reactor, POLL)


def _in_folder(session: Session, operation: Callable[..., T], *args: Any) -> T:
    """Call something with the open volume and the open vfolder. Blocks."""
    volume = session.volume
    with volume.open_root() as root, volume.open_folder(session.vfid) as folder:
        return operation(root, folder, *args)


async def _close(threads: IThreads, file: File) -> None:
    try:
        await threads.run(file.close)
    except VolumeUnavailable:
        threads.clean_up(file.close)
